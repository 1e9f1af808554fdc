//! Settings of what is written down: the log, lines of requests, recorded samples.

use std::path::PathBuf;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Names of levels, from the least to the most.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Reads a filter: levels, each for all lines or as `target=level` for some.
///
/// # Errors
/// The filter, and what is wrong with it.
pub(crate) fn filter(level: &str) -> Result<EnvFilter, String> {
    let text = plain(level)?;
    // For each stream that a client resets h2 may write a warning, which a client can make happen hundreds of times a second.
    let quiet = if text.contains("h2") || text.starts_with("off") { "" } else { "h2=error," };
    EnvFilter::try_new(format!("{quiet}{text}")).map_err(|error| format!("'{level}' ({error})"))
}

/// The filter with the usual names of levels. A lone word would be the name of a target and turn off everything else, which a
/// typing error must not do.
pub(crate) fn plain(level: &str) -> Result<String, String> {
    let known = |name: &str| {
        let name = name.trim().to_ascii_lowercase();
        let name = if name == "warning" { "warn".to_owned() } else { name };
        LEVELS.contains(&name.as_str()).then_some(name)
    };
    let directives = level.split(',').map(|directive| {
        let (target, name) = match directive.rsplit_once('=') {
            Some((target, name)) => (Some(target.trim()), name),
            None => (None, directive),
        };
        let wrong = || {
            let what = if name.trim().is_empty() { "a level is missing" } else { "no such level" };
            format!("'{level}' ({what}; levels are {})", LEVELS.join(", "))
        };
        let name = known(name).ok_or_else(wrong)?;
        Ok(match target {
            Some("") => return Err(wrong()),
            Some(target) => format!("{target}={name}"),
            None => name,
        })
    });
    Ok(directives.collect::<Result<Vec<_>, String>>()?.join(","))
}

/// Which requests get a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessPolicy {
    /// Every one.
    All,
    /// Each second the first 20 that went well and the first 100 that did not; each line says how many were left out
    /// before it.
    #[default]
    Sampled,
    /// None.
    Off,
}

/// `[samples]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SampleSettings {
    /// Requests of each model that are recorded, with their answers. 0: none.
    pub record: usize,
    /// Where they are written: `MODEL/samples.safetensors` in it.
    pub directory: PathBuf,
    /// A request that has more bytes with its answer is left out.
    pub max_bytes: ByteSize,
}

impl Default for SampleSettings {
    fn default() -> Self {
        Self { record: 0, directory: PathBuf::from("samples"), max_bytes: ByteSize::mib(1) }
    }
}
