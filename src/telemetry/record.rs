//! Counts and logs every request, whatever becomes of it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service};

use super::{AccessLog, Metrics, metrics::Sample};
use crate::{
    call::{DecidedLane, InferCall, InferReply, Timing},
    error::{Error, LOGGED, Reason, shown},
    loader::Pace,
    model::{Lane, Version},
};

/// Puts a [`Record`] around a service.
#[derive(Debug, Clone)]
pub struct RecordLayer {
    metrics: Arc<Metrics>,
    access: Arc<AccessLog>,
    pace: Arc<Pace>,
}

impl RecordLayer {
    /// Counts in `metrics`, writes to `access`, and tells `pace` how requests fare.
    pub fn new(metrics: Arc<Metrics>, access: Arc<AccessLog>, pace: Arc<Pace>) -> Self {
        Self { metrics, access, pace }
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

    fn call(&mut self, call: InferCall) -> Self::Future {
        let entry = Entry {
            to: self.to.clone(),
            request_id: call.request_id.clone(),
            model: call.model.clone(),
            tenant: call.tenant.clone(),
            asked: call.lane,
            decided: call.decided.clone(),
            received: call.received,
            version: None,
            outcome: Reason::Cancelled.as_str(),
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
                this.entry.outcome = "ok";
                this.entry.version = Some(reply.version);
                this.entry.timing = Some(reply.timing);
            }
            Err(error) => {
                this.entry.outcome = error.reason().as_str();
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
    outcome: &'static str,
    timing: Option<Timing>,
    error: Option<String>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        let total = self.received.elapsed();
        if self.timing.is_some() {
            self.to.pace.served(total);
        }
        let lane = self.decided.get().or(self.asked).unwrap_or(Lane::Normal);
        if let Some(suppressed) = self.to.access.admit(self.outcome == "ok") {
            let timing = self.timing.unwrap_or_default();
            tracing::info!(
                target: "torchlane::access",
                request_id = shown(&self.request_id, LOGGED),
                model = shown(&self.model, LOGGED),
                version = self.version.map(|version| version.0),
                lane = lane.as_str(),
                tenant = shown(&self.tenant, LOGGED),
                outcome = self.outcome,
                queue_us = micros(timing.queue),
                batch_wait_us = micros(timing.batch_wait),
                compute_us = micros(timing.compute),
                total_us = micros(total),
                batch_size = timing.batch_size,
                suppressed,
                error = self.error,
            );
        }
        self.to.metrics.request(Sample {
            model: &self.model,
            version: self.version,
            lane,
            outcome: self.outcome,
            total,
            ran: self.timing,
        });
    }
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
