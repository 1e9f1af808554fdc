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
    format!("the model takes {list}")
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
                "input '{name}' is a {kind}: send a tensor of one element, not {}",
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
mod tests {
    use super::*;
    use crate::{
        model::{Argument, ModelManifest},
        tensor::HostTensor,
    };

    fn signature(kinds: &[(&str, ArgKind, bool)], manifest: &str) -> Arc<Signature> {
        let arguments = kinds
            .iter()
            .map(|(name, kind, has_default)| Argument {
                name: (*name).into(),
                kind: kind.clone(),
                has_default: *has_default,
                skips: 0,
            })
            .collect();
        Arc::new(Signature::new(arguments, &[], &ModelManifest::parse(manifest).unwrap()).unwrap())
    }

    fn input(name: &str, dtype: DType, shape: &[i64]) -> NamedTensor {
        NamedTensor { name: name.to_owned(), tensor: HostTensor::zeros(dtype, shape.into()).unwrap() }
    }

    fn reason(result: Result<Binding>) -> Reason {
        result.unwrap_err().reason()
    }

    #[test]
    fn tensors_are_found_by_name() {
        let sig = signature(&[("a", ArgKind::Tensor, false), ("b", ArgKind::Tensor, false)], "");
        let bound =
            Binding::new(&sig, &[input("b", DType::F32, &[1]), input("a", DType::F32, &[1])], 1).unwrap();
        assert_eq!(bound.args, [Arg::Tensor(1), Arg::Tensor(0)]);
        assert_eq!(reason(Binding::new(&sig, &[input("a", DType::F32, &[1])], 1)), Reason::MissingInput);
        let extra =
            [input("a", DType::F32, &[1]), input("b", DType::F32, &[1]), input("c", DType::F32, &[1])];
        assert_eq!(reason(Binding::new(&sig, &extra, 1)), Reason::UnknownInput);
        let many: Vec<_> = (0..=MAX_INPUTS).map(|i| input(&i.to_string(), DType::F32, &[0])).collect();
        assert_eq!(reason(Binding::new(&sig, &many, 1)), Reason::BadRequest);
        let twice = [input("a", DType::F32, &[1]), input("a", DType::F32, &[1])];
        assert_eq!(reason(Binding::new(&sig, &twice, 1)), Reason::DuplicateInput);
    }

    #[test]
    fn one_unnamed_tensor_is_enough_for_one_input() {
        let sig = signature(&[("x", ArgKind::Tensor, false)], "");
        assert!(Binding::new(&sig, &[input("", DType::F32, &[1])], 1).is_ok());
    }

    #[test]
    fn declared_types_and_shapes_hold() {
        let sig = signature(
            &[("x", ArgKind::Tensor, false)],
            "[[inputs]]\nname = 'image'\nargument = 'x'\ndtype = 'FP32'\nshape = [-1, 3]",
        );
        assert!(Binding::new(&sig, &[input("image", DType::F32, &[5, 3])], 1).is_ok());
        assert_eq!(
            reason(Binding::new(&sig, &[input("image", DType::F64, &[5, 3])], 1)),
            Reason::WrongDatatype
        );
        assert_eq!(reason(Binding::new(&sig, &[input("image", DType::F32, &[5, 4])], 1)), Reason::WrongShape);
        assert_eq!(reason(Binding::new(&sig, &[input("image", DType::F32, &[3])], 1)), Reason::WrongShape);
        let argument = Binding::new(&sig, &[input("x", DType::F32, &[5, 3])], 1).unwrap_err();
        assert_eq!(argument.message(), "the model has no input 'x': the model takes image (Tensor)");
        assert_eq!(reason(Binding::new(&sig, &[], 1)), Reason::MissingInput);
    }

    #[test]
    fn structures_are_named_by_path() {
        let sig = signature(
            &[
                ("t", ArgKind::Tuple(vec![ArgKind::Tensor, ArgKind::Tensor]), false),
                ("l", ArgKind::List, false),
                ("d", ArgKind::Dict, false),
                ("o", ArgKind::Optional(Box::new(ArgKind::Tensor)), false),
            ],
            "",
        );
        let names = ["t.0", "t.1", "l.0", "l.1", "d.k"];
        let inputs: Vec<_> = names.iter().map(|name| input(name, DType::F32, &[1])).collect();
        let bound = Binding::new(&sig, &inputs, 8).unwrap();
        assert_eq!(
            bound.args,
            [
                Arg::Tuple(vec![Arg::Tensor(0), Arg::Tensor(1)]),
                Arg::List(vec![2, 3]),
                Arg::Dict(vec![("k".to_owned(), 4)]),
                Arg::None
            ]
        );
        assert!(bound.key.is_none(), "lists and dicts are not joined");
    }

