//! What can be wrong with a version's files, seen from its `manifest.json`.

use std::path::PathBuf;

use thiserror::Error;
use torchlane_model::error::{Reason, shown};

use super::Policy;

/// Why a version is refused. One line that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Violation {
    /// The policy asks for a seal.
    #[error(
        "{0} has no manifest.json and integrity.policy is {policy}: run torchlane sign on the version's directory",
        policy = .1.as_str()
    )]
    Unsealed(PathBuf, Policy),
    /// The policy asks for a seal, and there is nothing to seal.
    #[error(
        "{0} describes an ensemble, which has no files of its own to sign, and integrity.policy is {policy}: ensembles are served with the policy off alone",
        policy = .1.as_str()
    )]
    Ensemble(PathBuf, Policy),
    /// The policy asks for a signature.
    #[error(
        "manifest.json has no signature and integrity.policy is signed: run torchlane sign --key FILE on its directory"
    )]
    Unsigned,
    /// Nobody who counts has signed.
    #[error(
        "manifest.json is signed by no trusted key (but by {0}): trust the key (integrity.trusted_keys) or sign with another"
    )]
    Untrusted(String),
    /// By a trusted key, but of something else.
    #[error(
        "the signature by the trusted key {0} is not of this manifest.json: it was changed, or not signed by that key; take it from where it was made"
    )]
    Forged(String),
    /// It cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// It is of another model or version.
    #[error(
        "manifest.json is of {0}, not of {1}: files count where they were signed for; run torchlane sign to release them here"
    )]
    Elsewhere(String, String),
    /// It is there and would be read, but is not listed.
    #[error(
        "{0} is not listed in manifest.json: remove it, or run torchlane sign if it belongs to the version"
    )]
    Unlisted(String),
    /// It is listed, but not there.
    #[error("{0} is listed in manifest.json but not there: copy the version again")]
    Missing(String),
    /// Weights lie over an archive that their seal does not name.
    #[error(
        "manifest.json does not say which archive its weights belong to (base): run torchlane sign again"
    )]
    NoBase,
    /// Shorter or longer than listed.
    #[error("{name} has {found} bytes, manifest.json says {listed}: copy the version again")]
    Size {
        /// The file.
        name: String,
        /// Bytes, by the seal.
        listed: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// Not the same bytes.
    #[error(
        "sha256 of {name} is {found}, manifest.json says {listed}: it was changed after it was sealed; copy the version again"
    )]
    Digest {
        /// The file.
        name: String,
        /// By the seal.
        listed: String,
        /// Of what is there.
        found: String,
    },
}

impl Violation {
    /// The reason that callers are given.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Unsealed(..) | Self::Ensemble(..) | Self::Unsigned => Reason::NotSigned,
            Self::Untrusted(_) | Self::Forged(_) => Reason::SignatureInvalid,
            Self::Unreadable(_) => Reason::LoadFailed,
            Self::Elsewhere(..)
            | Self::Unlisted(_)
            | Self::Missing(_)
            | Self::NoBase
            | Self::Size { .. }
            | Self::Digest { .. } => Reason::DigestMismatch,
        }
    }
}

/// A word from a file, fit for a message: short, and without anything that is not seen.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", shown(text, 64))
}
