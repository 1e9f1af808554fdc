//! The vocabulary of models: names, versions, tensors, signatures, what `model.toml` may say, and what can go wrong. No behaviour
//! beyond checking, no I/O beyond parsing text.

#![deny(unsafe_code)]

mod bind;
mod decision;
pub mod error;
pub mod human_duration;
mod id;
mod lane;
mod load_mode;
mod manifest;
mod pad;
pub mod plain;
mod plan;
pub mod redact;
mod rollout;
mod samples;
mod signature;
pub mod tensor;
mod versions;

pub use bind::{Arg, BatchKey, Binding, check_names};
pub use decision::{Decision, Decisions};
pub use id::{
    Generation, InvalidLabel, InvalidName, InvalidVersion, Label, ModelName, TenantId, Version,
    VersionSelector, VersionWish,
};
pub use lane::{Lane, UnknownLane};
pub use load_mode::LoadMode;
pub use manifest::{
    Batching, CheckConfig, DeclaredTensor, ManifestError, MissingBuffers, ModelManifest, Scheduling,
    WarmupConfig,
};
pub use pad::{Cut, Pad, Padded};
pub use plan::{Plan, PlanError, Progress, Step};
pub use rollout::{RolloutPlan, Strategy};
pub use samples::{MOST_SAMPLES, Sample, SamplesError, read as read_samples, to_bytes as write_samples};
pub use signature::{ArgKind, Argument, KeySpec, Signature, TensorSpec, UnsupportedType, fits};

pub use versions::{VersionPlan, VersionPolicy, Versions};

use crate::tensor::HostTensor;

/// A tensor with the name that the wire gives it.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// Input or output name.
    pub name: String,
    /// The data.
    pub tensor: HostTensor,
}
