//! The vocabulary of models: names, versions, signatures, and what `model.toml` may say. No behaviour beyond
//! checking, no I/O beyond parsing text.

mod bind;
mod decision;
mod id;
mod lane;
mod load_mode;
mod manifest;
mod pad;
mod rollout;
mod samples;
mod signature;
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
pub use rollout::{RolloutPlan, Strategy};
pub use samples::{MOST_SAMPLES, Sample, SamplesError, read as read_samples, to_bytes as write_samples};
pub use signature::{ArgKind, Argument, KeySpec, Signature, TensorSpec, UnsupportedType};

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
