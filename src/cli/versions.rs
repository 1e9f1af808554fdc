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
    if holds_something(&alone) {
        let found = match (name.parse::<Version>(), whole.parent().and_then(model_of)) {
            (Ok(version), Some((repository, model))) => {
                let found = Directory::open(&repository).and_then(|dir| dir.find(&model)).map_err(failed)?;
                let is_it = |on_disk: &OnDisk| on_disk.files.version == version;
                let model = repository.join(model.as_str());
                found.and_then(|found| versions(&model, found).into_iter().find(is_it))
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
    let found: Vec<_> = match as_model.filter(|found| found.versions.iter().any(holds_something)) {
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

/// A directory with a number for a name may also be a model.
fn holds_something(files: &VersionFiles) -> bool {
    files.archive.is_file() || files.weights.is_some() || files.seal.is_some()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_its_versions_and_says_where_they_lie() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("models");
        for file in
            ["m/1/model.pt", "m/2/weights.pth", "7/1/model.pt", "bare.pt", "m/.3/model.pt", "empty/notes.txt"]
        {
            let path = root.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = |path: &str| {
            let show = |on_disk: OnDisk| {
                let Place { model, version } = on_disk.place;
                let path = on_disk.path.strip_prefix(&root).unwrap().display().to_string();
                (model.map(|model| model.to_string()).unwrap_or_default(), version.map_or(0, |v| v.0), path)
            };
            at(&root.join(path)).map(|all| all.into_iter().map(show).collect::<Vec<_>>())
        };
        let is = |model: &str, version, path: &str| (model.to_owned(), version, path.to_owned());
        assert_eq!(found("m/2/").unwrap(), [is("m", 2, "m/2")]);
        assert_eq!(found("m").unwrap(), [is("m", 1, "m/1"), is("m", 2, "m/2")]);
        assert_eq!(found("m/2/..").unwrap(), found("m").unwrap());
        assert_eq!(found("7").unwrap(), [is("7", 1, "7/1")], "a number may be a model's name");
        assert_eq!(found("m/.3").unwrap(), [is("", 0, "m/.3")], "one that is being made lies nowhere yet");
        let all = found("").unwrap();
        assert_eq!(all, [is("7", 1, "7/1"), is("bare", 1, "bare.pt"), is("m", 1, "m/1"), is("m", 2, "m/2")]);
        for wrong in ["none", "empty", "bare.pt"] {
            assert!(matches!(found(wrong), Err(Failure::Usage(_))), "{wrong}");
        }
    }
}
