//! What the requests of a batch are padded to along the dimensions that their model declares, and what is cut off again.

use smallvec::SmallVec;
use torchlane_model::{
    Batching, Binding, Cut, NamedTensor,
    tensor::{HostTensor, Joined, TensorError, cut, may_pad, pad, pad_rows},
};

use crate::backend::BackendError;

/// The sizes to pad to, one for each of the [`Binding::padded`] that all requests of a batch have alike.
pub(super) fn sizes<'a>(batch: impl Iterator<Item = &'a Binding>) -> SmallVec<[i64; 2]> {
    let mut sizes: SmallVec<[i64; 2]> = SmallVec::new();
    for binding in batch {
        sizes.resize(binding.padded.len(), 0);
        for (size, padded) in sizes.iter_mut().zip(&binding.padded) {
            *size = (*size).max(if padded.fixed { padded.bucket } else { padded.size });
        }
    }
    sizes
}

/// The batch's tensors for leaf number `leaf`, each padded; what needs nothing shares its bytes.
pub(super) fn padded<'a>(
    batch: impl Iterator<Item = (&'a Binding, &'a HostTensor)>,
    leaf: usize,
    sizes: &[i64],
) -> Result<Vec<HostTensor>, TensorError> {
    let pad_one = |(binding, tensor): (&Binding, &HostTensor)| {
        let how = binding.padded.iter().zip(sizes).find(|(padded, _)| padded.leaf == leaf);
        how.map_or_else(|| Ok(tensor.clone()), |(how, size)| pad(tensor, how.dim, *size, &how.value))
    };
    batch.map(pad_one).collect()
}

/// Adds rows of zeros to each leaf up to one of the model's sizes of a batch. Returns the rows that there are then.
pub(super) fn fill_rows(
    leaves: &mut [Joined],
    rows: usize,
    batching: &Batching,
) -> Result<usize, TensorError> {
    let padded = batching.padded_rows(rows);
    let bytes: usize = leaves.iter().map(Joined::byte_len).sum();
    if rows == 0 || padded == rows || !may_pad(bytes, bytes / rows * padded) {
        return Ok(rows);
    }
    for leaf in leaves {
        pad_rows(leaf, i64::try_from(padded).unwrap_or(i64::MAX))?;
    }
    Ok(padded)
}

/// Takes off an output what was added to the request's input.
pub(super) fn cut_back(
    output: &mut NamedTensor,
    by: &Cut,
    binding: &Binding,
    sizes: &[i64],
) -> Result<(), BackendError> {
    let padded = binding.padded.iter().zip(sizes).find(|(padded, _)| *padded.input == *by.input);
    let Some((padded, &size)) = padded.filter(|(padded, size)| padded.size != **size) else { return Ok(()) };
    let NamedTensor { name, tensor } = output;
    if tensor.shape().get(by.dim) != Some(&size) {
        let (shape, dim, input) = (tensor.shape().as_slice(), by.dim, &by.input);
        return Err(BackendError::new(format!(
            "output '{name}' has shape {shape:?}: it cannot be cut along dimension {dim}, because '{input}' was padded to {size}"
        )));
    }
    *tensor = cut(tensor, by.dim, padded.size).map_err(|error| BackendError::new(error.to_string()))?;
    Ok(())
}
