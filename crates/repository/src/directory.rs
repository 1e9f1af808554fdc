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
//! models/vad.pt                 a bare file is a model too: version 1 (or vad.jit, vad.torchscript, vad.ts, vad.pth)
//! models/resnet/config.pbtxt    as Triton has it, in the place of a model.toml; it may give the archives another name
//! ```
//!
//! A version is there once its directory holds an archive or weights. An archive of another name than `model.pt` counts where it
//! is the only file with TorchScript code in it. Names that begin with a dot, or are not numbers, are not looked at. A directory
//! that holds nothing of the above is no model. What looks like a model and is skipped gets one line in the log.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt::Display,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use thiserror::Error;
use torchlane_archive::{self as archive, FileIdentity};
use torchlane_model::{
    InvalidVersion, ModelName, Version,
    error::{Reason, shown},
    redact,
};

use super::{
    FetchError, Found, VersionFiles,
    description::{ARCHIVE, CONFIG, Description, MANIFEST},
    inside::{Inside, may_be_archive},
    stamp::age,
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

    /// Whether it may end by itself.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Store(error) => error.is_transient(),
            Self::Io { source, .. } => source.kind() == io::ErrorKind::TimedOut,
            Self::Missing(_) | Self::NotADirectory(_) => false,
        }
    }
}

/// A model repository in a directory.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
    /// What looks like a model or a version and is skipped: each has got its line in the log.
    told: Arc<Mutex<HashSet<PathBuf>>>,
    /// Which files have TorchScript code in them.
    code: Arc<Mutex<HashMap<PathBuf, (FileIdentity, bool)>>>,
}

/// More than this are not told of, and not remembered.
const TOLD: usize = 1000;

/// So long an empty directory may stand for a version that is about to come.
const NEW: Duration = Duration::from_secs(60);

/// What a name in the repository stands for. The first of two with one name counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Directory,
    /// `vad.pt`
    Archive,
    /// An archive by its content: `vad.jit`
    Other,
}

impl Directory {
    /// The repository at `root`.
    ///
    /// # Errors
    /// There is no directory.
    pub fn open(root: &Path) -> Result<Self, RepositoryError> {
        let directory = Self::at(root);
        directory.is_readable().map(|()| directory)
    }

