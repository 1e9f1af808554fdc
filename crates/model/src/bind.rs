//! From named tensors to the arguments of `forward`.
//!
//! Guarantees: a [`Binding`] refers to every tensor of the request exactly once; datatypes and shapes that the
//! signature declares hold. It is made once, before a request waits for anything.

use std::sync::Arc;

use smallvec::SmallVec;

use super::{ArgKind, KeySpec, NamedTensor, Padded, Signature, TensorSpec, signature::fits};
use crate::{
    error::{Error, Reason, Result, shown},
    tensor::{DType, show_shape},
};

/// One argument, referring to the request's tensors by position.
#[derive(Debug, Clone, PartialEq)]
pub enum Arg {
    /// The tensor at that position.
    Tensor(usize),
    /// `None`.
    None,
    /// `List[Tensor]`.
    List(Vec<usize>),
    /// `Dict[str, Tensor]`.
    Dict(Vec<(String, usize)>),
    /// A tuple.
    Tuple(Vec<Arg>),
    /// An integer.
    Int(i64),
    /// A floating-point number.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// What the model itself has where nothing is given.
    Default,
}

/// Requests with equal keys may share a batch: same arguments, datatypes and trailing shapes, padded dimensions counting as
/// their bucket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct BatchKey(SmallVec<[i64; 12]>);

/// How a request's tensors become arguments.
#[derive(Debug, Clone)]
pub struct Binding {
    /// In the order of `forward`; shorter than the signature where trailing defaults are left out.
    pub args: Vec<Arg>,
    /// Positions of the tensors that reach the model as tensors (scalars do not), in order of use.
    pub leaves: SmallVec<[usize; 4]>,
    /// Which of these may be padded, in the same order.
    pub padded: Vec<Padded>,
    /// Items along dimension 0 where the request can share a batch, else 1.
    pub rows: usize,
    /// `None`: this request must run by itself.
    pub key: Option<BatchKey>,
    /// The signature it was made for.
    pub signature: Arc<Signature>,
}

impl Binding {
    /// Binds `inputs` to the arguments of `signature`. With `max_batch` above 1 the request may share a batch,
    /// and may not be larger than one.
    ///
    /// # Errors
    /// A missing, unknown or repeated input, or one whose datatype or shape is not the declared one.
    pub fn new(signature: &Arc<Signature>, inputs: &[NamedTensor], max_batch: usize) -> Result<Self> {
        let mut binder = Binder::new(signature, inputs)?;
        let mut args = Vec::with_capacity(signature.arguments().len());
        let mut lacks = None;
        for (argument, spec) in signature.arguments().iter().zip(signature.inputs()) {
            args.extend(std::iter::repeat_n(Arg::Default, argument.skips));
            let kind = match &argument.kind {
                // Its default need not be None.
                ArgKind::Optional(inner) if argument.has_default => inner,
                kind => kind,
            };
            match binder.argument(kind, &argument.name, spec)? {
                Some(arg) => args.push(arg),
                None if argument.has_default => args.push(Arg::Default),
                None => lacks = lacks.or(Some(&argument.name)),
            }
        }
        let given = args.iter().rposition(|arg| *arg != Arg::Default).map_or(0, |last| last + 1);
        args.truncate(given);
        // Of an input by another name the caller is told that one: it has both names.
        binder.finish()?;
        if let Some(name) = lacks {
            return Err(missing(name, &known(signature)));
        }
        let Binder { leaves, padded, .. } = binder;
        let (rows, key) = batch_terms(&args, &leaves, &padded, inputs, max_batch)?;
        Ok(Self { args, leaves, padded, rows, key, signature: signature.clone() })
    }

    /// Bytes of `inputs` as they will run: with what is padded, at most.
    pub fn padded_bytes(&self, inputs: &[NamedTensor]) -> usize {
        let own: usize = inputs.iter().map(|input| input.tensor.data().len()).sum();
        let added = self.padded.iter().filter_map(|padded| {
            let bytes = inputs.get(*self.leaves.get(padded.leaf)?)?.tensor.data().len();
            let size = usize::try_from(padded.size).ok().filter(|size| *size > 0)?;
            Some(bytes / size * usize::try_from(padded.bucket - padded.size).ok()?)
        });
        own + added.sum::<usize>()
    }
}

