//! Connections: how many there are, and those that were closed for what their peers did.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::Door;
use crate::admission::Callers;

/// Why a connection is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// There are as many as there may be, of its address or of all.
    TooMany,
    /// It sent too many frames that bring no work.
    Frames,
}

impl Closed {
    const fn as_str(self) -> &'static str {
        match self {
            Self::TooMany => "too_many",
            Self::Frames => "frames",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClosedLabels {
    door: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DoorLabel {
    door: &'static str,
}

/// Their counts; clones count together.
#[derive(Debug, Clone)]
pub struct ConnectionMetrics {
    closed: Family<ClosedLabels, Counter>,
    open: Family<DoorLabel, Gauge>,
    calls: Gauge,
}

impl Default for ConnectionMetrics {
    fn default() -> Self {
        let metrics = Self { closed: Family::default(), open: Family::default(), calls: Gauge::default() };
        for (door, why) in
            [(Door::Grpc, Closed::TooMany), (Door::Grpc, Closed::Frames), (Door::Http, Closed::TooMany)]
        {
            metrics.of(door, why).inc_by(0);
        }
        for door in [Door::Grpc, Door::Http] {
            metrics.open.get_or_create(&DoorLabel { door: door.as_str() }).set(0);
        }
        metrics
    }
}

impl ConnectionMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("connections", "Connections that are open", self.open.clone());
        let help = "Connections closed because of what their peers did";
        registry.register("connections_closed", help, self.closed.clone());
        registry.register("open_calls", "gRPC calls that are open", self.calls.clone());
    }

    /// What is open now.
    pub(super) fn read(&self, callers: &Callers) {
        let signed = |number| i64::try_from(number).unwrap_or(i64::MAX);
        for door in [Door::Grpc, Door::Http] {
            let open = self.open.get_or_create(&DoorLabel { door: door.as_str() });
            open.set(signed(callers.connections(door)));
        }
        self.calls.set(signed(callers.calls()));
    }

    fn of(&self, door: Door, why: Closed) -> Counter {
        self.closed.get_or_create(&ClosedLabels { door: door.as_str(), reason: why.as_str() }).clone()
    }

    /// Counts one that is closed.
    pub fn count(&self, door: Door, why: Closed) {
        self.of(door, why).inc();
    }

    /// How many were.
    pub fn get(&self, door: Door, why: Closed) -> u64 {
        self.of(door, why).get()
    }
}
