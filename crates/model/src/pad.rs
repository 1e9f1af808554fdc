//! Padding along a declared dimension: what `model.toml` says of it, and what that means for one request.

use std::sync::Arc;

use serde::Deserialize;

use super::{ManifestError, ModelManifest, NamedTensor, TensorSpec, manifest::DeclaredTensor};
use crate::{
    error::{Error, Reason, Result},
    tensor::{DType, Element, HostTensor, MAX_RANK, byte_len, element, may_pad, show_shape},
};

/// `pad` of an `[[inputs]]` entry: requests that differ only in that dimension may share a batch.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pad {
    /// The dimension. 0 is the batch, so at least 1.
    pub dim: usize,
    /// What stands in what is added; the input's datatype must be able to hold it.
    #[serde(default)]
    pub value: f64,
    /// Sizes to pad to, ascending. Without any, a batch is padded to the longest in it.
    #[serde(default)]
    pub to: Vec<i64>,
}

/// `cut` of an `[[outputs]]` entry: what was added to an input is taken off this output again.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cut {
    /// The output's dimension that is as long as the input's padded one. At least 1.
    pub dim: usize,
    /// That input.
    pub input: String,
}

/// An input of one request that may be padded before the pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Padded {
    /// Its position in [`Binding::leaves`](super::Binding::leaves).
    pub leaf: usize,
    /// The name of the `[[inputs]]` entry that says so.
    pub input: Arc<str>,
    /// The dimension.
    pub dim: usize,
    /// The request's own size of it.
    pub size: i64,
    /// What stands for that size where requests are compared.
    pub bucket: i64,
    /// It is padded to the bucket, also when it runs alone. Otherwise to the longest of its batch.
    pub fixed: bool,
    /// What stands in what is added.
    pub value: Element,
}

impl Pad {
    /// The size that `tensor` is padded to: the smallest of `to` that holds it, or its own where none does or that is more
    /// than [`may_pad`] allows; without `to` the next power of two, which only tells requests apart.
    fn bucket(&self, tensor: &HostTensor, size: i64) -> i64 {
        let Some(largest) = self.to.last() else {
            let power = u64::try_from(size).ok().and_then(u64::checked_next_power_of_two);
            return power.and_then(|power| i64::try_from(power).ok()).unwrap_or(size);
        };
        if size > *largest {
            return size;
        }
        let bucket = self.to.iter().copied().find(|&to| to >= size).unwrap_or(size);
        let mut shape = tensor.shape().clone();
        if let Some(there) = shape.get_mut(self.dim) {
            *there = bucket;
        }
        let own = tensor.data().len();
        let allowed = byte_len(tensor.dtype(), &shape).is_ok_and(|padded| may_pad(own, padded));
        if allowed { bucket } else { size }
    }
}

impl Padded {
    /// What `pad` means for input `at` of a request, which is leaf number `leaf`.
    pub(super) fn new(
        pad: &Pad,
        spec: &TensorSpec,
        input: &NamedTensor,
        at: usize,
        leaf: usize,
    ) -> Result<Self> {
        let NamedTensor { name, tensor } = input;
        let wrong = |reason, message: String, field| {
            Error::new(reason, message).with_field(format!("inputs[{at}].{field}"))
        };
        let Some(&size) = tensor.shape().get(pad.dim) else {
            let (shape, dim) = (show_shape(tensor.shape()), pad.dim);
            let message = format!("input '{name}' has shape {shape}, the model pads its dimension {dim}");
            return Err(wrong(Reason::WrongShape, message, "shape"));
        };
        let value = element(pad.value, tensor.dtype()).ok_or_else(|| {
            let (dtype, value) = (tensor.dtype(), pad.value);
            let message = format!(
                "input '{name}' has datatype {dtype}, which cannot hold the {value} that it is padded with"
            );
            wrong(Reason::WrongDatatype, message, "datatype")
        })?;
        let (bucket, fixed) = (pad.bucket(tensor, size), !pad.to.is_empty());
        Ok(Self { leaf, input: spec.name.clone(), dim: pad.dim, size, bucket, fixed, value })
    }
}

