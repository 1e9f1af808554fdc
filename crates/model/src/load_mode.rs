//! When a model is loaded.

use serde::{Deserialize, Serialize};

/// `load` in `model.toml`, and `memory.load` for models that do not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadMode {
    /// As soon as it is seen, as long as there is room. It goes when the budget needs its place, and comes back with the
    /// next request.
    #[default]
    Eager,
    /// With the first request.
    Lazy,
    /// As soon as it is seen, before all others, and it never has to go.
    Pinned,
}

impl LoadMode {
    /// The name in files and in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Eager => "eager",
            Self::Lazy => "lazy",
            Self::Pinned => "pinned",
        }
    }
}
