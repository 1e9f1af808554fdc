//! Joining the tensors of several requests into one batch and cutting results back, along dimension 0.
//!
//! In row-major order a concatenation along the first dimension is a concatenation of bytes, so both directions
//! are slices: no element is looked at.

use bytes::Bytes;
use smallvec::SmallVec;

use super::{DType, HostTensor, Shape, TensorError};

/// One input of a batch: the requests' bytes, in order, still where they arrived.
#[derive(Debug, Clone)]
pub struct Joined {
    /// Element type of every part.
    pub dtype: DType,
    /// Shape of the whole: the sum of the parts' rows, then their common trailing dimensions.
    pub shape: Shape,
    /// The bytes of each part; one part for a batch of one request.
    pub parts: SmallVec<[Bytes; 4]>,
}

impl Joined {
    /// Bytes of the whole.
    pub fn byte_len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }
}

/// Joins tensors of one datatype and equal trailing shape. `None` when they differ, or when several scalars are
/// given (a scalar has no dimension to join along).
pub fn join<'a>(mut tensors: impl Iterator<Item = &'a HostTensor>) -> Option<Joined> {
    let first = tensors.next()?;
    let mut joined = Joined {
        dtype: first.dtype(),
        shape: first.shape().clone(),
        parts: SmallVec::from_iter([first.data().clone()]),
    };
    for tensor in tensors {
        if tensor.dtype() != joined.dtype || tensor.shape().get(1..) != joined.shape.get(1..) {
            return None;
        }
        let rows = joined.shape.first_mut()?;
        *rows = rows.checked_add(tensor.rows()?)?;
        joined.parts.push(tensor.data().clone());
    }
    Some(joined)
}

/// Cuts `tensor` along dimension 0 into pieces of `rows` each; the pieces share its memory. `None` when the rows
/// do not add up to the tensor's own.
///
/// # Errors
/// None in practice: the pieces' lengths follow from the shape.
pub fn split_rows(tensor: &HostTensor, rows: &[usize]) -> Result<Option<Vec<HostTensor>>, TensorError> {
    let total: usize = rows.iter().sum();
    let Some(have) = tensor.rows().and_then(|rows| usize::try_from(rows).ok()) else { return Ok(None) };
    if have != total {
        return Ok(None);
    }
    let row_bytes = tensor.data().len().checked_div(total).unwrap_or(0);
    let mut at = 0;
    let mut pieces = Vec::with_capacity(rows.len());
    for &count in rows {
        let mut shape = tensor.shape().clone();
        if let Some(first) = shape.first_mut() {
            *first = i64::try_from(count).unwrap_or(i64::MAX);
        }
        let end = at + count * row_bytes;
        pieces.push(HostTensor::from_backend(tensor.dtype(), shape, tensor.data().slice(at..end))?);
        at = end;
    }
    Ok(Some(pieces))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smallvec::smallvec;

    use super::*;

    fn tensor(rows: usize, fill: u8) -> HostTensor {
        HostTensor::new(DType::I16, smallvec![rows as i64, 3], Bytes::from(vec![fill; rows * 6])).unwrap()
    }

    #[test]
    fn unequal_trailing_shapes_do_not_join() {
        let other = HostTensor::new(DType::I16, smallvec![1, 4], Bytes::from(vec![0; 8])).unwrap();
        assert!(join([tensor(1, 0), other].iter()).is_none());
        let scalar = HostTensor::new(DType::I16, smallvec![], Bytes::from(vec![0; 2])).unwrap();
        assert!(join([scalar.clone(), scalar.clone()].iter()).is_none());
        assert!(join([scalar].iter()).is_some());
    }

    #[test]
    fn a_result_that_does_not_follow_the_batch_is_noticed() {
        assert!(split_rows(&tensor(3, 0), &[1, 1]).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn split_undoes_join(counts in prop::collection::vec(0_usize..5, 1..8)) {
            let parts: Vec<_> = counts.iter().enumerate().map(|(i, &n)| tensor(n, i as u8)).collect();
            let joined = join(parts.iter()).unwrap();
            let whole = HostTensor::new(joined.dtype, joined.shape.clone(), joined.parts.concat().into()).unwrap();
            prop_assert_eq!(split_rows(&whole, &counts).unwrap().unwrap(), parts);
        }
    }
}
