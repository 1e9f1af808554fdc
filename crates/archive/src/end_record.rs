//! The record at the very end of a zip file, read before anything else so that the directory it points to is bounded.
//!
//! Readers of zip files differ in which of several such records they take; an archive where there could be a doubt
//! (a comment, or bytes after the record) is refused, which is never the case for what torch writes.

use std::io::{Read, Seek, SeekFrom};

use super::container::{MAX_ENTRIES, MAX_READ_BYTES};
use super::error::ArchiveError;

/// Sizes of the end record without a comment, of the ZIP64 locator before it, and of the ZIP64 record before that
/// (APPNOTE 4.3.14 to 4.3.16).
const END_BYTES: u64 = 22;
const LOCATOR_BYTES: u64 = 20;
const END64_BYTES: u64 = 56;
/// How far from the end a record with a comment may be.
const LONGEST_COMMENT: u64 = u16::MAX as u64;

/// Checks the end of a file of `size` bytes: the record is there, nothing follows it, and the directory it points to is
/// bounded and ends where the record begins.
pub(super) fn check<R: Read + Seek>(reader: &mut R, size: u64) -> Result<(), ArchiveError> {
    let damaged =
        |reason: &str| ArchiveError::Entry { entry: "zip directory".to_owned(), reason: reason.to_owned() };
    let window = size.min(END_BYTES + LONGEST_COMMENT);
    let tail = read_at(reader, size - window, window)?;
    let last = tail.windows(4).rposition(|bytes| bytes == b"PK\x05\x06");
    let Some(record) = last.and_then(|at| tail.get(at..)) else {
        return Err(ArchiveError::Truncated { size_bytes: size });
    };
    if record.len() as u64 != END_BYTES || le(record, 20, 2) != Some(0) {
        return Err(damaged("a comment or other bytes follow it"));
    }
    let mut ends_at = size - END_BYTES;
    let (mut count, mut bytes, mut start) = (le(record, 10, 2), le(record, 12, 4), le(record, 16, 4));
    let locator = match ends_at.checked_sub(LOCATOR_BYTES) {
        Some(at) => read_at(reader, at, LOCATOR_BYTES)?,
        None => Vec::new(),
    };
    if locator.starts_with(b"PK\x06\x07") {
        let at = le(&locator, 8, 8).filter(|at| at.checked_add(END64_BYTES + LOCATOR_BYTES) == Some(ends_at));
        ends_at = at.ok_or_else(|| damaged("its ZIP64 record is not where it should be"))?;
        let record = read_at(reader, ends_at, END64_BYTES)?;
        if !record.starts_with(b"PK\x06\x06") {
            return Err(damaged("its ZIP64 record is missing"));
        }
        (count, bytes, start) = (le(&record, 32, 8), le(&record, 40, 8), le(&record, 48, 8));
    }
    let (Some(count), Some(bytes), Some(start)) = (count, bytes, start) else {
        return Err(ArchiveError::Truncated { size_bytes: size });
    };
    if start.checked_add(bytes) != Some(ends_at) {
        return Err(damaged("it is not where the end of the file says"));
    }
    if count > MAX_ENTRIES as u64 {
        let found = usize::try_from(count).unwrap_or(usize::MAX);
        return Err(ArchiveError::TooManyEntries { found, limit: MAX_ENTRIES });
    }
    if bytes > MAX_READ_BYTES {
        return Err(ArchiveError::TooLarge {
            entry: "the zip directory".to_owned(),
            limit_bytes: MAX_READ_BYTES,
        });
    }
    Ok(())
}

/// `length` bytes from `at`, or as many as there are; `length` is at most a comment and a record.
fn read_at<R: Read + Seek>(reader: &mut R, at: u64, length: u64) -> Result<Vec<u8>, ArchiveError> {
    reader.seek(SeekFrom::Start(at))?;
    let mut bytes = Vec::new();
    reader.by_ref().take(length).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The little-endian number in `width` bytes from `at`.
fn le(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(width)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}
