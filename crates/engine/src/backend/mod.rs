//! What runs models. [`Backend`] loads an archive into a [`Module`]; a [`Servable`] is a module with everything
//! that serving it needs to know. Only `torch.rs` and what is below it name libtorch; `crash.rs` says which model a fatal signal
//! came from.

mod crash;
mod fake;
mod named;
pub mod summary;

use std::{
    any::Any,
    fmt,
    path::Path,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;
use thiserror::Error;

pub use crash::{Running, Task, current as current_task, report_crashes};
pub use fake::FakeBackend;
pub use named::Named;

use torchlane_archive::{Seen, TensorInfo, safety::Finding, weights::Overlay};
use torchlane_model::{
    Arg, Argument, Decision, Decisions, ModelManifest, ModelName, NamedTensor, Plan, Signature, Version,
    tensor::{HostTensor, Joined},
};
use torchlane_proto::inference::ModelConfig;

use crate::{
    admission::Breaker,
    residency::Reservation,
    sched::{Quick, Rows, Statistics},
};

/// What an archive says about itself, read without running it.
#[derive(Debug, Clone, Default)]
pub struct ArchiveSummary {
    /// Arguments of forward.
    pub arguments: Vec<Argument>,
    /// Names of results where the archive gives them (a NamedTuple's fields, or `output_0`, ...).
    pub outputs: Vec<String>,
    /// Forward writes to nothing but its own temporaries, as far as its text can tell. Only then may request memory
    /// go to the model uncopied, and results be read where they lie.
    pub effect_free: bool,
    /// Its code has loops: how long a pass takes may depend on values.
    pub loops: bool,
    /// Where forward keeps something between calls. `None`: a call sees nothing of earlier ones.
    pub stateful: Option<Seen>,
    /// Where the code has a mode for training built in.
    pub training: Option<Seen>,
    /// Version of torch that wrote it, where it says.
    pub torch_version: Option<String>,
    /// What is not known to be harmless, the worst first.
    pub findings: Vec<Finding>,
    /// Bytes of its tensors: it will take no less.
    pub tensor_bytes: u64,
    /// Parameters, then buffers: what weights can be laid over.
    pub tensors: Vec<TensorInfo>,
    /// Which of `tensors` are buffers.
    pub buffers: Vec<String>,
}

/// Why an archive could not be read, loaded or run. One line; the log has the rest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{short}")]
pub struct BackendError {
    /// One line for the caller.
    pub short: String,
    /// Everything, for the log.
    pub full: String,
}

impl BackendError {
    /// An error whose short form is the first line of the full one.
    pub fn new(full: impl Into<String>) -> Self {
        let full = full.into();
        Self { short: torchlane_model::error::clip(full.clone().into()).into_owned(), full }
    }
}

/// What a thread is about to do, so that the backend can set it up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadRole {
    /// Runs batches.
    Executor {
        /// Threads that one operator may use.
        intra_op: usize,
    },
    /// Loads and warms up.
    Loader,
}

/// What a module takes beside its weights: code, and libtorch's own records of it.
const BESIDE_WEIGHTS: u64 = 1 << 20;

/// Loads archives.
pub trait Backend: Send + Sync + fmt::Debug + 'static {
    /// For logs.
    fn name(&self) -> &'static str;

    /// Called once on each thread before it loads or runs anything; what it returns lives as long as the thread.
    fn enter_thread(&self, role: ThreadRole) -> Box<dyn Any>;

    /// Looks whether it can be an archive at all, before all of it is read for its digest. Cheap, whatever the size of the file.
    ///
    /// # Errors
    /// It can not.
    fn glance(&self, archive: &Path) -> Result<(), BackendError>;

    /// Reads what the archive says about itself.
    ///
    /// # Errors
    /// Not an archive, or one that cannot be served.
    fn inspect(&self, archive: &Path) -> Result<ArchiveSummary, BackendError>;

    /// Loads it, with the weights of `overlay` in the place of its own. Runs on a loader thread.
    ///
    /// # Errors
    /// Whatever the library says.
    fn load(&self, archive: &Path, overlay: Option<&Overlay<'_>>) -> Result<Box<dyn Module>, BackendError>;

    /// Bytes that a version will take once it is loaded, going by its files alone: the archive, then others. Cheap; what is
    /// loaded is measured.
    fn memory_estimate(&self, files: &[&Path]) -> u64 {
        let size = |path: &&Path| path.metadata().map_or(0, |meta| meta.len());
        let bytes = files.iter().map(size).fold(0, u64::saturating_add);
        bytes.saturating_add(bytes / 4).saturating_add(BESIDE_WEIGHTS)
    }

    /// Bytes of memory that are in use in this process, freed ones that the allocator keeps not counted. By what they grow
    /// while a version is loaded it is known what it takes. `None`: nobody knows.
    fn allocated(&self) -> Option<u64> {
        None
    }

    /// Called on a loader thread after each piece of its work: gives memory that nothing uses back to the system.
    /// A warm-up leaves far more behind than the version that it was for.
    fn release_memory(&self) {}
}

