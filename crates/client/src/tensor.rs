//! Tensors as callers have them: numbers of a Rust type and a shape.

use bytes::Bytes;
use half::{bf16, f16};

use torchlane_model::tensor::{DType, HostTensor, Shape, TypedData};
use torchlane_proto as proto;

use super::{ClientError, ErrorKind};

/// A Rust type that elements of a tensor can have.
pub trait Scalar: Copy {
    /// The datatype on the wire.
    const DTYPE: DType;

    /// Appends the element's bytes, little-endian.
    fn write(self, to: &mut Vec<u8>);

    /// Reads an element. `None`: these are not the bytes of one.
    fn read(bytes: &[u8]) -> Option<Self>;
}

macro_rules! scalars {
    ($($type:ty => $dtype:ident),+ $(,)?) => {$(
        impl Scalar for $type {
            const DTYPE: DType = DType::$dtype;

            fn write(self, to: &mut Vec<u8>) {
                to.extend_from_slice(&self.to_le_bytes());
            }

            fn read(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self::from_le_bytes)
            }
        }
    )+};
}

scalars! {
    u8 => U8, i8 => I8, i16 => I16, i32 => I32, i64 => I64, f16 => F16, bf16 => BF16, f32 => F32, f64 => F64,
}

impl Scalar for bool {
    const DTYPE: DType = DType::Bool;

    fn write(self, to: &mut Vec<u8>) {
        to.push(u8::from(self));
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0] => Some(false),
            [1] => Some(true),
            _ => None,
        }
    }
}

/// A tensor: what goes in and what comes out. Cloning shares the elements.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Shape,
    data: Bytes,
}

impl Tensor {
    /// A tensor of `values` in row-major order; an empty `shape` is a scalar's.
    ///
    /// # Errors
    /// There are not as many values as the shape asks for.
    pub fn new<T: Scalar>(shape: &[i64], values: &[T]) -> Result<Self, ClientError> {
        Self::from_bytes(T::DTYPE, shape, bytes(values))
    }

