//! The life of models: loading, warming up, swapping, rolling back, unloading.
//!
//! **Invariant**: only legal transitions; the newest generation wins; a replacement never lowers availability: until
//! the swap nothing of the live version is touched, and a failure anywhere leaves it serving.

mod audit;
mod beside;
mod decisions;
mod demand;
mod described;
mod entry;
mod flight;
mod footprint;
mod golden;
mod health;
mod history;
mod load;
mod lookup;
mod manager;
mod prepare;
mod replace;
mod rollout;
mod rollouts;
mod room;
mod rules;
mod shapes;
mod start;
mod status;
mod sync;
mod told;
mod unlike;
mod upload;
mod warmup;
mod watch;

pub use decisions::{about_state, about_training};
pub use demand::{OnDemand, ResidencyConfig};
pub use described::described;
pub use history::{ChangeRecord, History};
pub use load::Expected;
pub use manager::{Manager, ManagerConfig, Observer, ReloadRequest};
pub use prepare::{LoadFailure, Phase, Preparation, Prepared, Progress, prepare};
pub use rollout::{Patch, RolloutChange};
pub use rollouts::{RolloutBrief, RolloutState, RolloutStatus};
pub use rules::Rules;
pub use start::Started;
pub use status::{
    Asker, Change, CheckReport, Done, LiveStatus, LoadedStatus, ModelEvent, ModelState, ModelStatus, Phases,
    ReloadReport, WarmupReport,
};
pub use warmup::WarmupFailure;
pub use watch::WatchConfig;
pub(crate) use watch::{Watched, watch};
