//! Whether and when a call is tried again. Pure: no clock and no randomness of its own.
//!
//! What is tried again is what trying again can help: a server that refused for now, a connection that was gone. Three
//! things bound it: the number of tries of a call, its deadline, and a budget that all calls of a client share, so that
//! a fleet in trouble is not sent more than a tenth on top of what it cannot take already.

use std::time::Duration;

/// A server's wish to be left alone for so long is stretched by up to this part: else all that it refused come back at
/// once.
const STRETCH: f64 = 0.2;

/// Parts of a token: fractions are added up exactly.
const TOKEN: u64 = 1_000_000;

/// How a client tries again.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Most tries of one call, the first one included. Default: 4. 1: nothing is tried again.
    pub tries: u32,
    /// How long a call waits before it is tried again, where the server does not say. Default: 50 ms, up to 2 s.
    pub backoff: Backoff,
    /// Repetitions for each call that is answered well, from 0 to 1. Default: 0.1, a tenth on top.
    pub budget: f64,
    /// Repetitions that may be saved up, and that may go out before any call was answered well. Default: 10.
    pub burst: u32,
    /// Whether an inference is sent again when its connection ended before the answer was there. It may run twice, so
    /// this is not for models that keep state. Default: true.
    pub replay: bool,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        let backoff = Backoff { first: Duration::from_millis(50), longest: Duration::from_secs(2) };
        Self { tries: 4, backoff, budget: 0.1, burst: 10, replay: true }
    }
}

impl RetryPolicy {
    /// Every call is tried once.
    pub fn never() -> Self {
        Self { tries: 1, ..Self::default() }
    }

    /// How long to wait before the next try, after `tries` of them of which the last one failed with `failure`. `None`:
    /// there is no next one.
    ///
    /// `left` is the time until the deadline, `random` is from 0 to 1. A wait that would last until the deadline is
    /// none: the caller learns at once why.
    pub(super) fn next(
        &self,
        budget: &mut Budget,
        failure: Failure,
        tries: u32,
        left: Option<Duration>,
        random: f64,
    ) -> Option<Duration> {
        if tries >= self.tries {
            return None;
        }
        let wait = match failure {
            Failure::Final => return None,
            Failure::NotSent => Duration::ZERO,
            Failure::Refused(Some(after)) => after.saturating_add(part(after, STRETCH * random)),
            Failure::Nobody | Failure::Refused(None) | Failure::Broken => self.backoff.wait(tries, random),
        };
        if left.is_some_and(|left| wait >= left) {
            return None;
        }
        // What reached no server was no load for one.
        let was_load = matches!(failure, Failure::Refused(_) | Failure::Broken);
        (!was_load || budget.take()).then_some(wait)
    }
}

/// How a try failed, as far as trying again goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// The connection turned out to be at its end before anything went out. Another one is there at once.
    NotSent,
    /// No server could be reached.
    Nobody,
    /// A server refused, and may say when to come back.
    Refused(Option<Duration>),
    /// The connection ended under the call, which may be sent again.
    Broken,
    /// Trying again does not help.
    Final,
}

/// Waits that double, each cut at random by up to a half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Before the first repetition.
    pub first: Duration,
    /// Never longer.
    pub longest: Duration,
}

impl Backoff {
    /// The wait after that many failures in a row (at least 1); `random` is from 0 to 1.
    pub(super) fn wait(&self, failures: u32, random: f64) -> Duration {
        let doubled = 2_u32.saturating_pow(failures.saturating_sub(1));
        let whole = self.first.saturating_mul(doubled).min(self.longest);
        whole.saturating_sub(part(whole, random / 2.0))
    }
}

/// `part` of a duration, from 0 to 1 of it.
fn part(of: Duration, part: f64) -> Duration {
    // Fails for times that floating-point numbers round beyond all bounds.
    Duration::try_from_secs_f64(of.as_secs_f64() * part.clamp(0.0, 1.0)).unwrap_or(of)
}

/// What repetitions are paid from, as in gRPC's retry throttling: calls that are answered well fill it by a fraction each,
/// a repetition takes one. So repetitions are never more than `burst` and that fraction of the good answers together;
/// when nothing is answered well they end.
#[derive(Debug, Clone)]
pub(super) struct Budget {
    tokens: u64,
    each: u64,
    most: u64,
}

impl Budget {
    pub(super) fn new(policy: &RetryPolicy) -> Self {
        let most = u64::from(policy.burst) * TOKEN;
        // The cast makes nothing of NaN.
        Self { tokens: most, each: (policy.budget.clamp(0.0, 1.0) * TOKEN as f64) as u64, most }
    }

    /// A call was answered well.
    pub(super) fn answered(&mut self) {
        self.tokens = self.tokens.saturating_add(self.each).min(self.most);
    }

