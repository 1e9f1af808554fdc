//! What can be seen from outside: metrics, the access log, traces.

mod access;
mod catalogue;
mod connections;
mod logging;
mod metrics;
mod recent;
mod record;
mod refusals;
mod requests;
mod samples;
mod triton;
mod untaken;

pub use access::AccessLog;
pub use catalogue::CATALOGUE;
pub use connections::{Closed, ConnectionMetrics};
pub use logging::{LogFilter, init_logging};
pub use metrics::{Metrics, Sources};
pub use recent::{Curve, Moment, Recent};
pub use record::{Record, RecordLayer};
pub use refusals::Refusals;
pub use samples::{SampleLayer, Sampled, Sampler};
pub use torchlane_engine::{
    call::Door,
    residency::ResidencyMetrics,
    response_cache::CacheMetrics,
    rollout::RolloutMetrics,
    trace::{
        ReloadEnd, RequestTrace, Sampling, SpanMetrics, TelemetrySettings, TraceError, TraceRate, Traces,
    },
};
pub use torchlane_repository::{RepositoryMetrics, StoreMetrics};
pub use untaken::Untaken;
