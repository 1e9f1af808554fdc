//! Who is sent to which version.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;
use torchlane_model::{ModelName, RolloutPlan, Strategy, Version};

use super::{Callers, Compared, Ending, Evidence, Seen, Side};
use crate::call::InferCall;

/// The header whose value keeps a caller with one version.
const KEY: &str = "x-rollout-key";

/// Parts that a share is counted in: hundredths of a percent.
const PARTS: u64 = 10_000;

/// What makes requests go the same way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key<'a> {
    /// The caller's own, or whose the request is.
    Given(&'a str),
    /// There is none: by chance.
    Chance(u64),
}

impl<'a> Key<'a> {
    /// The header `x-rollout-key`, else the tenant, else the request's id where the caller gave one, else none.
    pub fn of(call: &'a InferCall) -> Self {
        let header = call.headers.get(KEY).filter(|key| !key.is_empty());
        let tenant = Some(&*call.tenant).filter(|tenant| !tenant.is_empty());
        let id = Some(call.request_id.as_str()).filter(|_| call.own_id);
        header.or(tenant).or(id).map_or_else(|| Self::Chance(fastrand::u64(..)), Self::Given)
    }
}

/// Most keys that are told apart.
const MOST_KEYS: usize = 1000;

/// The callers that a canary has met: why it may wait for requests that never come.
#[derive(Debug, Default)]
struct Met {
    /// By their keys' numbers.
    keys: HashSet<u64>,
    without_key: u64,
}

impl Met {
    fn note(&mut self, key: Key<'_>, number: u64) {
        match key {
            Key::Chance(_) => self.without_key += 1,
            Key::Given(_) if self.keys.len() < MOST_KEYS => {
                self.keys.insert(number);
            }
            Key::Given(_) => {}
        }
    }
}

/// How requests that leave the version open are split, at one step of a rollout; the evidence goes on from step to step.
#[derive(Debug)]
pub struct Split {
    candidate: Version,
    plan: Arc<RolloutPlan>,
    /// Of the callers, for a canary; of [`PARTS`].
    share: u64,
    salt: u64,
    evidence: Arc<Mutex<Evidence>>,
    met: Arc<Mutex<Met>>,
}

impl Split {
    /// The first step of a rollout of `candidate`.
    pub fn new(model: &ModelName, candidate: Version, plan: RolloutPlan) -> Self {
        // The same on every replica and after a restart: a caller meets one version wherever its requests go.
        let salt = hash(candidate.0, model.as_str());
        Self {
            candidate,
            plan: Arc::new(plan),
            share: 0,
            salt,
            evidence: Arc::default(),
            met: Arc::default(),
        }
        .at_step(0)
    }

    /// The same rollout at another step. Callers that saw the new version go on seeing it: a share only grows.
    #[must_use]
    pub fn at_step(&self, step: usize) -> Self {
        let percent = self.plan.shares().get(step).copied().unwrap_or(0.0);
        Self {
            candidate: self.candidate,
            plan: self.plan.clone(),
            share: (percent * PARTS as f64 / 100.0).round() as u64,
            salt: self.salt,
            evidence: self.evidence.clone(),
            met: self.met.clone(),
        }
    }

    /// The same rollout by another plan, with what is known so far.
    #[must_use]
    pub fn by_plan(&self, plan: RolloutPlan) -> Self {
        let (evidence, met) = (self.evidence.clone(), self.met.clone());
        Self { candidate: self.candidate, plan: Arc::new(plan), share: 0, salt: self.salt, evidence, met }
            .at_step(0)
    }

    /// The new version.
    pub fn candidate(&self) -> Version {
        self.candidate
    }

    /// How it is rolled out.
    pub fn plan(&self) -> &RolloutPlan {
        &self.plan
    }

    /// Percent of the callers that see the new version.
    pub fn percent(&self) -> f64 {
        self.share as f64 * 100.0 / PARTS as f64
    }

