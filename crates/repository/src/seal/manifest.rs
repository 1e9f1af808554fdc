//! A `manifest.json` as it is read, signed and written.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use torchlane_model::{error::shown, plain};

use super::{FILE, Place, PrivateKey, SIGNED_PREFIX, TrustedKey, Violation, strict, violation::quoted};

/// The longest `manifest.json`, in bytes.
pub const MOST_BYTES: u64 = 1 << 20;

/// The most signatures that are looked at.
const MOST_SIGNATURES: usize = 64;

/// The one format that there is.
const FORMAT: u64 = 1;

/// The one algorithm that there is.
const ALGORITHM: &str = "ed25519";

/// A file, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// Its size.
    pub bytes: u64,
    /// 64 hexadecimal digits, small letters.
    pub sha256: String,
}

/// The archive under a version of weights alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Where it came from, for people: the digest decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// What it is.
    #[serde(flatten)]
    pub fact: Fact,
}

/// A signature, as it is listed. Nothing in it has been checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Signature {
    key_id: String,
    algorithm: String,
    signature: String,
}

/// The fields that mean something here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Known {
    format: u64,
    model: Option<String>,
    version: Option<u64>,
    files: BTreeMap<String, Fact>,
    base: Option<Base>,
}

/// A `manifest.json`. What it says is consistent; whether it is true is for [`check`](super::check()) to find out.
#[derive(Debug, Clone, PartialEq)]
pub struct Seal {
    /// All but the signatures, as it was written: what nobody here knows is signed too.
    body: Map<String, Value>,
    known: Known,
    signatures: Vec<Signature>,
}

impl Seal {
    /// Reads one.
    ///
    /// # Errors
    /// Not of the form that the module's page gives. One line.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let value = strict::parse(bytes).map_err(|error| {
            let error = plain::error(&error.to_string(), plain::Form::Json);
            format!("not {FILE} as torchlane sign writes it: {error}")
        })?;
        let Value::Object(mut body) = value else {
            return Err("not a JSON object: torchlane sign writes one".to_owned());
        };
        let signatures = body.remove("signatures").unwrap_or_else(|| Value::Array(Vec::new()));
        let signatures: Vec<Signature> =
            serde_json::from_value(signatures).map_err(|error| wrong("signatures", &error))?;
        if signatures.len() > MOST_SIGNATURES {
            return Err(format!("{} signatures, at most {MOST_SIGNATURES} are allowed", signatures.len()));
        }
        Ok(Self { signatures, ..Self::unsigned(body)? })
    }

    /// Of everything but signatures.
    pub(super) fn unsigned(body: Map<String, Value>) -> Result<Self, String> {
        // Before the rest: another format may have other fields.
        match body.get("format") {
            Some(format) if format.as_u64() == Some(FORMAT) => {}
            Some(format) => {
                let format = format.to_string();
                return Err(format!(
                    "format {} is not one that this torchlane knows: update it",
                    quoted(&format)
                ));
            }
            None => return Err("no format: torchlane sign writes it anew".to_owned()),
        }
        let known: Known =
            serde_json::from_value(Value::Object(body.clone())).map_err(|error| wrong("fields", &error))?;
        if let Some(name) = known.files.keys().find(|name| !is_plain(name)) {
            return Err(format!(
                "{} cannot be a file of a version: names are plain, without a path",
                quoted(name)
            ));
        }
        let digests = known.files.values().chain(known.base.as_ref().map(|base| &base.fact));
        for fact in digests {
            if !is_sha256(&fact.sha256) {
                return Err(format!("{} is not a sha256: 64 of 0-9 a-f", quoted(&fact.sha256)));
            }
        }
        Ok(Self { body, known, signatures: Vec::new() })
    }

    /// The files that it lists, by name.
    pub fn files(&self) -> &BTreeMap<String, Fact> {
        &self.known.files
    }

    /// The archive that its weights lie over, where it is not among its files.
    pub fn base(&self) -> Option<&Base> {
        self.known.base.as_ref()
    }

    /// The ids of the keys that are said to have signed.
    pub fn signers(&self) -> impl Iterator<Item = &str> {
        self.signatures.iter().map(|signature| signature.key_id.as_str())
    }

    /// Everything but the signatures.
    pub(super) fn body(&self) -> &Map<String, Value> {
        &self.body
    }

    /// What signatures are over.
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut bytes = SIGNED_PREFIX.to_vec();
        bytes.extend(strict::canonical(&Value::Object(self.body.clone())));
        bytes
    }

    /// Signs. An earlier signature by the same key goes.
    pub fn sign(&mut self, key: &PrivateKey) {
        let key_id = key.id();
        let signature = key.sign(&self.signed_bytes());
        self.signatures.retain(|signature| signature.key_id != key_id);
        self.signatures.push(Signature { key_id, algorithm: ALGORITHM.to_owned(), signature });
    }

    /// As it is written to the file.
    pub fn to_text(&self) -> String {
        let mut whole = self.body.clone();
        let signatures = self.signatures.iter().map(|signature| {
            serde_json::json!({
                "key_id": signature.key_id, "algorithm": signature.algorithm, "signature": signature.signature,
            })
        });
        whole.insert("signatures".to_owned(), signatures.collect());
        format!("{:#}\n", Value::Object(whole))
    }

    /// The id of a trusted key that has signed.
    ///
    /// # Errors
    /// There is none.
    pub fn authenticate(&self, trusted: &[TrustedKey]) -> Result<String, Violation> {
        let signed = self.signed_bytes();
        let mut forged = None;
        for signature in self.signatures.iter().filter(|signature| signature.algorithm == ALGORITHM) {
            for key in trusted.iter().filter(|key| key.id() == signature.key_id) {
                if key.verifies(&signed, &signature.signature) {
                    return Ok(key.id().to_owned());
                }
                forged = Some(Violation::Forged(key.id().to_owned()));
            }
        }
        Err(forged.unwrap_or_else(|| {
            let signers: BTreeSet<_> = self.signers().collect();
            let signers: Vec<_> = signers.into_iter().take(4).map(quoted).collect();
            if signers.is_empty() { Violation::Unsigned } else { Violation::Untrusted(signers.join(", ")) }
        }))
    }

    /// Whether it is of this place, as far as either says.
    ///
    /// # Errors
    /// It names another model or version.
    pub fn belongs(&self, place: &Place) -> Result<(), Violation> {
        let Known { model, version, .. } = &self.known;
        let model = model.as_deref().zip(place.model.as_ref()).filter(|(of, here)| *of != here.as_str());
        let version = version.zip(place.version).filter(|(of, here)| *of != here.0);
        let [of, here] = match (model, version) {
            (None, None) => return Ok(()),
            (Some((of, here)), None) => [format!("model {}", quoted(of)), format!("model '{here}'")],
            (None, Some((of, here))) => [format!("version {of}"), format!("version {here}")],
            (Some((model, here)), Some((version, number))) => [
                format!("model {} version {version}", quoted(model)),
                format!("model '{here}' version {number}"),
            ],
        };
        Err(Violation::Elsewhere(of, here))
    }
}

fn wrong(what: &str, error: &serde_json::Error) -> String {
    let error = plain::error(&error.to_string(), plain::Form::Json);
    format!("its {what} are not those that torchlane sign writes: {}", shown(&error, 200))
}

/// One component of a path that can be listed: not hidden, not the seal itself, and nothing in it that is not seen.
pub(super) fn is_plain(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && !name.starts_with('.')
        && name != FILE
        && !name.contains('/')
        && name.escape_debug().eq(name.chars())
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