fn missing(name: &str, why: &str) -> Error {
    Error::new(Reason::MissingInput, format!("input '{name}' is missing: {why}")).with_field("inputs")
}

fn known(signature: &Signature) -> String {
    let list = signature
        .tensors()
        .map(|input| {
            format!(
                "{} ({}{})",
                input.name,
                input.script_type,
                if input.optional { ", optional" } else { "" }
            )
        })
        .collect::<Vec<_>>()
        .join(", ");
    format!("the model takes {}", if list.is_empty() { "no inputs" } else { &list })
}

/// That a model of that signature may have inputs of these names, before their contents are read.
///
/// # Errors
/// There are too many, one is there twice, or one is of no argument.
pub fn check_names(signature: &Signature, names: &[&str]) -> Result<()> {
    no_more_than(names.len())?;
    let single = names.len() == 1 && signature.arguments().len() == 1;
    for (at, name) in names.iter().enumerate() {
        if names.iter().take(at).any(|other| other == name) {
            return Err(twice(name, at));
        }
        let mut arguments = signature.arguments().iter().zip(signature.inputs());
        let of_one = arguments.any(|(argument, spec)| {
            let part = name.strip_prefix(&*argument.name);
            let any_key = spec.keys.is_empty() && signature.arguments().len() == 1;
            part.is_some_and(|part| part.is_empty() || part.starts_with('.'))
                || spec.keys.iter().any(|key| *key.tensor.name == **name)
                || any_key && is_dict(&argument.kind)
        });
        if !(of_one || single && name.is_empty()) {
            return Err(unknown(name, at, signature));
        }
    }
    Ok(())
}

fn is_dict(kind: &ArgKind) -> bool {
    match kind {
        ArgKind::Dict => true,
        ArgKind::Optional(inner) => is_dict(inner),
        _ => false,
    }
}

fn no_more_than(inputs: usize) -> Result<()> {
    if inputs <= MAX_INPUTS {
        return Ok(());
    }
    let message = format!("the request has {inputs} inputs, at most {MAX_INPUTS} are read");
    Err(Error::new(Reason::BadRequest, message).with_field("inputs"))
}

fn twice(name: &str, at: usize) -> Error {
    let message = format!("input '{}' is given twice", shown(name, 64));
    Error::new(Reason::DuplicateInput, message).with_field(format!("inputs[{at}]"))
}

fn unknown(name: &str, at: usize, signature: &Signature) -> Error {
    let message = format!("the model has no input '{}': {}", shown(name, 64), known(signature));
    Error::new(Reason::UnknownInput, message).with_field(format!("inputs[{at}].name"))
}

/// Binding looks inputs up by name one by one, on a thread that others wait for.
const MAX_INPUTS: usize = 1024;

struct Binder<'a> {
    signature: &'a Signature,
    inputs: &'a [NamedTensor],
    used: SmallVec<[bool; 8]>,
    leaves: SmallVec<[usize; 4]>,
    padded: Vec<Padded>,
}

impl<'a> Binder<'a> {
    fn new(signature: &'a Signature, inputs: &'a [NamedTensor]) -> Result<Self> {
        no_more_than(inputs.len())?;
        for (i, input) in inputs.iter().enumerate() {
            if inputs.iter().take(i).any(|other| other.name == input.name) {
                return Err(twice(&input.name, i));
            }
        }
        Ok(Self {
            signature,
            inputs,
            used: SmallVec::from_elem(false, inputs.len()),
            leaves: SmallVec::new(),
            padded: Vec::new(),
        })
    }

    fn take(&mut self, name: &str) -> Option<usize> {
        let exact = self.inputs.iter().position(|input| input.name == name);
        // A single unnamed tensor for a model of one input: what a person types first.
        let unnamed = || {
            let single = self.inputs.len() == 1 && self.signature.arguments().len() == 1;
            (single && self.inputs.first()?.name.is_empty()).then_some(0)
        };
        let at = exact.or_else(unnamed)?;
        let used = self.used.get_mut(at)?;
        (!std::mem::replace(used, true)).then_some(at)
    }

    fn leaf(&mut self, name: &str, spec: &TensorSpec) -> Result<Option<usize>> {
        let Some(at) = self.take(name) else { return Ok(None) };
        self.check(at, spec)?;
        if let (Some(pad), Some(input)) = (&spec.pad, self.inputs.get(at)) {
            self.padded.push(Padded::new(pad, spec, input, at, self.leaves.len())?);
        }
        self.leaves.push(at);
        Ok(Some(at))
    }

