//! Where models come from: a directory that is used in place, or an object store that is mirrored.

use std::{path::Path, time::Duration};

use torchlane_model::ModelName;

use super::{Directory, FetchError, Found, Mirror, MirrorConfig, RepositoryError, VersionFiles};
use crate::{StoreMetrics, files};

/// A repository, whatever it is in. All answers are without waiting for a disk on the caller's thread.
#[derive(Debug)]
pub enum Source {
    /// On this machine, or mounted.
    Directory(Directory),
    /// In a bucket or on a web server.
    Store(Mirror),
}

impl Source {
    /// The repository at `place`: a path, a `file://` URL, or the URL of a store. Whether anything is there is not asked yet.
    ///
    /// # Errors
    /// Nothing can be reached by such a URL, or there is no place for its cache.
    pub fn open(
        place: &Path,
        config: &MirrorConfig,
        metrics: &StoreMetrics,
    ) -> Result<Self, RepositoryError> {
        match place.to_str().filter(|text| text.contains("://")) {
            None => Ok(Self::Directory(Directory::at(place))),
            Some(url) => match url.strip_prefix("file://") {
                Some(path) => Ok(Self::Directory(Directory::at(Path::new(path)))),
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

    /// What an earlier look or process found, for a start without a store.
    pub async fn remembered(&self) -> Vec<Found> {
        match self {
            Self::Directory(_) => Vec::new(),
            Self::Store(mirror) => mirror.remembered().await.unwrap_or_default(),
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
