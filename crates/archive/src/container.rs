//! The zip file around an archive: its directory, checked, and the few entries that are read.
//!
//! libtorch takes the first entry's folder as the archive's root and looks entries up under it without regard to
//! case; the same is done here, so that what is inspected is what libtorch would load. An inspection reads no
//! weights (`data/N`), only their sizes, from the directory; where they lie is told to those who lay others over them.

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};

use zip::read::{ArchiveOffset, Config};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::error::{ArchiveError, shown};
use super::{end_record, sniff};

/// Most entries that an archive may have; the largest known models have some ten thousand tensors.
pub(super) const MAX_ENTRIES: usize = 100_000;
/// Most inflated bytes of one entry, and of all entries together, that are read.
pub(super) const MAX_READ_BYTES: u64 = 64 << 20;
/// Longest entry name that is taken.
const MAX_NAME_BYTES: usize = 1024;

/// What the directory says about one entry.
struct Entry {
    /// Place in the directory.
    index: usize,
    /// Name below the root, as it is written.
    name: String,
    /// Size after inflation, as declared.
    size: u64,
}

/// Where an uncompressed entry lies in the file, in bytes from its beginning.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    /// Its first byte.
    pub(crate) start: u64,
    /// How many there are.
    pub(crate) size: u64,
    /// Their checksum, as the directory has it.
    pub(crate) crc32: u32,
    /// Where the directory has it.
    pub(crate) sum_at: u64,
}

/// Where the checksum stands in an entry's record of the directory (APPNOTE 4.3.12).
const SUM_IN_DIRECTORY: u64 = 16;

/// A zip file whose directory has been checked.
pub(crate) struct Container<R> {
    zip: ZipArchive<R>,
    /// By name below the root, lower case.
    entries: HashMap<String, Entry>,
    /// Entries in the directory, folders included.
    pub(super) count: usize,
    /// What may still be inflated.
    budget_bytes: u64,
}

/// Whether a file of `size` bytes begins and ends as an archive does. Whatever its size, little of it is read.
///
/// # Errors
/// It does not.
pub(super) fn check_ends<R: Read + Seek>(reader: &mut R, size: u64) -> Result<(), ArchiveError> {
    reader.seek(SeekFrom::Start(0))?;
    let mut head = Vec::with_capacity(sniff::HEAD_BYTES);
    reader.by_ref().take(sniff::HEAD_BYTES as u64).read_to_end(&mut head)?;
    match sniff::foreign(&head, size) {
        Some(error) => Err(error),
        None => end_record::check(reader, size),
    }
}

impl<R: Read + Seek> Container<R> {
    /// Reads and checks the directory of a file of `size` bytes.
    pub(crate) fn open(mut reader: R, size: u64) -> Result<Self, ArchiveError> {
        check_ends(&mut reader, size)?;
        let config = Config { archive_offset: ArchiveOffset::Known(0) };
        let mut zip = ZipArchive::with_config(config, reader).map_err(directory_error)?;
        let entries = directory(&mut zip)?;
        if zip.has_overlapping_entries().map_err(directory_error)? {
            return Err(ArchiveError::Overlap);
        }
        Ok(Self { count: zip.len(), zip, entries, budget_bytes: MAX_READ_BYTES })
    }

    /// Names below the root, as they are written, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.entries.values().map(|entry| entry.name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// Whether there is an entry of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Inflated size of an entry, in bytes, as the directory declares it.
    pub(crate) fn size_of(&self, name: &str) -> Option<u64> {
        self.find(name).map(|entry| entry.size)
    }

