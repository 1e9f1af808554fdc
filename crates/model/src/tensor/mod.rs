//! Tensors as the wire carries them: a datatype, a shape, and row-major little-endian bytes.
//!
//! Nothing here knows libtorch. A [`HostTensor`] is checked once, when it is made: after that its byte length
//! matches its shape and its element count fits in memory.

mod batch;
mod compare;
mod dtype;
mod pad;
mod typed;

pub use batch::{Joined, join, split_rows};
pub use compare::{Difference, Distance, Tolerance, alike, distance};
pub use dtype::DType;
pub use pad::{Element, cut, element, may_pad, pad, pad_rows};
pub use typed::{TypedData, encode_typed};

use bytes::Bytes;
use smallvec::SmallVec;
use thiserror::Error;

/// Dimensions, outermost first; empty for a scalar. Most tensors have four or fewer.
pub type Shape = SmallVec<[i64; 4]>;

/// More dimensions than this are refused: libtorch's own kernels stop at 25 to 64.
pub const MAX_RANK: usize = 32;

/// What can be wrong with a tensor by itself, before any model is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TensorError {
    /// The datatype is not one that a TorchScript tensor and the wire share.
    #[error("datatype '{0}' is not one of BOOL, UINT8, INT8, INT16, INT32, INT64, FP16, BF16, FP32, FP64")]
    UnknownDatatype(String),
    /// A dimension below zero.
    #[error("shape {0} has a negative dimension")]
    NegativeDimension(String),
    /// More than [`MAX_RANK`] dimensions.
    #[error("shape has {0} dimensions, at most {MAX_RANK} are allowed")]
    TooManyDimensions(usize),
    /// The product of the dimensions does not fit in memory.
    #[error("shape {0} has more elements than memory can address")]
    Overflow(String),
    /// Payload and shape disagree.
    #[error("shape {shape} of {dtype} needs {expected} bytes, the data has {actual}")]
    WrongLength {
        /// The shape as written in requests, for instance `[2, 3]`.
        shape: String,
        /// The element type.
        dtype: DType,
        /// Bytes that the shape asks for.
        expected: usize,
        /// Bytes that are there.
        actual: usize,
    },
    /// A typed list of another length than the shape asks for.
    #[error("shape {shape} needs {expected} elements, {list} has {actual}")]
    WrongCount {
        /// The shape as written in requests.
        shape: String,
        /// Elements that the shape asks for.
        expected: usize,
        /// The list's field name.
        list: &'static str,
        /// Elements that are there.
        actual: usize,
    },
    /// Both raw bytes and a typed list, or two typed lists.
    #[error("data is given twice, in {0} and in {1}: send one of them")]
    GivenTwice(&'static str, &'static str),
    /// A typed list that cannot hold this datatype.
    #[error("{dtype} data cannot be sent in {list}: use {expected} or raw")]
    WrongList {
        /// The element type.
        dtype: DType,
        /// Where the data was found.
        list: &'static str,
        /// Where it should be.
        expected: &'static str,
    },
    /// A typed value outside its datatype's range.
    #[error("value {value} in {list} does not fit {dtype}")]
    OutOfRange {
        /// The element type.
        dtype: DType,
        /// Where the value was found.
        list: &'static str,
        /// The value.
        value: i64,
    },
}

/// A checked tensor in host memory. Cloning shares the bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    dtype: DType,
    shape: Shape,
    data: Bytes,
}

impl HostTensor {
    /// Checks that `data` is exactly what `dtype` and `shape` ask for. Each BOOL byte above 0 is true and becomes 1: any other bit
    /// pattern is undefined in C++.
    ///
    /// # Errors
    /// A negative or overflowing shape, too many dimensions, or a length that does not match.
    pub fn new(dtype: DType, shape: Shape, data: Bytes) -> Result<Self, TensorError> {
        let expected = byte_len(dtype, &shape)?;
        if data.len() != expected {
            return Err(TensorError::WrongLength {
                shape: show_shape(&shape),
                dtype,
                expected,
                actual: data.len(),
            });
        }
        let is_odd = dtype == DType::Bool && data.iter().any(|byte| *byte > 1);
        let data = if is_odd { data.iter().map(|byte| u8::from(*byte > 0)).collect() } else { data };
        Ok(Self { dtype, shape, data })
    }

    /// For bytes that libtorch laid out itself: the length is still checked, the values are not.
    ///
    /// # Errors
    /// As [`HostTensor::new`].
    pub fn from_backend(dtype: DType, shape: Shape, data: Bytes) -> Result<Self, TensorError> {
        let expected = byte_len(dtype, &shape)?;
        if data.len() == expected {
            return Ok(Self { dtype, shape, data });
        }
        Err(TensorError::WrongLength { shape: show_shape(&shape), dtype, expected, actual: data.len() })
    }

