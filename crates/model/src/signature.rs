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
use crate::tensor::{DType, HostTensor};

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
    /// Arguments right before it that requests cannot fill: they always have their defaults.
    pub skips: usize,
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
    /// Inputs that are a dict: its keys, where they are declared. Then requests send these, and no others.
    pub keys: Vec<KeySpec>,
}

/// A declared key of a dict.
#[derive(Debug, Clone, PartialEq)]
pub struct KeySpec {
    /// The key that the model looks up.
    pub key: String,
    /// What requests send for it.
    pub tensor: TensorSpec,
}

impl TensorSpec {
    /// A tensor of which nothing but its name is known.
    fn named(name: &str) -> Self {
        Self {
            name: name.into(),
            dtype: None,
            shape: None,
            optional: false,
            script_type: "Tensor".to_owned(),
            labels: Vec::new(),
            pad: None,
            cut: None,
            keys: Vec::new(),
        }
    }

    fn declared(by: &DeclaredTensor) -> Self {
        Self {
            dtype: by.dtype,
            shape: by.shape.clone(),
            labels: by.labels.clone(),
            pad: by.pad.clone(),
            cut: by.cut.clone(),
            ..Self::named(&by.name)
        }
    }

    /// What is wrong with a tensor that should be this one. `None`: nothing.
    pub fn contradicts(&self, tensor: &HostTensor) -> Option<String> {
        if let Some(dtype) = self.dtype.filter(|dtype| *dtype != tensor.dtype()) {
            return Some(format!("has datatype {}, {dtype} is declared", tensor.dtype()));
        }
        let shape = self.shape.as_ref().filter(|shape| !fits(shape, tensor.shape()))?;
        Some(format!("has shape {:?}, {shape:?} is declared", tensor.shape().as_slice()))
    }
}

/// True where `shape` is what `declared` asks for: the same rank, and each size equal or declared as `-1`.
pub fn fits(declared: &[i64], shape: &[i64]) -> bool {
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
    extra_outputs: bool,
}

/// What is declared of one argument: as a whole, or key by key.
#[derive(Debug, Clone, Default)]
struct Declared<'a> {
    whole: Option<&'a DeclaredTensor>,
    keys: Vec<(String, &'a DeclaredTensor)>,
}

impl<'a> Declared<'a> {
    /// For each of `arguments`.
    fn find(arguments: &[Argument], manifest: &'a ModelManifest) -> Result<Vec<Self>, ManifestError> {
        let mut all = vec![Self::default(); arguments.len()];
        for (position, input) in manifest.inputs.iter().enumerate() {
            let wanted = input.argument.as_deref();
            let by_name = |name: &str| arguments.iter().position(|argument| argument.name.as_ref() == name);
            let at = match wanted {
                Some(name) => by_name(name),
                // Keys of the only argument need not say which one it is.
                None if input.key.is_some() && arguments.len() == 1 => Some(0),
                None => by_name(&input.name).or(Some(position)),
            };
            let known = || arguments.iter().map(|a| a.name.to_string()).collect::<Vec<_>>().join(", ");
            let (argument, slot) = at
                .and_then(|at| Some((arguments.get(at)?, all.get_mut(at)?)))
                .ok_or_else(|| ManifestError::NoSuchArgument {
                    input: input.name.clone(),
                    argument: wanted.map_or_else(|| format!("number {position}"), str::to_owned),
                    known: known(),
                })?;
            let taken = match &input.key {
                Some(_) if argument.kind != ArgKind::Dict => {
                    let (input, argument, kind) =
                        (input.name.clone(), argument.name.to_string(), argument.kind.to_string());
                    return Err(ManifestError::NoKeys { input, argument, kind });
                }
                Some(key) => {
                    let taken = slot.whole.is_some() || slot.keys.iter().any(|(other, _)| other == key);
                    slot.keys.push((key.clone(), input));
                    taken
                }
                None => !slot.keys.is_empty() || slot.whole.replace(input).is_some(),
            };
            if taken {
                return Err(ManifestError::ArgumentTwice { input: input.name.clone() });
            }
        }
        Ok(all)
    }
}

impl Signature {
    /// Joins what the archive says (`arguments` of forward and names of results, where known) with what
    /// `model.toml` declares.
    ///
    /// # Errors
    /// An `[[inputs]]` entry that stands for no argument, two for the same one, or a key of what is no dict.
    pub fn new(
        mut arguments: Vec<Argument>,
        output_names: &[String],
        manifest: &ModelManifest,
    ) -> Result<Self, ManifestError> {
        let declared = Declared::find(&arguments, manifest)?;
        let mut inputs = Vec::with_capacity(arguments.len());
        for (argument, declared) in arguments.iter_mut().zip(declared) {
            let optional = argument.has_default || matches!(argument.kind, ArgKind::Optional(_));
            let mut spec = match declared.whole {
                Some(whole) => TensorSpec { labels: Vec::new(), ..TensorSpec::declared(whole) },
                None => TensorSpec::named(&argument.name),
            };
            argument.name = spec.name.clone();
            spec.script_type = argument.kind.to_string();
            spec.optional = optional;
            for (key, by) in declared.keys {
                let tensor = TensorSpec { labels: Vec::new(), optional, ..TensorSpec::declared(by) };
                spec.keys.push(KeySpec { key, tensor });
            }
            inputs.push(spec);
        }
        let outputs_declared = !manifest.outputs.is_empty();
        let outputs = if outputs_declared {
            manifest.outputs.iter().map(TensorSpec::declared).collect()
        } else {
            output_names.iter().map(|name| TensorSpec::named(name)).collect()
        };
        let extra_outputs = manifest.extra_outputs;
        Ok(Self { arguments, inputs, outputs, outputs_declared, extra_outputs })
    }

    /// The same with what is not declared filled in: `known` has the datatype and the shape of an input, or else of an output, of
    /// that name. Where no outputs are known, there are `outputs`.
    #[must_use]
    pub fn completed(
        &self,
        known: impl Fn(&str, bool) -> Option<(Option<DType>, Option<Vec<i64>>)>,
        outputs: &[String],
    ) -> Self {
        let mut complete = self.clone();
        if complete.outputs.is_empty() {
            complete.outputs = outputs.iter().map(|name| TensorSpec::named(name)).collect();
        }
        let fill = |spec: &mut TensorSpec, is_input| {
            if let Some((dtype, shape)) = known(&spec.name, is_input) {
                spec.dtype = spec.dtype.or(dtype);
                spec.shape = spec.shape.take().or(shape);
            }
        };
        for input in &mut complete.inputs {
            input.keys.iter_mut().for_each(|key| fill(&mut key.tensor, true));
            fill(input, true);
        }
        complete.outputs.iter_mut().for_each(|output| fill(output, false));
        complete
    }

    /// Arguments of `forward`, in order.
    pub fn arguments(&self) -> &[Argument] {
        &self.arguments
    }

    #[cfg(test)]
    pub(super) fn arguments_mut(&mut self) -> &mut [Argument] {
        &mut self.arguments
    }

    /// What requests send, one entry an argument.
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    /// What requests send, one entry a tensor: the keys of a dict where they are declared, else one entry an argument.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorSpec> {
        self.inputs.iter().flat_map(|input| {
            let whole = input.keys.is_empty().then_some(input);
            whole.into_iter().chain(input.keys.iter().map(|key| &key.tensor))
        })
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

    /// True where results after the last declared output are left out of answers.
    pub fn drops_extra_outputs(&self) -> bool {
        self.outputs_declared && self.extra_outputs
    }
}
