//! Padding along a dimension and cutting back. Both copy whole runs of bytes: no element is looked at.

use bytes::Bytes;
use half::{bf16, f16};
use smallvec::SmallVec;

use super::{DType, HostTensor, Joined, Shape, TensorError, byte_len};

/// The little-endian bytes of one element.
pub type Element = SmallVec<[u8; 8]>;

/// Padding up to this much is always allowed.
const FREE_BYTES: usize = 64 << 20;

/// Whether something of `bytes` may be padded to `padded` bytes: to 64 MiB, or to twice its size. A few bytes from the wire
/// must not ask for all memory.
pub fn may_pad(bytes: usize, padded: usize) -> bool {
    padded <= FREE_BYTES.max(bytes.saturating_mul(2))
}

/// `value` as an element of `dtype`, for floating-point types the nearest there is. `None` where `dtype` has none: a
/// fraction or a number out of range for integers, a finite number that would become infinite, anything but 0 and 1
/// for BOOL.
pub fn element(value: f64, dtype: DType) -> Option<Element> {
    let int = || (value.fract() == 0.0).then_some(value as i128);
    let fits = |finite: bool| (finite || !value.is_finite()).then_some(());
    Some(match dtype {
        DType::Bool => Element::from_slice(&[u8::try_from(int()?).ok().filter(|&bit| bit <= 1)?]),
        DType::U8 => Element::from_slice(&u8::try_from(int()?).ok()?.to_le_bytes()),
        DType::I8 => Element::from_slice(&i8::try_from(int()?).ok()?.to_le_bytes()),
        DType::I16 => Element::from_slice(&i16::try_from(int()?).ok()?.to_le_bytes()),
        DType::I32 => Element::from_slice(&i32::try_from(int()?).ok()?.to_le_bytes()),
        DType::I64 => Element::from_slice(&i64::try_from(int()?).ok()?.to_le_bytes()),
        DType::F16 => {
            fits(f16::from_f64(value).is_finite())?;
            Element::from_slice(&f16::from_f64(value).to_le_bytes())
        }
        DType::BF16 => {
            fits(bf16::from_f64(value).is_finite())?;
            Element::from_slice(&bf16::from_f64(value).to_le_bytes())
        }
        DType::F32 => {
            fits((value as f32).is_finite())?;
            Element::from_slice(&(value as f32).to_le_bytes())
        }
        DType::F64 => Element::from_slice(&value.to_le_bytes()),
    })
}

/// `tensor` with dimension `dim` made `size` long, `fill` at its end. Where it has no such dimension, or is as long
/// already, it comes back as it is and shares its bytes.
///
/// # Errors
/// The result does not fit in memory.
pub fn pad(tensor: &HostTensor, dim: usize, size: i64, fill: &[u8]) -> Result<HostTensor, TensorError> {
    let Some(run) = Run::of(tensor, dim, |have| have < size) else { return Ok(tensor.clone()) };
    let shape = resized(tensor, dim, size);
    let whole = byte_len(tensor.dtype(), &shape)?;
    let padding = fill.repeat((whole / run.count.max(1)).saturating_sub(run.bytes) / fill.len().max(1));
    let mut data = Vec::with_capacity(whole);
    for part in run.each(tensor, run.bytes) {
        data.extend_from_slice(part);
        data.extend_from_slice(&padding);
    }
    HostTensor::from_backend(tensor.dtype(), shape, data.into())
}

/// `tensor` with dimension `dim` cut to its first `size`. Where it has no such dimension, or is no longer than that, it
/// comes back as it is; that and a cut of a single run of bytes (one row, `dim` 1) share its memory.
///
/// # Errors
/// None in practice: the length follows from the shape.
pub fn cut(tensor: &HostTensor, dim: usize, size: i64) -> Result<HostTensor, TensorError> {
    let Some(run) = Run::of(tensor, dim, |have| have > size) else { return Ok(tensor.clone()) };
    let shape = resized(tensor, dim, size);
    let whole = byte_len(tensor.dtype(), &shape)?;
    let data = match run.count {
        0 | 1 => tensor.data().slice(..whole),
        count => run.each(tensor, whole / count).collect::<Vec<_>>().concat().into(),
    };
    HostTensor::from_backend(tensor.dtype(), shape, data)
}

/// Adds rows of zeros to a batch until it has `rows`. The bytes that are there stay where they are.
///
/// # Errors
/// The result does not fit in memory.
pub fn pad_rows(joined: &mut Joined, rows: i64) -> Result<(), TensorError> {
    let mut shape = joined.shape.clone();
    let Some(first) = shape.first_mut().filter(|first| **first < rows) else { return Ok(()) };
    *first = rows;
    let missing = byte_len(joined.dtype, &shape)?.saturating_sub(joined.byte_len());
    joined.shape = shape;
    joined.parts.push(Bytes::from(vec![0; missing]));
    Ok(())
}

/// What lies together along a dimension in row-major order: everything from it inwards, once for each index outside it.
struct Run {
    count: usize,
    bytes: usize,
}

impl Run {
    fn of(tensor: &HostTensor, dim: usize, wanted: impl FnOnce(i64) -> bool) -> Option<Self> {
        let shape = tensor.shape();
        shape.get(dim).copied().filter(|&have| wanted(have))?;
        // In usize: a tensor was checked when it was made.
        let product = |dims: &[i64]| dims.iter().map(|&d| usize::try_from(d).unwrap_or(0)).product::<usize>();
        let bytes = product(shape.get(dim..)?) * tensor.dtype().size();
        Some(Self { count: product(shape.get(..dim)?), bytes })
    }

