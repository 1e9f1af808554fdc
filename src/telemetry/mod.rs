//! What can be seen from outside: metrics, the access log, traces.

mod access;
mod connections;
mod logging;
mod metrics;
mod recent;
mod record;
mod refusals;
mod requests;
mod residency;
mod response_cache;
mod rollouts;
mod samples;
mod spans;
mod store;
mod tasks;
mod trace;
mod triton;
mod untaken;

pub use access::{AccessLog, AccessPolicy};
pub use connections::{Closed, ConnectionMetrics};
pub(crate) use logging::filter;
pub use logging::{LogFilter, LogFormat, init_logging};
pub use metrics::{CATALOGUE, Metrics, Sources};
pub use recent::{Curve, Moment, Recent};
pub use record::{Record, RecordLayer};
pub use refusals::{Door, Refusals};
pub use residency::ResidencyMetrics;
pub use response_cache::{CacheCounts, CacheMetrics};
pub use rollouts::RolloutMetrics;
pub use samples::{SampleLayer, SampleSettings, Sampled, Sampler};
pub use spans::SpanMetrics;
pub use store::{RepositoryMetrics, StoreMetrics};
pub use tasks::TaskMetrics;
pub(crate) use trace::{BatchSpan, Passing, Went};
pub use trace::{ReloadEnd, RequestTrace, Sampling, TelemetrySettings, TraceError, TraceRate, Traces};
pub use untaken::Untaken;
