//! The life of models: loading, warming up, swapping, rolling back, unloading.
//!
//! **Invariant**: only legal transitions; the newest generation wins; a replacement never lowers availability: until
//! the swap nothing of the live version is touched, and a failure anywhere leaves it serving.

mod entry;
mod golden;
mod manager;
mod prepare;
mod rules;
mod shapes;
mod status;
mod warmup;

pub use manager::{Expected, Manager, ManagerConfig, Observer, ReloadRequest};
pub use prepare::{LoadFailure, Phase, Preparation, Prepared, Progress, prepare};
pub use rules::Rules;
pub use status::{
    Change, CheckReport, LiveStatus, ModelEvent, ModelState, ModelStatus, Phases, ReloadReport, WarmupReport,
};
pub use warmup::WarmupFailure;