/// The inputs of one pass.
#[derive(Debug)]
pub struct Pass<'a> {
    /// Arguments of forward; `Arg::Tensor(i)` is `leaves[i]`.
    pub args: &'a [Arg],
    /// The tensors.
    pub leaves: Vec<Joined>,
    /// Memory may be shared with the model both ways (see [`ArchiveSummary::effect_free`]).
    pub share_memory: bool,
}

/// A loaded model. Shared by all executors.
pub trait Module: Send + Sync {
    /// Bytes that it takes, where the backend knows. `None`: it is measured from outside.
    fn memory_bytes(&self) -> Option<u64> {
        None
    }

    /// A device other than the CPU that its code names: it fails where that is not there.
    fn names_device(&self) -> Option<&str> {
        None
    }

    /// One forward pass: results in order, each with the name that follows from where it stood: `output_0`, a
    /// dict's key, `output_0.1` for nested ones.
    ///
    /// # Errors
    /// The model threw, or returned something that the wire cannot carry.
    fn forward(&self, pass: Pass<'_>) -> Result<Vec<NamedTensor>, BackendError>;
}

/// One warmed, immutable version of a model.
pub struct Servable {
    /// Its number.
    pub version: Version,
    /// The model.
    pub module: Box<dyn Module>,
    /// What it takes and returns.
    pub signature: Arc<Signature>,
    /// What its owner says of it.
    pub manifest: Arc<ModelManifest>,
    /// The `config.pbtxt` that says it, if it is one.
    pub config: Option<Arc<ModelConfig>>,
    /// See [`ArchiveSummary::effect_free`].
    pub effect_free: bool,
    /// A pass may see what an earlier one left: one request at a time, alone, and none that nobody sent.
    pub stateful: bool,
    /// What torchlane decided about it, also while it serves.
    pub decisions: Arc<Decisions>,
    /// Passes that need no executor.
    pub quick: Arc<Quick>,
    /// Refuses requests while it only fails.
    pub breaker: Arc<Breaker>,
    /// Most rows in one pass: the manifest's, or 1 where the model keeps state. What counts is
    /// [`Servable::max_batch`].
    pub max_batch: usize,
    /// How results go with the rows of a pass.
    pub rows: Arc<Rows>,
    /// Inputs that it has answered well.
    pub good: OnceLock<Vec<NamedTensor>>,
    /// sha256 of the archive, hexadecimal.
    pub sha256: String,
    /// sha256 of the weights that were laid over it, where there were any.
    pub weights_sha256: Option<String>,
    /// Size of the archive.
    pub bytes: u64,
    /// Version of torch that wrote it.
    pub torch_version: Option<String>,
    /// Bytes of memory that it takes, as measured when it was loaded.
    pub memory_bytes: u64,
    /// It is an ensemble: its steps run, and not the module.
    pub ensemble: Option<Arc<Plan>>,
    /// Tells loads apart, of the same version too; never used twice in a process.
    pub serial: u64,
    /// What it has done.
    pub statistics: Statistics,
    /// Its part of the memory budget, given back when it is dropped.
    pub memory: OnceLock<Reservation>,
}

/// Larger inputs are not kept as [`Servable::good`].
const GOOD_BYTES: usize = 1 << 20;

impl Servable {
    /// Most rows in one pass: 1 once it was seen that requests must run alone.
    pub fn max_batch(&self) -> usize {
        if self.rows.is_alone() { 1 } else { self.max_batch }
    }

    /// Inputs that it has answered well: what fails with these fails with anything.
    pub fn good_inputs(&self) -> Option<&[NamedTensor]> {
        self.good.get().map(Vec::as_slice)
    }

    /// Keeps the first such inputs, in memory of their own.
    pub fn remember_good(&self, inputs: &[NamedTensor]) {
        if self.good.get().is_some()
            || inputs.iter().map(|input| input.tensor.data().len()).sum::<usize>() > GOOD_BYTES
        {
            return;
        }
        let copy = |NamedTensor { name, tensor }: &NamedTensor| {
            let data = Bytes::copy_from_slice(tensor.data());
            let tensor = HostTensor::from_backend(tensor.dtype(), tensor.shape().clone(), data).ok()?;
            Some(NamedTensor { name: name.clone(), tensor })
        };
        if let Some(copies) = inputs.iter().map(copy).collect() {
            let _first = self.good.set(copies);
        }
    }

    /// Executors that may run it at once; 0 is all.
    pub fn max_concurrency(&self) -> usize {
        if self.stateful { 1 } else { self.manifest.scheduling.max_concurrency }
    }

    /// Keeps what was decided about this version of `model`, and logs it if it is new.
    pub fn decide(&self, model: &ModelName, decision: Decision) {
        let Decision { what, text } = decision.clone();
        if self.decisions.add(decision) {
            let version = self.version.0;
            tracing::warn!(target: "torchlane::load", %model, version, what, "{text}");
        }
    }
}

impl fmt::Debug for Servable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servable")
            .field("version", &self.version)
            .field("sha256", &self.sha256)
            .finish_non_exhaustive()
    }
}