/// Checks every `pad` and `cut` of a manifest.
pub(super) fn check(manifest: &ModelManifest) -> Result<(), ManifestError> {
    for input in &manifest.inputs {
        let wrong = |why: String| Err(ManifestError::Padding { name: input.name.clone(), why });
        if input.cut.is_some() {
            return wrong("cut is for outputs".to_owned());
        }
        let Some(pad) = &input.pad else { continue };
        check_dim(input, pad.dim)?;
        if pad.to.first().is_some_and(|&first| first < 1) || !pad.to.is_sorted_by(|a, b| a < b) {
            return wrong(format!("to = {:?} must ascend from 1 or more", pad.to));
        }
        if let Some(dtype) = input.dtype.filter(|&dtype: &DType| element(pad.value, dtype).is_none()) {
            return wrong(format!("{dtype} cannot hold the value {}", pad.value));
        }
    }
    for output in &manifest.outputs {
        let wrong = |why: String| Err(ManifestError::Padding { name: output.name.clone(), why });
        if output.pad.is_some() {
            return wrong("pad is for inputs".to_owned());
        }
        let Some(cut) = &output.cut else { continue };
        check_dim(output, cut.dim)?;
        if !manifest.inputs.iter().any(|input| input.name == cut.input && input.pad.is_some()) {
            return wrong(format!("it is cut by input '{}', which is not declared with pad", cut.input));
        }
    }
    Ok(())
}

/// A dimension that differs between requests cannot be the batch, nor have one declared size.
fn check_dim(tensor: &DeclaredTensor, dim: usize) -> Result<(), ManifestError> {
    let why = match tensor.shape.as_ref().map(|shape| shape.get(dim)) {
        _ if !(1..MAX_RANK).contains(&dim) => format!("dim = {dim}: it must be 1 or more, 0 is the batch"),
        Some(None) => format!("dim = {dim} is not in its shape"),
        Some(Some(&size)) if size != -1 => format!("dim = {dim} has the size {size} in its shape: write -1"),
        _ => return Ok(()),
    };
    Err(ManifestError::Padding { name: tensor.name.clone(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        ModelManifest::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_padded_or_cut_is_said_at_load() {
        for (entry, why) in [
            ("[[inputs]]\nname='x'\npad={dim=0}", "0 is the batch"),
            ("[[inputs]]\nname='x'\npad={dim=99}", "1 or more"),
            ("[[inputs]]\nname='x'\nshape=[-1, 4]\npad={dim=1}", "has the size 4"),
            ("[[inputs]]\nname='x'\nshape=[-1, 4]\npad={dim=2}", "not in its shape"),
            ("[[inputs]]\nname='x'\npad={dim=1, to=[4, 4]}", "must ascend"),
            ("[[inputs]]\nname='x'\npad={dim=1, to=[0, 4]}", "must ascend"),
            (
                "[[inputs]]\nname='x'\ndtype='INT64'\npad={dim=1, value=0.5}",
                "INT64 cannot hold the value 0.5",
            ),
            ("[[inputs]]\nname='x'\ncut={dim=1, input='x'}", "for outputs"),
            ("[[outputs]]\nname='y'\npad={dim=1}", "for inputs"),
            ("[[inputs]]\nname='x'\n[[outputs]]\nname='y'\ncut={dim=1, input='x'}", "not declared with pad"),
            ("[[inputs]]\nname='x'\npad={dim=1, size=3}", "size"),
        ] {
            let text = error(entry);
            assert!(text.contains(why), "{text}");
        }
        let good = "[[inputs]]\nname='x'\ndtype='BOOL'\nshape=[-1, -1]\npad={dim=1, value=1, to=[4, 8]}\n[[outputs]]\nname='y'\ncut={dim=2, input='x'}";
        assert!(ModelManifest::parse(good).is_ok());
    }

    #[test]
    fn sizes_have_buckets() {
        let bucket = |to: &[i64], shape: [i64; 2], dim: usize| {
            let pad = Pad { dim, value: 0.0, to: to.to_vec() };
            pad.bucket(&HostTensor::zeros(DType::F64, shape.as_slice().into()).unwrap(), shape[dim])
        };
        assert_eq!([0, 1, 3, 4, 5].map(|size| bucket(&[], [1, size], 1)), [1, 1, 4, 4, 8]);
        assert_eq!([0, 16, 17, 99].map(|size| bucket(&[16, 32], [1, size], 1)), [16, 16, 32, 99]);
        assert_eq!(bucket(&[1 << 40], [1, 2], 1), 2, "larger than anything is padded to");
        assert_eq!(bucket(&[16], [1 << 40, 0], 1), 0, "nothing becomes everything");
    }
}