    #[test]
    fn a_model_of_one_dict_takes_plain_keys() {
        let sig = signature(&[("d", ArgKind::Dict, false)], "");
        let bound =
            Binding::new(&sig, &[input("u", DType::F32, &[1]), input("d.v", DType::F32, &[1])], 1).unwrap();
        assert_eq!(bound.args, [Arg::Dict(vec![("u".to_owned(), 0), ("v".to_owned(), 1)])]);
    }

    #[test]
    fn declared_keys_of_a_dict_are_tensors_of_their_own() {
        let manifest =
            "[[inputs]]\nname='left'\nkey='u'\ndtype='FP32'\nshape=[2]\n[[inputs]]\nname='v'\nkey='v'";
        let sig = signature(&[("d", ArgKind::Dict, false)], manifest);
        assert_eq!(sig.tensors().map(|spec| spec.name.as_ref()).collect::<Vec<_>>(), ["left", "v"]);
        let (left, v) = (input("left", DType::F32, &[2]), input("v", DType::I64, &[1]));
        let bound = Binding::new(&sig, &[v.clone(), left.clone()], 1).unwrap();
        assert_eq!(bound.args, [Arg::Dict(vec![("u".to_owned(), 1), ("v".to_owned(), 0)])]);
        assert_eq!(reason(Binding::new(&sig, std::slice::from_ref(&left), 1)), Reason::MissingInput);
        assert_eq!(reason(Binding::new(&sig, &[], 1)), Reason::MissingInput);
        let other = [left, v.clone(), input("w", DType::F32, &[1])];
        assert_eq!(reason(Binding::new(&sig, &other, 1)), Reason::UnknownInput);
        assert_eq!(
            reason(Binding::new(&sig, &[input("left", DType::F32, &[3]), v], 1)),
            Reason::WrongShape,
            "each key has a shape of its own"
        );
        let optional = signature(&[("d", ArgKind::Optional(Box::new(ArgKind::Tensor)), false)], "");
        assert_eq!(Binding::new(&optional, &[], 1).unwrap().args, [Arg::None]);
    }

    #[test]
    fn keys_are_for_dicts() {
        let refused = |kind: ArgKind, text: &str| {
            let argument = Argument { name: "d".into(), kind, has_default: false, skips: 0 };
            let manifest = ModelManifest::parse(text).unwrap();
            Signature::new(vec![argument], &[], &manifest).unwrap_err().to_string()
        };
        let key = "[[inputs]]\nname='u'\nkey='u'";
        assert!(refused(ArgKind::Tensor, key).contains("only Dict[str, Tensor] has keys"));
        let twice = format!("{key}\n[[inputs]]\nname='v'\nkey='u'");
        assert!(refused(ArgKind::Dict, &twice).contains("'v' stands for an argument that another"));
        let both = format!("{key}\n[[inputs]]\nname='d'");
        assert!(refused(ArgKind::Dict, &both).contains("'d' stands for an argument that another"));
    }

    #[test]
    fn what_is_left_out_is_the_models_own_default() {
        let sig = signature(
            &[("x", ArgKind::Tensor, false), ("n", ArgKind::Int, true), ("flag", ArgKind::Bool, true)],
            "",
        );
        let x = input("x", DType::F32, &[1]);
        assert_eq!(Binding::new(&sig, std::slice::from_ref(&x), 1).unwrap().args.len(), 1);
        let given = [x.clone(), input("n", DType::I64, &[])];
        assert_eq!(Binding::new(&sig, &given, 1).unwrap().args, [Arg::Tensor(0), Arg::Int(0)]);
        let flagged = Binding::new(&sig, &[x.clone(), input("flag", DType::Bool, &[1])], 8).unwrap();
        assert_eq!(flagged.args, [Arg::Tensor(0), Arg::Default, Arg::Bool(false)]);
        assert_eq!(
            reason(Binding::new(&sig, &[x.clone(), input("n", DType::F32, &[])], 1)),
            Reason::WrongDatatype
        );
        assert_eq!(reason(Binding::new(&sig, &[x, input("n", DType::I64, &[2])], 1)), Reason::WrongShape);
    }

