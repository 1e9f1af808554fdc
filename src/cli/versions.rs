//! Versions on disk, by a path on the command line.

use std::path::{Path, PathBuf};

use super::Failure;
use crate::{
    loader::seal::Place,
    model::{ModelName, Version},
    repository::{Directory, Found, VersionFiles},
};

/// A version that a path led to.
pub(super) struct OnDisk {
    /// Where it lies, as far as the path says.
    pub(super) place: Place,
    /// Its directory; for a bare file the file itself.
    pub(super) path: PathBuf,
    pub(super) files: VersionFiles,
}

/// Every version that a path names: the directory of a version (in a repository, or wherever it is being made), of a
/// model, or of a repository.
pub(super) fn at(path: &Path) -> Result<Vec<OnDisk>, Failure> {
    let wrong = |problem: &dyn std::fmt::Display| Failure::Usage(format!("{}: {problem}", path.display()));
    if !std::fs::metadata(path).map_err(|error| wrong(&error))?.is_dir() {
        return Err(wrong(&"not a directory: name the directory of a version, a model or a repository"));
    }
    // Links are left as they are: where a version lies is what its path says. Only `..` says nothing.
    let mut whole = std::path::absolute(path).map_err(|error| wrong(&error))?;
    if whole.file_name().is_none() {
        whole = whole.canonicalize().map_err(|error| wrong(&error))?;
    }
    let name = whole.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let failed = |error| Failure::failed(error);
    // A number may name a model too, so what is in it decides.
    let alone = VersionFiles::in_directory(name.parse().unwrap_or(Version(0)), &whole);
    if alone.archive.is_file() || alone.weights.is_some() || alone.seal.is_some() {
        let found = match (name.parse::<Version>(), whole.parent().and_then(model_of)) {
            (Ok(version), Some((repository, model))) => {
                let found = Directory::open(&repository).and_then(|dir| dir.find(&model)).map_err(failed)?;
                let is_it = |on_disk: &OnDisk| on_disk.files.version == version;
                found.and_then(|found| versions(&whole, found).into_iter().find(is_it))
            }
            _ => None,
        };
        // Still being made somewhere: its place is not known.
        let nowhere = || OnDisk { place: Place::default(), path: whole.clone(), files: alone };
        return Ok(vec![found.unwrap_or_else(nowhere)]);
    }
    let as_model = match model_of(&whole) {
        Some((repository, model)) => {
            Directory::open(&repository).and_then(|dir| dir.find(&model)).map_err(failed)?
        }
        None => None,
    };
    let found: Vec<_> = match as_model.filter(|found| !found.versions.is_empty()) {
        Some(found) => versions(&whole, found),
        None => {
            let scan = Directory::open(&whole).and_then(|dir| dir.scan()).map_err(failed)?;
            scan.into_iter().flat_map(|found| versions(&whole.join(found.name.as_str()), found)).collect()
        }
    };
    if found.is_empty() {
        return Err(wrong(&"no version is there: name the directory of a version, a model or a repository"));
    }
    Ok(found)
}

fn model_of(directory: &Path) -> Option<(PathBuf, ModelName)> {
    let model = directory.file_name()?.to_str()?.parse().ok()?;
    Some((directory.parent()?.to_owned(), model))
}

fn versions(model: &Path, found: Found) -> Vec<OnDisk> {
    let name = found.name;
    let on_disk = |files: VersionFiles| {
        let directory = model.join(files.version.to_string());
        let path = if directory.is_dir() { directory } else { files.archive.clone() };
        OnDisk { place: Place::of(&name, files.version), path, files }
    };
    found.versions.into_iter().map(on_disk).collect()
}
