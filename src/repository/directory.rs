//! A model repository in a directory.
//!
//! ```text
//! models/digits/model.toml      optional
//! models/digits/1/model.pt      version 1
//! models/digits/2/model.pt      version 2
//! models/digits/2/weights.safetensors   optional: newer weights, laid over the archive's own (or weights.pth)
//! models/digits/2/samples.safetensors   optional: inputs and expected outputs
//! models/digits/2/manifest.json         optional: size and sha256 of each file, signatures
//! models/digits/3/weights.safetensors   a version of weights alone: over the archive of the version before it
//! models/vad.pt                 a bare file is a model too: version 1
//! models/resnet/config.pbtxt    as Triton has it, in the place of a model.toml; it may give the archives another name
//! ```
//!
//! A version is complete when its directory has been renamed into place; names that begin with a dot, or are not
//! numbers, are not looked at. A directory that holds nothing of the above is no model.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::Display,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use thiserror::Error;

use super::{
    FetchError, Kept,
    description::{ARCHIVE, CONFIG, Description, MANIFEST},
    stamp::{age, stamp},
};
use crate::{
    config::redact,
    error::{Reason, shown},
    loader::seal::FILE as SEAL,
    model::{InvalidVersion, ModelName, Version},
};

/// Names of newer weights within a version; the first that is there counts.
pub(super) const WEIGHTS: [&str; 2] = ["weights.safetensors", "weights.pth"];

/// Inputs to run, and what should come out.
pub(super) const SAMPLES: &str = "samples.safetensors";

/// A repository that cannot be read.
#[derive(Debug, Error)]
pub enum RepositoryError {
    /// It does not exist.
    #[error("model repository {} does not exist: create it, or name another with --repository", redacted(.0))]
    Missing(PathBuf),
    /// It is a file.
    #[error("model repository {} is not a directory: name the directory that holds the models", redacted(.0))]
    NotADirectory(PathBuf),
    /// It cannot be listed.
    #[error("cannot read {}: {source}", redacted(.path))]
    Io {
        /// What could not be read.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A store that cannot be read.
    #[error(transparent)]
    Store(#[from] FetchError),
}

/// A URL that is written wrongly is taken for a path.
fn redacted(path: &Path) -> String {
    redact::text(&path.display().to_string()).into_owned()
}

impl RepositoryError {
    /// What callers of the API are told.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Store(error) => error.reason(),
            _ => Reason::LoadFailed,
        }
    }
}

/// The files of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionFiles {
    /// Its number.
    pub version: Version,
    /// The TorchScript archive. A version of weights alone has that of the nearest older version with one.
    pub archive: PathBuf,
    /// Weights that are laid over the archive's own.
    pub weights: Option<PathBuf>,
    /// Inputs for the warm-up, with outputs to compare with.
    pub samples: Option<PathBuf>,
    /// The version's `manifest.json`: sizes, digests and signatures of the files beside it.
    pub seal: Option<PathBuf>,
    /// What describes the model, where something does: its `model.toml`, or else its `config.pbtxt`.
    pub manifest: Option<PathBuf>,
    /// Changes with the files of the version.
    pub stamp: u64,
    /// Changes with that description, and with the files of labels that it names.
    pub manifest_stamp: u64,
    /// Keeps them there, where they came from a store.
    pub kept: Kept,
}

impl VersionFiles {
    /// The directory that they are in.
    pub(crate) fn place(&self) -> &Path {
        self.archive.parent().unwrap_or(&self.archive)
    }

    /// A lone archive.
    pub(super) fn bare(archive: PathBuf) -> Self {
        let files = Self {
            version: Version(1),
            archive,
            weights: None,
            samples: None,
            seal: None,
            manifest: None,
            stamp: 0,
            manifest_stamp: 0,
            kept: Kept::default(),
        };
        files.stamped(stamp([None]))
    }

    /// Whether what describes the model stands for its archive: an ensemble has none.
    pub fn is_ensemble(&self) -> bool {
        self.manifest.as_ref() == Some(&self.archive)
    }

    fn stamped(mut self, manifest_stamp: u64) -> Self {
        self.stamp = stamp(self.files());
        self.manifest_stamp = manifest_stamp;
        self
    }

