//! Spans of requests, batches and reloads, for a collector that takes OTLP.
//!
//! Without `telemetry.otlp_endpoint` there is no [`Traces`], and a request pays for one look at that. With it, a request that
//! is not traced pays for a look at its headers and a random number: nothing of a span is made before that is decided. Spans
//! wait in a bounded queue for the thread that sends them, and are dropped and counted where it does not keep up: no request
//! waits for a collector.
//!
//! A request's span is begun and ended where the request is recorded; its phases become spans then, by the times in the
//! reply. A batch belongs to all of its requests, so its span is a trace of its own and links lead both ways.
//!
//! Spans are made with OpenTelemetry's own API and not through `tracing`: its subscriber is one for the process while a
//! collector is a server's, and its spans exist before it is known whether they are wanted, and begin when they are made.

mod attributes;
mod batch;
mod clock;
#[cfg(test)]
mod kept;
mod metrics;
mod propagation;
mod queue;
mod rate;
mod reload;
mod request;
mod setup;

pub use batch::{BatchSpan, Passing, Went};
pub use metrics::SpanMetrics;
pub use rate::{Sampling, TraceRate};
pub use reload::ReloadEnd;
pub use request::RequestTrace;
pub use request::{RequestEnd, RequestSpan};
pub use setup::{TelemetrySettings, TraceError, Traces};
