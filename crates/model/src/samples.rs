//! `samples.safetensors`: inputs that a version must be able to run, and what should come out.
//!
//! A tensor is called `input:NAME` or `output:NAME`, by the names of requests. A file of several samples puts a number
//! before each: `0/input:image`, `0/output:probabilities`, `1/input:image`. Outputs may be left out: then the inputs warm
//! the version up, and are compared with the live version's answers only.

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use thiserror::Error;

use super::NamedTensor;
use crate::tensor::{DType, HostTensor, Shape};

/// One request and the answer to it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    /// The request's tensors.
    pub inputs: Vec<NamedTensor>,
    /// What should come out; others may come out too.
    pub outputs: Vec<NamedTensor>,
}

/// Why there are no samples. One line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct SamplesError(String);

/// A file with more is refused: a reload must not run for hours.
pub const MOST_SAMPLES: usize = 1000;
/// A larger file is not read.
const MOST_BYTES: u64 = 256 << 20;

/// Reads the samples in the file at `path`, in the order of their numbers.
///
/// # Errors
/// It cannot be read, is too large, is no safetensors file, or a tensor in it is not called as it should be.
pub fn read(path: &Path) -> Result<Vec<Sample>, SamplesError> {
    let failed = |error: std::io::Error| SamplesError(error.to_string());
    let meta = path.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(SamplesError("it is not a file".to_owned()));
    }
    if meta.len() > MOST_BYTES {
        return Err(SamplesError(format!("it has {} bytes, at most {MOST_BYTES} are read", meta.len())));
    }
    parse(&std::fs::read(path).map_err(failed)?.into())
}

fn parse(whole: &Bytes) -> Result<Vec<Sample>, SamplesError> {
    let file = SafeTensors::deserialize(whole)
        .map_err(|error| SamplesError(format!("not a safetensors file: {}", shown(&error.to_string()))))?;
    let mut samples: BTreeMap<u64, Sample> = BTreeMap::new();
    for (name, view) in file.iter() {
        let wrong = |why: String| SamplesError(format!("tensor {}: {why}", shown(name)));
        let (number, kind, own) = split(name).ok_or_else(|| {
            wrong("it is called neither input:NAME nor output:NAME, nor 0/input:NAME and so on".to_owned())
        })?;
        let dtype = dtype(view.dtype())
            .ok_or_else(|| wrong(format!("no request can carry datatype {:?}", view.dtype())))?;
        let shape: Option<Shape> = view.shape().iter().map(|size| i64::try_from(*size).ok()).collect();
        let shape = shape.ok_or_else(|| wrong("its shape overflows".to_owned()))?;
        let tensor = HostTensor::new(dtype, shape, whole.slice_ref(view.data()))
            .map_err(|error| wrong(error.to_string()))?;
        let sample = samples.entry(number).or_default();
        let list = if kind == Kind::Input { &mut sample.inputs } else { &mut sample.outputs };
        if list.iter().any(|other| other.name == own) {
            return Err(wrong("it is there twice, with a number and without one".to_owned()));
        }
        list.push(NamedTensor { name: own.to_owned(), tensor });
    }
    if samples.is_empty() {
        return Err(SamplesError("it holds no sample: write one, or remove the file".to_owned()));
    }
    if samples.len() > MOST_SAMPLES {
        return Err(SamplesError(format!("{} samples, at most {MOST_SAMPLES} are run", samples.len())));
    }
    // The order in the file is that of datatypes.
    for (number, sample) in &mut samples {
        if sample.inputs.is_empty() && !sample.outputs.is_empty() {
            return Err(SamplesError(format!("sample {number} has outputs but no inputs")));
        }
        sample.inputs.sort_by(|a, b| a.name.cmp(&b.name));
        sample.outputs.sort_by(|a, b| a.name.cmp(&b.name));
    }
    Ok(samples.into_values().collect())
}

