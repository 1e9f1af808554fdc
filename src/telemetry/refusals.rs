//! Inference requests that are refused before they are requests: over the cap, too long, too late to arrive, not to be read.
//!
//! No model and no lane is known of them, so they are not among the metrics of requests; what is, is not here. Both together are
//! all requests that callers have sent, but for those whose callers left before they were there.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use crate::{
    call::Door,
    error::{Error, Reason},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    door: &'static str,
    reason: &'static str,
}

/// Their count; clones count together.
#[derive(Debug, Clone)]
pub struct Refusals(Family<RefusalLabels, Counter>);

impl Default for Refusals {
    /// Those that are looked at stand at 0 from the start: a series that begins with its first refusal hides that one from rates.
    fn default() -> Self {
        let refusals = Self(Family::default());
        for door in [Door::Grpc, Door::Http] {
            for reason in
                [Reason::Overloaded, Reason::MessageTooLarge, Reason::DeadlineExceeded, Reason::BadRequest]
            {
                refusals.of(door, reason).inc_by(0);
            }
        }
        refusals
    }
}

impl Refusals {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("refusals", "Inference requests refused before they were read", self.0.clone());
    }

    fn of(&self, door: Door, reason: Reason) -> Counter {
        self.0.get_or_create(&RefusalLabels { door: door.as_str(), reason: reason.as_str() }).clone()
    }

    /// Counts one.
    pub fn count(&self, door: Door, error: &Error) {
        self.of(door, error.reason()).inc();
    }

    /// How many there were.
    pub fn get(&self, door: Door, reason: Reason) -> u64 {
        self.of(door, reason).get()
    }
}