    /// The repository at `root`, whether it is there now or not.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), told: Arc::default(), code: Arc::default() }
    }

    fn is_readable(&self) -> Result<(), RepositoryError> {
        let root = self.root.clone();
        match fs::metadata(&root) {
            Ok(meta) if meta.is_dir() => Ok(()),
            Ok(_) => Err(RepositoryError::NotADirectory(root)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(RepositoryError::Missing(root)),
            Err(source) => Err(RepositoryError::Io { path: root, source }),
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
        self.is_readable()?;
        let mut found: BTreeMap<ModelName, (Kind, PathBuf, Found)> = BTreeMap::new();
        for entry in self.list(&self.root)? {
            let path = entry.path();
            let bare = self.bare(&path);
            let stem = if bare.is_some() { path.file_stem() } else { path.file_name() };
            let name = match stem.unwrap_or_default().to_string_lossy().parse::<ModelName>() {
                Ok(name) => name,
                Err(rule) => {
                    let has_versions =
                        |path: &Path| self.versions(path).is_ok_and(|(versions, _)| !versions.is_empty());
                    self.leave_out(&path, &rule, || {
                        bare.is_some() || is_meant_as_model(&path) || has_versions(&path)
                    });
                    continue;
                }
            };
            let (kind, versions, unfinished) = if let Some(kind) = bare {
                (kind, vec![VersionFiles::bare(path.clone())], Vec::new())
            } else if path.is_dir() {
                match self.versions(&path) {
                    Ok((versions, _)) if versions.is_empty() && !is_meant_as_model(&path) => continue,
                    Ok((versions, unfinished)) => (Kind::Directory, versions, unfinished),
                    // One that cannot be read is one model's trouble: `find` says what it is.
                    Err(_) => (Kind::Directory, Vec::new(), Vec::new()),
                }
            } else {
                continue;
            };
            let this = (kind, path, Found { unfinished, ..Found::new(name.clone(), versions) });
            let (first, second) = match found.remove(&name) {
                Some(other) if other.0 <= this.0 => (other, Some(this.1)),
                other => (this, other.map(|(_, path, _)| path)),
            };
            if let Some(second) = second {
                let first = first.1.file_name().unwrap_or_default().to_string_lossy().into_owned();
                self.leave_out(
                    &second,
                    &format_args!("{first} stands for model '{name}' too, and comes first"),
                    || true,
                );
            }
            found.insert(name, first);
        }
        Ok(found.into_values().map(|(_, _, found)| found).collect())
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
            let (versions, unfinished) = self.versions(&directory)?;
            if !versions.is_empty() || is_meant_as_model(&directory) {
                return Ok(Some(Found { unfinished, ..Found::new(name.clone(), versions) }));
            }
        }
        let usual = self.root.join(format!("{name}.pt"));
        let archive = if usual.is_file() {
            Some(usual)
        } else {
            let named = |path: &PathBuf| path.file_stem().is_some_and(|stem| stem == name.as_str());
            let mut paths: Vec<_> =
                self.list(&self.root)?.iter().map(fs::DirEntry::path).filter(named).collect();
            paths.sort_unstable();
            paths.into_iter().find(|path| self.bare(path).is_some())
        };
        Ok(archive.map(|archive| Found::new(name.clone(), vec![VersionFiles::bare(archive)])))
    }

    /// Whether a file at the top is a model by itself.
    fn bare(&self, path: &Path) -> Option<Kind> {
        if !may_be_archive(path) || !path.is_file() {
            return None;
        }
        if path.extension().is_some_and(|extension| extension == "pt") {
            return Some(Kind::Archive);
        }
        if self.has_code(path) {
            return Some(Kind::Other);
        }
        // So are files called that have nothing to do with models.
        let is_common = |extension: &std::ffi::OsStr| extension == "ts" || extension == "bin";
        if !path.extension().is_some_and(is_common) {
            self.leave_out(
                path,
                &"it holds no TorchScript code. Export the model with torch.jit.save",
                || true,
            );
        }
        None
    }

    /// Whether a file is a TorchScript archive, by its content.
    fn has_code(&self, path: &Path) -> bool {
        let Ok(identity) = FileIdentity::of(path) else { return false };
        if let Some((_, has_code)) = self.code.lock().get(path).filter(|(known, _)| *known == identity) {
            return *has_code;
        }
        let has_code = archive::has_code(path);
        let mut known = self.code.lock();
        if known.len() >= TOLD {
            known.clear();
        }
        known.insert(path.to_owned(), (identity, has_code));
        has_code
    }

    /// The versions of a model, and those that hold nothing to load yet; oldest first.
    fn versions(&self, model: &Path) -> Result<(Vec<VersionFiles>, Vec<Version>), RepositoryError> {
        let described = Description::of(model);
        let mut versions = Vec::new();
        for entry in self.list(model)? {
            let path = entry.path();
            let named = entry.file_name().to_string_lossy().into_owned();
            let version = match named.parse::<Version>() {
                Ok(version) => version,
                Err(rule) => {
                    self.leave_out(&path, &Misnamed(&named, rule), || holds_version(&path));
                    continue;
                }
            };
            // By the directory's own word where it has one: the entry itself may not be open to us.
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) && !path.is_dir() {
                continue;
            }
            // What cannot be listed is taken for a version: the load says what is the matter.
            let inside = Inside::of(&path);
            let archive = match &inside {
                Ok(inside) => inside.archive(&path, &described, &|path| self.has_code(path)),
                Err(_) => Some(path.join(&described.archive)),
            };
            let inside = inside.unwrap_or_default();
            // What a config.pbtxt describes may be no TorchScript model: the load says so.
            let is_foreign = described.is_config() && !inside.is_empty();
            let has_archive = archive.is_some() || is_foreign && WEIGHTS.iter().all(|file| !inside.has(file));
            let archive = archive.unwrap_or_else(|| path.join(&described.archive));
            let files = VersionFiles {
                manifest: described.manifest.clone(),
                ..VersionFiles::with(version, &path, &inside, archive)
            };
            versions.push((files, has_archive, inside));
        }
        versions.sort_by_key(|(files, ..)| files.version);
        let stamp = described.stamp();
        let is_bare = versions.iter().all(|(files, has_archive, _)| !has_archive && files.weights.is_none());
        if is_bare && let Some(ensemble) = as_ensemble(model, &described, &versions) {
            let stamped = ensemble.into_iter().map(|files| files.stamped(stamp));
            return Ok((stamped.collect(), Vec::new()));
        }
        let (mut whole, mut unfinished) = (Vec::new(), Vec::new());
        // The nearest last.
        let mut archives: Vec<PathBuf> = Vec::new();
        for (mut files, has_archive, inside) in versions {
            if has_archive {
                archives.push(files.archive.clone());
            } else if files.weights.is_some() {
                let mut older = archives.iter().rev().cloned();
                if let Some(nearest) = older.next() {
                    files.archive = nearest;
                }
                files.aside.below = older.collect();
            } else {
                unfinished.push(files.version);
                let directory = model.join(files.version.to_string());
                // An empty directory is most often one that a copy has just made.
                let is_new = || age([Some(directory.as_path())], SystemTime::now()) < Some(NEW);
                if let Some(why) =
                    inside.lacks(&described.archive).filter(|_| !inside.is_empty() || !is_new())
                {
                    self.leave_out(&directory, &why, || true);
                }
                continue;
            }
            whole.push(files.stamped(stamp));
        }
        Ok((whole, unfinished))
    }

    /// One line for what is left out, if it `would_be` something otherwise. What is hidden is meant to be left out: it is still
    /// being written, or was put aside.
    fn leave_out(&self, path: &Path, rule: &dyn Display, would_be: impl FnOnce() -> bool) {
        let is_hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let is_told = |told: &HashSet<PathBuf>| told.len() >= TOLD || told.contains(path);
        if is_hidden || is_told(&self.told.lock()) || !would_be() {
            return;
        }
        let named = path.display().to_string();
        tracing::warn!(target: "torchlane::models", path = %shown(&named, 512), "not looked at: {rule}");
        self.told.lock().insert(path.to_owned());
    }

    fn list(&self, path: &Path) -> Result<Vec<fs::DirEntry>, RepositoryError> {
        fs::read_dir(path)
            .and_then(Iterator::collect)
            .map_err(|source| RepositoryError::Io { path: path.to_owned(), source })
    }
}