    fn take(&mut self) -> bool {
        let left = self.tokens.checked_sub(TOKEN);
        self.tokens = left.unwrap_or(self.tokens);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn next(failure: Failure, tries: u32, left: Option<Duration>, random: f64) -> Option<Duration> {
        let policy = RetryPolicy::default();
        policy.next(&mut Budget::new(&policy), failure, tries, left, random)
    }

    #[test]
    fn waits_double_and_are_cut_by_up_to_a_half() {
        let backoff = Backoff { first: 50 * MS, longest: 300 * MS };
        let whole: Vec<_> = (1..6).map(|failures| backoff.wait(failures, 0.0)).collect();
        assert_eq!(whole, [50 * MS, 100 * MS, 200 * MS, 300 * MS, 300 * MS]);
        assert_eq!(backoff.wait(2, 1.0), 50 * MS);
        assert_eq!(backoff.wait(u32::MAX, 0.5), 225 * MS);
        let endless = Backoff { first: Duration::MAX, longest: Duration::MAX };
        assert!(endless.wait(9, 1.0) <= Duration::MAX / 2 + Duration::from_secs(4096));
    }

    #[test]
    fn what_helps_is_tried_again() {
        assert_eq!(next(Failure::Final, 1, None, 0.0), None);
        assert_eq!(next(Failure::NotSent, 1, None, 0.9), Some(Duration::ZERO));
        assert_eq!(next(Failure::Nobody, 2, None, 0.0), Some(100 * MS));
        assert_eq!(next(Failure::Refused(None), 1, None, 0.0), Some(50 * MS));
        assert_eq!(next(Failure::Broken, 1, None, 0.0), Some(50 * MS));
        assert_eq!(next(Failure::Broken, 4, None, 0.0), None, "four tries are all");
    }

    #[test]
    fn a_server_is_left_alone_for_as_long_as_it_asks() {
        let wait = |random| next(Failure::Refused(Some(1000 * MS)), 1, None, random);
        assert_eq!((wait(0.0), wait(1.0)), (Some(1000 * MS), Some(1200 * MS)));
    }

    #[test]
    fn nothing_waits_for_its_deadline() {
        let refused = Failure::Refused(Some(30 * MS));
        assert_eq!(next(refused, 1, Some(31 * MS), 0.0), Some(30 * MS));
        assert_eq!(next(refused, 1, Some(30 * MS), 0.0), None);
        assert_eq!(next(Failure::NotSent, 1, Some(Duration::ZERO), 0.0), None);
    }

    #[test]
    fn the_budget_ends_and_comes_back_with_good_answers() {
        let policy = RetryPolicy { tries: u32::MAX, burst: 2, ..RetryPolicy::default() };
        let mut budget = Budget::new(&policy);
        let again = |budget: &mut Budget, failure| policy.next(budget, failure, 1, None, 0.0).is_some();
        let refused = Failure::Refused(None);
        assert_eq!([(); 3].map(|()| again(&mut budget, refused)), [true, true, false]);
        assert!(again(&mut budget, Failure::NotSent), "what reached no server costs nothing");
        (0..10).for_each(|_| budget.answered());
        assert_eq!([(); 2].map(|()| again(&mut budget, refused)), [true, false]);
    }

    fn failures() -> impl Strategy<Value = Failure> {
        prop_oneof![
            Just(Failure::NotSent),
            Just(Failure::Nobody),
            Just(Failure::Broken),
            Just(Failure::Final),
            prop::option::of(0_u64..5000)
                .prop_map(|after| Failure::Refused(after.map(Duration::from_millis))),
        ]
    }

    proptest! {
        /// Whatever comes, in whatever order: each bound holds.
        #[test]
        fn every_bound_holds(
            calls in prop::collection::vec(
                (prop::collection::vec((failures(), 0.0..1.0_f64), 0..8), prop::option::of(0_u64..3000)),
                1..60,
            ),
            tries in 1..6_u32,
            burst in 0..4_u32,
            ratio in 0.0..0.5_f64,
        ) {
            let policy = RetryPolicy { tries, burst, budget: ratio, ..RetryPolicy::default() };
            let mut budget = Budget::new(&policy);
            let (mut load, mut answered) = (0_u32, 0_u32);
            for (failed, deadline) in calls {
                let mut left = deadline.map(Duration::from_millis);
                let mut tried = 1;
                let mut is_answered = true;
                for (failure, random) in failed {
                    let Some(wait) = policy.next(&mut budget, failure, tried, left, random) else {
                        is_answered = false;
                        break;
                    };
                    prop_assert!(failure != Failure::Final);
                    prop_assert!(left.is_none_or(|left| wait < left), "a try after the deadline");
                    match failure {
                        Failure::Refused(Some(after)) => {
                            prop_assert!((after..=after.mul_f64(1.0 + STRETCH) + MS).contains(&wait));
                        }
                        _ => prop_assert!(wait <= policy.backoff.longest),
                    }
                    load += u32::from(matches!(failure, Failure::Refused(_) | Failure::Broken));
                    left = left.map(|left| left - wait);
                    tried += 1;
                    prop_assert!(tried <= tries, "more tries than allowed");
                }
                if is_answered {
                    budget.answered();
                    answered += 1;
                }
                prop_assert!(f64::from(load) <= f64::from(burst) + ratio * f64::from(answered) + 1e-9);
            }
        }
    }
}
