//! Counts, logs and traces every request, whatever becomes of it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use torchlane_engine::trace::{RequestEnd, RequestSpan};
use tower::{Layer, Service};

use super::{AccessLog, Metrics, Traces, requests::Sample};
use crate::{
    call::{DecidedLane, InferCall, InferReply, Timing},
    error::{Error, LOGGED, Reason, shown},
    loader::Pace,
    model::{Lane, Version},
    registry::Registry,
    sched::Failure,
};

/// Puts a [`Record`] around a service.
#[derive(Debug, Clone)]
pub struct RecordLayer {
    metrics: Arc<Metrics>,
    access: Arc<AccessLog>,
    pace: Arc<Pace>,
    registry: Arc<Registry>,
    traces: Option<Arc<Traces>>,
}

impl RecordLayer {
    /// Counts in `metrics`, writes to `access`, tells `pace` how requests fare, and the versions in `registry` which of theirs
    /// got no answer; some are written down in `traces`.
    pub fn new(
        metrics: Arc<Metrics>,
        access: Arc<AccessLog>,
        pace: Arc<Pace>,
        registry: Arc<Registry>,
        traces: Option<Arc<Traces>>,
    ) -> Self {
        Self { metrics, access, pace, registry, traces }
    }
}

impl<S> Layer<S> for RecordLayer {
    type Service = Record<S>;

    fn layer(&self, inner: S) -> Record<S> {
        Record { inner, to: self.clone() }
    }
}

/// Starts every request as "cancelled" and records what it was when it ends or is dropped.
#[derive(Debug, Clone)]
pub struct Record<S> {
    inner: S,
    to: RecordLayer,
}

impl<S> Service<InferCall> for Record<S>
where
    S: Service<InferCall, Response = InferReply, Error = Error>,
{
    type Response = InferReply;
    type Error = Error;
    type Future = Recorded<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut call: InferCall) -> Self::Future {
        let entry = Entry {
            span: self.to.traces.as_ref().and_then(|traces| RequestSpan::begin(traces, &mut call)),
            to: self.to.clone(),
            request_id: call.request_id.clone(),
            model: call.model.clone(),
            tenant: call.tenant.clone(),
            asked: call.lane,
            decided: call.decided.clone(),
            received: call.received,
            version: None,
            failed: Some(Reason::Cancelled),
            timing: None,
            error: None,
        };
        Recorded { inner: self.inner.call(call), entry }
    }
}

pin_project! {
    /// The inner call, recorded when it ends.
    pub struct Recorded<F> {
        #[pin]
        inner: F,
        entry: Entry,
    }
}

impl<F> Future for Recorded<F>
where
    F: Future<Output = Result<InferReply, Error>>,
{
    type Output = Result<InferReply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        match &result {
            Ok(reply) => {
                this.entry.failed = None;
                this.entry.version = Some(reply.version);
                this.entry.timing = Some(reply.timing);
            }
            Err(error) => {
                this.entry.failed = Some(error.reason());
                this.entry.error = Some(error.message().to_owned());
                if error.reason() == Reason::UnknownModel {
                    this.entry.model.clear();
                }
            }
        }
        Poll::Ready(result)
    }
}

struct Entry {
    to: RecordLayer,
    request_id: String,
    model: String,
    tenant: Arc<str>,
    asked: Option<Lane>,
    decided: DecidedLane,
    received: Instant,
    version: Option<Version>,
    failed: Option<Reason>,
    timing: Option<Timing>,
    error: Option<String>,
    span: Option<Box<RequestSpan>>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let total = self.received.elapsed();
        match self.failed {
            None => {
                // How loads disturb requests is not told by those that waited for nothing.
                if self.timing.is_some_and(|timing| !timing.from_cache) {
                    self.to.pace.served(total);
                }
            }
            // Which version it would have been is not always known: the live one stands for them.
            Some(reason) => {
                if let Some(lease) = self.to.registry.get(&self.model).and_then(|slot| slot.lease()) {
                    lease.statistics.failed(total, Failure::of(reason));
                }
            }
        }
        let outcome = self.failed.map_or("ok", Reason::as_str);
        let lane = self.decided.get().or(self.asked).unwrap_or(Lane::Normal);
        let trace = self.span.as_ref().map(|span| span.trace_id());
        if let Some(suppressed) = self.to.access.admit(self.failed.is_none()) {
            let timing = self.timing.unwrap_or_default();
            tracing::info!(
                target: "torchlane::access",
                request_id = &*shown(&self.request_id, LOGGED),
                model = &*shown(&self.model, LOGGED),
                version = self.version.map(|version| version.0),
                lane = lane.as_str(),
                tenant = &*shown(&self.tenant, LOGGED),
                outcome,
                queue_us = micros(timing.queue),
                batch_wait_us = micros(timing.batch_wait),
                compute_us = micros(timing.compute),
                total_us = micros(total),
                batch_size = timing.batch_size,
                trace_id = trace.map(tracing::field::display),
                suppressed,
                error = self.error,
            );
        }
        self.to.metrics.request(Sample {
            model: &self.model,
            version: self.version,
            lane,
            outcome,
            total,
            ran: self.timing.filter(|timing| !timing.from_cache),
            trace,
        });
        if let Some(span) = self.span.take() {
            span.end(&RequestEnd {
                request_id: &self.request_id,
                model: &self.model,
                version: self.version,
                lane,
                tenant: &self.tenant,
                outcome,
                error: self.error.as_deref().or(self.failed.map(Reason::as_str)),
                timing: self.timing,
            });
        }
    }
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
