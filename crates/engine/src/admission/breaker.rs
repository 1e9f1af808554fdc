//! Stops sending requests to a version that only fails, and tries again now and then. Pure but for the lock around it.
//!
//! What one caller sends takes no version from others: before it opens, whoever counts the failures tries what went well before.
//! Where nothing ever did, only requests like those that failed are refused.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use torchlane_model::{NamedTensor, TenantId};

/// How long it stays open the first time; twice as long each time that the trial fails.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);
/// Once that time is over: at most one trial in so long, until one goes well or fails.
const TRIAL: Duration = Duration::from_millis(100);

/// Who asked for what: a caller, and the datatypes and shapes that it sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    tenant: TenantId,
    shapes: u64,
}

impl Scope {
    /// Of a request.
    pub fn of(tenant: TenantId, inputs: &[NamedTensor]) -> Self {
        let mut hasher = DefaultHasher::new();
        for NamedTensor { name, tensor } in inputs {
            (name, tensor.dtype() as u8, tensor.shape()).hash(&mut hasher);
        }
        Self { tenant, shapes: hasher.finish() }
    }
}

/// What is to be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// It is counted.
    Nothing,
    /// Find out whether it is the version that fails, or what callers send, and say so by [`Breaker::open`],
    /// [`Breaker::open_for`] or [`Breaker::succeeded`].
    Probe {
        /// Callers that have failed with nothing that went well in between: one, or two for more than one.
        callers: u8,
    },
}

/// So many scopes are refused; the oldest makes room.
const SCOPES: usize = 16;

#[derive(Debug, Clone, PartialEq)]
enum State {
    Closed {
        failures: u32,
        /// Of the first failure, and whether others have failed since.
        first: Option<TenantId>,
        others: bool,
    },
    Open {
        since: Instant,
        trial: Instant,
        pause: Duration,
        /// Only requests like these are refused. `None`: all.
        only: Option<Vec<Scope>>,
    },
}

const CLOSED: State = State::Closed { failures: 0, first: None, others: false };

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
        let inner = Inner { state: CLOSED, trials: 0, stuck: 0 };
        Arc::new(Self { inner: Mutex::new(inner), most: failures })
    }

    /// Lets a request through, as a trial where it is open, or says after which time to try again.
    ///
    /// # Errors
    /// It is open for such requests, and this is not the time for a trial.
    pub fn admit(
        self: &Arc<Self>,
        now: Instant,
        scope: impl FnOnce() -> Scope,
    ) -> Result<Option<Trial>, Duration> {
        let mut inner = self.inner.lock();
        let busy = inner.trials > 0 || inner.stuck > 0;
        match &mut inner.state {
            State::Closed { .. } => Ok(None),
            State::Open { only: Some(only), .. } if !only.contains(&scope()) => Ok(None),
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
            State::Closed { failures: 0, .. } => {}
            State::Open { since, .. } if since > began => {}
            _ => inner.state = CLOSED,
        }
    }

    /// A pass for one request failed.
    #[must_use]
    pub fn failed(&self, now: Instant, scope: &Scope) -> Asked {
        let mut inner = self.inner.lock();
        let ask = match &mut inner.state {
            State::Closed { failures, first, others } => {
                *failures = failures.saturating_add(1);
                *others |= *first.get_or_insert(scope.tenant) != scope.tenant;
                (self.most > 0 && *failures >= self.most).then_some(if *others { 2 } else { 1 })
            }
            State::Open { only: Some(only), .. } if !only.contains(scope) => Some(2),
            // What was let in before it opened may fail still.
            State::Open { trial, .. } => (now + TRIAL >= *trial).then_some(2),
        };
        ask.map_or(Asked::Nothing, |callers| Asked::Probe { callers })
    }

    /// The version fails whatever it is given: it opens, or stays open for twice as long.
    pub fn open(&self, now: Instant) {
        self.inner.lock().state.open(now, None);
    }

    /// The same, where it is not known whether another request would fail too: only requests like this one are refused.
    pub fn open_for(&self, now: Instant, scope: Scope) {
        self.inner.lock().state.open(now, Some(scope));
    }

    /// Opens it at once: a pass of the version is stuck. There are no trials before [`Breaker::freed`].
    pub fn trip(&self, now: Instant) {
        let mut inner = self.inner.lock();
        inner.state = State::Open { since: now, trial: now + LONGEST, pause: LONGEST, only: None };
        inner.stuck += 1;
    }

    /// A pass that was stuck has ended after all.
    pub fn freed(&self) {
        let mut inner = self.inner.lock();
        inner.stuck = inner.stuck.saturating_sub(1);
    }

    /// Whether it has opened for such requests since `then`: what was let in before need not be run any more.
    pub fn opened_after(&self, then: Instant, scope: impl FnOnce() -> Scope) -> bool {
        match &self.inner.lock().state {
            State::Open { since, only, .. } if *since > then => {
                only.as_ref().is_none_or(|only| only.contains(&scope()))
            }
            _ => false,
        }
    }

    /// Whether all requests are refused.
    pub fn is_open(&self) -> bool {
        matches!(self.inner.lock().state, State::Open { only: None, .. })
    }
}

