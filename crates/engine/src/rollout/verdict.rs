//! What the counts say: go on, take the next step, promote, or roll back. Pure.

use std::time::Duration;

use torchlane_model::{RolloutPlan, Strategy};

use super::{BAR, Callers, SUSPICIOUS, Seen, Trials};

/// So many hits are needed to roll a version back, whatever the evidence says of fewer.
const LEAST_HITS: u64 = 3;
/// So many comparisons are needed to promote a version whose outputs have a bound.
const LEAST_COMPARED: u64 = 20;

/// One of the tests.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// `errors`, `latency`, `tail` or `outputs`.
    pub name: &'static str,
    /// What was counted.
    pub trials: Trials,
    /// Part that may hit.
    pub bound: f64,
    /// Logarithm of the evidence that more do; [`BAR`] is enough.
    pub log_evidence: f64,
    /// In words.
    pub text: String,
}

impl Check {
    fn fails(&self) -> bool {
        self.log_evidence >= BAR && self.trials.hits >= LEAST_HITS
    }
}

/// How long and how much, as far as the step that is under way goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clock {
    /// The step, from 0.
    pub step: usize,
    /// Since it began.
    pub since: Duration,
    /// Requests of the new version since then.
    pub requests: u64,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Nothing yet, and why.
    Wait(String),
    /// More callers may see it.
    Step,
    /// It may go live.
    Promote,
    /// It is bad, and why.
    RollBack(String),
}

/// The live version's part of requests that failed or were late, and two standard errors of it: it has that much on top of its
/// bound. Where nothing went wrong that is nothing.
fn usual(seen: &Seen) -> f64 {
    let requests = seen.live.requests() as f64;
    let rate = seen.live.error_rate();
    if requests == 0.0 { 0.0 } else { rate + 2.0 * (rate * (1.0 - rate) / requests).sqrt() }
}

/// All tests of what is seen.
pub fn checks(plan: &RolloutPlan, seen: &Seen) -> [Check; 4] {
    let errors = (plan.max_errors + usual(seen)).min(0.95);
    let ratio = plan.max_latency_ratio;
    let check = |name, sequence: super::Sequence, bound: f64, what: &str| {
        let trials = sequence.trials();
        let Trials { hits, of } = trials;
        let text = format!("{hits} of {of} {what}; {} is allowed", percent(bound));
        Check { name, trials, bound, log_evidence: sequence.log_evidence(bound), text }
    };
    [
        check("errors", seen.errors, errors, "requests failed or were late"),
        check(
            "latency",
            seen.median,
            0.5,
            &format!("passes took over {ratio} times the live version's median"),
        ),
        check(
            "tail",
            seen.tail,
            0.1,
            &format!("passes took over {ratio} times the live version's 90th percentile"),
        ),
        check("outputs", seen.drift, plan.max_drift, "compared answers are too far apart"),
    ]
}

/// Why requests of the new version may be long in coming. Empty: they come.
fn who_comes(plan: &RolloutPlan, seen: &Seen) -> String {
    let Callers { keys, in_share, without_key } = seen.callers;
    let key = if keys == 1 { "key" } else { "keys" };
    match plan.strategy {
        Strategy::Canary if keys == 0 && without_key == 0 => {
            "; no request has come since it began".to_owned()
        }
        Strategy::Canary if without_key > 0 => String::new(),
        Strategy::Canary if in_share == 0 => format!(
            "; it stands still: the callers use {keys} {key} and none falls into its share. Raise the share, or send \
             different values of x-rollout-key"
        ),
        Strategy::Canary => format!("; {in_share} of the callers' {keys} {key} fall into its share"),
        Strategy::Ab if seen.candidate.requests() == 0 && plan.header.is_empty() => {
            format!("; no request of {} has come yet", plan.tenants.join(", "))
        }
        Strategy::Ab if seen.candidate.requests() == 0 => {
            format!("; no request with {}: {} has come yet", plan.header, plan.value)
        }
        _ => String::new(),
    }
}

fn percent(part: f64) -> String {
    format!("{} %", (part * 1e4).round() / 1e2)
}

