//! Spans on their way: a bounded number of them, each counted when it has left, one way or the other.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::Context;
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    trace::{BatchConfigBuilder, BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor},
};

use crate::trace::SpanMetrics;

/// Spans that may wait for the collector or be on their way to it: under a kilobyte each.
pub(super) const MOST: usize = 8192;
/// Spans in one message.
const TOGETHER: usize = 512;
/// A span waits no longer for others to share its message.
const DELAY: Duration = Duration::from_secs(1);

/// Hands spans to a thread that sends them. The library's own queue would drop what does not fit too, but not say how much
/// that is: so this one stands before it and lets in no more than it holds.
#[derive(Debug)]
pub(super) struct Bounded {
    batches: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
    metrics: SpanMetrics,
}

impl Bounded {
    /// Sends through `exporter`.
    pub(super) fn new(exporter: impl SpanExporter + 'static, metrics: SpanMetrics) -> Self {
        let waiting = Arc::<AtomicUsize>::default();
        let (of, counts) = (waiting.clone(), metrics.clone());
        let sending = Sending { exporter, waiting: of, metrics: counts, away: AtomicBool::new(false) };
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(MOST)
            .with_max_export_batch_size(TOGETHER)
            .with_scheduled_delay(DELAY)
            .build();
        Self { batches: BatchSpanProcessor::new(sending, config), waiting, metrics }
    }
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.batches.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= MOST {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.metrics.dropped();
            return;
        }
        self.batches.on_end(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Counts what an exporter does, and says once that the collector is away.
#[derive(Debug)]
struct Sending<E> {
    exporter: E,
    waiting: Arc<AtomicUsize>,
    metrics: SpanMetrics,
    away: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Sending<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let result = self.exporter.export(batch).await;
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        let was_away = self.away.swap(result.is_err(), Ordering::Relaxed);
        match &result {
            Ok(()) => {
                self.metrics.exported(spans as u64);
                if was_away {
                    tracing::info!(target: "torchlane::telemetry", "the collector takes spans again");
                }
            }
            Err(error) => {
                self.metrics.failed(spans as u64);
                if !was_away {
                    tracing::warn!(target: "torchlane::telemetry", %error, "the collector does not take spans: they are lost (telemetry.otlp_endpoint)");
                }
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::SpanBuilder;
    use opentelemetry_sdk::error::OTelSdkError;
    use parking_lot::Mutex;

    use super::*;
    use crate::trace::{Traces, kept::Kept};

    /// Takes nothing as long as somebody holds it, and then what `kept` says.
    #[derive(Debug, Clone)]
    struct Gate {
        shut: Arc<Mutex<()>>,
        broken: Arc<AtomicBool>,
        kept: Kept,
    }

    impl SpanExporter for Gate {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            drop(self.shut.lock());
            if self.broken.load(Ordering::Relaxed) {
                return Err(OTelSdkError::InternalFailure("away".into()));
            }
            self.kept.export(batch).await
        }
    }

    fn gate() -> (Gate, SpanMetrics, Traces) {
        let gate = Gate { shut: Arc::default(), broken: Arc::default(), kept: Kept::default() };
        let metrics = SpanMetrics::default();
        let traces = Traces::new(Bounded::new(gate.clone(), metrics.clone()), 1.0);
        (gate, metrics, traces)
    }

    fn end_spans(traces: &Traces, count: usize) {
        for _ in 0..count {
            drop(traces.span(SpanBuilder::from_name("x"), None));
        }
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted_and_nobody_waits() {
        let (gate, metrics, traces) = gate();
        let held = gate.shut.lock();
        // Returns although nothing is taken.
        end_spans(&traces, MOST + 100);
        assert_eq!(metrics.counts(), [0, 0, 100]);
        drop(held);
        traces.provider().shutdown_with_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(metrics.counts(), [MOST as u64, 0, 100]);
        assert_eq!(gate.kept.spans().len(), MOST, "the end waits for what was let in");
    }

    #[test]
    fn what_the_collector_does_not_take_is_counted_and_makes_room() {
        let (gate, metrics, traces) = gate();
        gate.broken.store(true, Ordering::Relaxed);
        end_spans(&traces, MOST);
        let _of_the_last_message = traces.provider().force_flush();
        assert_eq!(metrics.counts(), [0, MOST as u64, 0]);
        gate.broken.store(false, Ordering::Relaxed);
        end_spans(&traces, MOST);
        traces.provider().shutdown_with_timeout(Duration::from_secs(30)).unwrap();
        assert_eq!(metrics.counts(), [MOST as u64, MOST as u64, 0], "none was dropped for want of room");
    }
}
