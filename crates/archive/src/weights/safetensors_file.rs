//! Weights in safetensors: a header in JSON, then the tensors' bytes. The crate of its makers checks that the tensors
//! cover the file exactly: no gap, no overlap, nothing out of bounds.

use std::collections::BTreeMap;

use bytes::Bytes;
use safetensors::{Dtype, SafeTensors};

use super::Weight;
use crate::error::shown;

/// The tensors of a file, by name. They share its bytes.
pub(super) fn read(whole: &Bytes) -> Result<BTreeMap<String, Weight>, String> {
    let file = SafeTensors::deserialize(whole).map_err(|error| {
        let (what, kind) = (shown(&error.to_string()), looks_like(whole));
        format!("not a safetensors file{kind}: {what}: write it with safetensors.torch.save_file")
    })?;
    file.iter()
        .map(|(name, view)| {
            let dtype = torch_name(view.dtype()).ok_or_else(|| {
                format!("tensor {} has datatype {:?}, which no archive has", shown(name), view.dtype())
            })?;
            let shape = view.shape().iter().map(|size| *size as u64).collect();
            Ok((
                name.to_owned(),
                Weight { dtype: dtype.to_owned(), shape, data: whole.slice_ref(view.data()) },
            ))
        })
        .collect()
}

fn looks_like(whole: &[u8]) -> &'static str {
    if whole.starts_with(b"PK\x03\x04") { " but a zip file (a state dict is named weights.pth)" } else { "" }
}

/// What torch calls it, without `torch.`.
fn torch_name(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::BOOL => "bool",
        Dtype::U8 => "uint8",
        Dtype::I8 => "int8",
        Dtype::I16 => "int16",
        Dtype::U16 => "uint16",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        Dtype::I32 => "int32",
        Dtype::U32 => "uint32",
        Dtype::F32 => "float32",
        Dtype::F64 => "float64",
        Dtype::I64 => "int64",
        Dtype::U64 => "uint64",
        Dtype::C64 => "complex64",
        Dtype::F8_E5M2 => "float8_e5m2",
        Dtype::F8_E4M3 => "float8_e4m3fn",
        Dtype::F8_E5M2FNUZ => "float8_e5m2fnuz",
        Dtype::F8_E4M3FNUZ => "float8_e4m3fnuz",
        _ => return None,
    })
}
