//! System shared memory: regions that callers on the same machine have made and registered.
//!
//! They are read and written as the files that they are, below `/dev/shm`, and not mapped: a caller that changes or
//! truncates a region meanwhile gets a wrong answer or an error, and cannot bring the server down. That costs one copy.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::RwLock;

use super::parameters::RegionPart;
use crate::error::{Error, Reason, Result, shown};

/// Where POSIX shared memory lies on Linux.
const ROOT: &str = "/dev/shm";
/// More regions than this are refused.
const MOST: usize = 1024;
/// Longest name of a region.
const NAME: usize = 256;

/// A registered region.
#[derive(Debug, Clone)]
pub(in crate::api) struct Region {
    /// As for `shm_open`.
    pub(in crate::api) key: String,
    /// Where it begins in the file, in bytes.
    pub(in crate::api) offset: u64,
    /// In bytes.
    pub(in crate::api) size: u64,
    file: Arc<File>,
}

/// All of them, by the names that callers gave them. Shared by the doors.
#[derive(Debug)]
pub struct Regions {
    root: Option<PathBuf>,
    /// Most bytes that are read for one tensor.
    longest: u64,
    named: RwLock<BTreeMap<String, Region>>,
}

impl Regions {
    /// None yet. With `enabled` false there never are any. A tensor may have at most `longest` bytes.
    pub fn new(enabled: bool, longest: usize) -> Self {
        let root = enabled.then(|| PathBuf::from(ROOT));
        Self { root, longest: longest as u64, named: RwLock::default() }
    }

    /// Whether callers may register any.
    pub fn enabled(&self) -> bool {
        self.root.is_some()
    }

    fn root(&self) -> Result<&Path> {
        self.root.as_deref().ok_or_else(|| {
            let message = "shared memory is off here: the server's setting oip.shared_memory turns it on";
            Error::new(Reason::Unimplemented, message)
        })
    }

