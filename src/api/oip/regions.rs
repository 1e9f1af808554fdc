//! System shared memory: regions that callers on the same machine have made and registered.
//!
//! They are read and written as the files that they are, below `/dev/shm`, and not mapped: a caller that changes or
//! truncates a region meanwhile gets a wrong answer or an error, and cannot bring the server down. That costs one copy.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    net::SocketAddr,
    os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::RwLock;

use super::parameters::RegionPart;
use crate::{
    admission::{Caller, MessageBytes},
    error::{Error, Reason, Result, shown},
    layers::too_many_bytes,
};

/// Where POSIX shared memory lies on Linux.
const ROOT: &str = "/dev/shm";
/// More regions than this are refused, fewer where the process may have few descriptors open. One caller may have its share of what
/// others leave.
pub(crate) const MOST: usize = 1024;
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
    /// Which object it is: regions of one share a descriptor.
    object: (u64, u64),
    /// Who has registered it.
    caller: Caller,
}

/// All of them, by the names that callers gave them. Shared by the doors.
#[derive(Debug)]
pub struct Regions {
    root: Option<PathBuf>,
    /// Most bytes that are read for one tensor.
    longest: u64,
    most: usize,
    share: f64,
    named: RwLock<BTreeMap<String, Region>>,
}

impl Regions {
    /// None yet. With `enabled` false there never are any. A tensor may have at most `longest` bytes. There may be `most` regions, and
    /// one caller may have `share` of what the others leave.
    pub fn new(enabled: bool, longest: usize, most: usize, share: f64) -> Self {
        let root = enabled.then(|| PathBuf::from(ROOT));
        Self { root, longest: longest as u64, most, share, named: RwLock::default() }
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
    pub(in crate::api) fn register(
        &self,
        name: &str,
        key: &str,
        offset: u64,
        size: u64,
        from: Option<SocketAddr>,
    ) -> Result<()> {
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
        let caller = from.map_or(Caller::UNKNOWN, |from| Caller::at(from.ip()));
        let object = (meta.dev(), meta.ino());
        let mut named = self.named.write();
        if named.contains_key(name) {
            let message = format!("shared memory region '{}' is registered already", shown(name, 64));
            return Err(Error::new(Reason::RegionExists, message).with_field("name"));
        }
        let own = named.values().filter(|region| region.caller == caller).count();
        let left = self.most.saturating_sub(named.len() - own);
        if own as f64 >= (left as f64 * self.share).ceil() {
            let message = format!(
                "this address has {own} shared memory regions registered, its share (server.caller_share) of what others leave of \
                 {}: unregister some",
                self.most
            );
            return Err(Error::new(Reason::Overloaded, message));
        }
        let same = named.values().find(|region| region.object == object).map(|region| region.file.clone());
        let file = same.unwrap_or_else(|| Arc::new(opened));
        named.insert(name.to_owned(), Region { key: key.to_owned(), offset, size, file, object, caller });
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

    /// Reads for one request, whose bytes are counted in `counted`.
    pub(super) fn reader<'a>(&'a self, counted: Option<&'a MessageBytes>) -> Reader<'a> {
        Reader { regions: self, counted, read: BTreeMap::new() }
    }

    /// The bytes there.
    fn read(&self, part: &RegionPart, counted: Option<&MessageBytes>) -> Result<Bytes> {
        let Place { file, at, .. } = self.place(part)?;
        if part.size > self.longest {
            let message = format!(
                "{} bytes of shared memory for one tensor, over the limit of {} (server.max_message_bytes)",
                part.size, self.longest
            );
            return Err(Error::new(Reason::MessageTooLarge, message));
        }
        if counted.is_some_and(|counted| !counted.add(part.size)) {
            return Err(too_many_bytes());
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

/// Reads what one request names: each part once, however often it is named.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    regions: &'a Regions,
    counted: Option<&'a MessageBytes>,
    read: BTreeMap<RegionPart, Bytes>,
}

impl Reader<'_> {
    /// The bytes there.
    ///
    /// # Errors
    /// They are not there, too many, or there is no room for them.
    pub(super) fn read(&mut self, part: RegionPart) -> Result<Bytes> {
        if let Some(bytes) = self.read.get(&part) {
            return Ok(bytes.clone());
        }
        let bytes = self.regions.read(&part, self.counted)?;
        self.read.insert(part, bytes.clone());
        Ok(bytes)
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
    use crate::admission::Account;

    fn regions(root: &Path) -> Regions {
        Regions { root: Some(root.to_owned()), ..Regions::new(true, 64, 4, 0.5) }
    }

    fn part(region: &str, offset: u64, size: u64) -> RegionPart {
        RegionPart { region: region.to_owned(), offset, size }
    }

    #[test]
    fn what_is_written_there_is_read_from_there() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("object"), [0; 32]).unwrap();
        let regions = regions(dir.path());
        regions.register("whole", "/object", 0, 32, None).unwrap();
        regions.register("end", "object", 24, 8, None).unwrap();
        regions.place(&part("end", 2, 4)).unwrap().write(b"data").unwrap();
        assert_eq!(regions.read(&part("whole", 26, 4), None).unwrap(), "data");
        assert_eq!(regions.status("").unwrap().len(), 2);
        let end = &regions.status("end").unwrap()[0].1;
        assert_eq!((end.key.as_str(), end.offset, end.size), ("object", 24, 8));
        regions.unregister("end");
        assert_eq!(regions.read(&part("end", 0, 1), None).unwrap_err().reason(), Reason::UnknownRegion);
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
            assert!(regions.register("r", key, 0, 1, None).is_err(), "{key}");
        }
        for (offset, size) in [(0, 33), (32, 1), (u64::MAX, 1), (1, u64::MAX), (0, 0)] {
            assert!(regions.register("r", "/object", offset, size, None).is_err(), "{offset} {size}");
        }
        regions.register("r", "/object", 8, 16, None).unwrap();
        assert_eq!(regions.register("r", "/object", 0, 1, None).unwrap_err().reason(), Reason::RegionExists);
        for (offset, size) in [(0, 17), (16, 1), (u64::MAX, 2)] {
            assert!(regions.read(&part("r", offset, size), None).is_err(), "{offset} {size}");
        }
        assert!(regions.place(&part("r", 0, 2)).unwrap().write(b"longer").is_err());
        // Truncated behind the server's back: an error, not a signal.
        std::fs::write(root.join("object"), [0; 4]).unwrap();
        assert!(regions.read(&part("r", 0, 16), None).is_err());
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
        regions.register("r", "/first", 0, 8, None).unwrap();
        let place = regions.place(&part("r", 4, 4)).unwrap();
        regions.unregister("r");
        place.write(b"gone").unwrap();
        regions.register("r", "/second", 0, 8, None).unwrap();
        place.write(b"data").unwrap();
        assert_eq!(std::fs::read(dir.path().join("first")).unwrap(), b"\0\0\0\0data");
        assert_eq!(std::fs::read(dir.path().join("second")).unwrap(), [0; 8]);
    }

    #[test]
    fn a_tensor_is_no_larger_than_a_message() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("object"), [0; 128]).unwrap();
        let regions = regions(dir.path());
        regions.register("r", "/object", 0, 128, None).unwrap();
        assert_eq!(regions.read(&part("r", 0, 65), None).unwrap_err().reason(), Reason::MessageTooLarge);
    }

    #[test]
    fn it_is_off_unless_it_is_turned_on() {
        let regions = Regions::new(false, 64, 4, 0.5);
        assert_eq!(regions.register("r", "/object", 0, 1, None).unwrap_err().reason(), Reason::Unimplemented);
        assert_eq!(regions.read(&part("r", 0, 1), None).unwrap_err().reason(), Reason::Unimplemented);
        assert!(regions.status("").unwrap().is_empty());
        regions.unregister("");
    }

    #[test]
    fn what_is_read_counts_and_is_read_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("object"), [7; 64]).unwrap();
        let regions = regions(dir.path());
        regions.register("r", "/object", 0, 64, None).unwrap();
        let account = Account::alone(100);
        let counted = MessageBytes::new(account.clone());
        let mut reader = regions.reader(Some(&counted));
        let first = reader.read(part("r", 0, 64)).unwrap();
        for _ in 0..200 {
            assert_eq!(reader.read(part("r", 0, 64)).unwrap().as_ptr(), first.as_ptr());
        }
        assert_eq!(account.now(), 64);
        assert_eq!(reader.read(part("r", 1, 63)).unwrap_err().reason(), Reason::Overloaded);
        assert_eq!(account.now(), 64, "what is refused is not read");
        drop(counted);
        assert_eq!(account.now(), 0);
    }

    #[test]
    fn a_caller_has_its_share_and_an_object_one_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("object"), [7; 64]).unwrap();
        let regions = regions(dir.path());
        let at = |last: u8| Some(SocketAddr::from(([10, 0, 0, last], 1)));
        let register = |name: &str, last| regions.register(name, "/object", 0, 64, at(last));
        register("a", 1).unwrap();
        register("b", 1).unwrap();
        assert_eq!(register("c", 1).unwrap_err().reason(), Reason::Overloaded, "half of four");
        register("c", 2).unwrap();
        assert_eq!(register("d", 2).unwrap_err().reason(), Reason::Overloaded, "half of what is left");
        let files: Vec<_> = regions.status("").unwrap().into_iter().map(|(_, region)| region.file).collect();
        assert!(files.iter().all(|file| Arc::ptr_eq(file, &files[0])));
        regions.unregister("a");
        register("d", 1).unwrap();
    }
}
