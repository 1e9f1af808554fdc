//! Settings: defaults < `torchlane.toml` < environment `TORCHLANE_*` (`__` between sections) < flags.
//!
//! **Invariant**: nothing unchecked escapes: a [`Settings`] from [`load`] has passed [`Settings::validate`].

mod layers;
mod settings;
mod stores;

pub use layers::{ConfigError, Layered, Provenance, load};
pub use settings::{
    Admission, Audit, BackendKind, Console, Executors, Integrity, Loader, Log, Memory, Metrics, Server,
    Settings, Watch,
};
pub use stores::{Cache, OptionText, Store};
