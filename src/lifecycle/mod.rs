//! The life of models: loading, warming up, swapping, rolling back, unloading.
//!
//! **Invariant**: only legal transitions; the newest generation wins; a replacement never lowers availability: until
//! the swap nothing of the live version is touched, and a failure anywhere leaves it serving.

mod entry;
mod manager;
mod prepare;
mod status;
mod warmup;

pub use manager::{Manager, ManagerConfig, Observer, ReloadRequest};
pub use prepare::{LoadFailure, Phase, Prepared, prepare};
pub use status::{
    Change, LiveStatus, ModelEvent, ModelState, ModelStatus, Phases, ReloadReport, WarmupReport,
};
pub use warmup::WarmupFailure;
