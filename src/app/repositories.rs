//! The repositories that the settings name, and the directory for uploads among them.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::server::StartError;
use crate::{
    config::Settings,
    files,
    lifecycle::Started,
    model::redact,
    repository::{Directory, Repositories, Repository, Source, Uploads},
    telemetry::Metrics,
};

/// Where models that come with a call are put. What a killed process left there is tidied up.
pub(super) async fn uploads(settings: &Settings) -> Result<Option<Arc<Uploads>>, StartError> {
    let Some(root) = settings.oip.uploads.clone() else { return Ok(None) };
    let place = root.clone();
    let opened = files::run(&place, files::LONG, move || Uploads::open(&root)).await;
    Ok(Some(Arc::new(opened.map_err(std::io::Error::from)??)))
}

/// Without making or changing anything.
pub(super) fn look_at_uploads(settings: &Settings) -> Result<Option<Directory>, StartError> {
    let there = settings.oip.uploads.as_deref().filter(|root| root.exists());
    Ok(there.map(Directory::open).transpose()?)
}

/// All of them, in the order in which they count. `uploads` comes last, unless it is one of them anyway. None is asked for
/// anything yet.
pub(super) fn open(
    settings: &Settings,
    uploads: Option<&Directory>,
    metrics: &Metrics,
) -> Result<Repositories, StartError> {
    let config = settings.mirror();
    let of_uploads = |directory: &Directory| {
        let place = directory.root().display().to_string();
        let source = Source::Directory(directory.clone());
        Repository::new(source, place, metrics.repositories.clone()).may_be_empty()
    };
    let mut repositories = Vec::new();
    for path in &settings.repositories {
        let source = Source::open(path, &config, metrics.store())?;
        // Whatever looks for the directory for uploads knows it by its path.
        repositories.push(match uploads.filter(|uploads| is_same(source.root(), uploads.root())) {
            Some(uploads) => of_uploads(uploads),
            None => Repository::new(source, path.display().to_string(), metrics.repositories.clone()),
        });
    }
    if let Some(uploads) = uploads
        && !repositories.iter().any(|repository| repository.root() == Some(uploads.root()))
    {
        repositories.push(of_uploads(uploads));
    }
    Ok(Repositories::new(repositories))
}

/// Why a server cannot go on after its first looks: nothing is there to be served, and nothing will come by itself.
pub(super) fn nothing_to_serve(
    places: &[PathBuf],
    allow_empty: bool,
    started: &Started,
) -> Option<StartError> {
    if started.found > 0 || started.troubles.iter().any(|trouble| trouble.is_transient) {
        return None;
    }
    // A directory for uploads is empty at first, and can always be read.
    let is_lost = !started.troubles.is_empty() && started.troubles.len() >= places.len();
    match started.troubles.first().filter(|_| !allow_empty || is_lost) {
        Some(trouble) => Some(StartError::Unreadable(trouble.message.clone())),
        None => (!allow_empty).then(|| empty(places)),
    }
}

pub(super) fn empty(places: &[PathBuf]) -> StartError {
    let places = places.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ");
    StartError::Empty(redact::text(&places).into_owned())
}

fn is_same(one: Option<&Path>, other: &Path) -> bool {
    let real = |path: &Path| fs::canonicalize(path).ok();
    one.and_then(real).is_some_and(|one| Some(one) == real(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_directory_for_uploads_is_one_of_the_repositories() {
        let dir = tempfile::tempdir().unwrap();
        let (models, uploads) = (dir.path().join("models"), dir.path().join("uploads"));
        fs::create_dir(&models).unwrap();
        let mut settings =
            Settings { repositories: vec![models.clone()], allow_empty: true, ..Settings::default() };
        let roots = async |settings: &Settings| {
            let uploads = super::uploads(settings).await.unwrap();
            let directory = uploads.as_deref().map(Uploads::directory);
            let opened = open(settings, directory, &Metrics::default()).unwrap();
            opened.iter().map(|repository| repository.root().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(roots(&settings).await, std::slice::from_ref(&models));
        settings.oip.uploads = Some(uploads.clone());
        assert!(look_at_uploads(&settings).unwrap().is_none() && !uploads.exists(), "a look makes nothing");
        assert_eq!(roots(&settings).await, [models.clone(), uploads.clone()]);
        let otherwise = dir.path().join("uploads/../models");
        settings.oip.uploads = Some(otherwise.clone());
        assert_eq!(roots(&settings).await, [otherwise], "once, however it is written");
    }
}
