//! Stops sending requests to a version that only fails, and tries again now and then. Pure but for the lock around it.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long it stays open the first time; twice as long each time that the trial fails.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// Once that time is over: one trial in so long, until one goes well or fails.
const TRIAL: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Closed { failures: u32 },
    Open { since: Instant, trial: Instant, pause: Duration },
}

/// The breaker of one version of a model.
#[derive(Debug)]
pub struct Breaker {
    state: Mutex<State>,
    most: u32,
}

impl Breaker {
    /// Opens after that many failures in a row, with nothing that went well in between. 0: only when it is tripped.
    pub fn new(failures: u32) -> Self {
        Self { state: Mutex::new(State::Closed { failures: 0 }), most: failures }
    }

    /// Lets a request through, or says after which time to try again.
    pub fn admit(&self, now: Instant) -> Result<(), Duration> {
        match &mut *self.state.lock() {
            State::Closed { .. } => Ok(()),
            State::Open { trial, .. } if *trial > now => Err(*trial - now),
            State::Open { trial, .. } => {
                *trial = now + TRIAL;
                Ok(())
            }
        }
    }

    /// A pass that began at `began` went well: all is well, unless it has opened since (that pass may be why).
    pub fn succeeded(&self, began: Instant) {
        let mut state = self.state.lock();
        match *state {
            State::Closed { failures: 0 } => {}
            State::Open { since, .. } if since > began => {}
            _ => *state = State::Closed { failures: 0 },
        }
    }

    /// A request failed.
    pub fn failed(&self, now: Instant) {
        let mut state = self.state.lock();
        *state = match *state {
            State::Closed { failures } if self.most == 0 || failures + 1 < self.most => {
                State::Closed { failures: failures.saturating_add(1) }
            }
            State::Closed { .. } => State::Open { since: now, trial: now + FIRST, pause: FIRST },
            // What was let in before it opened may fail still.
            open @ State::Open { trial, .. } if now + TRIAL < trial => open,
            State::Open { pause, .. } => {
                let pause = (pause * 2).min(LONGEST);
                State::Open { since: now, trial: now + pause, pause }
            }
        };
    }

    /// Opens it at once: the version does worse than fail.
    pub fn trip(&self, now: Instant) {
        *self.state.lock() = State::Open { since: now, trial: now + LONGEST, pause: LONGEST };
    }

    /// Whether it has opened since `then`: what was let in before need not be run any more.
    pub fn opened_after(&self, then: Instant) -> bool {
        matches!(*self.state.lock(), State::Open { since, .. } if since > then)
    }

    /// Whether requests are refused.
    pub fn is_open(&self) -> bool {
        matches!(*self.state.lock(), State::Open { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILURES: u32 = 10;

    fn after(now: Instant, ms: u64) -> Instant {
        now + Duration::from_millis(ms)
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_success_closes_it() {
        let (breaker, now) = (Breaker::new(FAILURES), Instant::now());
        (0..FAILURES - 1).for_each(|_| breaker.failed(now));
        breaker.succeeded(now);
        (0..FAILURES - 1).for_each(|_| breaker.failed(now));
        assert!(breaker.admit(now).is_ok() && !breaker.is_open());
        breaker.failed(now);
        assert_eq!(breaker.admit(after(now, 400)), Err(Duration::from_millis(600)));
        assert!(breaker.opened_after(now - Duration::from_millis(1)) && !breaker.opened_after(now));
        // Those that were let in before.
        (0..50).for_each(|_| breaker.failed(after(now, 10)));
        assert_eq!(breaker.admit(after(now, 400)), Err(Duration::from_millis(600)));
        // One trial at a time.
        assert!(breaker.admit(after(now, 1000)).is_ok());
        assert!(breaker.admit(after(now, 1001)).is_err());
        breaker.succeeded(now - Duration::from_millis(1));
        assert!(breaker.is_open(), "it began before");
        breaker.succeeded(after(now, 1000));
        assert!(breaker.admit(after(now, 1001)).is_ok() && !breaker.is_open());
    }

    #[test]
    fn it_stays_open_longer_each_time_a_trial_fails() {
        let (breaker, mut now) = (Breaker::new(FAILURES), Instant::now());
        (0..FAILURES).for_each(|_| breaker.failed(now));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let pause = breaker.admit(now).unwrap_err();
            now += pause;
            breaker.admit(now).unwrap();
            breaker.failed(now);
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
        let never = Breaker::new(0);
        (0..100).for_each(|_| never.failed(now));
        assert!(never.admit(now).is_ok());
        let tripped = Breaker::new(FAILURES);
        tripped.trip(now);
        assert_eq!(tripped.admit(now), Err(LONGEST));
    }
}