/// What is to be done, by what is seen so far.
pub fn judge(plan: &RolloutPlan, seen: &Seen, clock: &Clock) -> Verdict {
    let checks = checks(plan, seen);
    if let Some(bad) = checks.iter().find(|check| check.fails()) {
        return Verdict::RollBack(format!("{}: {}", bad.name, bad.text));
    }
    if let Some(odd) = checks.iter().find(|check| check.log_evidence >= SUSPICIOUS) {
        return Verdict::Wait(format!("suspicious: {}: {}", odd.name, odd.text));
    }
    if clock.requests < plan.min_requests {
        let Clock { requests, .. } = clock;
        let counted = format!("{requests} of {} requests seen at this step", plan.min_requests);
        return Verdict::Wait(format!("{counted}{}", who_comes(plan, seen)));
    }
    let compared = seen.comparisons().of;
    if plan.max_difference.is_some() && plan.mirrored() > 0.0 && compared < LEAST_COMPARED {
        return Verdict::Wait(format!("{compared} of {LEAST_COMPARED} answers compared"));
    }
    let Some(after) = plan.promote_after() else {
        return Verdict::Wait("good so far; it is promoted by hand".to_owned());
    };
    let steps = plan.shares().len();
    let hold = after / u32::try_from(steps).unwrap_or(1).max(1);
    if clock.since < hold {
        let left = Duration::from_secs((hold - clock.since).as_secs() + 1);
        let next = if clock.step + 1 < steps { "next step" } else { "promoted" };
        return Verdict::Wait(format!("good so far; {next} in {}", humantime::format_duration(left)));
    }
    if clock.step + 1 < steps { Verdict::Step } else { Verdict::Promote }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Compared, Ending, Evidence, Side},
        *,
    };
    use crate::call::Timing;
    use torchlane_model::ModelManifest;

    fn plan(more: &str) -> RolloutPlan {
        let text = format!(
            "[rollout]\nstrategy = 'canary'\nmin_requests = 50\nmax_difference = 0.01\npromote_after = '100s'\n{more}"
        );
        ModelManifest::parse(&text).unwrap().rollout
    }

    /// How a simulated version behaves.
    #[derive(Clone, Copy)]
    struct Behaviour {
        fails: f64,
        slower: f64,
        drifts: f64,
    }

    const GOOD: Behaviour = Behaviour { fails: 0.0, slower: 1.0, drifts: 0.0 };

    /// A long tail, as passes have.
    fn pass(rng: &mut fastrand::Rng, slower: f64) -> Duration {
        let spike = if rng.f64() < 0.05 { 4.0 } else { 1.0 };
        Duration::from_secs_f64(2e-3 * slower * spike * (0.9 + 0.2 * rng.f64()))
    }

    /// A hundred requests a second, one in ten to the candidate, judged each second; what came of it and when.
    fn simulate(seed: u64, live: Behaviour, candidate: Behaviour) -> (Verdict, u64) {
        let (mut rng, plan) = (fastrand::Rng::with_seed(seed), plan(""));
        let mut evidence = Evidence::default();
        let mut requests = 0;
        for second in 1..=200 {
            for _ in 0..100 {
                let side = if rng.f64() < 0.1 { Side::Candidate } else { Side::Live };
                let how = if side == Side::Live { live } else { candidate };
                let ending = if rng.f64() < how.fails {
                    Ending::Failed
                } else {
                    let timing =
                        Timing { compute: pass(&mut rng, how.slower), batch_size: 1, ..Timing::default() };
                    Ending::Answered { total: timing.compute, timing, bytes: 100 }
                };
                evidence.ended(side, ending, plan.max_latency_ratio, false);
                requests += u64::from(side == Side::Candidate);
                if rng.f64() < 0.05 {
                    let by = if rng.f64() < candidate.drifts { 0.2 } else { 1e-4 };
                    evidence.compared(Compared::By(by), plan.max_difference);
                }
            }
            if second % 30 == 0 {
                evidence.turn();
            }
            let clock = Clock { step: 0, since: Duration::from_secs(second), requests };
            match judge(&plan, &evidence.seen(), &clock) {
                Verdict::Wait(_) => {}
                other => return (other, second),
            }
        }
        (Verdict::Wait("for ever".to_owned()), 200)
    }

    #[test]
    fn good_versions_are_promoted() {
        let same = |how| {
            let bad = (0..200).filter(|seed| simulate(*seed, how, how).0 != Verdict::Promote);
            bad.count()
        };
        assert!(same(GOOD) <= 1);
        // A live version that fails now and then is no better than a new one that does.
        assert!(same(Behaviour { fails: 0.02, ..GOOD }) <= 2);
    }

    #[test]
    fn bad_versions_are_rolled_back_within_thirty_seconds_and_said_why() {
        let cases = [
            (Behaviour { fails: 0.05, ..GOOD }, ["errors: "; 2], 60),
            (Behaviour { slower: 3.0, ..GOOD }, ["latency: ", "tail: "], 10),
            (Behaviour { drifts: 0.5, ..GOOD }, ["outputs: "; 2], 10),
        ];
        for (how, says, within) in cases {
            let mut times = Vec::new();
            for seed in 0..100 {
                let (verdict, second) = simulate(seed, GOOD, how);
                assert!(
                    matches!(&verdict, Verdict::RollBack(why) if says.iter().any(|says| why.starts_with(says))),
                    "{verdict:?}"
                );
                times.push(second);
            }
            times.sort_unstable();
            assert!(times[99] <= within && times[50] <= 30, "{says:?} {times:?}");
        }
    }

    #[test]
    fn steps_are_taken_one_after_the_other_and_need_requests() {
        let plan = ModelManifest::parse(
            "[rollout]\nstrategy = 'canary'\nsteps = [1, 50]\nmin_requests = 10\npromote_after = '60s'",
        )
        .unwrap()
        .rollout;
        let at = |step, since, requests| {
            let clock = Clock { step, since: Duration::from_secs(since), requests };
            judge(&plan, &Seen::default(), &clock)
        };
        assert_eq!(at(0, 30, 10), Verdict::Step);
        assert_eq!(at(1, 30, 10), Verdict::Promote);
        assert!(matches!(at(0, 29, 10), Verdict::Wait(why) if why.contains("next step in")));
        assert!(matches!(at(1, 3000, 9), Verdict::Wait(why) if why.contains("9 of 10 requests")));
    }

    #[test]
    fn nothing_that_is_compared_too_seldom_is_promoted() {
        let clock = Clock { step: 0, since: Duration::from_secs(1000), requests: 1000 };
        let verdict = judge(&plan(""), &Seen::default(), &clock);
        assert!(matches!(&verdict, Verdict::Wait(why) if why.contains("compared")), "{verdict:?}");
    }

    #[test]
    fn a_canary_that_no_caller_can_reach_says_so() {
        let mut plan = plan("");
        let clock = Clock { step: 0, since: Duration::from_secs(60), requests: 0 };
        let why =
            |plan: &RolloutPlan, callers| match judge(plan, &Seen { callers, ..Seen::default() }, &clock) {
                Verdict::Wait(why) => why,
                other => panic!("{other:?}"),
            };
        let met = |keys, in_share, without_key| Callers { keys, in_share, without_key };
        assert!(why(&plan, met(0, 0, 0)).ends_with("; no request has come since it began"));
        let still = why(&plan, met(1, 0, 0));
        assert!(
            still.contains("0 of 50") && still.contains("it stands still: the callers use 1 key and none"),
            "{still}"
        );
        assert!(still.contains("x-rollout-key"), "{still}");
        assert!(why(&plan, met(14, 2, 0)).ends_with("; 2 of the callers' 14 keys fall into its share"));
        assert!(why(&plan, met(3, 0, 5)).ends_with("seen at this step"), "chance brings some");
        plan.strategy = Strategy::Ab;
        (plan.header, plan.value) = ("x-experiment".to_owned(), "b".to_owned());
        assert!(why(&plan, met(0, 0, 0)).ends_with("; no request with x-experiment: b has come yet"));
    }
}
