//! The elements of a tensor in JSON: read straight into its bytes, without a tree of values between, and written from them.

use bytes::Bytes;
use serde::{
    Serialize, Serializer,
    de::{DeserializeSeed, Deserializer, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{error::shown, tensor::DType};

/// Reads elements, nested or flat, row-major, into little-endian bytes. With them the length of the lists at each depth: one
/// number for a flat list.
///
/// # Errors
/// One line with a position: something else than elements of `dtype`, one that it cannot hold, as it was sent, or lists of unlike
/// lengths.
pub(super) fn read(json: &RawValue, dtype: DType) -> Result<(Bytes, Vec<usize>), String> {
    // Two characters are the shortest element.
    let elements = json.get().len() / 2 + 1;
    let mut bytes = Vec::with_capacity(elements.min(1 << 16) * dtype.size());
    let mut nesting = Nesting::default();
    let mut deserializer = serde_json::Deserializer::from_str(json.get());
    Elements { dtype, bytes: &mut bytes, depth: 0, nesting: &mut nesting }
        .deserialize(&mut deserializer)
        .map_err(|error| match number_before(json.get(), &error).filter(|_| nesting.is_number_wrong) {
            Some(number) => format!("{} {error}", shown(number, LONGEST)),
            None => error.to_string(),
        })?;
    Ok((bytes.into(), nesting.lengths.into_iter().flatten().collect()))
}

/// Most characters of a number in a message.
const LONGEST: usize = 32;

/// The number that ends where an error is. What a visitor is given is no longer as it was sent: `1.0` is 1, and 20 digits are a float.
fn number_before<'a>(json: &'a str, error: &serde_json::Error) -> Option<&'a str> {
    let line = json.split('\n').nth(error.line().checked_sub(1)?)?;
    let until = line.get(..error.column())?;
    let is_other = |c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E');
    let number = until.rsplit(is_other).next()?;
    (!number.is_empty()).then_some(number)
}

/// How deep elements lie in lists, and how long those are: the same everywhere.
#[derive(Default)]
struct Nesting {
    /// By depth, as far as lists have been seen; none until the first one of that depth has ended.
    lengths: Vec<Option<usize>>,
    /// An element has been seen: nothing lies deeper.
    is_known: bool,
    /// The error is of a number, which its words leave out.
    is_number_wrong: bool,
}

impl Nesting {
    fn begin<E: serde::de::Error>(&mut self, depth: usize) -> Result<(), E> {
        if depth == self.lengths.len() {
            if self.is_known {
                return Err(E::custom("a list where the others are elements"));
            }
            self.lengths.push(None);
        }
        Ok(())
    }

