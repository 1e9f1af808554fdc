//! Stops sending requests to a version that only fails, and tries again now and then. Pure but for the lock around it.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// How long it stays open the first time; twice as long each time that the trial fails.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// Once that time is over: at most one trial in so long, until one goes well or fails.
const TRIAL: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    Closed { failures: u32 },
    Open { since: Instant, trial: Instant, pause: Duration },
}

#[derive(Debug)]
struct Inner {
    state: State,
    /// Trials that have not ended.
    trials: u32,
    /// Passes that were given up and have not ended.
    stuck: u32,
}

/// The breaker of one version of a model.
#[derive(Debug)]
pub struct Breaker {
    inner: Mutex<Inner>,
    most: u32,
}

/// A request that is let through to see whether the version works again. There is no other until it is dropped: a version
/// that gets stuck must not hold one executor after the other.
#[derive(Debug)]
pub struct Trial(Arc<Breaker>);

impl Drop for Trial {
    fn drop(&mut self) {
        self.0.inner.lock().trials -= 1;
    }
}

impl Breaker {
    /// Opens after that many failures in a row, with nothing that went well in between. 0: only when it is tripped.
    pub fn new(failures: u32) -> Arc<Self> {
        let inner = Inner { state: State::Closed { failures: 0 }, trials: 0, stuck: 0 };
        Arc::new(Self { inner: Mutex::new(inner), most: failures })
    }

    /// Lets a request through, as a trial where it is open, or says after which time to try again.
    ///
    /// # Errors
    /// It is open, and this is not the time for a trial.
    pub fn admit(self: &Arc<Self>, now: Instant) -> Result<Option<Trial>, Duration> {
        let mut inner = self.inner.lock();
        let busy = inner.trials > 0 || inner.stuck > 0;
        match &mut inner.state {
            State::Closed { .. } => Ok(None),
            State::Open { trial, .. } if *trial > now => Err(*trial - now),
            State::Open { .. } if busy => Err(FIRST),
            State::Open { trial, .. } => {
                *trial = now + TRIAL;
                inner.trials += 1;
                Ok(Some(Trial(self.clone())))
            }
        }
    }

    /// A pass that began at `began` went well: all is well, unless it has opened since (that pass may be why).
    pub fn succeeded(&self, began: Instant) {
        let mut inner = self.inner.lock();
        match inner.state {
            State::Closed { failures: 0 } => {}
            State::Open { since, .. } if since > began => {}
            _ => inner.state = State::Closed { failures: 0 },
        }
    }

    /// A pass failed. True: once too often, and whoever calls should find out whether it is the version that fails, or what
    /// callers send, and say so by [`Breaker::open`] or [`Breaker::succeeded`].
    #[must_use]
    pub fn failed(&self, now: Instant) -> bool {
        let mut inner = self.inner.lock();
        match &mut inner.state {
            State::Closed { failures } => {
                *failures = failures.saturating_add(1);
                self.most > 0 && *failures >= self.most
            }
            // What was let in before it opened may fail still.
            State::Open { trial, .. } => now + TRIAL >= *trial,
        }
    }

    /// The version fails whatever it is given: it opens, or stays open for twice as long.
    pub fn open(&self, now: Instant) {
        let mut inner = self.inner.lock();
        let pause = match inner.state {
            State::Closed { .. } => FIRST,
            State::Open { trial, .. } if now + TRIAL < trial => return,
            State::Open { pause, .. } => (pause * 2).min(LONGEST),
        };
        inner.state = State::Open { since: now, trial: now + pause, pause };
    }

    /// Opens it at once: a pass of the version is stuck. There are no trials before [`Breaker::freed`].
    pub fn trip(&self, now: Instant) {
        let mut inner = self.inner.lock();
        inner.state = State::Open { since: now, trial: now + LONGEST, pause: LONGEST };
        inner.stuck += 1;
    }

    /// A pass that was stuck has ended after all.
    pub fn freed(&self) {
        let mut inner = self.inner.lock();
        inner.stuck = inner.stuck.saturating_sub(1);
    }

    /// Whether it has opened since `then`: what was let in before need not be run any more.
    pub fn opened_after(&self, then: Instant) -> bool {
        matches!(self.inner.lock().state, State::Open { since, .. } if since > then)
    }

    /// Whether requests are refused.
    pub fn is_open(&self) -> bool {
        matches!(self.inner.lock().state, State::Open { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 10;

    fn after(now: Instant, ms: u64) -> Instant {
        now + Duration::from_millis(ms)
    }

    /// As a pass that fails whatever it is given.
    fn fail(breaker: &Breaker, now: Instant) {
        if breaker.failed(now) {
            breaker.open(now);
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_success_closes_it() {
        let (breaker, now) = (Breaker::new(MOST), Instant::now());
        (0..MOST - 1).for_each(|_| fail(&breaker, now));
        breaker.succeeded(now);
        (0..MOST - 1).for_each(|_| fail(&breaker, now));
        assert!(breaker.admit(now).is_ok() && !breaker.is_open());
        fail(&breaker, now);
        assert_eq!(breaker.admit(after(now, 400)).unwrap_err(), Duration::from_millis(600));
        assert!(breaker.opened_after(now - Duration::from_millis(1)) && !breaker.opened_after(now));
        // Those that were let in before.
        (0..50).for_each(|_| fail(&breaker, after(now, 10)));
        assert_eq!(breaker.admit(after(now, 400)).unwrap_err(), Duration::from_millis(600));
        // One trial at a time, however long it takes.
        let trial = breaker.admit(after(now, 1000)).unwrap();
        assert!(trial.is_some());
        assert!(breaker.admit(after(now, 1001)).is_err() && breaker.admit(after(now, 60_000)).is_err());
        drop(trial);
        assert!(breaker.admit(after(now, 1100)).is_ok());
        breaker.succeeded(now - Duration::from_millis(1));
        assert!(breaker.is_open(), "it began before");
        breaker.succeeded(after(now, 1000));
        assert!(breaker.admit(after(now, 1101)).unwrap().is_none() && !breaker.is_open());
    }

    #[test]
    fn it_stays_open_longer_each_time_a_trial_fails() {
        let (breaker, mut now) = (Breaker::new(MOST), Instant::now());
        (0..MOST).for_each(|_| fail(&breaker, now));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let pause = breaker.admit(now).unwrap_err();
            now += pause;
            let trial = breaker.admit(now).unwrap();
            fail(&breaker, now);
            drop(trial);
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn what_callers_send_does_not_open_it() {
        let (breaker, now) = (Breaker::new(MOST), Instant::now());
        for _ in 0..100 {
            if breaker.failed(now) {
                breaker.succeeded(now);
            }
        }
        assert!(!breaker.is_open());
        let never = Breaker::new(0);
        assert!((0..100).all(|_| !never.failed(now)));
    }

    #[test]
    fn a_stuck_pass_opens_it_until_it_has_ended() {
        let (breaker, now) = (Breaker::new(0), Instant::now());
        breaker.trip(now);
        assert_eq!(breaker.admit(now).unwrap_err(), LONGEST);
        assert!(breaker.admit(now + 2 * LONGEST).is_err());
        breaker.freed();
        assert!(breaker.admit(now + 2 * LONGEST).unwrap().is_some());
    }
}
