//! Durations as people write them: `30s`, `2m 30s`, `250ms`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de};

/// Writes `30s`.
///
/// # Errors
/// Whatever the serializer says.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

/// Reads `30s`.
///
/// # Errors
/// Not a duration.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let how = "write a duration such as '250ms', '30s' or '2m'";
    let text = String::deserialize(deserializer).map_err(|_| de::Error::custom(how))?;
    humantime::parse_duration(&text)
        .map_err(|_| de::Error::custom(format!("'{text}' is not a duration: {how}")))
}

/// Reads `30s` where nothing needs to be said.
///
/// # Errors
/// Not a duration.
pub fn deserialize_some<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    deserialize(deserializer).map(Some)
}
