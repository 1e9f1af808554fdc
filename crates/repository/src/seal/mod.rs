//! `manifest.json`: the size and sha256 of every file of a version, and signatures over them.
//!
//! ```json
//! {
//!   "format": 1,
//!   "created": "2026-01-31T12:00:00Z",
//!   "model": "digits",
//!   "version": 2,
//!   "files": { "model.pt": { "bytes": 15943, "sha256": "..." } },
//!   "base": { "version": 1, "bytes": 15943, "sha256": "..." },
//!   "signatures": [{ "key_id": "...", "algorithm": "ed25519", "signature": "..." }]
//! }
//! ```
//!
//! `files` names plain files beside it. Whatever torchlane reads of a version must be listed there, and whatever is
//! listed must be there. `base` is the archive that a version of weights alone lies over: its digest is bound, so that
//! signed weights cannot be laid over another archive. `model` and `version` may be left out; where they stand, the
//! files count there only, so that an old version cannot come back under a new number. Other fields are the writer's
//! own; the signatures cover them too.
//!
//! **What is signed**: [`SIGNED_PREFIX`], then everything but `signatures` in the canonical form of RFC 8785 (JCS): no
//! blanks, keys in order of their UTF-16 units. Numbers are whole and at most 2^53 - 1 from zero, and no key stands
//! twice in an object, so the form is plain to make in any language. A signature is ed25519 (RFC 8032) in base64; a
//! key's id is the first 16 hexadecimal digits of the sha256 of its DER form (SubjectPublicKeyInfo).
//!
//! Not covered: `model.toml`, which lies beside the versions and is the operator's, and which of several signed
//! versions is the newest: whoever can write to the repository can take the last one away.

mod check;
mod keys;
mod make;
mod manifest;
mod strict;
mod violation;

use serde::{Deserialize, Serialize};

use torchlane_model::{ModelName, Version};

pub use check::{Checked, Tell, check, examine};
pub use keys::{KeyError, PrivateKey, TrustedKey};
pub use make::{BaseArchive, MakeError, make, write};
pub use manifest::{Base, Fact, MOST_BYTES, Seal};
pub use violation::Violation;

/// The seal's name within a version.
pub const FILE: &str = "manifest.json";

/// Stands before the canonical form in what is signed: a signature of anything else cannot be taken for one of these.
pub const SIGNED_PREFIX: &[u8] = b"torchlane manifest.json 1\n";

/// What a version must bring. Whatever the policy, a `manifest.json` that is there must be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// Nothing; signatures are not looked at.
    #[default]
    Off,
    /// A `manifest.json`; signatures are not looked at.
    Digest,
    /// A `manifest.json` with a signature by a trusted key.
    Signed,
}

impl Policy {
    /// As it is written in the settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Digest => "digest",
            Self::Signed => "signed",
        }
    }
}

/// What versions are held to.
#[derive(Debug, Clone, Default)]
pub struct Integrity {
    /// What a version must bring.
    pub policy: Policy,
    /// Whose signatures count.
    pub trusted: Vec<TrustedKey>,
}

/// Where a version lies, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The model that it is a version of.
    pub model: Option<ModelName>,
    /// Its number.
    pub version: Option<Version>,
}

impl Place {
    /// A version in a repository.
    pub fn of(model: &ModelName, version: Version) -> Self {
        Self { model: Some(model.clone()), version: Some(version) }
    }
}

#[cfg(test)]
mod tests;
