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
    /// Nobody has looked at it.
    Unknown,
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
    Namespace("namespace", Escape) => "is of a namespace other than aten and prim: nothing is known about it";
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
    /// Private operators.
    Internal("internal", Memory) => "is libtorch's own, made for callers that have checked its arguments";
    /// Nested so deep that libtorch's compiler, or its memory management, would run out of stack.
    Nesting("nesting", Memory) => "is nested deeper than any model's: it would end the process";
    /// A pickle that builds what only libtorch's own reader would misunderstand.
    Trick("trick", Memory) => "is no pickle of a model but made to fool its reader";
    /// Neither an operator nor anything of the archive.
    Unknown("unknown", Unknown) => "is no operator of torch 2.13 and nothing that the archive defines";
    /// Code that the scan does not understand.
    Unreadable("unreadable", Unknown) => "cannot be understood, so nothing is known about it";
}