    fn check(&self, at: usize, spec: &TensorSpec) -> Result<()> {
        let Some(NamedTensor { tensor, .. }) = self.inputs.get(at) else { return Ok(()) };
        if let Some(dtype) = spec.dtype.filter(|&dtype| dtype != tensor.dtype()) {
            let message =
                format!("input '{}' has datatype {}, the model takes {dtype}", spec.name, tensor.dtype());
            return Err(
                Error::new(Reason::WrongDatatype, message).with_field(format!("inputs[{at}].datatype"))
            );
        }
        let Some(shape) = &spec.shape else { return Ok(()) };
        if fits(shape, tensor.shape()) {
            return Ok(());
        }
        let message = format!(
            "input '{}' has shape {}, the model takes {} (-1 is any size)",
            spec.name,
            show_shape(tensor.shape()),
            show_shape(shape)
        );
        Err(Error::new(Reason::WrongShape, message).with_field(format!("inputs[{at}].shape")))
    }

    /// `None`: nothing was sent for it.
    fn argument(&mut self, kind: &ArgKind, name: &str, spec: &TensorSpec) -> Result<Option<Arg>> {
        Ok(match kind {
            ArgKind::Tensor => self.leaf(name, spec)?.map(Arg::Tensor),
            ArgKind::Optional(inner) => Some(self.argument(inner, name, spec)?.unwrap_or(Arg::None)),
            ArgKind::Int | ArgKind::Float | ArgKind::Bool => match self.take(name) {
                Some(at) => Some(self.scalar(kind, at)?),
                None => None,
            },
            ArgKind::List => {
                let mut items = Vec::new();
                while let Some(at) = self.leaf(&format!("{name}.{}", items.len()), spec)? {
                    items.push(at);
                }
                (!items.is_empty()).then_some(Arg::List(items))
            }
            ArgKind::Dict => {
                let items = self.dict(name, spec)?;
                (!items.is_empty()).then_some(Arg::Dict(items))
            }
            ArgKind::Tuple(kinds) => {
                let mut items = Vec::with_capacity(kinds.len());
                for (i, kind) in kinds.iter().enumerate() {
                    let part = format!("{name}.{i}");
                    match self.argument(kind, &part, spec)? {
                        Some(item) => items.push(item),
                        None if i == 0 => return Ok(None),
                        None => return Err(missing(&part, &known(self.signature))),
                    }
                }
                Some(Arg::Tuple(items))
            }
        })
    }

    fn dict(&mut self, name: &str, spec: &TensorSpec) -> Result<Vec<(String, usize)>> {
        if !spec.keys.is_empty() {
            return self.declared_keys(spec);
        }
        let only_argument = self.signature.arguments().len() == 1;
        let mut items = Vec::new();
        for at in 0..self.inputs.len() {
            let Some(input) = self.inputs.get(at) else { break };
            let prefixed = input.name.strip_prefix(name).and_then(|rest| rest.strip_prefix('.'));
            let Some(key) = prefixed.or(only_argument.then_some(input.name.as_str())) else { continue };
            if self.leaf(&input.name, spec)?.is_some() {
                items.push((key.to_owned(), at));
            }
        }
        Ok(items)
    }

    /// All of them, or none of a dict that may be left out.
    fn declared_keys(&mut self, spec: &TensorSpec) -> Result<Vec<(String, usize)>> {
        let mut items = Vec::with_capacity(spec.keys.len());
        let mut absent: Option<&str> = None;
        for KeySpec { key, tensor } in &spec.keys {
            match self.leaf(&tensor.name, tensor)? {
                Some(at) => items.push((key.clone(), at)),
                None => absent = absent.or(Some(&tensor.name)),
            }
        }
        match absent {
            Some(name) if !(items.is_empty() && spec.optional) => Err(missing(name, &known(self.signature))),
            _ => Ok(items),
        }
    }

