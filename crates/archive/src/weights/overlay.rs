//! Weights in the place of an archive's own: the archive as it would be had it been exported with them.
//!
//! Every parameter and buffer lies in an entry of the zip file, uncompressed, at an offset and with strides that its
//! pickle says. So the elements are written there, in a copy of the file, and libtorch loads that: parameters, buffers
//! and tied weights alike, in whatever order their dimensions are.

use std::{
    collections::BTreeMap,
    io::{self, Read, Seek, SeekFrom, Write},
};

use super::{Weight, Weights, WeightsError, fit, strided::Layout};
use crate::{
    TensorInfo,
    container::{Container, Place},
    error::shown,
};

/// Weights and the tensors whose places they take, held against each other.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    slots: &'a [TensorInfo],
    weights: &'a Weights,
}

impl<'a> Overlay<'a> {
    /// `slots` are the archive's parameters and buffers. Those named in `kept` may be missing in the weights: then the archive's
    /// own stay.
    ///
    /// # Errors
    /// Names, shapes and datatypes are not the same one to one: the first few differences.
    pub fn new(slots: &'a [TensorInfo], weights: &'a Weights, kept: &[String]) -> Result<Self, WeightsError> {
        match fit::differences(slots, weights, kept) {
            Some(differences) => Err(WeightsError::Fit(differences)),
            None => Ok(Self { slots, weights }),
        }
    }

    /// Tensors of the archive that stay, by name: neither they nor others of the same memory are among the weights.
    pub fn stays(&self) -> Vec<&'a str> {
        fit::absent(self.slots, self.weights).into_iter().map(|slot| slot.name.as_str()).collect()
    }

    /// The weights.
    pub fn weights(&self) -> &'a Weights {
        self.weights
    }

    /// Writes the weights into `file`, which holds a copy of the archive that the slots are of.
    ///
    /// # Errors
    /// The copy is not that archive, or cannot be written to.
    pub fn write_into<F: Read + Write + Seek>(&self, file: &mut F) -> Result<(), WeightsError> {
        let mut entries: BTreeMap<&str, Vec<(&TensorInfo, &Weight)>> = BTreeMap::new();
        for slot in self.slots {
            // A name that is left out has its memory under another name.
            let Some(weight) = self.weights.get(&slot.name).filter(|weight| !weight.data.is_empty()) else {
                continue;
            };
            entries.entry(&slot.storage).or_default().push((slot, weight));
        }
        let size = file.seek(SeekFrom::End(0))?;
        let mut container =
            Container::open(&mut *file, size).map_err(|error| WeightsError::Archive(error.to_string()))?;
        let places = entries
            .into_iter()
            .map(|(entry, tensors)| match container.place(entry) {
                Ok(Some(place)) => Ok((place, tensors)),
                Ok(None) => Err(WeightsError::Archive(format!("entry '{entry}' is missing"))),
                Err(error) => Err(WeightsError::Archive(error.to_string())),
            })
            .collect::<Result<Vec<_>, _>>()?;
        drop(container);
        for (place, tensors) in places {
            let sum = fill(file, place, &tensors)?;
            file.seek(SeekFrom::Start(place.sum_at))?;
            file.write_all(&sum.to_le_bytes())?;
        }
        Ok(())
    }
}

/// Fills one entry and returns its checksum. What no tensor covers stays as it was.
fn fill<F: Read + Write + Seek>(
    file: &mut F,
    place: Place,
    tensors: &[(&TensorInfo, &Weight)],
) -> Result<u32, WeightsError> {
    let outside =
        |slot: &TensorInfo| WeightsError::Archive(format!("{} is larger than its entry", shown(&slot.name)));
    if let [(slot, weight)] = tensors
        && slot.offset == 0
        && weight.data.len() as u64 == place.size
        && layout(slot, weight).is_dense()
    {
        file.seek(SeekFrom::Start(place.start))?;
        file.write_all(&weight.data)?;
        return Ok(crc32fast::hash(&weight.data));
    }
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(place.start))?;
    Read::by_ref(file).take(place.size).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != place.size {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    for (slot, weight) in tensors {
        layout(slot, weight).scatter(&weight.data, &mut bytes).ok_or_else(|| outside(slot))?;
    }
    // Tensors that are parts of one memory must agree about what they share.
    for (slot, weight) in tensors {
        if layout(slot, weight).gather(&bytes).is_none_or(|now| now != weight.data) {
            let names = tensors.iter().take(4).map(|(slot, _)| shown(&slot.name)).collect::<Vec<_>>();
            let message =
                format!("{} share memory in the archive but are unlike in the weights", names.join(", "));
            return Err(WeightsError::Fit(message));
        }
    }
    file.seek(SeekFrom::Start(place.start))?;
    file.write_all(&bytes)?;
    Ok(crc32fast::hash(&bytes))
}

/// How a tensor lies in its entry. The weight has as many elements: their shapes were compared.
fn layout<'t>(slot: &'t TensorInfo, weight: &Weight) -> Layout<'t> {
    let count = usize::try_from(slot.elements()).unwrap_or(usize::MAX);
    let item = weight.data.len().checked_div(count).unwrap_or(1).max(1);
    Layout { item, offset: slot.offset, shape: &slot.shape, strides: &slot.strides }
}