    /// Registers `size` bytes from `offset` on of the shared memory object `key` under a name.
    ///
    /// # Errors
    /// Shared memory is off, the name is taken, or there are no such bytes.
    pub(in crate::api) fn register(&self, name: &str, key: &str, offset: u64, size: u64) -> Result<()> {
        let root = self.root()?;
        let bad = |field: &str, why: &str| {
            let message = format!("shared memory region '{}': {why}", shown(name, 64));
            Error::new(Reason::BadRequest, message).with_field(field)
        };
        if name.is_empty() || name.len() > NAME {
            return Err(bad("name", "a name has 1 to 256 bytes"));
        }
        // One path component: whatever else it says, it stays below the root.
        let file = key.strip_prefix('/').unwrap_or(key);
        if file.is_empty() || file.len() > NAME || file.contains(['/', '\0']) || file == "." || file == ".." {
            return Err(bad("key", "a key is '/' and a name without slashes, as for shm_open"));
        }
        if size == 0 {
            return Err(bad("byte_size", "it has no bytes"));
        }
        let open = OpenOptions::new()
            .read(true)
            .write(true)
            // Neither a link out of the directory nor a pipe that waits for its other end.
            .custom_flags((rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits().cast_signed())
            .open(root.join(file));
        let opened = open.map_err(|error| bad("key", &format!("cannot open {}: {error}", shown(key, 64))))?;
        let meta = opened.metadata().map_err(|error| bad("key", &error.to_string()))?;
        if !meta.is_file() {
            return Err(bad("key", "it is not a shared memory object"));
        }
        let end = offset.checked_add(size).filter(|end| *end <= meta.len());
        if end.is_none() {
            let has = meta.len();
            let why = format!("{size} bytes from {offset} on are not within the object, which has {has}");
            return Err(bad("byte_size", &why));
        }
        let region = Region { key: key.to_owned(), offset, size, file: Arc::new(opened) };
        let mut named = self.named.write();
        if named.contains_key(name) {
            let message = format!("shared memory region '{}' is registered already", shown(name, 64));
            return Err(Error::new(Reason::RegionExists, message).with_field("name"));
        }
        if named.len() >= MOST {
            let message = format!("there are {MOST} shared memory regions already: unregister some");
            return Err(Error::new(Reason::Overloaded, message));
        }
        named.insert(name.to_owned(), region);
        Ok(())
    }

    /// Forgets a region, or all of them where the name is empty. One that is not there is no error: clients forget what an
    /// earlier run of theirs may have left before they begin.
    pub(in crate::api) fn unregister(&self, name: &str) {
        let mut named = self.named.write();
        if name.is_empty() {
            named.clear();
        } else {
            named.remove(name);
        }
    }

    /// One region, or all of them where the name is empty.
    ///
    /// # Errors
    /// No region has that name.
    pub(in crate::api) fn status(&self, name: &str) -> Result<Vec<(String, Region)>> {
        let named = self.named.read();
        if name.is_empty() {
            return Ok(named.iter().map(|(name, region)| (name.clone(), region.clone())).collect());
        }
        let region = named.get(name).cloned().ok_or_else(|| unknown(name))?;
        Ok(vec![(name.to_owned(), region)])
    }

    /// The bytes there.
    pub(super) fn read(&self, part: &RegionPart) -> Result<Bytes> {
        let Place { file, at, .. } = self.place(part)?;
        if part.size > self.longest {
            let message = format!(
                "{} bytes of shared memory for one tensor, over the limit of {} (server.max_message_bytes)",
                part.size, self.longest
            );
            return Err(Error::new(Reason::MessageTooLarge, message));
        }
        let mut data = vec![0; usize::try_from(part.size).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut data, at).map_err(|error| gone(part, &error))?;
        Ok(data.into())
    }

    /// The bytes that are registered there now.
    ///
    /// # Errors
    /// There are none.
    pub(super) fn place(&self, part: &RegionPart) -> Result<Place> {
        self.root()?;
        let RegionPart { region: name, offset, size } = part;
        let named = self.named.read();
        let region = named.get(name).ok_or_else(|| unknown(name))?;
        let within = offset.checked_add(*size).is_some_and(|end| end <= region.size);
        let at = region.offset.checked_add(*offset).filter(|_| within).ok_or_else(|| {
            let message = format!(
                "{size} bytes from {offset} on are not within shared memory region '{}', which has {}",
                shown(name, 64),
                region.size
            );
            Error::new(Reason::BadRequest, message).with_field("parameters")
        })?;
        Ok(Place { part: part.clone(), file: region.file.clone(), at })
    }
}

/// A part of a region as it was when it was looked up. It stays the same bytes whatever is unregistered or registered since.
#[derive(Debug, Clone)]
pub(in crate::api) struct Place {
    pub(in crate::api) part: RegionPart,
    file: Arc<File>,
    /// Where in the file it begins.
    at: u64,
}

impl Place {
    /// Writes an answer there.
    pub(super) fn write(&self, data: &[u8]) -> Result<()> {
        let Self { part, file, at } = self;
        if data.len() as u64 > part.size {
            let message = format!(
                "the output has {} bytes, its place in shared memory region '{}' has {}",
                data.len(),
                shown(&part.region, 64),
                part.size
            );
            return Err(Error::new(Reason::BadRequest, message).with_field("outputs"));
        }
        // Its owner may have cut it short: it is not for the server to make it longer.
        let has = file.metadata().map_err(|error| gone(part, &error))?.len();
        if has < at.saturating_add(data.len() as u64) {
            return Err(gone(part, &std::io::ErrorKind::UnexpectedEof.into()));
        }
        file.write_all_at(data, *at).map_err(|error| gone(part, &error))
    }
}

/// The refusal of regions in the memory of GPUs.
pub(in crate::api) fn no_cuda() -> Error {
    let message = "this server has no CUDA shared memory: send the bytes, or use system shared memory";
    Error::new(Reason::Unimplemented, message)
}

/// All regions in the memory of GPUs, or the one of that name: there are none.
pub(in crate::api) fn no_cuda_region(name: &str) -> Result<()> {
    if name.is_empty() { Ok(()) } else { Err(unknown(name)) }
}

fn unknown(name: &str) -> Error {
    let message = format!("no shared memory region '{}' is registered", shown(name, 64));
    Error::new(Reason::UnknownRegion, message).with_field("parameters")
}

fn gone(part: &RegionPart, error: &std::io::Error) -> Error {
    let message = format!("shared memory region '{}' has changed: {error}", shown(&part.region, 64));
    Error::new(Reason::BadRequest, message).with_field("parameters")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regions(root: &Path) -> Regions {
        Regions { root: Some(root.to_owned()), ..Regions::new(true, 64) }
    }

    fn part(region: &str, offset: u64, size: u64) -> RegionPart {
        RegionPart { region: region.to_owned(), offset, size }
    }

    #[test]
    fn what_is_written_there_is_read_from_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("object"), [0; 32]).unwrap();
        let regions = regions(dir.path());
        regions.register("whole", "/object", 0, 32).unwrap();
        regions.register("end", "object", 24, 8).unwrap();
        regions.place(&part("end", 2, 4)).unwrap().write(b"data").unwrap();
        assert_eq!(regions.read(&part("whole", 26, 4)).unwrap(), "data");
        assert_eq!(regions.status("").unwrap().len(), 2);
        let end = &regions.status("end").unwrap()[0].1;
        assert_eq!((end.key.as_str(), end.offset, end.size), ("object", 24, 8));
        regions.unregister("end");
        assert_eq!(regions.read(&part("end", 0, 1)).unwrap_err().reason(), Reason::UnknownRegion);
        regions.unregister("");
        assert!(regions.status("").unwrap().is_empty());
    }

    #[test]
    fn nothing_outside_a_region_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("shm");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("object"), [0; 32]).unwrap();
        std::fs::write(dir.path().join("secret"), [0; 32]).unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), root.join("link")).unwrap();
        let regions = regions(&root);
        for key in ["", "/", "..", "/..", "/../secret", "sub/x", "link", "sub", "none", "//object"] {
            assert!(regions.register("r", key, 0, 1).is_err(), "{key}");
        }
        for (offset, size) in [(0, 33), (32, 1), (u64::MAX, 1), (1, u64::MAX), (0, 0)] {
            assert!(regions.register("r", "/object", offset, size).is_err(), "{offset} {size}");
        }
        regions.register("r", "/object", 8, 16).unwrap();
        assert_eq!(regions.register("r", "/object", 0, 1).unwrap_err().reason(), Reason::RegionExists);
        for (offset, size) in [(0, 17), (16, 1), (u64::MAX, 2)] {
            assert!(regions.read(&part("r", offset, size)).is_err(), "{offset} {size}");
        }
        assert!(regions.place(&part("r", 0, 2)).unwrap().write(b"longer").is_err());
        // Truncated behind the server's back: an error, not a signal.
        std::fs::write(root.join("object"), [0; 4]).unwrap();
        assert!(regions.read(&part("r", 0, 16)).is_err());
        assert!(regions.place(&part("r", 0, 16)).unwrap().write(b"longer").is_err());
        assert_eq!(std::fs::read(root.join("object")).unwrap().len(), 4);
    }

    #[test]
    fn a_place_stays_where_it_was_when_it_was_looked_up() {
        let dir = tempfile::tempdir().unwrap();
        for object in ["first", "second"] {
            std::fs::write(dir.path().join(object), [0; 8]).unwrap();
        }
        let regions = regions(dir.path());
        regions.register("r", "/first", 0, 8).unwrap();
        let place = regions.place(&part("r", 4, 4)).unwrap();
        regions.unregister("r");
        place.write(b"gone").unwrap();
        regions.register("r", "/second", 0, 8).unwrap();
        place.write(b"data").unwrap();
        assert_eq!(std::fs::read(dir.path().join("first")).unwrap(), b"\0\0\0\0data");
        assert_eq!(std::fs::read(dir.path().join("second")).unwrap(), [0; 8]);
    }

    #[test]
    fn a_tensor_is_no_larger_than_a_message() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("object"), [0; 128]).unwrap();
        let regions = regions(dir.path());
        regions.register("r", "/object", 0, 128).unwrap();
        assert_eq!(regions.read(&part("r", 0, 65)).unwrap_err().reason(), Reason::MessageTooLarge);
    }

    #[test]
    fn it_is_off_unless_it_is_turned_on() {
        let regions = Regions::new(false, 64);
        assert_eq!(regions.register("r", "/object", 0, 1).unwrap_err().reason(), Reason::Unimplemented);
        assert_eq!(regions.read(&part("r", 0, 1)).unwrap_err().reason(), Reason::Unimplemented);
        assert!(regions.status("").unwrap().is_empty());
        regions.unregister("");
    }
}
