//! Where uploads go: a repository in a directory, and a hidden directory in it for each model that something comes for.
//!
//! ```text
//! uploads/digits/                what is looked at
//! uploads/digits/.unproven       until what is there has been loaded
//! uploads/.upload-digits/        while something comes for it; locked (flock) by the process that writes it
//! uploads/.upload-digits/model/  what comes; once that is in its place, what was there before
//! ```
//!
//! The two change places by one rename, so that a look finds one or the other. Which of them is the old one is told by the mark
//! `.unproven`: a process that is killed before the load has succeeded leaves enough for [`Uploads::open`] to go back. A model
//! that takes the process with it when it is loaded is therefore gone after the restart.

use std::{
    collections::{BTreeMap, HashMap},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Weak},
};

use bytes::Bytes;
use parking_lot::Mutex;
use rustix::{
    fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with},
    io::Errno,
};
use torchlane_model::{
    ModelName,
    error::{Error, Reason, Result},
};

use super::{MOST_FILES, Upload};
use crate::{
    Directory, RepositoryError,
    description::{CONFIG, MANIFEST},
};

/// Begins the names of directories that uploads come in.
const ROOM: &str = ".upload-";

/// Stands in a model's directory that has not been loaded since it was put there.
const UNPROVEN: &str = ".unproven";

/// How deep files of a model lie that is copied: deeper than any place that an upload may name.
const DEEPEST: usize = 8;

/// The directory that uploads go to.
#[derive(Debug)]
pub struct Uploads {
    directory: Directory,
    /// Uploads of one model come one after the other.
    turns: Mutex<HashMap<ModelName, Weak<tokio::sync::Mutex<()>>>>,
}

impl Uploads {
    /// Makes the directory where it is not there, and ends what a killed process left half done: whatever had not been loaded
    /// is removed, and what it had replaced is put back. What another process is at is left alone.
    ///
    /// # Errors
    /// It cannot be made, or read.
    pub fn open(root: &Path) -> Result<Self, RepositoryError> {
        let wrong = |source| RepositoryError::Io { path: root.to_owned(), source };
        fs::create_dir_all(root).map_err(wrong)?;
        let directory = Directory::open(root)?;
        for entry in fs::read_dir(root).map_err(wrong)? {
            let name = entry.map_err(wrong)?.file_name();
            let Some(name) = name.to_str().and_then(|name| name.strip_prefix(ROOM)?.parse().ok()) else {
                continue;
            };
            match Staged::new(root, &name) {
                Ok(Some(left)) => {
                    tracing::warn!(target: "torchlane::models", model = %name, "an upload was not finished: it is undone");
                    left.undo().map_err(wrong)?;
                }
                Ok(None) => {}
                Err(error) => return Err(wrong(error)),
            }
        }
        Ok(Self { directory, turns: Mutex::default() })
    }

    /// The repository that it is.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Waits until no other upload of that model is under way in this process, and keeps others waiting.
    pub async fn turn(&self, name: &ModelName) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.turns.lock();
            turns.retain(|_, turn| turn.strong_count() > 0);
            let known = turns.get(name).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turn = Arc::default();
                turns.insert(name.clone(), Arc::downgrade(&turn));
                turn
            })
        };
        turn.lock_owned().await
    }

    /// Writes an upload beside what is there, and puts it in its place. The caller proves or undoes it. Blocks.
    ///
    /// # Errors
    /// Another process is at it, or it cannot be written: then nothing of it is left behind.
    pub fn put(&self, name: &ModelName, upload: &Upload) -> Result<Staged> {
        let root = self.directory.root();
        let begin = || {
            let staged = Staged::new(root, name).map_err(|error| failed(root, &error))?;
            staged.ok_or_else(|| {
                Error::new(
                    Reason::Superseded,
                    format!("another process uploads model '{name}' just now: send it again"),
                )
            })
        };
        let mut staged = begin()?;
        // The disk did not take the end of one before.
        if is_there(&staged.place.join(UNPROVEN)) {
            staged.put_back()?;
            staged = begin()?;
        }
        let written = match upload {
            Upload::Whole(files) => staged.write(files),
            Upload::Config(text) => staged.write_config(text),
        };
        if let Err(error) = written.and_then(|()| staged.swap()) {
            let error = failed(root, &error);
            staged.undo().map_err(|undoing| failed(root, &undoing))?;
            return Err(error);
        }
        Ok(staged)
    }
}

/// Why an upload cannot be kept.
fn failed(root: &Path, error: &io::Error) -> Error {
    let message = format!("cannot write to {}: {error} (oip.uploads)", root.display());
    let is_full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    Error::new(if is_full { Reason::DiskFull } else { Reason::LoadFailed }, message)
}

/// An upload on its way. What it has replaced is kept until it is proven or undone.
#[derive(Debug)]
#[must_use = "it is undone at the next start unless it is proven"]
pub struct Staged {
    root: PathBuf,
    /// Where the model lies.
    place: PathBuf,
    /// Where it is written first.
    room: PathBuf,
    /// Something lay in its place.
    replaces: bool,
    /// Keeps other processes away, until it is closed.
    _locked: File,
}

