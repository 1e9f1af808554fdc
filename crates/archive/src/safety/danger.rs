//! Why something in an archive is not ordinary.

use std::fmt;

use serde::Serialize;

/// How bad a finding would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It reaches out of the model: files, processes, other machines, other models.
    Escape,
    /// It may read or write memory that is not the model's, or end the process.
    Memory,
    /// It has not been looked at.
    Unknown,
    /// Ordinary models do it, but some values end the process. Such a model is served, with a warning.
    Note,
}

macro_rules! dangers {
    ($($(#[$doc:meta])* $name:ident($heading:literal, $severity:ident) => $why:literal;)*) => {
        /// Why something in an archive is not ordinary.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Danger { $($(#[$doc])* $name,)* }

        impl Danger {
            /// How bad it would be.
            pub fn severity(self) -> Severity {
                match self { $(Self::$name => Severity::$severity,)* }
            }

            /// The one that `operators.txt` heads a list with.
            pub(super) fn of_heading(heading: &str) -> Option<Self> {
                match heading { $($heading => Some(Self::$name),)* _ => None }
            }
        }

        impl fmt::Display for Danger {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$name => $why,)* })
            }
        }
    };
}

dangers! {
    /// Opens files by name.
    Files("files", Escape) => "reads, maps or writes files";
    /// A pickle names what is neither a tensor, a plain type nor a class of the archive.
    Global("global", Escape) => "is not a tensor, a plain type or a class that the archive defines";
    /// Python's interpreter.
    Python("python", Escape) => "calls Python";
    /// Other processes and machines.
    Distributed("distributed", Escape) => "talks to other processes";
    /// What all models of the process share.
    Process("process", Escape) => "changes or reads what all models of the process share";
    /// Threads that outlive the call.
    Tasks("tasks", Escape) => "starts or awaits tasks on threads that no deadline reaches";
    /// A class written in C++.
    CustomClass("class", Escape) => "is a class written in C++, which may do anything";
    /// Operators of neither `aten` nor `prim`.
    Namespace("namespace", Escape) => "is an operator of a library that this server does not have";
    /// Memory without the usual checks.
    Memory("memory", Memory) => "takes sizes, offsets or indices that it does not check, or moves memory under tensors";
    /// Sparse tensors.
    Sparse("sparse", Memory) => "makes sparse tensors, whose indices are not checked";
    /// Quantized kernels.
    Quantized("quantized", Memory) => "makes quantized tensors, whose kernels trust what they are given";
    /// Gradients.
    Training("training", Memory) => "is for training: it trusts what a forward pass left, and serving does not need it";
    /// Kernels of one vendor.
    Vendor("vendor", Memory) => "is one vendor's kernel, made to be called by others only";
    /// Literal arguments that are taken as they are.
    Form("form", Memory) => "is an argument that libtorch takes without a check, of a kind that exports do not write";
    /// A cast that may be wrong.
    Cast("cast", Memory) => "takes a value for one of another type without a check";
    /// A value in a pickle that is not what the code declares.
    Declared("declared", Memory) => "holds a value of another type than the code declares, which libtorch does not check";
    /// An operator that reads outside expanded tensors.
    Expanded("expanded", Memory) => "reads outside it, where others' data may lie";
    /// Code that runs while loading.
    Endless("endless", Memory) => "runs while the model loads and may not end: it has loops, calls itself or calls too much";
    /// Private operators.
    Internal("internal", Memory) => "is libtorch's own, made for callers that have checked its arguments";
    /// Nested so deep that libtorch's compiler, or its memory management, would run out of stack.
    Nesting("nesting", Memory) => "is nested deeper than any model's: it would end the process";
    /// A pickle that builds what only libtorch's own reader would misunderstand.
    Trick("trick", Memory) => "is no pickle of a model but made to fool its reader";
    /// Neither an operator nor anything of the archive.
    Unknown("unknown", Unknown) => "is no operator of torch 2.13 and nothing that the archive defines";
    /// Neither in the corpus nor looked at.
    Rare("rare", Unknown) => "is an operator that ordinary exports do not call, and that has not been tried with odd arguments";
    /// Ordinary, but not for all values.
    Values("values", Note) => "ends the process, or reads outside its arguments, for some values (docs/operators.md)";
    /// Code that the scan does not understand.
    Unreadable("unreadable", Unknown) => "cannot be understood, so nothing is known about it";
}
