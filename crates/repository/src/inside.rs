//! What lies in a version's directory: which file is the archive, and whether something is still being written there.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash as _, Hasher as _},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    description::{ARCHIVE, Description},
    directory::WEIGHTS,
};

/// Extensions, in lower case, that exporters give to TorchScript archives. Each of these files may be something else too.
const ARCHIVES: [&str; 6] = ["pt", "pth", "jit", "ts", "torchscript", "bin"];

/// Whether exporters give such names to archives.
pub(super) fn may_be_archive(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| ARCHIVES.iter().any(|known| known.eq_ignore_ascii_case(extension)))
}

/// By its name alone: no other kind of file is called so.
pub(super) fn is_archive_by_name(file: &str) -> bool {
    let (_, extension) = file.rsplit_once('.').unwrap_or_default();
    ["pt", "jit", "torchscript"].iter().any(|known| known.eq_ignore_ascii_case(extension))
}

/// The files of one directory, without a look into them.
#[derive(Debug, Default)]
pub(super) struct Inside {
    /// Not hidden, sorted.
    names: Vec<String>,
    /// Changes with hidden files: programs that copy write those, and rename them at the end.
    pub(super) writing: u64,
    /// When the youngest hidden file was written.
    pub(super) written: Option<SystemTime>,
}

impl Inside {
    /// # Errors
    /// It cannot be listed.
    pub(super) fn of(directory: &Path) -> io::Result<Self> {
        let (mut inside, mut hidden) = (Self::default(), Vec::new());
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') {
                inside.names.push(name);
            } else if entry.file_type()?.is_file()
                && let Ok(meta) = entry.metadata()
            {
                hidden.push((name, meta.size(), meta.mtime(), meta.mtime_nsec()));
                inside.written = inside.written.max(meta.modified().ok());
            }
        }
        inside.names.sort_unstable();
        hidden.sort_unstable();
        let mut hasher = DefaultHasher::new();
        hidden.hash(&mut hasher);
        inside.writing = hasher.finish();
        Ok(inside)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names.binary_search_by(|known| known.as_str().cmp(name)).is_ok()
    }

    /// Files that exporters would name like this, weights apart.
    pub(super) fn candidates(&self) -> impl Iterator<Item = &str> {
        let named = |name: &&str| may_be_archive(Path::new(name)) && !WEIGHTS.contains(name);
        self.names.iter().map(String::as_str).filter(named)
    }

    /// The archive of the version in `directory`, whose model is `described`: the file of the expected name, or else the only
    /// TorchScript archive there.
    pub(super) fn archive(
        &self,
        directory: &Path,
        described: &Description,
        has_code: &dyn Fn(&Path) -> bool,
    ) -> Option<PathBuf> {
        if self.has(&described.archive) {
            return Some(directory.join(&described.archive));
        }
        // A config.pbtxt says what its archives are called.
        if described.is_config() {
            return None;
        }
        let mut archives = self.candidates().map(|name| directory.join(name)).filter(|path| has_code(path));
        archives.next().filter(|_| archives.next().is_none())
    }

    /// Why there is neither an archive nor weights, and what to do. `None`: something is being written.
    pub(super) fn lacks(&self, expected: &str) -> Option<String> {
        let candidates: Vec<_> = self.candidates().take(3).collect();
        match candidates.as_slice() {
            [] if self.written.is_some() => None,
            [] => Some(format!("it holds neither {expected} nor weights. Put the archive there")),
            [one] if expected == ARCHIVE => Some(format!(
                "{one} is no TorchScript archive. Export the model with torch.jit.save, or rename a state dict to {}",
                WEIGHTS[1]
            )),
            several => Some(format!(
                "{} is not there, and {} might be meant. Rename the archive to {expected}",
                expected,
                several.join(", ")
            )),
        }
    }
}
