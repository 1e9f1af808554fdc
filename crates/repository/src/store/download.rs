//! One object from a store into its part: goes on where an earlier try ended, tries again while that helps.

use std::time::Duration;

use futures::{Stream, StreamExt as _};
use object_store::{GetOptions, GetRange, ObjectStore, path::Path};
use tokio::time::{Instant, sleep, timeout};
use torchlane_model::error::Reason;

use super::{error::FetchError, part::Part};
use crate::StoreMetrics;

/// Between two tries, doubled each time.
const PAUSES: std::ops::Range<Duration> = Duration::from_millis(100)..Duration::from_secs(5);

/// What an object is read with.
pub(super) struct Transfer<'a> {
    pub(super) store: &'a dyn ObjectStore,
    /// Where it is.
    pub(super) location: Path,
    /// For people.
    pub(super) url: String,
    /// Without a byte for so long, it is given up.
    pub(super) patience: Duration,
    pub(super) metrics: &'a StoreMetrics,
    pub(super) scheme: &'static str,
}

impl Transfer<'_> {
    /// Completes `part` and returns its sha256, hexadecimal.
    ///
    /// # Errors
    /// The store does not answer for as long as the patience lasts, the object changed, or the cache cannot take it.
    pub(super) async fn run(&self, part: &mut Part) -> Result<String, FetchError> {
        let mut pause = PAUSES.start;
        let mut progress = Instant::now();
        while part.bytes() < part.listed().size || part.bytes() == 0 {
            let before = part.bytes();
            let error = match self.attempt(part).await {
                Ok(()) => break,
                Err(error) => error,
            };
            if part.bytes() > before {
                (progress, pause) = (Instant::now(), PAUSES.start);
            }
            if !error.is_transient() || progress.elapsed() + pause >= self.patience {
                return Err(error);
            }
            tracing::warn!(target: "torchlane::store", bytes = part.bytes(), "{error}: trying again");
            // Servers that lost each other at one moment should not come back at one.
            sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(PAUSES.end);
        }
        self.checked(part)
    }

    fn checked(&self, part: &mut Part) -> Result<String, FetchError> {
        let sha256 = part.sha256();
        let expected = part.listed().sha256.clone();
        if part.bytes() == part.listed().size && expected.as_ref().is_none_or(|expected| *expected == sha256)
        {
            return Ok(sha256);
        }
        let message = format!(
            "{} has {} bytes with sha256 {sha256}, the listing says {} bytes{}: upload it again",
            self.url,
            part.bytes(),
            part.listed().size,
            expected.map(|expected| format!(" with sha256 {expected}")).unwrap_or_default()
        );
        // Nothing of it can be used again.
        part.restart().map_err(|error| FetchError::cache(&self.url, &error))?;
        Err(FetchError::new(Reason::DigestMismatch, message))
    }

    async fn attempt(&self, part: &mut Part) -> Result<(), FetchError> {
        let from = part.bytes();
        let options = GetOptions {
            range: (from > 0).then_some(GetRange::Offset(from)),
            if_match: part.if_match(),
            ..GetOptions::default()
        };
        let answer = self.soon(self.store.get_opts(&self.location, options)).await?;
        let answer = match answer {
            Err(object_store::Error::NotSupported { .. }) if from > 0 => {
                // It cannot go on from the middle of a file.
                part.restart().map_err(|error| FetchError::cache(&self.url, &error))?;
                return Err(FetchError::new(
                    Reason::StoreUnavailable,
                    format!("{} is not served in parts", self.url),
                ));
            }
            answer => answer.map_err(|error| FetchError::store(&self.url, &error))?,
        };
        let (meta, range) = (&answer.meta, &answer.range);
        let same = part.is_of(meta.e_tag.as_deref()) && meta.size == part.listed().size;
        if !same || range.start != from {
            part.restart().map_err(|error| FetchError::cache(&self.url, &error))?;
            return Err(FetchError::changed(&self.url));
        }
        part.answered(meta.e_tag.as_deref()).map_err(|error| FetchError::cache(&self.url, &error))?;
        self.copy(answer.into_stream(), part).await
    }

    async fn copy(
        &self,
        mut bytes: impl Stream<Item = object_store::Result<bytes::Bytes>> + Unpin,
        part: &mut Part,
    ) -> Result<(), FetchError> {
        while let Some(chunk) = self.soon(bytes.next()).await? {
            let chunk = chunk.map_err(|error| FetchError::store(&self.url, &error))?;
            if part.bytes() + chunk.len() as u64 > part.listed().size {
                return Err(FetchError::changed(&self.url));
            }
            part.append(&chunk).map_err(|error| FetchError::cache(&self.url, &error))?;
            self.metrics.received(self.scheme, chunk.len() as u64);
        }
        if part.bytes() < part.listed().size {
            return Err(FetchError::new(
                Reason::StoreUnavailable,
                format!("{} ended after {} of {} bytes", self.url, part.bytes(), part.listed().size),
            ));
        }
        Ok(())
    }

    async fn soon<T>(&self, answer: impl Future<Output = T>) -> Result<T, FetchError> {
        timeout(self.patience, answer).await.map_err(|_| {
            let message = format!("{} gave no byte for {:?} (store.patience)", self.url, self.patience);
            FetchError::new(Reason::StoreUnavailable, message)
        })
    }
}