    fn files(&self) -> [Option<&Path>; 4] {
        [Some(&self.archive), self.weights.as_deref(), self.samples.as_deref(), self.seal.as_deref()]
    }

    /// Whether one of its files was written so lately that it may still be being written.
    pub fn is_younger_than(&self, settle: Duration) -> bool {
        age(self.files(), SystemTime::now()).is_some_and(|age| age < settle)
    }

    /// What a version's directory holds, seen by itself: the archive is taken to be in it, whether it is or not.
    pub fn in_directory(version: Version, directory: &Path) -> Self {
        let model = directory.parent().map(Description::of);
        Self::with_archive(version, directory, model.as_ref().map_or(ARCHIVE, |model| model.archive.as_str()))
    }

    fn with_archive(version: Version, directory: &Path, archive: &str) -> Self {
        let at = |file: &str| Some(directory.join(file)).filter(|path| is_there(path));
        Self {
            version,
            archive: directory.join(archive),
            weights: WEIGHTS.into_iter().find_map(at),
            samples: at(SAMPLES),
            seal: at(SEAL),
            manifest: None,
            stamp: 0,
            manifest_stamp: 0,
            kept: Kept::default(),
        }
    }
}

/// A model and its versions, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: ModelName,
    /// Its versions; may be empty.
    pub versions: Vec<VersionFiles>,
}

impl Found {
    /// The numbers of its versions, oldest first.
    pub fn numbers(&self) -> Vec<Version> {
        self.versions.iter().map(|files| files.version).collect()
    }
}

/// A model repository in a directory.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
    /// What looks like a model or a version but for its name: each is told of once.
    told: Arc<Mutex<HashSet<PathBuf>>>,
}

/// More odd names than this are not told of.
const TOLD: usize = 1000;

