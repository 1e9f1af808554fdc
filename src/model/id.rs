//! Names and numbers of models, versions and changes.

use std::{fmt, str::FromStr, sync::Arc};

use thiserror::Error;

/// A model's name: one path component, so that it can stand in URLs, metrics and directories alike.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModelName(Arc<str>);

/// A name that cannot be a model's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("'{0}' cannot be a model name: use 1 to 128 of A-Z a-z 0-9 . _ - and do not begin with a dot")]
pub struct InvalidName(String);

impl ModelName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = InvalidName;

    fn from_str(name: &str) -> Result<Self, InvalidName> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if (1..=128).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed) {
            return Ok(Self(name.into()));
        }
        Err(InvalidName(name.chars().take(64).collect()))
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
#[error("a version is a whole number, written without a sign or leading zeros")]
pub struct InvalidVersion;

/// A version's number: the name of its directory. The largest is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version(pub u64);

impl FromStr for Version {
    type Err = InvalidVersion;

    /// Decimal digits without a sign or leading zeros: `007` and `7` would be one version with two names.
    fn from_str(text: &str) -> Result<Self, InvalidVersion> {
        let number = text.parse::<u64>().ok().filter(|number| number.to_string() == text);
        number.map(Self).ok_or(InvalidVersion)
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

/// Which version a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum VersionSelector {
    /// Whatever is live (an empty string, or the label `stable`).
    #[default]
    Live,
    /// That one, if it is live.
    Exactly(Version),
}

impl VersionSelector {
    /// Reads the `version` field of a request. `None` for a text that is neither a number nor a known label.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "stable" => Some(Self::Live),
            _ => text.parse().ok().map(Self::Exactly),
        }
    }

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
        for bad in ["", ".", "..", ".hidden", "a/b", "a b", "ä", &"x".repeat(129)] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad}");
        }
        for good in ["digits", "resnet-18_v1.2", "7"] {
            assert_eq!(good.parse::<ModelName>().unwrap().as_str(), good);
        }
    }

    #[test]
    fn selectors() {
        assert_eq!(VersionSelector::parse("stable"), Some(VersionSelector::Live));
        assert_eq!(VersionSelector::parse("7"), Some(VersionSelector::Exactly(Version(7))));
        for bad in ["-7", "+7", "07", "7.0", " 7", "18446744073709551616"] {
            assert_eq!(VersionSelector::parse(bad), None, "{bad}");
        }
        assert_eq!(VersionSelector::parse("latest"), None);
    }
}