/// The file for these samples.
///
/// # Errors
/// None that is known of: every tensor was checked when it was made.
pub fn to_bytes(samples: &[Sample]) -> Result<Vec<u8>, SamplesError> {
    let mut tensors = BTreeMap::new();
    for (number, sample) in samples.iter().enumerate() {
        let lists = [("input", &sample.inputs), ("output", &sample.outputs)];
        for (kind, tensor) in
            lists.iter().flat_map(|(kind, list)| list.iter().map(move |tensor| (kind, tensor)))
        {
            let NamedTensor { name, tensor } = tensor;
            let shape = tensor.shape().iter().map(|size| usize::try_from(*size).unwrap_or(0)).collect();
            let view = TensorView::new(safetensors_dtype(tensor.dtype()), shape, tensor.data())
                .map_err(|error| SamplesError(error.to_string()))?;
            tensors.insert(format!("{number}/{kind}:{name}"), view);
        }
    }
    safetensors::serialize(tensors, None).map_err(|error| SamplesError(error.to_string()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Input,
    Output,
}

/// Number, kind and name in a tensor's name. A name may hold slashes and colons itself.
fn split(name: &str) -> Option<(u64, Kind, &str)> {
    let kind = |text| {
        let input = |text: &'_ str| text.strip_prefix("input:").map(str::len);
        let output = |text: &'_ str| text.strip_prefix("output:").map(str::len);
        match (input(text), output(text)) {
            (Some(length), _) => Some((Kind::Input, length)),
            (_, Some(length)) => Some((Kind::Output, length)),
            _ => None,
        }
    };
    let (number, rest) = match kind(name) {
        Some(_) => (0, name),
        None => {
            let (number, rest) = name.split_once('/')?;
            (number.parse().ok()?, rest)
        }
    };
    let (kind, length) = kind(rest)?;
    Some((number, kind, rest.get(rest.len() - length..)?))
}

/// At most 80 characters, without control characters: file contents go into a message.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

const DTYPES: [(DType, Dtype); 10] = [
    (DType::Bool, Dtype::BOOL),
    (DType::U8, Dtype::U8),
    (DType::I8, Dtype::I8),
    (DType::I16, Dtype::I16),
    (DType::I32, Dtype::I32),
    (DType::I64, Dtype::I64),
    (DType::F16, Dtype::F16),
    (DType::BF16, Dtype::BF16),
    (DType::F32, Dtype::F32),
    (DType::F64, Dtype::F64),
];

fn dtype(theirs: Dtype) -> Option<DType> {
    DTYPES.into_iter().find(|(_, other)| *other == theirs).map(|(ours, _)| ours)
}

fn safetensors_dtype(ours: DType) -> Dtype {
    DTYPES.into_iter().find(|(own, _)| *own == ours).map_or(Dtype::U8, |(_, theirs)| theirs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smallvec::smallvec;

    use super::*;

    fn tensor(name: &str, dtype: DType, rows: i64) -> NamedTensor {
        let tensor = HostTensor::zeros(dtype, smallvec![rows, 2]).unwrap();
        NamedTensor { name: name.to_owned(), tensor }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(shapes in prop::collection::vec((0_i64..3, 0_usize..10, "[a-z/:.]{0,4}"), 1..6)) {
            let samples: Vec<Sample> = shapes
                .iter()
                .map(|(rows, dtype, name)| Sample {
                    inputs: vec![tensor(name, DType::ALL[*dtype], *rows)],
                    outputs: vec![tensor(name, DType::F32, 1), tensor(&format!("{name}2"), DType::Bool, 2)],
                })
                .collect();
            prop_assert_eq!(parse(&to_bytes(&samples).unwrap().into()).unwrap(), samples);
        }

        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            drop(parse(&bytes.into()));
        }
    }

    fn named(names: &[&str]) -> Result<Vec<Sample>, SamplesError> {
        let zero = [0; 4];
        let view = || TensorView::new(Dtype::F32, vec![1], &zero).unwrap();
        parse(&safetensors::serialize(names.iter().map(|name| (*name, view())), None).unwrap().into())
    }

    #[test]
    fn one_sample_needs_no_number() {
        let samples = named(&["input:a/b", "input:x", "output:y"]).unwrap();
        let names: Vec<_> = samples[0].inputs.iter().map(|input| input.name.as_str()).collect();
        assert_eq!((samples.len(), names, samples[0].outputs[0].name.as_str()), (1, vec!["a/b", "x"], "y"));
        let samples = named(&["10/input:x", "9/input:x", "9/output:x"]).unwrap();
        assert_eq!(
            samples.iter().map(|s| s.outputs.len()).collect::<Vec<_>>(),
            [1, 0],
            "by number, not by text"
        );
    }

    #[test]
    fn odd_names_are_named() {
        for (names, expected) in [
            (&["x"][..], "tensor x: it is called neither"),
            (&["a/input:x"], "tensor a/input:x: it is called neither"),
            (&["input:x", "0/input:x"], "there twice"),
            (&["3/output:x"], "sample 3 has outputs but no inputs"),
            (&[], "it holds no sample"),
        ] {
            let error = named(names).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
