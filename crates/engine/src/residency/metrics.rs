//! Metrics of what is in memory, and of requests that wait for what is not.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::MemorySnapshot;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// All of them; clones count together.
#[derive(Debug, Clone)]
pub struct ResidencyMetrics {
    budget: Gauge,
    used: Gauge,
    models: Gauge,
    loads: Family<CauseLabel, Counter>,
    evictions: Counter,
    misses: Family<ResultLabel, Counter>,
    wait: Histogram,
    thrash: Gauge,
}

impl Default for ResidencyMetrics {
    fn default() -> Self {
        let waits =
            [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
        let metrics = Self {
            budget: Gauge::default(),
            used: Gauge::default(),
            models: Gauge::default(),
            loads: Family::default(),
            evictions: Counter::default(),
            misses: Family::default(),
            wait: Histogram::new(waits),
            thrash: Gauge::default(),
        };
        for result in ["waited", "refused"] {
            metrics.misses.get_or_create(&ResultLabel { result }).inc_by(0);
        }
        for cause in ["start", "repository", "caller", "request"] {
            metrics.loads.get_or_create(&CauseLabel { cause }).inc_by(0);
        }
        metrics
    }
}

impl ResidencyMetrics {
    /// Puts them into the catalogue.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry;
        let bytes = Unit::Bytes;
        r.register_with_unit("memory_budget", "What models may take", bytes, self.budget.clone());
        r.register_with_unit("memory_resident", "What models take", Unit::Bytes, self.used.clone());
        r.register("models_resident", "Models with a version loaded", self.models.clone());
        r.register("residency_loads", "Versions that went live, by who asked for it", self.loads.clone());
        r.register("residency_evictions", "Models that had to go for others", self.evictions.clone());
        r.register("residency_misses", "Requests for a model that was not in memory", self.misses.clone());
        let wait = "How long requests waited for their model that were answered";
        r.register_with_unit("residency_wait", wait, Unit::Seconds, self.wait.clone());
        r.register("residency_thrash", "1 while models only take each other's place", self.thrash.clone());
    }

    /// A version went live, and this had asked for it: `start`, `repository`, `request`, `caller` or `rollout`.
    pub fn went_live(&self, cause: &'static str) {
        self.loads.get_or_create(&CauseLabel { cause }).inc();
    }

    /// A model had to go for others.
    pub fn evicted(&self) {
        self.evictions.inc();
    }

    /// Takes over what the memory's books say now.
    pub fn read(&self, memory: MemorySnapshot) {
        let number = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.budget.set(number(memory.budget));
        self.used.set(number(memory.used));
        self.models.set(number(memory.models as u64));
        self.thrash.set(memory.thrashing.into());
    }

    /// A request waited for its model, and it came.
    pub fn waited(&self, time: Duration) {
        self.misses.get_or_create(&ResultLabel { result: "waited" }).inc();
        self.wait.observe(time.as_secs_f64());
    }

    /// A request found its model not in memory and was refused.
    pub fn refused(&self) {
        self.misses.get_or_create(&ResultLabel { result: "refused" }).inc();
    }
}