impl Directory {
    /// The repository at `root`.
    ///
    /// # Errors
    /// There is no directory.
    pub fn open(root: &Path) -> Result<Self, RepositoryError> {
        match fs::metadata(root) {
            Ok(meta) if meta.is_dir() => Ok(Self { root: root.to_owned(), told: Arc::default() }),
            Ok(_) => Err(RepositoryError::NotADirectory(root.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(RepositoryError::Missing(root.to_owned()))
            }
            Err(source) => Err(RepositoryError::Io { path: root.to_owned(), source }),
        }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every model that is there now, by name.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn scan(&self) -> Result<Vec<Found>, RepositoryError> {
        let mut found = BTreeMap::new();
        for entry in self.list(&self.root)? {
            let path = entry.path();
            let is_archive = path.extension().is_some_and(|extension| extension == "pt") && path.is_file();
            let stem = if is_archive { path.file_stem() } else { path.file_name() };
            let name = match stem.unwrap_or_default().to_string_lossy().parse::<ModelName>() {
                Ok(name) => name,
                Err(rule) => {
                    let has_versions =
                        |path: &Path| self.versions(path).is_ok_and(|versions| !versions.is_empty());
                    self.leave_out(&entry, &rule, |path| {
                        is_archive || is_meant_as_model(path) || has_versions(path)
                    });
                    continue;
                }
            };
            let versions = if is_archive {
                vec![VersionFiles::bare(path)]
            } else if path.is_dir() {
                match self.versions(&path) {
                    Ok(versions) if versions.is_empty() && !is_meant_as_model(&path) => continue,
                    // One that cannot be read is one model's trouble: `find` says what it is.
                    versions => versions.unwrap_or_default(),
                }
            } else {
                continue;
            };
            // A directory wins over a bare file of the same name.
            if !is_archive || !found.contains_key(&name) {
                found.insert(name.clone(), Found { name, versions });
            }
        }
        Ok(found.into_values().collect())
    }

    /// One model, read afresh.
    ///
    /// # Errors
    /// The directory cannot be listed.
    pub fn find(&self, name: &ModelName) -> Result<Option<Found>, RepositoryError> {
        let directory = self.root.join(name.as_str());
        // What cannot be looked at is not the same as what is not there.
        let looked = fs::metadata(&directory);
        if let Err(source) = &looked {
            if source.kind() != io::ErrorKind::NotFound {
                return Err(RepositoryError::Io { path: directory, source: io::Error::from(source.kind()) });
            }
            fs::metadata(&self.root)
                .map_err(|source| RepositoryError::Io { path: self.root.clone(), source })?;
        }
        if looked.is_ok_and(|meta| meta.is_dir()) {
            let versions = self.versions(&directory)?;
            if !versions.is_empty() || is_meant_as_model(&directory) {
                return Ok(Some(Found { name: name.clone(), versions }));
            }
        }
        let archive = self.root.join(format!("{name}.pt"));
        Ok(archive
            .is_file()
            .then(|| Found { name: name.clone(), versions: vec![VersionFiles::bare(archive)] }))
    }

    fn versions(&self, model: &Path) -> Result<Vec<VersionFiles>, RepositoryError> {
        let described = Description::of(model);
        let mut versions: Vec<_> = self
            .list(model)?
            .iter()
            .filter_map(|entry| {
                let version = match entry.file_name().to_string_lossy().parse() {
                    Ok(version) => version,
                    Err(rule) => {
                        let rule: InvalidVersion = rule;
                        self.leave_out(entry, &rule, holds_version);
                        return None;
                    }
                };
                // By the directory's own word where it has one: the entry itself may not be open to us.
                let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir()) || entry.path().is_dir();
                is_dir.then(|| VersionFiles {
                    manifest: described.manifest.clone(),
                    ..VersionFiles::with_archive(version, &entry.path(), &described.archive)
                })
            })
            .collect();
        versions.sort_by_key(|files| files.version);
        self.as_ensemble(model, &described, &mut versions);
        let mut archive: Option<PathBuf> = None;
        for files in &mut versions {
            match archive.as_ref().filter(|_| files.weights.is_some() && !is_there(&files.archive)) {
                Some(older) => files.archive.clone_from(older),
                None => archive = Some(files.archive.clone()),
            }
        }
        let stamp = described.stamp();
        Ok(versions.into_iter().map(|files| files.stamped(stamp)).collect())
    }

    /// An ensemble has no archives: what describes it stands for them. It may have versions, with nothing in them, or none.
    fn as_ensemble(&self, model: &Path, described: &Description, versions: &mut Vec<VersionFiles>) {
        let Some(manifest) = &described.manifest else { return };
        let lacks = |files: &VersionFiles| files.weights.is_none() && !is_there(&files.archive);
        let may_be = versions.iter().all(lacks) && !is_there(&model.join(ARCHIVE));
        if !may_be || !described.is_ensemble() {
            return;
        }
        if versions.is_empty() {
            versions.push(VersionFiles::with_archive(Version(1), model, ARCHIVE));
        }
        for files in versions {
            files.archive.clone_from(manifest);
            files.manifest = Some(manifest.clone());
        }
    }

    /// Tells once of what is left out for its name, if it `would_be` something with another. What is hidden is meant to be left
    /// out: it is still being written, or was put aside.
    fn leave_out(&self, entry: &fs::DirEntry, rule: &dyn Display, would_be: impl FnOnce(&Path) -> bool) {
        let (is_hidden, path) = (entry.file_name().as_encoded_bytes().starts_with(b"."), entry.path());
        let is_told = |told: &HashSet<PathBuf>| told.len() >= TOLD || told.contains(&path);
        if is_hidden || is_told(&self.told.lock()) || !would_be(&path) {
            return;
        }
        let named = path.display().to_string();
        tracing::warn!(target: "torchlane::models", path = %shown(&named, 512), "not looked at: {rule}");
        self.told.lock().insert(path);
    }

    fn list(&self, path: &Path) -> Result<Vec<fs::DirEntry>, RepositoryError> {
        fs::read_dir(path)
            .and_then(Iterator::collect)
            .map_err(|source| RepositoryError::Io { path: path.to_owned(), source })
    }
}

/// Whatever it is, and even if it cannot be read.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// But for its name it is a version.
fn holds_version(directory: &Path) -> bool {
    std::iter::once(ARCHIVE).chain(WEIGHTS).any(|file| directory.join(file).is_file())
}

/// Without a version in it: an archive in the wrong place deserves a word about it, a directory of pictures does not.
fn is_meant_as_model(directory: &Path) -> bool {
    [MANIFEST, CONFIG, ARCHIVE].iter().any(|file| directory.join(file).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_versions_and_bare_files() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a/10", "a/9", "a/.11", "a/007", "a/tmp", ".hidden/1", "empty"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        fs::create_dir_all(dir.path().join("docs/pictures")).unwrap();
        fs::write(dir.path().join("empty/model.pt"), b"").unwrap();
        fs::write(dir.path().join("vad.pt"), b"").unwrap();
        fs::write(dir.path().join("notes.txt"), b"").unwrap();
        let repository = Directory::open(dir.path()).unwrap();
        let found: Vec<_> = repository
            .scan()
            .unwrap()
            .into_iter()
            .map(|found| {
                (found.name.to_string(), found.versions.iter().map(|v| v.version.0).collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(found, [("a".into(), vec![9, 10]), ("empty".into(), vec![]), ("vad".into(), vec![1])]);
        let a = repository.find(&"a".parse().unwrap()).unwrap().unwrap();
        assert_eq!(a.versions.len(), 2);
        assert_eq!(repository.find(&"docs".parse().unwrap()).unwrap(), None);
    }

    #[test]
    fn what_is_left_out_for_its_name_is_told_of() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "a/1/model.pt",
            "a/v2/model.pt",
            "a/007/weights.pth",
            "a/notes/x",
            "a/.3/model.pt",
            "my model/1/model.pt",
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        fs::write(dir.path().join("naïve.pt"), b"").unwrap();
        let repository = Directory::open(dir.path()).unwrap();
        for _ in 0..2 {
            assert_eq!(repository.scan().unwrap().len(), 1);
        }
        let mut told: Vec<_> = repository
            .told
            .lock()
            .iter()
            .map(|path| path.strip_prefix(dir.path()).unwrap().to_owned())
            .collect();
        told.sort();
        assert_eq!(told, ["a/007", "a/v2", "my model", "naïve.pt"].map(PathBuf::from));
    }

    #[test]
    fn weights_alone_lie_over_the_archive_before_them() {
        let dir = tempfile::tempdir().unwrap();
        for file in
            ["1/model.pt", "2/weights.pth", "3/model.pt", "3/samples.safetensors", "7/weights.safetensors"]
        {
            let path = dir.path().join("m").join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"").unwrap();
        }
        let found = Directory::open(dir.path()).unwrap().find(&"m".parse().unwrap()).unwrap().unwrap();
        let below = |path: &Path| path.strip_prefix(dir.path().join("m")).unwrap().display().to_string();
        let all: Vec<_> = found
            .versions
            .iter()
            .map(|files| {
                (below(&files.archive), files.weights.as_deref().map(below), files.samples.is_some())
            })
            .collect();
        let expected = [
            ("1/model.pt", None, false),
            ("1/model.pt", Some("2/weights.pth"), false),
            ("3/model.pt", None, true),
            ("3/model.pt", Some("7/weights.safetensors"), false),
        ];
        assert_eq!(
            all,
            expected.map(|(archive, weights, samples)| (archive.into(), weights.map(Into::into), samples))
        );
    }

    #[test]
    fn a_config_of_triton_describes_a_model_and_names_its_archives() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("m/config.pbtxt", "default_model_filename: \"net.ts\""),
            ("m/1/net.ts", ""),
            ("m/2/weights.pth", ""),
            ("m/3/model.pt", ""),
            ("none/config.pbtxt", ""),
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let repository = Directory::open(dir.path()).unwrap();
        let names: Vec<_> =
            repository.scan().unwrap().into_iter().map(|found| found.name.to_string()).collect();
        assert_eq!(names, ["m", "none"]);
        let found = repository.find(&"m".parse().unwrap()).unwrap().unwrap();
        let archives = ["m/1/net.ts", "m/1/net.ts", "m/3/net.ts"].map(|path| dir.path().join(path));
        assert_eq!(found.versions.iter().map(|files| files.archive.clone()).collect::<Vec<_>>(), archives);
        assert!(found.versions.iter().all(|files| files.manifest == Some(dir.path().join("m/config.pbtxt"))));
        let alone = VersionFiles::in_directory(Version(1), &dir.path().join("m/1"));
        assert_eq!(alone.archive, archives[0]);
    }

    #[test]
    fn a_missing_repository_says_what_to_do() {
        let error = Directory::open(Path::new("no/such/dir")).unwrap_err().to_string();
        assert!(error.contains("no/such/dir") && error.contains("--repository"), "{error}");
    }
}
