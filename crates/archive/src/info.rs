//! What an inspection finds.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use serde::Serialize;

use super::safety::Finding;
use super::types::TypeExpr;

/// Everything that can be said about an archive without running it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ArchiveInfo {
    /// Size of the whole file, in bytes.
    pub size_bytes: u64,
    /// Entries in the zip directory.
    pub entries: usize,
    /// The number in the entry `version`: the file format, not torch's own version.
    pub format_version: Option<u64>,
    /// A lower bound of the torch that wrote this, such as `1.6`, where the format says one. An archive does not
    /// record its writer: 2.13 still writes format 3, which says nothing, wherever that will do.
    pub torch_version: Option<String>,
    /// Byte order of the weights, `little` or `big`, where the archive has it (torch 2.1 and later).
    pub byte_order: Option<String>,
    /// Digits that `torch.save` derived from the names and checksums of the entries: equal for equal archives.
    pub serialization_id: Option<String>,
    /// Names of the files that the writer added (`_extra_files`).
    pub extra_files: Vec<String>,
    /// Class of the top module, as it was called in Python: `Net`, `torch.nn.modules.container.Sequential`.
    pub class_name: String,
    /// The top module's `training` flag. One saved in training mode drops out and updates its statistics as it serves.
    pub training: Option<bool>,
    /// Signature of `forward`; there always is one where the inspection succeeds.
    pub forward: Option<MethodSignature>,
    /// Other methods of the top module.
    pub methods: Vec<String>,
    /// Parameters, by the names and in the order of torch's `named_parameters(remove_duplicate=False)`.
    pub parameters: Vec<TensorInfo>,
    /// Buffers, by the names and in the order of torch's `named_buffers(remove_duplicate=False)`.
    pub buffers: Vec<TensorInfo>,
    /// Tensors in the code, `c0`, `c1`: where `torch.jit.freeze` puts parameters.
    pub constants: Vec<TensorInfo>,
    /// Other attributes of the top module that are no modules: name and type.
    pub attributes: Vec<(String, String)>,
    /// Operators that the code calls, such as `aten::conv2d`, and at how many places.
    pub operators: BTreeMap<String, usize>,
    /// What running the code may do to memory.
    pub effects: Effects,
    /// Where `forward` keeps something between calls; `None` where no call sees anything of another.
    pub state: Option<Seen>,
    /// An operator of `forward` that is in a mode for training, which a trace builds in.
    pub trains: Option<Seen>,
    /// Some code loops: how long a call takes may depend on values, not only on sizes.
    pub loops: bool,
    /// What is not known to be harmless, the worst first.
    pub findings: Vec<Finding>,
}

impl ArchiveInfo {
    /// Bytes of the parameters, memory that is shared counted once.
    pub fn parameter_bytes(&self) -> u64 {
        distinct_bytes([&self.parameters])
    }

    /// Bytes of the buffers, memory that is shared counted once.
    pub fn buffer_bytes(&self) -> u64 {
        distinct_bytes([&self.buffers])
    }

    /// Bytes of the parameters, buffers and constants, memory that is shared counted once.
    pub fn tensor_bytes(&self) -> u64 {
        distinct_bytes([&self.parameters, &self.buffers, &self.constants])
    }

    /// How many numbers the parameters are, memory that is shared counted once.
    pub fn parameter_count(&self) -> u64 {
        let own = self.parameters.iter().filter(|tensor| tensor.shared_with.is_none());
        own.fold(0, |sum, tensor| sum.saturating_add(tensor.elements()))
    }
}

fn distinct_bytes<const N: usize>(groups: [&Vec<TensorInfo>; N]) -> u64 {
    let mut seen = HashSet::new();
    let tensors = groups.into_iter().flatten();
    tensors
        .filter(|tensor| seen.insert((&tensor.storage, tensor.offset)) || tensor.storage.is_empty())
        .fold(0, |sum, tensor| sum.saturating_add(tensor.bytes))
}

/// A parameter, a buffer or a constant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// Dotted name: `layers.0.weight`.
    pub name: String,
    /// torch's name of the dtype without `torch.`, `float32`; `sparse` or `meta` where it has no plain storage.
    pub dtype: String,
    /// Size of each dimension: `[64, 3, 7, 7]`.
    pub shape: Vec<u64>,
    /// Bytes of its elements.
    pub bytes: u64,
    /// The first tensor of the same memory, where this is not the first: tied weights.
    pub shared_with: Option<String>,
    /// Entry below the archive's root that holds it, `data/7`; two views of one storage share it.
    pub storage: String,
    /// Where it begins in the storage, in elements.
    pub offset: u64,
    /// How far apart its elements are in the storage along each dimension, in elements.
    pub strides: Vec<u64>,
}

impl TensorInfo {
    /// How many elements it has.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |all, size| all.saturating_mul(*size))
    }
}

/// Something in the code that decides how a model is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// What the code does: `torch.copy_ writes to self.b`.
    pub what: String,
    /// File of the archive and line: `code/__torch__/m.py:12`.
    pub place: String,
}

impl fmt::Display for Seen {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} ({})", self.what, self.place)
    }
}

/// What the code may do to memory that is not its own. Conservative: `true` where it cannot be known, for all methods of
/// all classes in the archive, called or not. What exactly is looked for is listed in `effects.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Effects {
    /// An attribute may be assigned: one call may see what an earlier one left, or keep memory of the request.
    pub assigns_attributes: bool,
    /// A tensor may be written in place: the request's, the model's, or one of its own making.
    pub mutates_in_place: bool,
    /// A list or a dict may be changed: one of the request's, the model's, or one of its own making.
    pub mutates_containers: bool,
}

impl Effects {
    /// What is said of code that cannot be understood.
    pub const UNKNOWN: Self =
        Self { assigns_attributes: true, mutates_in_place: true, mutates_containers: true };

    /// Whether there may be any effect.
    pub fn any(self) -> bool {
        self.assigns_attributes || self.mutates_in_place || self.mutates_containers
    }
}

/// What a method takes and returns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MethodSignature {
    /// Name of the method.
    pub name: String,
    /// Its arguments, without `self`.
    pub arguments: Vec<Argument>,
    /// What it returns.
    pub returns: TypeExpr,
}

/// One argument of a method.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Argument {
    /// Name, as the archive spells it (a traced module's are often `argument_1`).
    pub name: String,
    /// Type.
    pub ty: TypeExpr,
    /// Whether a call may leave it out.
    pub has_default: bool,
}