impl State {
    fn open(&mut self, now: Instant, scope: Option<Scope>) {
        match (self, scope) {
            (Self::Open { only: Some(only), .. }, Some(scope)) if !only.contains(&scope) => {
                if only.len() >= SCOPES {
                    only.remove(0);
                }
                only.push(scope);
            }
            (Self::Open { since, trial, pause, only }, scope) => {
                if now + TRIAL >= *trial {
                    *pause = (*pause * 2).min(LONGEST);
                    (*since, *trial) = (now, now + *pause);
                }
                if scope.is_none() {
                    *only = None;
                }
            }
            (state, scope) => {
                let only = scope.map(|scope| vec![scope]);
                *state = Self::Open { since: now, trial: now + FIRST, pause: FIRST, only };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 10;

    fn after(now: Instant, ms: u64) -> Instant {
        now + Duration::from_millis(ms)
    }

    fn scope(tenant: u32, shapes: u64) -> Scope {
        Scope { tenant: TenantId(tenant), shapes }
    }

    fn any() -> Scope {
        scope(0, 0)
    }

    /// As a pass that fails whatever it is given.
    fn fail(breaker: &Breaker, now: Instant) {
        if breaker.failed(now, &any()) != Asked::Nothing {
            breaker.open(now);
        }
    }

    #[test]
    fn failures_in_a_row_open_it_and_one_success_closes_it() {
        let (breaker, now) = (Breaker::new(MOST), Instant::now());
        (0..MOST - 1).for_each(|_| fail(&breaker, now));
        breaker.succeeded(now);
        (0..MOST - 1).for_each(|_| fail(&breaker, now));
        assert!(breaker.admit(now, any).is_ok() && !breaker.is_open());
        fail(&breaker, now);
        assert_eq!(breaker.admit(after(now, 400), any).unwrap_err(), Duration::from_millis(600));
        assert!(breaker.opened_after(now - Duration::from_millis(1), any) && !breaker.opened_after(now, any));
        // Those that were let in before.
        (0..50).for_each(|_| fail(&breaker, after(now, 10)));
        assert_eq!(breaker.admit(after(now, 400), any).unwrap_err(), Duration::from_millis(600));
        // One trial at a time, however long it takes.
        let trial = breaker.admit(after(now, 1000), any).unwrap();
        assert!(trial.is_some());
        assert!(
            breaker.admit(after(now, 1001), any).is_err() && breaker.admit(after(now, 60_000), any).is_err()
        );
        drop(trial);
        assert!(breaker.admit(after(now, 1100), any).is_ok());
        breaker.succeeded(now - Duration::from_millis(1));
        assert!(breaker.is_open(), "it began before");
        breaker.succeeded(after(now, 1000));
        assert!(breaker.admit(after(now, 1101), any).unwrap().is_none() && !breaker.is_open());
    }

    #[test]
    fn it_stays_open_longer_each_time_a_trial_fails() {
        let (breaker, mut now) = (Breaker::new(MOST), Instant::now());
        (0..MOST).for_each(|_| fail(&breaker, now));
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let pause = breaker.admit(now, any).unwrap_err();
            now += pause;
            let trial = breaker.admit(now, any).unwrap();
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
            if breaker.failed(now, &any()) != Asked::Nothing {
                breaker.succeeded(now);
            }
        }
        assert!(!breaker.is_open());
        let never = Breaker::new(0);
        assert!((0..100).all(|_| never.failed(now, &any()) == Asked::Nothing));
    }

    #[test]
    fn callers_are_told_apart() {
        let (breaker, now) = (Breaker::new(3), Instant::now());
        let asked = |tenants: &[u32]| {
            breaker.succeeded(now);
            tenants.iter().fold(Asked::Nothing, |_, tenant| breaker.failed(now, &scope(*tenant, 0)))
        };
        assert_eq!(asked(&[1, 1, 1]), Asked::Probe { callers: 1 });
        assert_eq!(asked(&[1, 2, 1]), Asked::Probe { callers: 2 });
        assert_eq!(asked(&[1, 2]), Asked::Nothing);
    }

    #[test]
    fn where_nothing_ever_went_well_only_requests_like_those_that_failed_are_refused() {
        let (breaker, now) = (Breaker::new(MOST), Instant::now());
        let (bad, other) = (scope(1, 5), scope(1, 4));
        breaker.open_for(now, bad);
        assert!(!breaker.is_open() && breaker.admit(after(now, 1), || bad).is_err());
        assert!(breaker.admit(after(now, 1), || other).unwrap().is_none());
        assert!(breaker.opened_after(after(now, 0) - Duration::from_millis(1), || bad));
        assert!(!breaker.opened_after(after(now, 0) - Duration::from_millis(1), || other));
        // Another kind fails too: both are refused, and the first as long as before.
        assert_ne!(breaker.failed(after(now, 2), &other), Asked::Nothing);
        breaker.open_for(after(now, 2), other);
        assert!(breaker.admit(after(now, 3), || other).is_err());
        assert_eq!(breaker.admit(after(now, 400), || bad).unwrap_err(), Duration::from_millis(600));
        for shapes in 10..10 + SCOPES as u64 {
            breaker.open_for(after(now, 4), scope(1, shapes));
        }
        assert!(breaker.admit(after(now, 5), || bad).is_ok(), "the oldest made room");
        breaker.open(after(now, 6));
        assert!(breaker.is_open() && breaker.admit(after(now, 7), || bad).is_err(), "all");
        breaker.succeeded(after(now, 8));
        assert!(!breaker.is_open());
    }

    #[test]
    fn a_stuck_pass_opens_it_until_it_has_ended() {
        let (breaker, now) = (Breaker::new(0), Instant::now());
        breaker.trip(now);
        assert_eq!(breaker.admit(now, any).unwrap_err(), LONGEST);
        assert!(breaker.admit(now + 2 * LONGEST, any).is_err());
        breaker.freed();
        assert!(breaker.admit(now + 2 * LONGEST, any).unwrap().is_some());
    }
}