    /// Which version answers the call.
    pub fn side(&self, call: &InferCall) -> Side {
        let chosen = match self.plan.strategy {
            Strategy::None | Strategy::Shadow => false,
            Strategy::Canary => {
                let key = Key::of(call);
                self.met.lock().note(key, self.number(key));
                self.takes(key)
            }
            Strategy::Ab => {
                let header = &self.plan.header;
                let says = !header.is_empty() && call.headers.get(header) == Some(self.plan.value.as_str());
                says || self.plan.tenants.iter().any(|tenant| **tenant == *call.tenant)
            }
        };
        if chosen { Side::Candidate } else { Side::Live }
    }

    fn number(&self, key: Key<'_>) -> u64 {
        match key {
            Key::Given(key) => hash(self.salt, key),
            Key::Chance(number) => number,
        }
    }

    fn takes(&self, key: Key<'_>) -> bool {
        self.is_in_share(self.number(key))
    }

    fn is_in_share(&self, number: u64) -> bool {
        number % PARTS < self.share
    }

    /// Whether the other version is to run the call too. By chance: a caller's requests are not all alike.
    pub fn mirrors(&self) -> bool {
        let part = self.plan.mirrored();
        part > 0.0 && fastrand::f64() * 100.0 < part
    }

    /// Notes how a request ended.
    pub fn ended(&self, side: Side, ending: Ending, is_shadow: bool) {
        self.evidence.lock().ended(side, ending, self.plan.max_latency_ratio, is_shadow);
    }

    /// Notes that the live version answered in the place of the new one.
    pub fn fell_back(&self) {
        self.evidence.lock().fell_back();
    }

    /// Notes a comparison. True: the answers are too far apart.
    pub fn compared(&self, compared: Compared) -> bool {
        let most = self.plan.max_difference;
        self.evidence.lock().compared(compared, most);
        matches!(compared, Compared::By(difference) if difference > most.unwrap_or(f64::MAX))
    }

    /// Begins the next window of the tests.
    pub fn turn(&self) {
        self.evidence.lock().turn();
    }

    /// What is known so far.
    pub fn seen(&self) -> Seen {
        let seen = self.evidence.lock().seen();
        let met = self.met.lock();
        let in_share = met.keys.iter().filter(|number| self.is_in_share(**number)).count();
        Seen { callers: Callers { keys: met.keys.len(), in_share, without_key: met.without_key }, ..seen }
    }
}

/// FNV-1a, with the bits mixed at the end (splitmix64): the standard library's hashes may change with its version, and replicas
/// must agree.
fn hash(seed: u64, text: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed;
    for byte in text.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Strategy, *};

    fn split(percent: f64) -> Split {
        let plan = RolloutPlan { strategy: Strategy::Canary, percent, ..RolloutPlan::default() };
        Split::new(&"m".parse().unwrap(), Version(2), plan)
    }

    fn share(split: &Split) -> usize {
        (0..20_000).filter(|i| split.takes(Key::Given(&format!("caller {i}")))).count()
    }

    #[test]
    fn a_share_of_the_keys_is_that_share() {
        for percent in [1.0, 10.0, 50.0] {
            let taken = share(&split(percent)) as f64 / 200.0;
            assert!((taken - percent).abs() < percent.sqrt() * 0.35, "{percent} %: {taken} %");
        }
        assert_eq!((share(&split(100.0)), share(&split(0.005))), (20_000, share(&split(0.01))));
    }

    #[test]
    fn other_versions_have_other_callers() {
        let of = |version| {
            let plan = split(10.0).plan().clone();
            Split::new(&"m".parse().unwrap(), Version(version), plan)
        };
        let (two, three) = (of(2), of(3));
        let both = |i: &i32| {
            let key = format!("caller {i}");
            two.takes(Key::Given(&key)) && three.takes(Key::Given(&key))
        };
        let unlucky = (0..20_000).filter(both).count();
        assert!((100..300).contains(&unlucky), "{unlucky} of 20000 are in both tenths");
    }

    proptest! {
        #[test]
        fn raising_the_share_only_adds_callers(key in ".{0,40}", low in 0.01..100.0_f64, high in 0.01..100.0_f64) {
            let (low, high) = (low.min(high), low.max(high));
            prop_assert!(!split(low).takes(Key::Given(&key)) || split(high).takes(Key::Given(&key)));
        }
    }
}
