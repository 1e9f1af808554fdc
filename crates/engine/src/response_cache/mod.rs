//! Answers that are kept, for models whose owners ask for it: the same request again is answered without a pass.
//!
//! **Invariant**: an answer is only ever given for the version that computed it and that still stands where it stood, and only
//! for the very same tensors: what the hash finds is compared byte by byte.

mod key;
mod layer;
mod metrics;
mod store;

pub use layer::{Cached, CachedLayer};
pub use metrics::{CacheCounts, CacheMetrics};
pub use store::ResponseCache;