    fn scalar(&self, kind: &ArgKind, at: usize) -> Result<Arg> {
        let wrong = |reason, message: String| Error::new(reason, message).with_field(format!("inputs[{at}]"));
        let Some(NamedTensor { name, tensor }) = self.inputs.get(at) else { return Ok(Arg::None) };
        if tensor.elements() != 1 {
            let message = format!(
                "input '{name}' is of type {kind}: send a tensor of one element, not {}",
                tensor.elements()
            );
            return Err(wrong(Reason::WrongShape, message));
        }
        let bytes = tensor.data().as_ref();
        let int = || bytes.try_into().map(i64::from_le_bytes);
        let arg = match (kind, tensor.dtype()) {
            (ArgKind::Int, DType::I64) => int().ok().map(Arg::Int),
            (ArgKind::Int, DType::I32) => {
                bytes.try_into().ok().map(|b| Arg::Int(i32::from_le_bytes(b).into()))
            }
            (ArgKind::Float, DType::F64) => bytes.try_into().ok().map(|b| Arg::Float(f64::from_le_bytes(b))),
            (ArgKind::Float, DType::F32) => {
                bytes.try_into().ok().map(|b| Arg::Float(f32::from_le_bytes(b).into()))
            }
            (ArgKind::Bool, DType::Bool) => bytes.first().map(|&b| Arg::Bool(b != 0)),
            _ => None,
        };
        let takes = match kind {
            ArgKind::Int => "INT64",
            ArgKind::Bool => "BOOL",
            _ => "FP64",
        };
        arg.ok_or_else(|| {
            wrong(
                Reason::WrongDatatype,
                format!("input '{name}' has datatype {}, the model takes {takes}", tensor.dtype()),
            )
        })
    }

    fn finish(&self) -> Result<()> {
        let stray = self.used.iter().position(|used| !used).and_then(|at| Some((at, self.inputs.get(at)?)));
        let Some((at, input)) = stray else { return Ok(()) };
        Err(unknown(&input.name, at, self.signature))
    }
}

/// Rows and key of a request that may share a batch. Only plain tensors, tuples of tensors and `None` can be
/// joined along dimension 0; a list or dict may have another length in each request.
fn batch_terms(
    args: &[Arg],
    leaves: &[usize],
    padded: &[Padded],
    inputs: &[NamedTensor],
    max_batch: usize,
) -> Result<(usize, Option<BatchKey>)> {
    if max_batch <= 1 {
        return Ok((1, None));
    }
    let mut key = SmallVec::new();
    if !args.iter().all(|arg| describe(arg, &mut key)) {
        return Ok((1, None));
    }
    let mut rows = None;
    for (leaf, input) in leaves.iter().enumerate().filter_map(|(leaf, &at)| Some((leaf, inputs.get(at)?))) {
        let (Some(have), tensor) = (input.tensor.rows(), &input.tensor) else { return Ok((1, None)) };
        let agreed = *rows.get_or_insert(have);
        if agreed != have {
            let message = format!(
                "input '{}' has {have} rows, the inputs before it have {agreed}: the first dimension is the batch \
                 and must be the same in all",
                shown(&input.name, 64)
            );
            return Err(Error::new(Reason::WrongShape, message).with_field("inputs"));
        }
        key.push(tensor.dtype() as i64);
        key.push(tensor.shape().len() as i64);
        let trailing = key.len();
        key.extend(tensor.shape().iter().skip(1).copied());
        if let Some(padded) = padded.iter().find(|padded| padded.leaf == leaf)
            && let Some(size) = key.get_mut(trailing + padded.dim - 1)
        {
            *size = padded.bucket;
        }
    }
    let rows = usize::try_from(rows.unwrap_or(1)).unwrap_or(usize::MAX);
    if rows > max_batch {
        let message =
            format!("the request has {rows} rows, the model takes at most {max_batch} at once: split it");
        return Err(Error::new(Reason::WrongShape, message).with_field("inputs"));
    }
    Ok((rows, Some(BatchKey(key))))
}

/// Writes the structure of `arg` into the key; false where it cannot be joined.
fn describe(arg: &Arg, key: &mut SmallVec<[i64; 12]>) -> bool {
    match arg {
        Arg::Tensor(_) => key.push(-1),
        Arg::None => key.push(-2),
        Arg::Default => key.push(-4),
        Arg::Tuple(items) => {
            key.push(-3);
            key.push(items.len() as i64);
            return items.iter().all(|item| describe(item, key));
        }
        Arg::List(_) | Arg::Dict(_) | Arg::Int(_) | Arg::Float(_) | Arg::Bool(_) => return false,
    }
    true
}

#[cfg(test)]
mod tests;