/// An ensemble has no archives: what describes it stands for them. It may have versions, with nothing in them, or none.
fn as_ensemble(
    model: &Path,
    described: &Description,
    versions: &[(VersionFiles, bool, Inside)],
) -> Option<Vec<VersionFiles>> {
    let manifest = described.manifest.as_ref()?;
    if is_there(&model.join(ARCHIVE)) || !described.is_ensemble() {
        return None;
    }
    let own = || VersionFiles::with(Version(1), model, &Inside::default(), model.join(ARCHIVE));
    let versions: Vec<_> = versions.iter().map(|(files, ..)| files.clone()).collect();
    let versions = if versions.is_empty() { vec![own()] } else { versions };
    let described =
        |files| VersionFiles { archive: manifest.clone(), manifest: Some(manifest.clone()), ..files };
    Some(versions.into_iter().map(described).collect())
}

/// A directory that holds a version and is not named like one.
struct Misnamed<'a>(&'a str, InvalidVersion);

impl Display for Misnamed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self(named, rule) = self;
        write!(f, "{rule}")?;
        let digits = named.trim_start_matches(|c: char| !c.is_ascii_digit()).trim_start_matches('0');
        match digits.parse::<Version>() {
            Ok(version) => write!(f, ". Rename it to {version}"),
            Err(_) => Ok(()),
        }
    }
}

/// Whatever it is, and even if it cannot be read.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Except for its name it is a version.
fn holds_version(directory: &Path) -> bool {
    let Ok(inside) = Inside::of(directory) else { return false };
    WEIGHTS.into_iter().any(|file| inside.has(file)) || inside.candidates().next().is_some()
}

/// Without a version in it: an archive in the wrong place deserves a word about it, a directory of pictures does not.
fn is_meant_as_model(directory: &Path) -> bool {
    [MANIFEST, CONFIG, ARCHIVE].iter().any(|file| directory.join(file).is_file())
}

#[cfg(test)]
mod tests;
