//! Digests of archives, and the proof that what was hashed is what was loaded.

use std::{
    cell::Cell,
    fmt::Write as _,
    fs::File,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

use sha2::{Digest, Sha256};

/// Tells whether a file is still the one that was hashed: device, inode, size, and the times of its last write and change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
    /// Bytes.
    pub size: u64,
    /// Seconds since 1970, and nanoseconds.
    written: (i64, i64),
    changed: (i64, i64),
}

impl FileIdentity {
    /// Of the file that stands at `path` now.
    ///
    /// # Errors
    /// No such file, something else than a file (a pipe would keep its reader waiting for ever), or no right to look.
    pub fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        if !meta.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            written: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }

    /// Everything but the time of change is the same. So it is after a backup has made a hard link, or rights were changed; but
    /// a program may set the time of writing too.
    pub fn may_be(&self, other: &Self) -> bool {
        Self { changed: other.changed, ..*self } == *other
    }

    /// It has not been changed for at least so long: a change in the same tick of the file system's clock would leave the
    /// identity as it is.
    pub fn has_rested(&self, rest: Duration) -> bool {
        let (Ok(seconds), Ok(nanos)) = (u64::try_from(self.changed.0), u32::try_from(self.changed.1)) else {
            return false;
        };
        let changed = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
        SystemTime::now().duration_since(changed).is_ok_and(|since| since >= rest)
    }
}

thread_local! {
    static BETWEEN: Cell<fn()> = const { Cell::new(|| ()) };
}

/// What this thread does between the pieces of files that it digests: one that others should not notice rests there.
pub fn between_pieces(rest: fn()) {
    BETWEEN.set(rest);
}

/// sha256 of a file, hexadecimal.
///
/// # Errors
/// Whatever reading says.
pub fn digest(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let read = file.read(&mut buffer)?;
        let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else { break };
        hash.update(chunk);
        BETWEEN.get()();
    }
    Ok(hexadecimal(&hash.finalize()))
}

/// sha256 of bytes, hexadecimal.
pub(super) fn digest_of(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

fn hexadecimal(hash: &[u8]) -> String {
    hash.iter().fold(String::with_capacity(64), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}