    /// The whole of an entry, checked against its declared size and its checksum, or `None` where there is none.
    pub(crate) fn read(&mut self, name: &str) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some((index, declared)) = self.find(name).map(|entry| (entry.index, entry.size)) else {
            return Ok(None);
        };
        let too_large = || ArchiveError::TooLarge { entry: shown(name), limit_bytes: MAX_READ_BYTES };
        self.budget_bytes = self.budget_bytes.checked_sub(declared).ok_or_else(too_large)?;
        let damaged = |reason: String| ArchiveError::Entry { entry: shown(name), reason };
        let entry = self.zip.by_index(index).map_err(|error| damaged(error.to_string()))?;
        // Grows with what is really there: the declared size is not trusted with an allocation.
        let mut bytes = Vec::new();
        let read = entry.take(declared.saturating_add(1)).read_to_end(&mut bytes);
        match read {
            Ok(_) if bytes.len() as u64 == declared => Ok(Some(bytes)),
            Ok(length) if length as u64 > declared => {
                Err(damaged(format!("inflates to more than the {declared} bytes it declares")))
            }
            Ok(length) => Err(damaged(format!("inflates to {length} bytes, not the {declared} it declares"))),
            Err(error) if error.to_string().contains("checksum") => Err(ArchiveError::Checksum(shown(name))),
            Err(error) if error.kind() == io::ErrorKind::Other => Err(ArchiveError::Io(error)),
            Err(error) => Err(damaged(error.to_string())),
        }
    }

    /// Where an entry lies that is stored as it is, or `None` where there is none.
    pub(crate) fn place(&mut self, name: &str) -> Result<Option<Place>, ArchiveError> {
        let Some(index) = self.find(name).map(|entry| entry.index) else {
            return Ok(None);
        };
        let damaged = |reason: String| ArchiveError::Entry { entry: shown(name), reason };
        let entry = self.zip.by_index(index).map_err(|error| damaged(error.to_string()))?;
        if entry.compression() != CompressionMethod::Stored {
            return Err(damaged("compressed, which torch does to no tensor".to_owned()));
        }
        let start = entry.data_start().ok_or_else(|| damaged("it has no data".to_owned()))?;
        let sum_at = entry.central_header_start().saturating_add(SUM_IN_DIRECTORY);
        Ok(Some(Place { start, size: entry.size(), crc32: entry.crc32(), sum_at }))
    }

    fn find(&self, name: &str) -> Option<&Entry> {
        self.entries.get(&name.to_ascii_lowercase())
    }
}

/// Checks every name and size, and keys what lies below the root by its name.
fn directory<R: Read + Seek>(zip: &mut ZipArchive<R>) -> Result<HashMap<String, Entry>, ArchiveError> {
    if zip.has_duplicate_names() {
        return Err(ArchiveError::DuplicateName("of some name".to_owned()));
    }
    let mut entries = HashMap::new();
    let mut root: Option<String> = None;
    for index in 0..zip.len() {
        let damaged = |reason: String| ArchiveError::Entry { entry: format!("entry {index}"), reason };
        let data = zip.by_index_data(index).map_err(|error| damaged(error.to_string()))?;
        let name = plain_name(data.name_raw())?;
        if data.encrypted() {
            return Err(damaged("encrypted".to_owned()));
        }
        match data.compression() {
            CompressionMethod::Stored if data.size() != data.compressed_size() => {
                return Err(damaged("stored, but its two sizes differ".to_owned()));
            }
            CompressionMethod::Stored | CompressionMethod::Deflated => {}
            other => return Err(damaged(format!("compressed by {other}, which libtorch cannot read"))),
        }
        let (folder, below) = name.split_once('/').unwrap_or((name, ""));
        let root = root.get_or_insert_with(|| folder.to_owned());
        if below.is_empty() || !root.eq_ignore_ascii_case(folder) {
            continue;
        }
        let entry = Entry { index, name: below.to_owned(), size: data.size() };
        if let Some(twin) = entries.insert(below.to_ascii_lowercase(), entry) {
            return Err(ArchiveError::DuplicateName(shown(&twin.name)));
        }
    }
    Ok(entries)
}

/// The name of an entry, if it is a relative path without `..` and without what a path should not have.
fn plain_name(raw: &[u8]) -> Result<&str, ArchiveError> {
    let bad = || ArchiveError::BadName(shown(&String::from_utf8_lossy(raw)));
    let name = std::str::from_utf8(raw).map_err(|_| bad())?;
    let odd = name.is_empty()
        || name.len() > MAX_NAME_BYTES
        || name.starts_with('/')
        || name.contains(|letter: char| letter.is_control() || letter == '\\')
        || name.split('/').any(|part| part == "..")
        || name.as_bytes().get(1) == Some(&b':');
    if odd { Err(bad()) } else { Ok(name) }
}

/// What it means that the directory cannot be read.
fn directory_error(error: ZipError) -> ArchiveError {
    match error {
        ZipError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => ArchiveError::Io(error),
        other => ArchiveError::Entry { entry: "zip directory".to_owned(), reason: shown(&other.to_string()) },
    }
}
