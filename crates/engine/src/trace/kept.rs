//! For tests: a collector that keeps what it is sent.

use std::sync::Arc;

use opentelemetry::Value;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SimpleSpanProcessor, SpanData, SpanExporter},
};
use parking_lot::Mutex;

use super::Traces;

/// Clones keep together.
#[derive(Debug, Clone, Default)]
pub(super) struct Kept(Arc<Mutex<Vec<SpanData>>>);

impl SpanExporter for Kept {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.lock().extend(batch);
        Ok(())
    }
}

impl Kept {
    /// With what sends to it at once; of requests without a parent it traces that share.
    pub(super) fn traces(sample: f64) -> (Self, Arc<Traces>) {
        let kept = Self::default();
        let traces = Arc::new(Traces::new(SimpleSpanProcessor::new(kept.clone()), sample));
        (kept, traces)
    }

    /// Every span that has ended, in the order in which they did.
    pub(super) fn spans(&self) -> Vec<SpanData> {
        self.0.lock().clone()
    }

    /// The one of that name.
    pub(super) fn span(&self, name: &str) -> SpanData {
        let found: Vec<_> = self.spans().into_iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "spans named {name}: {found:?}");
        found.into_iter().next().unwrap()
    }
}

/// The attribute of that name.
pub(super) fn attribute<'a>(span: &'a SpanData, key: &str) -> Option<&'a Value> {
    span.attributes.iter().find(|attribute| attribute.key.as_str() == key).map(|attribute| &attribute.value)
}
