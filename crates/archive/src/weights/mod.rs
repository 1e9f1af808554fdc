//! Weights without code: a file of named tensors that are laid over those of an archive.
//!
//! Two forms are read, both without running anything: safetensors, and the state dict that `torch.save` writes, a zip
//! file with a pickle. The file is read once, whole: what is hashed is what is laid over. Everything in it is checked
//! before it is used: names, shapes and datatypes must be those of the archive's parameters and buffers, one to one.

mod fit;
mod overlay;
mod safetensors_file;
mod state_dict;
mod strided;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use bytes::Bytes;
use thiserror::Error;

use super::digest::digest_of;
pub use overlay::Overlay;

/// Why weights could not be read, or do not fit. One line each, with what to do about it.
#[derive(Debug, Error)]
pub enum WeightsError {
    /// The file cannot be read.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// More than the archive could take.
    #[error(
        "it has {bytes} bytes, the archive that it is laid over takes at most {most}: check that it belongs to this model"
    )]
    TooLarge {
        /// What it has.
        bytes: u64,
        /// What is read.
        most: u64,
    },
    /// Not what its name says, or damaged.
    #[error("{0}")]
    Form(String),
    /// Not the archive's names, shapes or datatypes.
    #[error("{0}")]
    Fit(String),
    /// The archive has no place for it.
    #[error("the archive cannot take weights: {0}")]
    Archive(String),
}

/// One tensor: row-major little-endian elements without gaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Weight {
    /// torch's name of the datatype without `torch.`: `float32`.
    pub dtype: String,
    /// Size of each dimension, outermost first.
    pub shape: Vec<u64>,
    /// The elements.
    pub data: Bytes,
}

/// A file of weights, read.
#[derive(Debug, Clone)]
pub struct Weights {
    tensors: BTreeMap<String, Weight>,
    /// sha256 of the file, hexadecimal.
    pub sha256: String,
    /// Size of the file.
    pub bytes: u64,
}

/// What a file of weights may be larger than the archive beneath it: names, headers, alignment.
const MARGIN_BYTES: u64 = 16 << 20;

impl Weights {
    /// Reads the file at `path`, which is to be laid over an archive of `archive_bytes`. A name that ends in
    /// `.safetensors` says what it is; anything else is a state dict.
    ///
    /// # Errors
    /// It cannot be read, is far larger than the archive, is not what its name says, or is damaged.
    pub fn read(path: &Path, archive_bytes: u64) -> Result<Self, WeightsError> {
        let most = archive_bytes.saturating_mul(2).saturating_add(MARGIN_BYTES);
        // Asked before the file is opened: opening a pipe would wait for its writer.
        if !path.metadata()?.is_file() {
            return Err(WeightsError::Form("it is not a file".to_owned()));
        }
        let file = File::open(path)?;
        let bytes = file.metadata()?.len();
        if bytes > most {
            return Err(WeightsError::TooLarge { bytes, most });
        }
        let mut whole = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        file.take(most).read_to_end(&mut whole)?;
        let is_safetensors = path.extension().is_some_and(|extension| extension == "safetensors");
        Self::parse(whole.into(), is_safetensors)
    }

    fn parse(whole: Bytes, is_safetensors: bool) -> Result<Self, WeightsError> {
        let read = if is_safetensors { safetensors_file::read } else { state_dict::read };
        let tensors = read(&whole).map_err(WeightsError::Form)?;
        Ok(Self { tensors, sha256: digest_of(&whole), bytes: whole.len() as u64 })
    }

    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Weight> {
        self.tensors.get(name)
    }
}
