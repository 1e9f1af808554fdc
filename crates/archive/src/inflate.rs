//! Reads every entry of an archive to its end: none inflates to more than it declares, and all match their checksums.
//!
//! libtorch checks no checksum, and would serve weights with a flipped bit. It allocates what an entry declares, so what
//! compressed entries declare together is held to a multiple of the file's size before any of them is inflated.

use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::Path,
};

use zip::CompressionMethod;
use zip::read::{ArchiveOffset, Config};

use super::error::{ArchiveError, shown};

/// What compressed entries may inflate to: code, which compresses well, and then so many times the file.
const BASE_BYTES: u64 = 64 << 20;
const RATIO: u64 = 16;

/// Reads all of the archive at `path`, whose directory an inspection has found to be in order.
///
/// # Errors
/// The entry that is damaged or lies about its size, or entries that would inflate to too much.
pub fn check_entries(path: &Path) -> Result<(), ArchiveError> {
    let damaged = |name: &str, error: &dyn std::fmt::Display| ArchiveError::Entry {
        entry: format!("entry {}", shown(name)),
        reason: error.to_string(),
    };
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    // As the inspection reads it: the zip begins where the file does, nothing is searched for.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut zip = zip::ZipArchive::with_config(config, BufReader::new(file))
        .map_err(|e| damaged("of the directory", &e))?;
    let mut declared_bytes = 0_u64;
    for index in 0..zip.len() {
        let entry = zip.by_index_raw(index).map_err(|e| damaged(&index.to_string(), &e))?;
        if entry.compression() != CompressionMethod::Stored {
            declared_bytes = declared_bytes.saturating_add(entry.size());
        }
    }
    let limit_bytes = BASE_BYTES.saturating_add(size.saturating_mul(RATIO));
    if declared_bytes > limit_bytes {
        return Err(ArchiveError::Inflates { declared_bytes, limit_bytes });
    }
    for index in 0..zip.len() {
        let mut entry = zip.by_index(index).map_err(|e| damaged(&index.to_string(), &e))?;
        let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
        let declared = entry.size();
        let read = io::copy(&mut entry.by_ref().take(declared.saturating_add(1)), &mut io::sink());
        match read.map_err(|e| damaged(&name, &e))? {
            read if read == declared => {}
            read if read > declared => {
                return Err(damaged(
                    &name,
                    &format!("inflates to more than the {declared} bytes it declares"),
                ));
            }
            read => {
                return Err(damaged(
                    &name,
                    &format!("inflates to {read} bytes, not the {declared} it declares"),
                ));
            }
        }
    }
    Ok(())
}
