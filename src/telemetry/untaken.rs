//! Answers that were there and that their callers did not take.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::Door;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DoorLabel {
    door: &'static str,
}

/// Their count; clones count together.
#[derive(Debug, Clone)]
pub struct Untaken(Family<DoorLabel, Counter>);

impl Default for Untaken {
    fn default() -> Self {
        let untaken = Self(Family::default());
        for door in [Door::Grpc, Door::Http] {
            untaken.of(door).inc_by(0);
        }
        untaken
    }
}

impl Untaken {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Answers given up because their callers did not take them";
        registry.register("untaken_answers", help, self.0.clone());
    }

    fn of(&self, door: Door) -> Counter {
        self.0.get_or_create(&DoorLabel { door: door.as_str() }).clone()
    }

    /// Counts one.
    pub fn count(&self, door: Door) {
        self.of(door).inc();
    }

    /// How many there were.
    pub fn get(&self, door: Door) -> u64 {
        self.of(door).get()
    }
}