    #[test]
    fn an_optional_argument_is_its_default_not_none() {
        let optional = || ArgKind::Optional(Box::new(ArgKind::Tensor));
        let kinds = [("x", ArgKind::Tensor, false), ("mask", optional(), true), ("must", optional(), false)];
        let mut sig = (*signature(&kinds, "")).clone();
        let args = |sig: &Signature, names: &[&str]| {
            let inputs: Vec<_> = names.iter().map(|name| input(name, DType::F32, &[1])).collect();
            Binding::new(&Arc::new(sig.clone()), &inputs, 8).unwrap().args
        };
        assert_eq!(args(&sig, &["x"]), [Arg::Tensor(0), Arg::Default, Arg::None]);
        assert_eq!(args(&sig, &["x", "mask"]), [Arg::Tensor(0), Arg::Tensor(1), Arg::None]);
        // Those that requests cannot fill keep their places.
        sig.arguments_mut()[1].skips = 1;
        assert_eq!(args(&sig, &["x", "mask"]), [Arg::Tensor(0), Arg::Default, Arg::Tensor(1), Arg::None]);
    }

    #[test]
    fn keys_follow_trailing_shape_and_type() {
        let sig = signature(&[("x", ArgKind::Tensor, false)], "");
        let key = |dtype, shape: &[i64]| Binding::new(&sig, &[input("x", dtype, shape)], 8).unwrap().key;
        assert_eq!(key(DType::F32, &[1, 3]), key(DType::F32, &[4, 3]));
        assert_ne!(key(DType::F32, &[1, 3]), key(DType::F32, &[1, 4]));
        assert_ne!(key(DType::F32, &[1, 3]), key(DType::F64, &[1, 3]));
        assert_ne!(key(DType::F32, &[1, 3]), key(DType::F32, &[1, 3, 1]));
        assert_eq!(key(DType::F32, &[]), None, "a scalar cannot be joined");
    }

    #[test]
    fn padded_dimensions_count_as_their_bucket() {
        let entry = |pad| format!("[[inputs]]\nname = 'x'\npad = {pad}");
        let sig = |pad| signature(&[("x", ArgKind::Tensor, false)], &entry(pad));
        let key = |sig: &Arc<Signature>, shape: &[i64]| {
            Binding::new(sig, &[input("x", DType::I64, shape)], 8).unwrap().key
        };
        let longest = sig("{dim = 1}");
        assert_eq!(key(&longest, &[1, 5, 2]), key(&longest, &[3, 8, 2]));
        assert_ne!(key(&longest, &[1, 4, 2]), key(&longest, &[1, 5, 2]));
        assert_ne!(key(&longest, &[1, 5, 2]), key(&longest, &[1, 5, 3]));
        let fixed = sig("{dim = 1, to = [16]}");
        assert_eq!(key(&fixed, &[1, 1]), key(&fixed, &[1, 16]));
        let three = [input("x", DType::I64, &[2, 3])];
        let bytes = Binding::new(&fixed, &three, 8).unwrap().padded_bytes(&three);
        assert_eq!(bytes, 2 * 16 * 8, "as it will run");
        assert_ne!(key(&fixed, &[1, 17]), key(&fixed, &[1, 18]), "longer than any bucket");
        assert_eq!(reason(Binding::new(&fixed, &[input("x", DType::I64, &[3])], 8)), Reason::WrongShape);
        let half = sig("{dim = 1, value = 0.5}");
        assert_eq!(reason(Binding::new(&half, &[input("x", DType::I64, &[1, 3])], 8)), Reason::WrongDatatype);
        assert!(Binding::new(&half, &[input("x", DType::F16, &[1, 3])], 8).is_ok());
    }

    #[test]
    fn a_batch_has_one_number_of_rows_and_a_limit() {
        let sig = signature(&[("a", ArgKind::Tensor, false), ("b", ArgKind::Tensor, false)], "");
        let uneven = [input("a", DType::F32, &[2]), input("b", DType::F32, &[3])];
        assert_eq!(reason(Binding::new(&sig, &uneven, 8)), Reason::WrongShape);
        assert!(Binding::new(&sig, &uneven, 1).is_ok(), "not batched: rows are the model's business");
        let large = [input("a", DType::F32, &[9]), input("b", DType::F32, &[9])];
        assert_eq!(reason(Binding::new(&sig, &large, 8)), Reason::WrongShape);
    }
}
