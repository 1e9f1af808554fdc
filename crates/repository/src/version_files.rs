//! The files of a model, by version, as a look found them.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use torchlane_archive as archive;
use torchlane_model::{ModelName, Version};

use super::{
    Kept,
    description::Description,
    directory::{SAMPLES, WEIGHTS},
    inside::Inside,
    stamp::{access, age, stamp},
};
use crate::seal::FILE as SEAL;

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
    /// What else the look saw.
    pub aside: Box<Aside>,
}

/// What a look saw beside a version's files. The same files are the same version whatever stands here.
#[derive(Debug, Clone, Default)]
pub struct Aside {
    /// Changes with the rights of its files: a load that failed may succeed after that.
    pub access: u64,
    /// Changes with hidden files in its directory: something is being written there.
    pub writing: u64,
    /// When the youngest of those was written.
    pub written: Option<SystemTime>,
    /// Archives of older versions, below the one that the weights lie over; the nearest first.
    pub below: Vec<PathBuf>,
}

impl PartialEq for Aside {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Aside {}

impl VersionFiles {
    /// The directory that they are in.
    pub fn place(&self) -> &Path {
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
            aside: Box::default(),
        };
        files.stamped(stamp([None]))
    }

    /// Whether what describes the model stands for its archive: an ensemble has none.
    pub fn is_ensemble(&self) -> bool {
        self.manifest.as_ref() == Some(&self.archive)
    }

    pub(super) fn stamped(mut self, manifest_stamp: u64) -> Self {
        self.stamp = stamp(self.files());
        self.manifest_stamp = manifest_stamp;
        let (described, directory) = (self.manifest.as_deref(), self.archive.parent());
        self.aside.access = access(self.files().into_iter().chain([described, directory]));
        self
    }

    fn files(&self) -> [Option<&Path>; 4] {
        [Some(&self.archive), self.weights.as_deref(), self.samples.as_deref(), self.seal.as_deref()]
    }

    /// Whether one of its files was written so lately that it may still be being written.
    pub fn is_younger_than(&self, settle: Duration) -> bool {
        let now = SystemTime::now();
        let since = |at: SystemTime| now.duration_since(at).unwrap_or_else(|ahead| ahead.duration());
        let ages = age(self.files(), now).into_iter().chain(self.aside.written.map(since));
        ages.min().is_some_and(|age| age < settle)
    }

    /// What a version's directory holds, seen by itself: the archive is taken to be in it, whether it is or not.
    pub fn in_directory(version: Version, directory: &Path) -> Self {
        let inside = Inside::of(directory).unwrap_or_default();
        let described = directory.parent().map(Description::of).unwrap_or_default();
        let archive = inside.archive(directory, &described, &archive::has_code);
        Self::with(version, directory, &inside, archive.unwrap_or_else(|| directory.join(&described.archive)))
    }

    pub(super) fn with(version: Version, directory: &Path, inside: &Inside, archive: PathBuf) -> Self {
        let at = |file: &str| inside.has(file).then(|| directory.join(file));
        let aside = Aside { writing: inside.writing, written: inside.written, ..Aside::default() };
        Self {
            version,
            archive,
            weights: WEIGHTS.into_iter().find_map(at),
            samples: at(SAMPLES),
            seal: at(SEAL),
            manifest: None,
            stamp: 0,
            manifest_stamp: 0,
            kept: Kept::default(),
            aside: Box::new(aside),
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
    /// Versions that hold neither an archive nor weights: something may still come.
    pub unfinished: Vec<Version>,
}

impl Found {
    /// A model with these versions.
    pub fn new(name: ModelName, versions: Vec<VersionFiles>) -> Self {
        Self { name, versions, unfinished: Vec::new() }
    }

    /// The numbers of its versions, oldest first.
    pub fn numbers(&self) -> Vec<Version> {
        self.versions.iter().map(|files| files.version).collect()
    }

    /// Whether two looks saw the same beside the versions' files too, by what `of` takes of it.
    pub fn saw_as(&self, other: &Self, of: impl Fn(&Aside) -> u64) -> bool {
        let seen = |found: &Self| found.versions.iter().map(|files| of(&files.aside)).collect::<Vec<_>>();
        seen(self) == seen(other)
    }
}