    fn end<E: serde::de::Error>(&mut self, depth: usize, length: usize) -> Result<(), E> {
        match self.lengths.get_mut(depth) {
            Some(Some(before)) if *before != length => {
                Err(E::custom(format_args!("a list of {length} beside one of {before}")))
            }
            Some(known) => {
                *known = Some(length);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn element<E: serde::de::Error>(&mut self, depth: usize) -> Result<(), E> {
        self.is_known = true;
        match depth {
            0 => Err(E::custom("a list of elements is expected")),
            _ if depth < self.lengths.len() => Err(E::custom("an element where the others are lists")),
            _ => Ok(()),
        }
    }
}

/// An element, or a list of them.
struct Elements<'a> {
    dtype: DType,
    bytes: &'a mut Vec<u8>,
    /// Lists around it.
    depth: usize,
    nesting: &'a mut Nesting,
}

impl<'de> DeserializeSeed<'de> for Elements<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Elements<'_> {
    fn whole<E: serde::de::Error>(&mut self, value: i128) -> Result<(), E> {
        self.nesting.element(self.depth)?;
        let dtype = self.dtype;
        let is_wrong = &mut self.nesting.is_number_wrong;
        let too_large = |_| {
            *is_wrong = true;
            E::custom(format_args!("does not fit {dtype}"))
        };
        match self.dtype {
            DType::U8 => self.bytes.push(u8::try_from(value).map_err(too_large)?),
            DType::I8 => {
                let value = i8::try_from(value).map_err(too_large)?;
                self.bytes.extend_from_slice(&value.to_le_bytes());
            }
            DType::I16 => {
                let value = i16::try_from(value).map_err(too_large)?;
                self.bytes.extend_from_slice(&value.to_le_bytes());
            }
            DType::I32 => {
                let value = i32::try_from(value).map_err(too_large)?;
                self.bytes.extend_from_slice(&value.to_le_bytes());
            }
            DType::I64 => {
                let value = i64::try_from(value).map_err(too_large)?;
                self.bytes.extend_from_slice(&value.to_le_bytes());
            }
            DType::F32 | DType::F64 => return self.float(value as f64),
            DType::Bool | DType::F16 | DType::BF16 => {
                *is_wrong = true;
                return Err(E::custom(format_args!("is no element of {dtype}")));
            }
        }
        Ok(())
    }

    fn float<E: serde::de::Error>(&mut self, value: f64) -> Result<(), E> {
        match self.dtype {
            DType::F64 => self.bytes.extend_from_slice(&value.to_le_bytes()),
            DType::F32 => {
                let narrow = value as f32;
                if !narrow.is_finite() {
                    self.nesting.is_number_wrong = true;
                    return Err(E::custom("does not fit FP32"));
                }
                self.bytes.extend_from_slice(&narrow.to_le_bytes());
            }
            // The parser reads `-0` as a float. Some programs write it for a whole number.
            DType::U8 | DType::I8 | DType::I16 | DType::I32 | DType::I64
                if value == 0.0 && value.is_sign_negative() =>
            {
                self.bytes.resize(self.bytes.len() + self.dtype.size(), 0);
            }
            dtype => {
                self.nesting.is_number_wrong = true;
                return Err(E::custom(format_args!("is no element of {dtype}")));
            }
        }
        Ok(())
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "elements of {} or lists of them", self.dtype)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { dtype, bytes, depth, nesting } = self;
        nesting.begin(depth)?;
        let mut length = 0;
        while seq
            .next_element_seed(Elements {
                dtype,
                bytes: &mut *bytes,
                depth: depth + 1,
                nesting: &mut *nesting,
            })?
            .is_some()
        {
            length += 1;
        }
        nesting.end(depth, length)
    }

    fn visit_u64<E: serde::de::Error>(mut self, value: u64) -> Result<(), E> {
        self.whole(value.into())
    }

    fn visit_i64<E: serde::de::Error>(mut self, value: i64) -> Result<(), E> {
        self.whole(value.into())
    }

    fn visit_f64<E: serde::de::Error>(mut self, value: f64) -> Result<(), E> {
        self.nesting.element(self.depth)?;
        self.float(value)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<(), E> {
        self.nesting.element(self.depth)?;
        if self.dtype != DType::Bool {
            return Err(E::invalid_type(serde::de::Unexpected::Bool(value), &self));
        }
        self.bytes.push(value.into());
        Ok(())
    }
}

/// The elements of a tensor, to be written as one flat list. What JSON cannot say (NaN, infinities) is `null`.
pub(super) struct Numbers<'a> {
    pub(super) dtype: DType,
    pub(super) bytes: &'a [u8],
}

