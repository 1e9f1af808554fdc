//! Settings: defaults < `torchlane.toml` < environment `TORCHLANE_*` (`__` between sections) < flags.
//!
//! **Invariant**: nothing unchecked escapes: a [`Settings`] from [`load`] has passed [`Settings::validate`].

mod checks;
mod hosts;
mod layers;
mod log;
mod settings;
mod stores;

pub(crate) use hosts::{ANY, without_port};
pub use layers::{ConfigError, Layered, Provenance, load};
pub use log::{AccessPolicy, LogFormat, SampleSettings};
pub(crate) use log::{filter, plain};
pub use settings::{
    Admission, Audit, BackendKind, Console, Executors, Integrity, Loader, Log, Memory, Metrics, Server,
    Settings, Watch,
};
pub use stores::{Cache, OptionText, Store};
