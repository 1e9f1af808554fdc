//! What becomes of spans.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

/// Counts of spans; clones count together.
#[derive(Debug, Clone)]
pub struct SpanMetrics {
    exported: Counter,
    failed: Counter,
    dropped: Counter,
    all: Family<ResultLabel, Counter>,
}

impl Default for SpanMetrics {
    fn default() -> Self {
        let all = Family::<ResultLabel, Counter>::default();
        let of = |result| all.get_or_create(&ResultLabel { result }).clone();
        Self { exported: of("exported"), failed: of("failed"), dropped: of("dropped"), all }
    }
}

impl SpanMetrics {
    /// Puts them into the catalogue.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("spans", "Spans by what became of them", self.all.clone());
    }

    /// The collector has taken so many.
    pub fn exported(&self, spans: u64) {
        self.exported.inc_by(spans);
    }

    /// The collector has not taken so many: they are lost.
    pub fn failed(&self, spans: u64) {
        self.failed.inc_by(spans);
    }

    /// One was lost because too many waited for the collector.
    pub fn dropped(&self) {
        self.dropped.inc();
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> [u64; 3] {
        [self.exported.get(), self.failed.get(), self.dropped.get()]
    }
}
