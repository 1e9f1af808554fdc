//! The repositories that the settings name, and the directory for uploads among them.

use std::{fs, path::Path, sync::Arc};

use super::server::StartError;
use crate::{
    config::{Settings, redact},
    files,
    repository::{Directory, Source, Uploads},
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

/// All of them, in the order in which they count. `uploads` comes last, unless it is one of them anyway.
pub(super) async fn open(
    settings: &Settings,
    uploads: Option<&Directory>,
    metrics: &Metrics,
) -> Result<Vec<Source>, StartError> {
    let config = settings.mirror();
    let mut repositories = Vec::new();
    for path in &settings.repositories {
        let repository = Source::open(path, &config, metrics.store())?;
        // Whoever looks for the directory for uploads knows it by its path.
        match uploads.filter(|uploads| is_same(repository.root(), uploads.root())) {
            Some(uploads) => repositories.push(Source::Directory(uploads.clone())),
            None => repositories.push(repository),
        }
    }
    if let Some(uploads) = uploads
        && !repositories.iter().any(|repository| repository.root() == Some(uploads.root()))
    {
        repositories.push(Source::Directory(uploads.clone()));
    }
    let mut models = 0;
    for repository in &repositories {
        models += repository.scan().await?.len();
    }
    if models == 0 && !settings.allow_empty {
        let paths =
            settings.repositories.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ");
        return Err(StartError::Empty(redact::text(&paths).into_owned()));
    }
    Ok(repositories)
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
            let opened = open(settings, directory, &Metrics::default()).await.unwrap();
            opened.iter().map(|source| source.root().unwrap().to_owned()).collect::<Vec<_>>()
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
