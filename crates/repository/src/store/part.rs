//! A download on its way: the bytes so far, their digest, and a note of what they are of.
//!
//! The bytes stay where they are when a process ends, so that the next one goes on from there. They count only while
//! the note beside them says that they are of the very object that is wanted now.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::layout::Listed;

/// What a part is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PartNote {
    pub(super) listed: Listed,
    /// The tag that came with the first bytes: what later ones must be of too.
    pub(super) answered: Option<String>,
}

impl PartNote {
    pub(super) fn read(path: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(path).ok()?).ok()
    }
}

/// The name of the part of an object: one for each place in a store, whatever it holds now.
pub(super) fn key(store: &str, path: &str) -> String {
    hex(&Sha256::digest(format!("{store}\n{path}")))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// A file that grows at its end.
#[derive(Debug)]
pub(super) struct Part {
    key: String,
    path: PathBuf,
    note_path: PathBuf,
    note: PartNote,
    file: File,
    bytes: u64,
    hash: Sha256,
}

impl Part {
    /// What there is of `listed`; nothing where it is of something else. Held until it is dropped.
    pub(super) fn open(key: String, path: PathBuf, note_path: PathBuf, listed: &Listed) -> io::Result<Self> {
        let mut file = File::options().create(true).read(true).append(true).open(&path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let old = PartNote::read(&note_path).filter(|note| note.listed == *listed);
        let note = old.clone().unwrap_or_else(|| PartNote { listed: listed.clone(), answered: None });
        let mut bytes = file.metadata()?.len();
        if bytes > 0 && (old.is_none() || bytes > listed.size) {
            file.set_len(0)?;
            bytes = 0;
        }
        let mut hash = Sha256::new();
        if bytes > 0 {
            file.seek(SeekFrom::Start(0))?;
            let mut buffer = vec![0; 256 * 1024];
            loop {
                let read = file.read(&mut buffer)?;
                let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else { break };
                hash.update(chunk);
            }
        }
        let part = Self { key, path, note_path, note, file, bytes, hash };
        part.write_note()?;
        Ok(part)
    }

    fn write_note(&self) -> io::Result<()> {
        fs::write(&self.note_path, serde_json::to_vec(&self.note).map_err(io::Error::other)?)
    }

    pub(super) fn key(&self) -> &str {
        &self.key
    }

    /// So far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn listed(&self) -> &Listed {
        &self.note.listed
    }

    /// The tag that what is here came with, or else was listed with.
    fn tag(&self) -> Option<&str> {
        self.note.answered.as_deref().or(self.note.listed.tag.as_deref())
    }

    /// For If-Match. Weak tags never match there; some stores list tags without their quotes.
    pub(super) fn if_match(&self) -> Option<String> {
        let tag = self.tag().filter(|tag| !tag.starts_with("W/"))?;
        Some(if tag.starts_with('"') { tag.to_owned() } else { format!("\"{tag}\"") })
    }

    /// Whether bytes that come with `tag` can be of the same content as those that are here.
    pub(super) fn is_of(&self, tag: Option<&str>) -> bool {
        let bare = |tag: &str| tag.trim_matches('"').to_owned();
        self.tag().zip(tag).is_none_or(|(expected, tag)| bare(expected) == bare(tag))
    }

    pub(super) fn answered(&mut self, tag: Option<&str>) -> io::Result<()> {
        if self.note.answered.as_deref() == tag {
            return Ok(());
        }
        self.note.answered = tag.map(str::to_owned);
        self.write_note()
    }

    pub(super) fn append(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.file.write_all(chunk)?;
        self.hash.update(chunk);
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    /// From the beginning again.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.bytes = 0;
        self.hash = Sha256::new();
        self.answered(None)
    }

    /// sha256 of what is here, hexadecimal.
    pub(super) fn sha256(&self) -> String {
        hex(&self.hash.clone().finalize())
    }

    /// Brings it to the disk itself: a name must not outlive the bytes behind it.
    pub(super) fn sync(&self) -> io::Result<Listed> {
        self.file.sync_all()?;
        Ok(self.note.listed.clone())
    }

    /// Gives its bytes back to a disk that is full.
    pub(super) fn remove(self) {
        let _gone_already = (fs::remove_file(&self.path), fs::remove_file(&self.note_path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_counts_only_for_the_same_object() {
        let dir = tempfile::tempdir().unwrap();
        let open = |listed: &Listed| {
            Part::open("k".into(), dir.path().join("k.part"), dir.path().join("k.json"), listed).unwrap()
        };
        let listed = Listed {
            path: "m/1/model.pt".into(),
            size: 6,
            tag: Some("\"a\"".into()),
            modified: 0,
            sha256: None,
        };
        let mut part = open(&listed);
        part.append(b"abc").unwrap();
        part.answered(Some("\"a\"")).unwrap();
        drop(part);
        let mut part = open(&listed);
        assert_eq!((part.bytes(), part.if_match().as_deref()), (3, Some("\"a\"")));
        part.append(b"def").unwrap();
        assert_eq!(part.sha256(), hex(&Sha256::digest(b"abcdef")), "as if it had come in one piece");
        drop(part);
        let other = Listed { tag: Some("\"b\"".into()), ..listed };
        let part = open(&other);
        assert_eq!((part.bytes(), part.tag()), (0, Some("\"b\"")), "another content begins anew");
        assert!(part.is_of(Some("b")) && part.is_of(None) && !part.is_of(Some("\"a\"")));
    }
}