impl Staged {
    /// `None`: another process is at it.
    fn new(root: &Path, name: &ModelName) -> io::Result<Option<Self>> {
        let (place, room) = (root.join(name.as_str()), root.join(format!("{ROOM}{name}")));
        match fs::create_dir(&room) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let locked = File::open(&room)?;
        if flock(&locked, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Ok(None);
        }
        let replaces = is_there(&place);
        Ok(Some(Self { root: root.to_owned(), place, room, replaces, _locked: locked }))
    }

    /// Whether there was a model before.
    pub fn replaces(&self) -> bool {
        self.replaces
    }

    fn model(&self) -> PathBuf {
        self.room.join("model")
    }

    fn write(&self, files: &BTreeMap<String, Bytes>) -> io::Result<()> {
        let model = self.begin()?;
        for (path, content) in files {
            let path = model.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            write(&path, content)?;
        }
        sync_all(&model)
    }

    /// A copy of what is there, described otherwise.
    fn write_config(&self, config: &str) -> io::Result<()> {
        let model = self.begin()?;
        let mut left = MOST_FILES;
        copy(&self.place, &model, DEEPEST, &mut left)?;
        for description in [MANIFEST, CONFIG] {
            remove_file(&model.join(description))?;
        }
        write(&model.join(CONFIG), config.as_bytes())?;
        sync_all(&model)
    }

    /// An empty directory with the mark in it.
    fn begin(&self) -> io::Result<PathBuf> {
        let model = self.model();
        // A killed process may have left one that another start has not tidied up.
        remove(&model)?;
        fs::create_dir(&model)?;
        write(&model.join(UNPROVEN), b"")?;
        Ok(model)
    }

    /// Puts what has been written in its place.
    fn swap(&mut self) -> io::Result<()> {
        self.replaces = is_there(&self.place);
        if self.replaces {
            exchange(&self.model(), &self.place, &self.room)?;
        } else {
            fs::rename(self.model(), &self.place)?;
        }
        sync(&self.room)?;
        sync(&self.root)
    }

    /// It has been loaded: it stays, and what it has replaced is removed. Blocks.
    ///
    /// # Errors
    /// The disk does not take it: the next start would go back.
    pub fn prove(self) -> Result<()> {
        let kept = remove_file(&self.place.join(UNPROVEN)).and_then(|()| sync(&self.place));
        kept.map_err(|error| failed(&self.root, &error))?;
        // From here on the next start would remove it as well.
        if let Err(error) = fs::remove_dir_all(&self.room) {
            tracing::warn!(target: "torchlane::models", %error, "what an upload has replaced cannot be removed");
        }
        Ok(())
    }

    /// It has not been loaded: what was there before is there again. Blocks.
    ///
    /// # Errors
    /// The disk does not take it: the next start goes back.
    pub fn put_back(self) -> Result<()> {
        let root = self.root.clone();
        self.undo().map_err(|error| failed(&root, &error))
    }

    /// Goes back from wherever it has come to. Each step leaves something from which this goes back too.
    fn undo(self) -> io::Result<()> {
        let (place, model, old) = (&self.place, self.model(), self.room.join(OLD));
        let is_unproven = |at: &Path| is_there(&at.join(UNPROVEN));
        if is_unproven(place) {
            if is_there(&model) && !is_unproven(&model) {
                exchange(&model, place, &self.room)?;
            } else {
                let unproven = self.room.join("unproven");
                remove(&unproven)?;
                fs::rename(place, unproven)?;
            }
        }
        if !is_there(place) {
            let before = [old, model].into_iter().find(|at| is_there(at) && !is_unproven(at));
            before.map_or(Ok(()), |before| fs::rename(before, place))?;
        }
        sync(&self.root)?;
        fs::remove_dir_all(&self.room)?;
        sync(&self.root)
    }
}

/// Where the old model waits in a room for the new one to take its place, where the two cannot change places at once.
const OLD: &str = "old";

/// Lets two directories change places. Where the file system cannot do that at once (NFS), nothing is at `place` for a moment.
fn exchange(model: &Path, place: &Path, room: &Path) -> io::Result<()> {
    match renameat_with(CWD, model, CWD, place, RenameFlags::EXCHANGE) {
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            let old = room.join(OLD);
            fs::rename(place, &old)?;
            fs::rename(model, place)?;
            fs::rename(old, model)
        }
        exchanged => Ok(exchanged?),
    }
}

/// A new file, on disk when this returns.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// Files and directories that are looked at; links are followed.
fn copy(from: &Path, to: &Path, deepest: usize, left: &mut usize) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (name, meta) = (entry.file_name(), fs::metadata(entry.path())?);
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        *left = left.checked_sub(1).ok_or_else(|| io::Error::other("the model has too many files"))?;
        let to = to.join(name);
        if meta.is_dir() && deepest > 0 {
            fs::create_dir(&to)?;
            copy(&entry.path(), &to, deepest - 1, left)?;
        } else if meta.is_file() {
            fs::copy(entry.path(), &to)?;
            File::open(&to)?.sync_all()?;
        }
    }
    Ok(())
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Whatever is there.
fn remove(path: &Path) -> io::Result<()> {
    if is_there(path) { fs::remove_dir_all(path) } else { Ok(()) }
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Names in a directory are on disk when this returns.
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// The same of all directories below it.
fn sync_all(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_all(&entry.path())?;
        }
    }
    sync(directory)
}

#[cfg(test)]
mod tests;
