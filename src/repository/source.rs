//! Where models come from: a directory that is used in place, or an object store that is mirrored.

use std::{path::Path, time::Duration};

use super::{Directory, FetchError, Found, Mirror, MirrorConfig, RepositoryError, VersionFiles};
use crate::{files, model::ModelName, telemetry::StoreMetrics};

/// A repository, whatever it is in. All answers are without waiting for a disk on the caller's thread.
#[derive(Debug)]
pub enum Source {
    /// On this machine, or mounted.
    Directory(Directory),
    /// In a bucket or on a web server.
    Store(Mirror),
}

impl Source {
    /// The repository at `place`: a path, a `file://` URL, or the URL of a store.
    ///
    /// # Errors
    /// There is no such directory, or nothing can be reached by such a URL.
    pub fn open(
        place: &Path,
        config: &MirrorConfig,
        metrics: &StoreMetrics,
    ) -> Result<Self, RepositoryError> {
        match place.to_str().filter(|text| text.contains("://")) {
            None => Ok(Self::Directory(Directory::open(place)?)),
            Some(url) => match url.strip_prefix("file://") {
                Some(path) => Ok(Self::Directory(Directory::open(Path::new(path))?)),
                None => Ok(Self::Store(Mirror::open(url, config, metrics.clone())?)),
            },
        }
    }

    /// Where the system may tell of changes.
    pub fn root(&self) -> Option<&Path> {
        match self {
            Self::Directory(directory) => Some(directory.root()),
            Self::Store(_) => None,
        }
    }

    /// Every model that is there, by name. In a store nothing is downloaded.
    ///
    /// # Errors
    /// It cannot be listed.
    pub async fn scan(&self) -> Result<Vec<Found>, RepositoryError> {
        match self {
            Self::Directory(directory) => {
                let directory = directory.clone();
                let root = directory.root().to_owned();
                look(&root, files::LONG, move || directory.scan()).await
            }
            Self::Store(mirror) => Ok(mirror.scan().await?),
        }
    }

    /// One model, read afresh.
    ///
    /// # Errors
    /// It cannot be listed.
    pub async fn find(&self, name: &ModelName) -> Result<Option<Found>, RepositoryError> {
        match self {
            Self::Directory(directory) => {
                let (directory, name) = (directory.clone(), name.clone());
                let place = directory.root().join(name.as_str());
                look(&place, files::LOOK, move || directory.find(&name)).await
            }
            Self::Store(mirror) => Ok(mirror.find(name).await?),
        }
    }

    /// Sees to it that the files are where they are said to be, and stay there while the result lives. Files of
    /// another source are returned as they are.
    ///
    /// # Errors
    /// They cannot be fetched.
    pub async fn materialize(&self, files: VersionFiles) -> Result<VersionFiles, FetchError> {
        match self {
            Self::Directory(_) => Ok(files),
            Self::Store(mirror) => mirror.fetch(files).await,
        }
    }
}

async fn look<T: Send + 'static>(
    place: &Path,
    limit: Duration,
    look: impl FnOnce() -> Result<T, RepositoryError> + Send + 'static,
) -> Result<T, RepositoryError> {
    let looked = files::run(place, limit, look).await;
    looked
        .unwrap_or_else(|stalled| Err(RepositoryError::Io { path: place.to_owned(), source: stalled.into() }))
}
