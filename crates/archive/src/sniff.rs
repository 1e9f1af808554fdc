//! What a file that is no zip file looks like.

use super::error::ArchiveError;

/// How many of the file's first bytes are looked at.
pub(super) const HEAD_BYTES: usize = 512;

/// `torch.save`'s magic number before the zip format, as protocol 2 writes it.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

/// The mark of a flatbuffer, at its fifth byte.
const FLATBUFFER: &[u8] = b"PTMF";

const JIT_SAVE: &str = "save it with torch.jit.save(torch.jit.script(model), ...)";
const COPY: &str = "copy the file again";

/// The error for a file of `size` bytes that begins with `head`, or `None` where it begins like a zip file.
pub(super) fn foreign(head: &[u8], size: u64) -> Option<ArchiveError> {
    // A zip file that is a flatbuffer too: libtorch's loaders for phones look for this mark first.
    if head.get(4..8) == Some(FLATBUFFER) && head.starts_with(b"PK") {
        return Some(ArchiveError::Deceptive("it begins like a zip file and like a flatbuffer"));
    }
    let (looks_like, advice) = kind(head, size)?;
    Some(ArchiveError::Foreign { looks_like, advice })
}

fn kind(head: &[u8], size: u64) -> Option<(&'static str, &'static str)> {
    let text = head.trim_ascii_start();
    let starts = |magic: &[u8]| head.starts_with(magic);
    let says = |word: &[u8]| text.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    Some(if size == 0 {
        ("an empty file", COPY)
    } else if starts(b"PK\x03\x04") || starts(b"PK\x05\x06") {
        return None;
    } else if starts(b"version https://git-lfs") {
        ("a git-lfs pointer", "fetch the file itself with git lfs pull")
    } else if starts(LEGACY_MAGIC) {
        ("a pickle of torch.save's format before 1.6 (a state dict or a whole Python module)", JIT_SAVE)
    } else if starts(b"\x80") && head.get(1).is_some_and(|protocol| (1..=5).contains(protocol)) {
        ("a Python pickle", JIT_SAVE)
    } else if head.get(4..8) == Some(FLATBUFFER) {
        ("a flatbuffer of PyTorch Mobile", JIT_SAVE)
    } else if is_safetensors(head, size) {
        ("a safetensors file, which holds weights but no code", JIT_SAVE)
    } else if starts(b"\x7fELF") {
        ("an ELF executable or library", "check the path")
    } else if says(b"<!doctype") || says(b"<html") || says(b"<?xml") {
        ("an HTML or XML page", "the download went wrong (a login page?), download it again")
    } else if starts(b"\x1f\x8b") {
        ("a gzip file", "unpack it with gunzip or tar xzf")
    } else if head.get(257..262) == Some(b"ustar") {
        ("a tar file", "unpack it with tar xf")
    } else if starts(b"GGUF") {
        ("a GGUF file", JIT_SAVE)
    } else if starts(b"\x89HDF") {
        ("an HDF5 file", JIT_SAVE)
    } else if head.iter().all(|byte| *byte == 0) {
        ("a file that begins with zeros only", COPY)
    } else if starts(b"{") || starts(b"[") {
        ("a JSON or text file", "check the path")
    } else {
        ("something else (it does not begin like a zip file)", JIT_SAVE)
    })
}

/// Safetensors: a header length as eight little-endian bytes, then that much JSON.
fn is_safetensors(head: &[u8], size: u64) -> bool {
    let length = head.first_chunk::<8>().map(|bytes| u64::from_le_bytes(*bytes));
    head.get(8) == Some(&b'{') && length.is_some_and(|length| length >= 2 && length <= size.saturating_sub(8))
}