    /// The first `bytes` of each.
    fn each<'a>(&'a self, tensor: &'a HostTensor, bytes: usize) -> impl Iterator<Item = &'a [u8]> {
        let at = move |i: usize| tensor.data().get(i * self.bytes..i * self.bytes + bytes);
        (0..self.count).filter_map(at)
    }
}

fn resized(tensor: &HostTensor, dim: usize, size: i64) -> Shape {
    let mut shape = tensor.shape().clone();
    if let Some(there) = shape.get_mut(dim) {
        *there = size;
    }
    shape
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::tensor::join;

    fn bytes(shape: &[i64], data: &[u8]) -> HostTensor {
        HostTensor::new(DType::U8, shape.into(), Bytes::copy_from_slice(data)).unwrap()
    }

    #[test]
    fn values_must_be_the_datatypes_own() {
        assert_eq!(element(-1.0, DType::I64).unwrap().as_slice(), (-1_i64).to_le_bytes());
        assert_eq!(element(0.1, DType::F32).unwrap().as_slice(), 0.1_f32.to_le_bytes());
        assert_eq!(
            element(f64::NEG_INFINITY, DType::F16).unwrap().as_slice(),
            f16::NEG_INFINITY.to_le_bytes()
        );
        for (value, dtype) in [
            (0.5, DType::I32),
            (-1.0, DType::U8),
            (128.0, DType::I8),
            (9.3e18, DType::I64),
            (f64::NAN, DType::I16),
            (2.0, DType::Bool),
            (70_000.0, DType::F16),
            (1e39, DType::BF16),
            (1e39, DType::F32),
        ] {
            assert_eq!(element(value, dtype), None, "{value} {dtype}");
        }
        for dtype in DType::ALL {
            assert_eq!(element(1.0, dtype).unwrap().len(), dtype.size());
        }
    }

    #[test]
    fn the_end_of_each_run_is_padded_and_cut() {
        let short = bytes(&[2, 2, 1], &[1, 2, 3, 4]);
        let long = bytes(&[2, 3, 1], &[1, 2, 9, 3, 4, 9]);
        assert_eq!(pad(&short, 1, 3, &[9]).unwrap(), long);
        assert_eq!(cut(&long, 1, 2).unwrap(), short);
        assert_eq!(pad(&short, 2, 2, &[9]).unwrap(), bytes(&[2, 2, 2], &[1, 9, 2, 9, 3, 9, 4, 9]));
        assert_eq!(cut(&long, 1, 0).unwrap(), bytes(&[2, 0, 1], &[]));
        assert_eq!(pad(&bytes(&[2, 0], &[]), 1, 2, &[7]).unwrap(), bytes(&[2, 2], &[7; 4]));
        assert_eq!(pad(&bytes(&[0, 2], &[]), 1, 3, &[7]).unwrap(), bytes(&[0, 3], &[]));
        assert_eq!(pad(&bytes(&[], &[1]), 0, 2, &[7]).unwrap(), bytes(&[], &[1]), "a scalar");
    }

    #[test]
    fn nothing_is_copied_where_nothing_is_padded() {
        let tensor = bytes(&[1, 3], &[1, 2, 3]);
        for same in
            [pad(&tensor, 1, 3, &[0]), pad(&tensor, 5, 3, &[0]), cut(&tensor, 1, 3), cut(&tensor, 1, 2)]
        {
            assert_eq!(same.unwrap().data().as_ptr(), tensor.data().as_ptr());
        }
    }

    #[test]
    fn a_size_that_nothing_can_hold_is_an_error() {
        assert!(pad(&bytes(&[2, 1], &[1, 2]), 1, i64::MAX, &[0]).is_err());
        assert!(pad_rows(&mut join([bytes(&[1, 2], &[1, 2])].iter()).unwrap(), i64::MAX).is_err());
    }

    #[test]
    fn rows_of_zeros_come_last() {
        let mut joined = join([bytes(&[1, 2], &[1, 2]), bytes(&[1, 2], &[3, 4])].iter()).unwrap();
        pad_rows(&mut joined, 4).unwrap();
        assert_eq!(joined.shape.as_slice(), [4, 2]);
        assert_eq!(joined.parts.concat(), [1, 2, 3, 4, 0, 0, 0, 0]);
        pad_rows(&mut joined, 4).unwrap();
        assert_eq!(joined.parts.len(), 3, "it has them");
    }

    proptest! {
        #[test]
        fn cutting_undoes_padding(
            index in 0..DType::ALL.len(),
            shape in prop::collection::vec(0_i64..4, 1..5),
            dim in any::<prop::sample::Index>(),
            more in 0_i64..4,
            seed in any::<u8>(),
        ) {
            let dtype = DType::ALL[index];
            let len = byte_len(dtype, &shape).unwrap();
            let data: Bytes = (0..len).map(|i| if dtype == DType::Bool { 1 } else { seed.wrapping_add(i as u8) }).collect();
            let tensor = HostTensor::new(dtype, shape.as_slice().into(), data).unwrap();
            let dim = dim.index(shape.len());
            let padded = pad(&tensor, dim, shape[dim] + more, &element(1.0, dtype).unwrap()).unwrap();
            prop_assert_eq!(padded.shape()[dim], shape[dim] + more);
            prop_assert_eq!(cut(&padded, dim, shape[dim]).unwrap(), tensor);
        }
    }
}