impl Serialize for Numbers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> impl Iterator<Item = T> {
            bytes.chunks_exact(N).filter_map(|chunk| chunk.try_into().ok()).map(read)
        }
        let bytes = self.bytes;
        match self.dtype {
            DType::Bool => serializer.collect_seq(bytes.iter().map(|byte| *byte != 0)),
            DType::U8 => serializer.collect_seq(bytes),
            DType::I8 => serializer.collect_seq(each(bytes, i8::from_le_bytes)),
            DType::I16 => serializer.collect_seq(each(bytes, i16::from_le_bytes)),
            DType::I32 => serializer.collect_seq(each(bytes, i32::from_le_bytes)),
            DType::I64 => serializer.collect_seq(each(bytes, i64::from_le_bytes)),
            DType::F32 => serializer.collect_seq(each(bytes, f32::from_le_bytes)),
            DType::F64 => serializer.collect_seq(each(bytes, f64::from_le_bytes)),
            DType::F16 | DType::BF16 => {
                Err(serde::ser::Error::custom(format_args!("{} cannot be written in JSON", self.dtype)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).unwrap()
    }

    #[test]
    fn nested_and_flat_give_the_same_bytes() {
        let read = |json, dtype| read(&raw(json), dtype).unwrap();
        let (flat, length) = read("[1, 2, 3, 4, 5, 6]", DType::F32);
        assert_eq!((flat.len(), length), (24, vec![6]));
        assert_eq!(read("[[1.0, 2, 3], [4e0, 5, 6]]", DType::F32), (flat.clone(), vec![2, 3]));
        assert_eq!(read("[[[1, 2]], [[3, 4]], [[5, 6]]]", DType::F32), (flat, vec![3, 1, 2]));
        assert_eq!(read("[[true], [false]]", DType::Bool), (vec![1, 0].into(), vec![2, 1]));
        assert_eq!(read("[-0, 7]", DType::I16), (vec![0, 0, 7, 0].into(), vec![2]));
        assert_eq!(read("[-0]", DType::F32), ((-0.0_f32).to_le_bytes().to_vec().into(), vec![1]));
        assert_eq!(read("[]", DType::I64), (Bytes::new(), vec![0]));
        assert_eq!(read("[[], []]", DType::I64), (Bytes::new(), vec![2, 0]));
    }

    #[test]
    fn lists_of_unlike_lengths_are_refused() {
        for json in [
            "[[1], [2, 3]]",
            "[[1, 2], []]",
            "[[1], 2]",
            "[1, [2]]",
            "[[], 1]",
            "[1, []]",
            "[[[1]], [2]]",
            "[[1], [[2]]]",
        ] {
            let error = read(&raw(json), DType::F32).unwrap_err();
            assert!(error.contains("line 1 column"), "{json}: {error}");
        }
    }

    #[test]
    fn what_a_datatype_cannot_hold_is_refused_with_its_place() {
        for (json, dtype) in [
            ("[256]", DType::U8),
            ("[-1]", DType::U8),
            ("[1.5]", DType::I32),
            ("[9223372036854775808]", DType::I64),
            ("[1e39]", DType::F32),
            ("[1]", DType::Bool),
            ("[true]", DType::F32),
            ("[\"1\"]", DType::F32),
            ("[null]", DType::F32),
            ("[{}]", DType::F32),
            ("1", DType::F32),
            ("true", DType::Bool),
            ("[1]", DType::F16),
        ] {
            let error = read(&raw(json), dtype).unwrap_err();
            assert!(!error.contains('\n') && error.contains("line 1 column"), "{json}: {error}");
        }
    }

    #[test]
    fn a_number_is_shown_as_it_was_sent() {
        let long = "1".repeat(100);
        for (json, dtype, says) in [
            ("[1.0]", DType::I64, "1.0 is no element of INT64 at line 1 column 4"),
            ("[1, [\n 2]]", DType::I64, "a list where the others are elements at line 2"),
            (
                "[3,\n  18446744073709551616 ]",
                DType::I64,
                "18446744073709551616 is no element of INT64 at line 2",
            ),
            ("[1e300]", DType::F32, "1e300 does not fit FP32"),
            ("[-1E+300]", DType::F32, "-1E+300 does not fit FP32"),
            ("[ 256,1]", DType::U8, "256 does not fit UINT8"),
            ("[-0.5]", DType::I8, "-0.5 is no element of INT8"),
            ("[0.0]", DType::I8, "0.0 is no element of INT8"),
            ("[-0]", DType::Bool, "-0 is no element of BOOL"),
            ("[1]", DType::Bool, "1 is no element of BOOL"),
            ("[0.5]", DType::F16, "0.5 is no element of FP16"),
        ] {
            let error = read(&raw(json), dtype).unwrap_err();
            assert!(error.starts_with(says), "{json}: {error}");
        }
        let error = read(&raw(&format!("[{long}]")), DType::I32).unwrap_err();
        assert!(error.starts_with(&"1".repeat(32)) && error.len() < 100, "{error}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(index in 0..8_usize, raw_bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            let dtypes =
                [DType::Bool, DType::U8, DType::I8, DType::I16, DType::I32, DType::I64, DType::F32, DType::F64];
            let dtype = dtypes[index];
            let mut bytes = raw_bytes;
            bytes.truncate(bytes.len() / dtype.size() * dtype.size());
            if dtype == DType::Bool {
                bytes.iter_mut().for_each(|byte| *byte &= 1);
            }
            if dtype.is_float() {
                // Neither NaN nor infinity: JSON has none.
                bytes.chunks_exact_mut(dtype.size()).for_each(|one| one[dtype.size() - 1] &= 0b1011_1111);
            }
            let json = serde_json::to_string(&Numbers { dtype, bytes: &bytes }).unwrap();
            let elements = bytes.len() / dtype.size();
            prop_assert_eq!(read(&raw(&json), dtype).unwrap(), (bytes.into(), vec![elements]));
        }
    }
}