    /// A tensor of zeros, for warm-up.
    ///
    /// # Errors
    /// As [`HostTensor::new`].
    pub fn zeros(dtype: DType, shape: Shape) -> Result<Self, TensorError> {
        let len = byte_len(dtype, &shape)?;
        Ok(Self { dtype, shape, data: Bytes::from(vec![0; len]) })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Row-major little-endian elements.
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// Size of the first dimension, or `None` for a scalar.
    pub fn rows(&self) -> Option<i64> {
        self.shape.first().copied()
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.data.len() / self.dtype.size()
    }
}

/// Bytes that a tensor of this type and shape takes.
///
/// # Errors
/// A negative or overflowing shape, or too many dimensions.
pub fn byte_len(dtype: DType, shape: &[i64]) -> Result<usize, TensorError> {
    if shape.len() > MAX_RANK {
        return Err(TensorError::TooManyDimensions(shape.len()));
    }
    if shape.iter().any(|&d| d < 0) {
        return Err(TensorError::NegativeDimension(show_shape(shape)));
    }
    // A zero makes the tensor empty whatever the other dimensions say, but libtorch multiplies them in i64 all
    // the same, so the product of the others must fit too.
    let overflow = || TensorError::Overflow(show_shape(shape));
    let mut elements = 1_i64;
    for &d in shape.iter().filter(|&&d| d != 0) {
        elements = elements.checked_mul(d).ok_or_else(overflow)?;
    }
    let size = i64::try_from(dtype.size()).map_err(|_| overflow())?;
    let bytes = elements.checked_mul(size).ok_or_else(overflow)?;
    if shape.contains(&0) {
        return Ok(0);
    }
    usize::try_from(bytes).map_err(|_| overflow())
}

/// A shape as people write it: `[2, 3]`.
pub fn show_shape(shape: &[i64]) -> String {
    format!("{shape:?}")
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;

    #[test]
    fn length_must_match_shape() {
        let error = HostTensor::new(DType::F32, smallvec![2, 3], Bytes::from_static(&[0; 23])).unwrap_err();
        assert_eq!(error.to_string(), "shape [2, 3] of FP32 needs 24 bytes, the data has 23");
        assert!(HostTensor::new(DType::F32, smallvec![2, 3], Bytes::from_static(&[0; 24])).is_ok());
    }

    #[test]
    fn empty_tensors_are_valid() {
        let tensor = HostTensor::new(DType::I64, smallvec![0, 7], Bytes::new()).unwrap();
        assert_eq!((tensor.elements(), tensor.rows()), (0, Some(0)));
    }

    #[test]
    fn scalars_have_one_element() {
        let tensor = HostTensor::new(DType::F64, smallvec![], Bytes::from_static(&[0; 8])).unwrap();
        assert_eq!((tensor.elements(), tensor.rows()), (1, None));
    }

    #[test]
    fn hostile_shapes_are_refused() {
        for shape in [vec![-1, 2], vec![i64::MIN]] {
            assert!(matches!(byte_len(DType::U8, &shape), Err(TensorError::NegativeDimension(_))));
        }
        for shape in [vec![i64::MAX, 2], vec![1 << 40, 1 << 40], vec![0, i64::MAX, i64::MAX]] {
            assert!(matches!(byte_len(DType::U8, &shape), Err(TensorError::Overflow(_))), "{shape:?}");
        }
        assert!(matches!(byte_len(DType::F64, &[i64::MAX / 4]), Err(TensorError::Overflow(_))));
        assert!(matches!(byte_len(DType::U8, &[1; 33]), Err(TensorError::TooManyDimensions(33))));
    }

    #[test]
    fn bool_bytes_above_zero_are_true() {
        let bools = |bytes: &'static [u8]| {
            let tensor = HostTensor::new(DType::Bool, smallvec![3], Bytes::from_static(bytes)).unwrap();
            tensor.data().clone()
        };
        assert_eq!(bools(&[0, 2, 255]), &[0, 1, 1][..]);
        let plain: &'static [u8] = &[1, 0, 1];
        assert_eq!(bools(plain).as_ptr(), plain.as_ptr(), "not copied");
        let same = HostTensor::new(DType::U8, smallvec![1], Bytes::from_static(&[7])).unwrap();
        assert_eq!(same.data(), &[7][..]);
    }
}
