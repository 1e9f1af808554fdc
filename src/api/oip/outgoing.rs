//! An answer of the Open Inference Protocol, after the stack and before its encoder.

use bytes::Bytes;

use super::{
    classes,
    incoming::{Form, Wanted},
    parameters::RegionPart,
};
use crate::{
    call::{InferReply, Timing},
    error::Result,
    model::{NamedTensor, TensorSpec},
};

/// An answer to be written.
#[derive(Debug)]
pub(in crate::api) struct Outgoing {
    pub(in crate::api) model: String,
    pub(in crate::api) version: String,
    /// May be empty.
    pub(in crate::api) id: String,
    pub(in crate::api) outputs: Vec<Output>,
    /// The caller looks for the mark of the last answer.
    pub(in crate::api) marks_final: bool,
    /// Where the time went.
    pub(in crate::api) timing: Timing,
}

/// One of its tensors.
#[derive(Debug)]
pub(in crate::api) struct Output {
    pub(in crate::api) name: String,
    /// The name of its datatype; `BYTES` for classes.
    pub(in crate::api) datatype: &'static str,
    pub(in crate::api) shape: Vec<i64>,
    pub(in crate::api) data: Content,
    /// JSON doors only: wanted as bytes behind the JSON.
    pub(in crate::api) binary: bool,
}

/// Its elements.
#[derive(Debug)]
pub(in crate::api) enum Content {
    /// Little-endian, row-major.
    Raw(Bytes),
    /// Texts, row-major.
    Texts(Vec<String>),
    /// They were written to shared memory.
    Region(RegionPart),
}

impl Content {
    /// The bytes as they go on the wire: before each text its length, four bytes, little-endian. `None`: they are not on
    /// the wire.
    pub(in crate::api) fn to_bytes(&self) -> Option<Bytes> {
        match self {
            Self::Raw(bytes) => Some(bytes.clone()),
            Self::Texts(texts) => {
                let mut bytes = Vec::with_capacity(texts.iter().map(|text| 4 + text.len()).sum());
                for text in texts {
                    bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes());
                    bytes.extend_from_slice(text.as_bytes());
                }
                Some(bytes.into())
            }
            Self::Region(_) => None,
        }
    }
}

impl Outgoing {
    /// The answer in the form that its request asks for. `specs`: the model's outputs, for the names of classes.
    ///
    /// # Errors
    /// An output does not fit its place in shared memory, or is none that has classes.
    pub(in crate::api) fn new(reply: InferReply, form: Form, specs: &[TensorSpec]) -> Result<Self> {
        let Form { id, model, outputs: wanted, binary_data_output, marks_final } = form;
        let outputs = reply.outputs.into_iter().enumerate().map(|(at, output)| {
            // Either none is named, or the answer has those that are, in their order.
            let wanted = wanted.get(at);
            let binary = wanted.and_then(|wanted| wanted.parameters.binary).unwrap_or(binary_data_output);
            Self::output(output, wanted, specs).map(|output| Output { binary, ..output })
        });
        Ok(Self {
            model,
            version: reply.version.to_string(),
            id,
            outputs: outputs.collect::<Result<_>>()?,
            marks_final,
            timing: reply.timing,
        })
    }

    fn output(output: NamedTensor, wanted: Option<&Wanted>, specs: &[TensorSpec]) -> Result<Output> {
        let NamedTensor { name, tensor } = output;
        let classes = wanted.map_or(0, |wanted| wanted.parameters.classes);
        if classes > 0 {
            let spec = specs.iter().find(|spec| *spec.name == *name);
            let labels = spec.map_or(&[][..], |spec| &spec.labels);
            let (shape, texts) = classes::best(&name, &tensor, classes, labels)?;
            return Ok(Output { name, datatype: "BYTES", shape, data: Content::Texts(texts), binary: false });
        }
        let data = match wanted.and_then(|wanted| wanted.place.as_ref()) {
            None => Content::Raw(tensor.data().clone()),
            Some(place) => {
                place.write(tensor.data())?;
                Content::Region(RegionPart { size: tensor.data().len() as u64, ..place.part.clone() })
            }
        };
        let (datatype, shape) = (tensor.dtype().as_str(), tensor.shape().to_vec());
        Ok(Output { name, datatype, shape, data, binary: false })
    }
}
