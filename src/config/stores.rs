//! `[store]` and `[cache]`: repositories that are not directories.

use std::{collections::BTreeMap, env, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};

use super::Settings;
use crate::{
    model::human_duration,
    repository::{MirrorConfig, StoreOptions, store_options_problem},
};

/// `[store]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// A store that gives no byte for so long is given up.
    #[serde(with = "human_duration")]
    pub patience: Duration,
    /// Those who ask for all models share a listing for so long. A reload always looks afresh.
    #[serde(with = "human_duration")]
    pub list_every: Duration,
    /// Options of clients, by kind of store: `s3`, `gs`, `az`, `http`.
    pub options: BTreeMap<String, BTreeMap<String, OptionText>>,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(30),
            list_every: Duration::from_secs(5),
            options: BTreeMap::new(),
        }
    }
}

/// An option's value: `true` and `9000` need no quotes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OptionText {
    /// Yes or no.
    Flag(bool),
    /// A whole number.
    Number(i64),
    /// Anything else.
    Text(String),
}

impl std::fmt::Display for OptionText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flag(flag) => flag.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// `[cache]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Where it is. Empty: in the user's cache.
    pub directory: PathBuf,
    /// Most that it may take.
    pub max_bytes: ByteSize,
}

impl Default for Cache {
    fn default() -> Self {
        Self { directory: PathBuf::new(), max_bytes: ByteSize::gib(20) }
    }
}

impl Settings {
    /// How object stores are mirrored.
    pub fn mirror(&self) -> MirrorConfig {
        MirrorConfig {
            cache: self.cache_directory(),
            max_bytes: self.cache.max_bytes.as_u64(),
            patience: self.store.patience,
            list_every: self.store.list_every,
            options: self.store_options(),
        }
    }

    fn store_options(&self) -> StoreOptions {
        let text = |(key, value): (&String, &OptionText)| (key.clone(), value.to_string());
        let each = self.store.options.iter();
        each.map(|(scheme, options)| (scheme.clone(), options.iter().map(text).collect())).collect()
    }

    /// The setting, else `store` in the folder that the scripts keep libtorch in. Empty: the user has none.
    fn cache_directory(&self) -> PathBuf {
        if !self.cache.directory.as_os_str().is_empty() {
            return self.cache.directory.clone();
        }
        let folder = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        folder("TORCHLANE_CACHE")
            .or_else(|| folder("XDG_CACHE_HOME").map(|cache| cache.join("torchlane")))
            .or_else(|| folder("HOME").map(|home| home.join(".cache/torchlane")))
            .map(|folder| folder.join("store"))
            .unwrap_or_default()
    }

    pub(super) fn validate_stores(&self) -> Result<(), (&'static str, String, &'static str)> {
        for (key, value) in [("store.patience", self.store.patience)] {
            if value < Duration::from_millis(100) {
                return Err((key, humantime::format_duration(value).to_string(), "100ms or more"));
            }
        }
        if self.cache.max_bytes.as_u64() == 0 {
            return Err(("cache.max_bytes", self.cache.max_bytes.to_string(), "1 byte or more"));
        }
        // Never its value: it may be a credential in the wrong place.
        if let Some((key, allowed)) = store_options_problem(&self.store_options()) {
            return Err(("store.options", key, allowed));
        }
        Ok(())
    }
}