    /// A tensor of elements that are bytes already: row-major, little-endian.
    ///
    /// # Errors
    /// There are not as many bytes as the shape asks for, or a byte of a BOOL is neither 0 nor 1.
    pub fn from_bytes(dtype: DType, shape: &[i64], data: impl Into<Bytes>) -> Result<Self, ClientError> {
        Ok(HostTensor::new(dtype, shape.into(), data.into())?.into())
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Dimensions, outermost first; empty for a scalar.
    pub fn shape(&self) -> &[i64] {
        &self.shape
    }

    /// The elements: row-major, little-endian.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }

    /// The elements, in row-major order.
    ///
    /// # Errors
    /// They are of another type.
    pub fn to_vec<T: Scalar>(&self) -> Result<Vec<T>, ClientError> {
        if self.dtype != T::DTYPE {
            return Err(self.are_not(T::DTYPE.as_str()));
        }
        Ok(self.data.chunks_exact(T::DTYPE.size()).filter_map(T::read).collect())
    }

    /// The elements of an FP32, FP16 or BF16 tensor, in row-major order.
    ///
    /// # Errors
    /// They are of another type.
    pub fn as_f32(&self) -> Result<Vec<f32>, ClientError> {
        match self.dtype {
            DType::F32 | DType::F16 | DType::BF16 => Ok(self.typed().floats),
            _ => Err(self.are_not("FP32")),
        }
    }

    /// The elements of a tensor of floating-point numbers, in row-major order.
    ///
    /// # Errors
    /// They are of another type.
    pub fn as_f64(&self) -> Result<Vec<f64>, ClientError> {
        match self.dtype {
            DType::F64 => Ok(self.typed().doubles),
            DType::F32 | DType::F16 | DType::BF16 => {
                Ok(self.typed().floats.into_iter().map(f64::from).collect())
            }
            _ => Err(self.are_not("FP64")),
        }
    }

    /// The elements of a tensor of whole numbers, in row-major order.
    ///
    /// # Errors
    /// They are of another type.
    pub fn as_i64(&self) -> Result<Vec<i64>, ClientError> {
        match self.dtype {
            DType::I64 => Ok(self.typed().int64s),
            DType::I8 | DType::I16 | DType::I32 => Ok(self.typed().ints.into_iter().map(i64::from).collect()),
            DType::U8 => Ok(self.typed().uints.into_iter().map(i64::from).collect()),
            _ => Err(self.are_not("INT64")),
        }
    }

    fn typed(&self) -> TypedData {
        TypedData::decode(self.dtype, &self.data)
    }

    fn are_not(&self, wanted: &str) -> ClientError {
        let message = format!("the tensor's elements are {}, which do not read as {wanted}", self.dtype);
        ClientError::new(ErrorKind::BadAnswer, message)
    }

    pub(super) fn into_message(self, name: String) -> proto::Tensor {
        proto::Tensor {
            name,
            datatype: self.dtype.as_str().to_owned(),
            shape: self.shape.to_vec(),
            raw: self.data,
            ..proto::Tensor::default()
        }
    }

    /// A tensor of an answer, with its name.
    pub(super) fn from_message(message: proto::Tensor) -> Result<(String, Self), ClientError> {
        let proto::Tensor { name, datatype, shape, raw, .. } = message;
        let tensor = datatype.parse::<DType>().and_then(|dtype| HostTensor::new(dtype, shape.into(), raw));
        match tensor {
            Ok(tensor) => Ok((name, tensor.into())),
            Err(error) => Err(ClientError::new(ErrorKind::BadAnswer, format!("output '{name}': {error}"))),
        }
    }
}

impl From<HostTensor> for Tensor {
    fn from(tensor: HostTensor) -> Self {
        Self { dtype: tensor.dtype(), shape: tensor.shape().clone(), data: tensor.data().clone() }
    }
}

/// A tensor of one dimension.
impl<T: Scalar> From<&[T]> for Tensor {
    fn from(values: &[T]) -> Self {
        // No slice is longer than that.
        let length = i64::try_from(values.len()).unwrap_or(i64::MAX);
        Self { dtype: T::DTYPE, shape: [length].as_slice().into(), data: bytes(values) }
    }
}

/// A tensor of one dimension.
impl<T: Scalar> From<Vec<T>> for Tensor {
    fn from(values: Vec<T>) -> Self {
        values.as_slice().into()
    }
}

fn bytes<T: Scalar>(values: &[T]) -> Bytes {
    let mut bytes = Vec::with_capacity(values.len() * T::DTYPE.size());
    values.iter().for_each(|value| value.write(&mut bytes));
    bytes.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shape_and_values_must_agree() {
        let tensor = Tensor::new(&[2, 3], &[1.0_f32; 6]).unwrap();
        assert_eq!((tensor.dtype(), tensor.shape()), (DType::F32, [2, 3].as_slice()));
        assert_eq!(tensor.bytes().len(), 24);
        let error = Tensor::new(&[2, 3], &[1.0_f32; 5]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert_eq!(error.message(), "shape [2, 3] of FP32 needs 24 bytes, the data has 20");
        assert_eq!(Tensor::new(&[], &[7_i64]).unwrap().to_vec::<i64>().unwrap(), [7]);
        assert_eq!(Tensor::from(vec![true, false]).shape(), [2]);
    }

    #[test]
    fn elements_read_as_what_holds_them() {
        let half = Tensor::from(vec![f16::from_f32(0.5)]);
        assert_eq!((half.as_f32().unwrap(), half.as_f64().unwrap()), (vec![0.5], vec![0.5]));
        let bytes = Tensor::from(vec![200_u8]);
        assert_eq!(bytes.as_i64().unwrap(), [200]);
        assert_eq!(Tensor::from(vec![-3_i16]).as_i64().unwrap(), [-3]);
        let error = bytes.as_f32().unwrap_err();
        assert_eq!(error.message(), "the tensor's elements are UINT8, which do not read as FP32");
        assert!(bytes.to_vec::<i8>().is_err() && half.as_i64().is_err());
    }

    #[test]
    fn an_answer_that_contradicts_itself_is_named() {
        let good = Tensor::from(vec![1.0_f32, 2.0]).into_message("y".to_owned());
        assert_eq!(Tensor::from_message(good.clone()).unwrap().1.as_f32().unwrap(), [1.0, 2.0]);
        for bad in [
            proto::Tensor { shape: vec![3], ..good.clone() },
            proto::Tensor { datatype: "FP33".to_owned(), ..good },
        ] {
            let error = Tensor::from_message(bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadAnswer);
            assert!(error.message().starts_with("output 'y': "), "{error}");
        }
    }

    fn there_and_back<T: Scalar + PartialEq + std::fmt::Debug>(values: &[T]) {
        let message = Tensor::from(values).into_message("x".to_owned());
        let (name, tensor) = Tensor::from_message(message).unwrap();
        assert_eq!((name.as_str(), tensor.to_vec::<T>().unwrap().as_slice()), ("x", values));
    }

    proptest! {
        #[test]
        fn elements_come_back_as_they_went(
            bytes in prop::collection::vec(any::<u8>(), 0..64),
            longs in prop::collection::vec(any::<i64>(), 0..64),
            doubles in prop::collection::vec(any::<f64>(), 0..64),
            bools in prop::collection::vec(any::<bool>(), 0..64),
        ) {
            there_and_back(&bytes);
            there_and_back(&longs.iter().map(|&long| long as i32).collect::<Vec<_>>());
            there_and_back(&longs.iter().map(|&long| long as i16).collect::<Vec<_>>());
            there_and_back(&longs.iter().map(|&long| long as i8).collect::<Vec<_>>());
            there_and_back(&longs);
            there_and_back(&doubles.iter().map(|&double| double as f32).collect::<Vec<_>>());
            there_and_back(&doubles.iter().map(|&double| bf16::from_f64(double)).collect::<Vec<_>>());
            there_and_back(&doubles);
            there_and_back(&bools);
        }
    }
}
