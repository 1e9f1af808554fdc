//! What a model takes and returns.
//!
//! The arguments of `forward` come from the archive; `model.toml` may rename them and say their datatypes and
//! shapes. A signature says how names on the wire become arguments; [`Signature::bind`](super::Binding) does it.

use std::{fmt, sync::Arc};

use thiserror::Error;

use super::{
    Cut, Pad,
    manifest::{DeclaredTensor, ManifestError, ModelManifest},
};
use crate::tensor::DType;

/// The kinds of argument that can be built from tensors on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ArgKind {
    /// One tensor.
    Tensor,
    /// An integer, from a one-element INT64 tensor.
    Int,
    /// A floating-point number, from a one-element FP64 or FP32 tensor.
    Float,
    /// A truth value, from a one-element BOOL tensor.
    Bool,
    /// `List[Tensor]`: `name.0`, `name.1`, ...
    List,
    /// `Dict[str, Tensor]`: `name.key`; for a model whose only argument it is, also plain `key`.
    Dict,
    /// A tuple: `name.0`, `name.1`, ..., each of its own kind.
    Tuple(Vec<ArgKind>),
    /// Any of these, or `None` where no tensor is sent for it.
    Optional(Box<ArgKind>),
}

impl fmt::Display for ArgKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor => f.write_str("Tensor"),
            Self::Int => f.write_str("int"),
            Self::Float => f.write_str("float"),
            Self::Bool => f.write_str("bool"),
            Self::List => f.write_str("List[Tensor]"),
            Self::Dict => f.write_str("Dict[str, Tensor]"),
            Self::Optional(inner) => write!(f, "Optional[{inner}]"),
            Self::Tuple(items) => {
                f.write_str("Tuple[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
        }
    }
}

/// An argument type that the wire cannot fill.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "argument '{argument}' of forward has type {script_type}, which requests cannot fill (they can fill Tensor, \
     int, float, bool, List[Tensor], Dict[str, Tensor], and tuples and optionals of these): wrap the model in a \
     module that takes one of these"
)]
pub struct UnsupportedType {
    /// The argument.
    pub argument: String,
    /// Its type as TorchScript writes it.
    pub script_type: String,
}

/// One argument of `forward`, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// Its name on the wire.
    pub name: Arc<str>,
    /// How it is built.
    pub kind: ArgKind,
    /// It may be left out, and the model's own default is taken.
    pub has_default: bool,
}

/// What is known of one tensor on the wire.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Its name on the wire; for a list, dict or tuple the prefix of its tensors' names.
    pub name: Arc<str>,
    /// `None`: any datatype.
    pub dtype: Option<DType>,
    /// `-1` is any size; `None`: any shape.
    pub shape: Option<Vec<i64>>,
    /// Requests may leave it out.
    pub optional: bool,
    /// The TorchScript type.
    pub script_type: String,
    /// Texts for the indices of an output's last dimension; may be empty.
    pub labels: Vec<String>,
    /// Inputs: how requests are padded to share a batch.
    pub pad: Option<Pad>,
    /// Outputs: what is taken off again.
    pub cut: Option<Cut>,
}

/// True where `shape` is what `declared` asks for: the same rank, and each size equal or declared as `-1`.
pub(crate) fn fits(declared: &[i64], shape: &[i64]) -> bool {
    declared.len() == shape.len()
        && declared.iter().zip(shape).all(|(want, have)| *want == -1 || want == have)
}

/// What a model takes and returns.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Signature {
    arguments: Vec<Argument>,
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    outputs_declared: bool,
}

impl Signature {
    /// Joins what the archive says (`arguments` of forward and names of results, where known) with what
    /// `model.toml` declares.
    ///
    /// # Errors
    /// An `[[inputs]]` entry that stands for no argument, or two for the same one.
    pub fn new(
        mut arguments: Vec<Argument>,
        output_names: &[String],
        manifest: &ModelManifest,
    ) -> Result<Self, ManifestError> {
        let mut declared: Vec<Option<&DeclaredTensor>> = vec![None; arguments.len()];
        for (position, input) in manifest.inputs.iter().enumerate() {
            let wanted = input.argument.as_deref();
            let by_name = |name: &str| arguments.iter().position(|argument| argument.name.as_ref() == name);
            let at = match wanted {
                Some(name) => by_name(name),
                None => by_name(&input.name).or(Some(position).filter(|&p| p < arguments.len())),
            };
            let known = || arguments.iter().map(|a| a.name.to_string()).collect::<Vec<_>>().join(", ");
            let slot =
                at.and_then(|at| declared.get_mut(at)).ok_or_else(|| ManifestError::NoSuchArgument {
                    input: input.name.clone(),
                    argument: wanted.map_or_else(|| format!("number {position}"), str::to_owned),
                    known: known(),
                })?;
            if slot.replace(input).is_some() {
                return Err(ManifestError::ArgumentTwice { input: input.name.clone() });
            }
        }
        let mut inputs = Vec::with_capacity(arguments.len());
        for (argument, declared) in arguments.iter_mut().zip(declared) {
            if let Some(declared) = declared {
                argument.name = declared.name.as_str().into();
            }
            inputs.push(TensorSpec {
                name: argument.name.clone(),
                dtype: declared.and_then(|d| d.dtype),
                shape: declared.and_then(|d| d.shape.clone()),
                optional: argument.has_default || matches!(argument.kind, ArgKind::Optional(_)),
                script_type: argument.kind.to_string(),
                labels: Vec::new(),
                pad: declared.and_then(|d| d.pad.clone()),
                cut: None,
            });
        }
        let outputs_declared = !manifest.outputs.is_empty();
        let outputs = if outputs_declared {
            manifest
                .outputs
                .iter()
                .map(|output| TensorSpec {
                    name: output.name.as_str().into(),
                    dtype: output.dtype,
                    shape: output.shape.clone(),
                    optional: false,
                    script_type: "Tensor".to_owned(),
                    labels: output.labels.clone(),
                    pad: None,
                    cut: output.cut.clone(),
                })
                .collect()
        } else {
            output_names
                .iter()
                .map(|name| TensorSpec {
                    name: name.as_str().into(),
                    dtype: None,
                    shape: None,
                    optional: false,
                    script_type: "Tensor".to_owned(),
                    labels: Vec::new(),
                    pad: None,
                    cut: None,
                })
                .collect()
        };
        Ok(Self { arguments, inputs, outputs, outputs_declared })
    }

    /// Arguments of `forward`, in order.
    pub fn arguments(&self) -> &[Argument] {
        &self.arguments
    }

    /// What requests send, one entry an argument.
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    /// What answers hold, as far as it is known before a pass has run.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    /// The name of a result: the declared one at that position, else the one the archive's return type gives it,
    /// else `own`, which the backend derived from where the result stood (`output_0`, or a dict's key).
    pub fn output_name<'a>(&'a self, position: usize, own: &'a str) -> &'a str {
        // A dict's keys are names already: a declared list of the same names only orders and types them.
        if self.outputs.iter().any(|output| output.name.as_ref() == own) {
            return own;
        }
        self.outputs.get(position).map_or(own, |output| &output.name)
    }

    /// True where `model.toml` lists the outputs, so that another number of results is an error.
    pub fn outputs_declared(&self) -> bool {
        self.outputs_declared
    }
}
