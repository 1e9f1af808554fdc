//! Keys: ed25519 in the PEM files that OpenSSL reads and writes (PKCS#8 private, SubjectPublicKeyInfo public).

use std::{
    fmt,
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ed25519_dalek::{
    Signature, Signer as _, SigningKey, VerifyingKey,
    pkcs8::{
        DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _,
        KeypairBytes, spki::der::pem::LineEnding,
    },
};
use rustix::rand::{GetRandomFlags, getrandom};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::violation::quoted;

/// Stands before a public key that is written in the settings, not in a file.
const INLINE: &str = "ed25519:";

/// Longer files are no keys.
const MOST_BYTES: u64 = 64 * 1024;

/// A key that cannot be used. One line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("key {name}: {problem}")]
pub struct KeyError {
    name: String,
    problem: String,
}

impl KeyError {
    fn new(name: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self { name: name.to_string(), problem: problem.to_string() }
    }
}

/// A public key whose signatures count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    id: String,
    key: VerifyingKey,
}

impl TrustedKey {
    /// A key by what the settings say: the path of a PEM file, the PEM text itself, or `ed25519:` and the key's 32 bytes
    /// in base64.
    ///
    /// # Errors
    /// No such file, or no ed25519 public key.
    pub fn from_setting(setting: &str) -> Result<Self, KeyError> {
        let setting = setting.trim();
        if let Some(encoded) = setting.strip_prefix(INLINE) {
            let bytes = STANDARD.decode(encoded).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            let key = bytes.and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
            let no_key = || KeyError::new(quoted(setting), "not an ed25519 public key: 32 bytes in base64");
            return Self::new(quoted(setting), key.ok_or_else(no_key)?);
        }
        if setting.starts_with("-----BEGIN") {
            return Self::from_pem("in the settings", setting);
        }
        Self::from_pem(setting, &read(Path::new(setting))?)
    }

    fn from_pem(name: &str, pem: &str) -> Result<Self, KeyError> {
        if pem.contains("PRIVATE KEY") {
            let problem = "a private key: trust its public key (the file that ends in .pub), and keep this one off servers";
            return Err(KeyError::new(name, problem));
        }
        let key = VerifyingKey::from_public_key_pem(pem.trim()).map_err(|_| {
            KeyError::new(
                name,
                "not an ed25519 public key in PEM form: make keys with torchlane sign --new-key FILE",
            )
        })?;
        Self::new(name, key)
    }

    fn new(name: impl fmt::Display, key: VerifyingKey) -> Result<Self, KeyError> {
        // Anybody can make signatures that fit one of the few weak keys.
        if key.is_weak() {
            return Err(KeyError::new(name, "a weak key: its signatures prove nothing"));
        }
        let der = key.to_public_key_der().map_err(|error| KeyError::new(name, error))?;
        let id = Sha256::digest(der.as_bytes()).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { id, key })
    }

    /// 16 hexadecimal digits that tell keys apart. A hint for finding the key, no proof of anything.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// As [`TrustedKey::from_setting`] reads it, without a file.
    pub fn to_setting(&self) -> String {
        format!("{INLINE}{}", STANDARD.encode(self.key.as_bytes()))
    }

    /// Whether `signature`, in base64, is this key's for `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &str) -> bool {
        let bytes = STANDARD.decode(signature).ok();
        let signature = bytes.and_then(|bytes| Signature::from_slice(&bytes).ok());
        signature.is_some_and(|signature| self.key.verify_strict(message, &signature).is_ok())
    }
}

/// A key that signs. Its bytes are wiped when it is dropped.
pub struct PrivateKey {
    key: SigningKey,
    public: TrustedKey,
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PrivateKey").field("public", &self.public).finish_non_exhaustive()
    }
}

impl PrivateKey {
    /// Reads a PEM file.
    ///
    /// # Errors
    /// No such file, or no plain ed25519 private key.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        Self::from_pem(&path.display().to_string(), &read(path)?)
    }

    /// Reads PEM text; `name` is for messages.
    ///
    /// # Errors
    /// No plain ed25519 private key.
    pub fn from_pem(name: &str, pem: &str) -> Result<Self, KeyError> {
        if pem.contains("ENCRYPTED PRIVATE KEY") {
            let problem =
                "it is encrypted: decrypt it for the time of signing (openssl pkey -in FILE -out PLAIN)";
            return Err(KeyError::new(name, problem));
        }
        let key = SigningKey::from_pkcs8_pem(pem.trim()).map_err(|_| {
            KeyError::new(
                name,
                "not an ed25519 private key in PEM form: make one with torchlane sign --new-key FILE",
            )
        })?;
        Self::new(name, key)
    }

    fn new(name: impl fmt::Display, key: SigningKey) -> Result<Self, KeyError> {
        let public = TrustedKey::new(name, key.verifying_key())?;
        Ok(Self { key, public })
    }

    /// Makes a key and writes it: the private half to `path`, for its owner's eyes only, the public one beside it with
    /// `.pub` behind its name. Nothing is overwritten.
    ///
    /// # Errors
    /// One of the files is there, or cannot be written.
    pub fn create(path: &Path) -> Result<Self, KeyError> {
        let name = &path.display();
        let mut secret = [0; 32];
        // Up to 256 bytes are never cut short.
        getrandom(&mut secret, GetRandomFlags::empty()).map_err(|error| KeyError::new(name, error))?;
        let new = Self::new(name, SigningKey::from_bytes(&secret))?;
        // Without the public half inside: OpenSSL reads no other form.
        let pair = KeypairBytes { secret_key: secret, public_key: None };
        let private = pair.to_pkcs8_pem(LineEnding::LF).map_err(|error| KeyError::new(name, error))?;
        let public_pem =
            new.public.key.to_public_key_pem(LineEnding::LF).map_err(|error| KeyError::new(name, error))?;
        let public = public_half(path);
        // The public half first: a private key is not written for nothing where this cannot be.
        write_new(&public, &public_pem, 0o644)?;
        if let Err(error) = write_new(path, &private, 0o600) {
            let _left_behind = fs::remove_file(&public);
            return Err(error);
        }
        Ok(new)
    }

    /// Its public half.
    pub fn public(&self) -> &TrustedKey {
        &self.public
    }

    pub(super) fn id(&self) -> String {
        self.public.id.clone()
    }

    /// The signature of `message`, in base64.
    pub(super) fn sign(&self, message: &[u8]) -> String {
        STANDARD.encode(self.key.sign(message).to_bytes())
    }
}

fn public_half(path: &Path) -> PathBuf {
    let mut public = path.as_os_str().to_owned();
    public.push(".pub");
    public.into()
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), KeyError> {
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => KeyError::new(
            path.display(),
            "it is there already, and keys are not overwritten: name another file",
        ),
        _ => KeyError::new(path.display(), error),
    })
}

fn read(path: &Path) -> Result<String, KeyError> {
    let wrong = |error: io::Error| KeyError::new(path.display(), error);
    let mut text = String::new();
    fs::File::open(path).map_err(wrong)?.take(MOST_BYTES).read_to_string(&mut text).map_err(wrong)?;
    Ok(text)
}
