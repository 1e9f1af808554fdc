//! Names and numbers of models, versions and changes.

use std::{fmt, str::FromStr, sync::Arc};

use thiserror::Error;

use crate::error::shown;

/// A model's name: one path component, so that it can stand in URLs, metrics and directories alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(Arc<str>);

/// A name that cannot be a model's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "'{0}' cannot be a model name: use 1 to 128 of A-Z a-z 0-9 . _ - and begin with neither a dot, as \
     hidden files do, nor a dash, as options do"
)]
pub struct InvalidName(String);

impl ModelName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is to be said of a name in whose place the HTTP port has a route of its own.
    pub fn hidden_by_route(&self) -> Option<String> {
        (self.as_str() == STATISTICS).then(|| {
            format!(
                "GET /v2/models/{STATISTICS} answers with the statistics of all models: this one's metadata is at \
                 /v2/models/{STATISTICS}/versions/VERSION, or to be had by gRPC"
            )
        })
    }
}

/// Names the statistics of all models in paths, where a model's name stands otherwise.
const STATISTICS: &str = "stats";

impl FromStr for ModelName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if (1..=128).contains(&name.len()) && !name.starts_with(['.', '-']) && name.bytes().all(allowed) {
            return Ok(Self(name.into()));
        }
        Err(InvalidName(shown(name, 64).into_owned()))
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl std::borrow::Borrow<str> for ModelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A text that is no version's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "a version is a whole number of at most 9223372036854775807, written without a sign or leading zeros"
)]
pub struct InvalidVersion;

/// A version's number: the name of its directory. The largest is the newest. At most `i64::MAX`, which is what other
/// servers' protocols can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub u64);

impl FromStr for Version {
    type Err = InvalidVersion;

    /// Decimal digits without a sign or leading zeros: `007` and `7` would be one version with two names.
    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let number = text.parse::<i64>().ok().filter(|number| number.to_string() == text);
        number.and_then(|number| u64::try_from(number).ok()).map(Self).ok_or(InvalidVersion)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Tells tenants apart without comparing names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TenantId(pub u32);

/// Orders the changes of one model: a change with a smaller generation than the newest is abandoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A name for a version that does not change when the version does: `stable`, `canary`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label(Arc<str>);

/// A text that cannot be a label.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' cannot be a label: begin with a letter and use 1 to 32 of a-z 0-9 _ -")]
pub struct InvalidLabel(String);

impl Label {
    /// The live version's own.
    pub const STABLE: &str = "stable";

    /// The label.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Label {
    type Err = InvalidLabel;

    /// What begins with a digit would be taken for a number.
    fn from_str(text: &str) -> Result<Self, InvalidLabel> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'-');
        let begins = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        if begins && text.len() <= 32 && text.bytes().all(allowed) {
            return Ok(Self(text.into()));
        }
        Err(InvalidLabel(shown(text, 32).into_owned()))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl std::borrow::Borrow<str> for Label {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The `version` field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub enum VersionWish {
    /// Whatever is live, or whatever a rollout chooses (an empty string).
    #[default]
    Any,
    /// The live version, and no rollout's (the label `stable`).
    Stable,
    /// That one, if it is loaded.
    Exactly(Version),
    /// The one that has this label.
    Labelled(Label),
}

impl VersionWish {
    /// Reads the `version` field of a request. `None` for a text that is neither a number nor a label.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" => Some(Self::Any),
            Label::STABLE => Some(Self::Stable),
            _ => text.parse().map(Self::Exactly).or_else(|_| text.parse().map(Self::Labelled)).ok(),
        }
    }
}

impl fmt::Display for VersionWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any"),
            Self::Stable => f.write_str(Label::STABLE),
            Self::Exactly(version) => version.fmt(f),
            Self::Labelled(label) => label.fmt(f),
        }
    }
}

/// Which version may answer a request whose slot is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum VersionSelector {
    /// Whatever stands in the slot.
    #[default]
    Live,
    /// That one, if it stands there.
    Exactly(Version),
}

impl VersionSelector {
    /// True where `version` satisfies the request.
    pub fn admits(self, version: Version) -> bool {
        match self {
            Self::Live => true,
            Self::Exactly(wanted) => wanted == version,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_single_path_components() {
        for bad in ["", ".", "..", ".hidden", "-rf", "-", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad}");
        }
        for good in ["digits", "resnet-18_v1.2", "7", "_"] {
            assert_eq!(good.parse::<ModelName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn wishes() {
        assert_eq!(VersionWish::parse(""), Some(VersionWish::Any));
        assert_eq!(VersionWish::parse("stable"), Some(VersionWish::Stable));
        assert_eq!(VersionWish::parse("7"), Some(VersionWish::Exactly(Version(7))));
        assert_eq!(VersionWish::parse("canary"), Some(VersionWish::Labelled("canary".parse().unwrap())));
        for bad in ["-7", "+7", "07", "7.0", " 7", "9223372036854775808", "Canary", "a b", &"x".repeat(33)] {
            assert_eq!(VersionWish::parse(bad), None, "{bad}");
        }
    }
}
