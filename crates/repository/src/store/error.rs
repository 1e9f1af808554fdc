//! Why files did not come out of a store, in one line without credentials.

use std::{fmt, io};

use torchlane_model::{
    error::{Error, Reason, shown},
    redact,
};

/// A list or a download that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchError {
    reason: Reason,
    message: String,
}

impl FetchError {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: redact::text(&message.into()).into_owned() }
    }

    /// The cache cannot be written. A full disk is its own reason: the remedy is another.
    pub(super) fn cache(what: impl fmt::Display, error: &io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        if matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge) {
            let remedy = "make room on its disk, or name another with cache.directory";
            return Self::new(Reason::CacheFull, format!("the cache cannot take {what}: {error}; {remedy}"));
        }
        Self::new(Reason::LoadFailed, format!("the cache cannot take {what}: {error}"))
    }

    /// Why, as callers of the API are told.
    pub fn reason(&self) -> Reason {
        self.reason
    }

    /// Whether another try may end better by itself.
    pub fn is_transient(&self) -> bool {
        self.reason == Reason::StoreUnavailable
    }

    /// What `error` means for reading `what`.
    pub(super) fn store(what: impl fmt::Display, error: &object_store::Error) -> Self {
        use object_store::Error::{
            Generic, JoinError, NotFound, PermissionDenied, Precondition, Unauthenticated,
        };
        let cause = cause(error);
        match error {
            NotFound { .. } => Self::new(Reason::LoadFailed, format!("{what} is not there: {cause}")),
            PermissionDenied { .. } | Unauthenticated { .. } => Self::new(
                Reason::LoadFailed,
                format!("{what} may not be read with the credentials of the environment: {cause}"),
            ),
            Precondition { .. } => Self::changed(what),
            Generic { .. } | JoinError { .. } => {
                Self::new(Reason::StoreUnavailable, format!("{what} cannot be read: {cause}"))
            }
            _ => Self::new(Reason::LoadFailed, format!("{what} cannot be read: {cause}")),
        }
    }

    pub(super) fn changed(what: impl fmt::Display) -> Self {
        Self::new(Reason::LoadFailed, format!("{what} changed since it was listed: try again"))
    }
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for FetchError {}

impl From<FetchError> for Error {
    fn from(error: FetchError) -> Self {
        Self::new(error.reason, error.message)
    }
}

/// Longest text of a store that goes into a message, in characters.
const CAUSE: usize = 300;

/// What the store says, short and without what a signed URL has behind its question mark.
fn cause(error: &object_store::Error) -> String {
    let text = error.to_string();
    let inside = |tag: &str| {
        let (_, rest) = text.split_once(&format!("<{tag}>"))?;
        rest.split_once(&format!("</{tag}>")).map(|(inside, _)| inside)
    };
    if let Some(code) = inside("Code") {
        let message = inside("Message").unwrap_or_default();
        return tidy(&format!("{code}: {message}"));
    }
    tidy(&text)
}

fn tidy(text: &str) -> String {
    let words: Vec<_> = text
        .split_whitespace()
        .map(|word| match word.split_once('?') {
            Some((address, _)) if address.contains("://") => address,
            _ => word,
        })
        .collect();
    let line: String = words.join(" ").chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    shown(&line, CAUSE).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_short_and_hold_no_secrets() {
        let says = |text: &str| {
            let error = object_store::Error::Generic { store: "S3", source: text.into() };
            FetchError::store("s3://b/k", &error).to_string()
        };
        let signed = says("error sending request for url (https://a.example/k?sig=SECRET&se=1)\nboom");
        assert!(!signed.contains("SECRET") && !signed.contains('\n'), "{signed}");
        assert!(says(&"x ".repeat(5000)).len() < 700);
        let xml = says("404: <Error><Code>NoSuchBucket</Code><Message>gone</Message></Error>");
        assert!(xml.ends_with("NoSuchBucket: gone"), "{xml}");
    }

    #[test]
    fn a_full_disk_has_a_reason_of_its_own() {
        let of = |errno| FetchError::cache("x", &io::Error::from_raw_os_error(errno)).reason();
        let (enospc, efbig, eacces) = (28, 27, 13);
        assert_eq!(
            [of(enospc), of(efbig), of(eacces)],
            [Reason::CacheFull, Reason::CacheFull, Reason::LoadFailed]
        );
    }
}
