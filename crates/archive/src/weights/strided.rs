//! Tensors whose elements do not lie one behind the other: transposed, sliced, or in another order of dimensions.

/// How a tensor lies in its storage. All in elements, but for the size of one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout<'a> {
    /// Bytes of one element.
    pub(super) item: usize,
    /// Where the first one is.
    pub(super) offset: u64,
    /// Size of each dimension.
    pub(super) shape: &'a [u64],
    /// How far apart elements are along each dimension.
    pub(super) strides: &'a [u64],
}

impl Layout<'_> {
    /// The elements lie one behind the other in row-major order: their bytes are the tensor.
    pub(super) fn is_dense(&self) -> bool {
        let mut next = 1_u64;
        self.shape.iter().zip(self.strides).rev().all(|(size, stride)| {
            let follows = *size == 1 || *stride == next;
            next = next.saturating_mul(*size);
            follows
        })
    }

    /// The elements in row-major order. `None` where the storage does not reach far enough.
    pub(super) fn gather(&self, storage: &[u8]) -> Option<Vec<u8>> {
        let mut dense = Vec::new();
        self.visit(|at| {
            dense.extend_from_slice(storage.get(at..at.checked_add(self.item)?)?);
            Some(())
        })?;
        Some(dense)
    }

    /// Puts elements that are in row-major order to where they belong. `None` where the storage does not reach far
    /// enough or `dense` has not as many.
    pub(super) fn scatter(&self, dense: &[u8], storage: &mut [u8]) -> Option<()> {
        let mut items = dense.chunks_exact(self.item);
        self.visit(|at| {
            storage.get_mut(at..at.checked_add(self.item)?)?.copy_from_slice(items.next()?);
            Some(())
        })
    }

    /// Calls `each` with where every element is, in bytes, in row-major order, until one says `None`.
    fn visit(&self, mut each: impl FnMut(usize) -> Option<()>) -> Option<()> {
        if self.shape.contains(&0) {
            return Some(());
        }
        let mut index = vec![0_u64; self.shape.len()];
        let mut at = self.offset;
        loop {
            each(usize::try_from(at).ok()?.checked_mul(self.item)?)?;
            // The next index, as an odometer counts.
            let mut turning = index.iter_mut().zip(self.shape.iter().zip(self.strides)).rev();
            loop {
                let Some((index, (size, stride))) = turning.next() else { return Some(()) };
                *index += 1;
                if *index < *size {
                    at = at.checked_add(*stride)?;
                    break;
                }
                at = at.checked_sub(stride.checked_mul(size - 1)?)?;
                *index = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Some permutation of the dimensions of a dense tensor, each dimension with a gap behind its elements.
    fn any_layout() -> impl Strategy<Value = (Vec<u64>, Vec<u64>, u64)> {
        prop::collection::vec((0_u64..4, 1_u64..3), 0..4).prop_flat_map(|dims| {
            let order: Vec<usize> = (0..dims.len()).collect();
            (Just(dims), Just(order).prop_shuffle(), 0_u64..3).prop_map(|(dims, order, offset)| {
                let mut strides = vec![0; dims.len()];
                let mut next = 1;
                for dim in order {
                    strides[dim] = next * dims[dim].1;
                    next = strides[dim] * dims[dim].0.max(1);
                }
                (dims.iter().map(|dim| dim.0).collect(), strides, offset)
            })
        })
    }

    proptest! {
        #[test]
        fn what_is_scattered_is_gathered_again((shape, strides, offset) in any_layout(), item in 1_usize..4) {
            let layout = Layout { item, offset, shape: &shape, strides: &strides };
            let count = shape.iter().product::<u64>() as usize;
            let dense: Vec<u8> = (0..count * item).map(|i| i as u8 + 1).collect();
            let reach = offset + shape.iter().zip(&strides).map(|(n, s)| n.saturating_sub(1) * s).sum::<u64>() + 1;
            let mut storage = vec![0; reach as usize * item];
            layout.scatter(&dense, &mut storage).unwrap();
            prop_assert_eq!(storage.iter().filter(|byte| **byte != 0).count(), dense.iter().filter(|b| **b != 0).count());
            prop_assert_eq!(layout.gather(&storage).unwrap(), dense.clone());
            if layout.is_dense() {
                prop_assert_eq!(storage.get(offset as usize * item..).unwrap_or_default().starts_with(&dense), true);
            }
            if count > 0 {
                storage.pop();
                prop_assert_eq!(layout.gather(&storage), None);
            }
        }
    }

    #[test]
    fn a_transposed_matrix_is_read_in_rows() {
        let layout = Layout { item: 1, offset: 1, shape: &[2, 3], strides: &[1, 2] };
        assert!(!layout.is_dense());
        assert_eq!(layout.gather(b"_abcdef").unwrap(), b"acebdf");
        assert!(Layout { item: 4, offset: 0, shape: &[2, 1, 3], strides: &[3, 77, 1] }.is_dense());
    }
}
