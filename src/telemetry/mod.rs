//! What can be seen from outside: metrics, the access log, tracing.

mod access;
mod logging;
mod metrics;
mod record;
mod residency;
mod rollouts;
mod samples;
mod store;

pub use access::{AccessLog, AccessPolicy};
pub(crate) use logging::filter;
pub use logging::{LogFormat, init_logging};
pub use metrics::{CATALOGUE, Metrics, Sources};
pub use record::{Record, RecordLayer};
pub use residency::ResidencyMetrics;
pub use rollouts::RolloutMetrics;
pub use samples::{SampleLayer, SampleSettings, Sampled, Sampler};
pub use store::StoreMetrics;
