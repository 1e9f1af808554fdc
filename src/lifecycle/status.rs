//! What can be told of a model's life: its state, its last reload, and the events in between.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::model::{Generation, ModelName, Signature, Version};

/// Where a model stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModelState {
    /// In the repository, not loaded.
    #[default]
    Unloaded,
    /// First load under way; nothing serves yet.
    Loading,
    /// A version is live.
    Ready,
    /// A version is live and another is being prepared beside it.
    Reloading,
    /// Nothing serves because loading failed.
    Failed,
}

/// How long each phase of a reload took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Phases {
    /// Hashing and inspecting the archive.
    pub verify: Duration,
    /// Loading it.
    pub load: Duration,
    /// Running it until latency was steady.
    pub warm_up: Duration,
    /// Running its samples and comparing what came out.
    pub check: Duration,
    /// Exchanging the pointers.
    pub swap: Duration,
    /// Until the last request on the old version had ended.
    pub drain: Duration,
    /// All of it.
    pub total: Duration,
}

/// What the warm-up ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WarmupReport {
    /// Passes over all shapes; 0 where no shape was known.
    pub passes: u32,
    /// Distinct shapes, batch sizes included.
    pub shapes: u32,
    /// The slowest first pass of a shape.
    pub first_pass: Duration,
    /// The last pass of that shape.
    pub steady_pass: Duration,
    /// Every shape settled before its passes ran out.
    pub steady: bool,
}

/// How near the answers to samples were to what was expected.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CheckReport {
    /// Samples that were run; 0 where the version has none.
    pub samples: u32,
    /// The largest difference from an output that a sample expects. `None`: none expects any.
    pub from_expected: Option<f64>,
    /// The largest difference from the live version's answers, infinite where they cannot be compared. `None`: they were not.
    pub from_live: Option<f64>,
}

/// A reload that succeeded.
#[derive(Debug, Clone)]
pub struct ReloadReport {
    /// The model.
    pub model: ModelName,
    /// What was live before.
    pub previous: Option<Version>,
    /// What is live now.
    pub live: Option<Version>,
    /// Orders the changes of one model.
    pub generation: Generation,
    /// Of the archive that was loaded.
    pub sha256: String,
    /// Of the weights that were laid over it.
    pub weights_sha256: Option<String>,
    /// Its size.
    pub bytes: u64,
    /// Times.
    pub phases: Phases,
    /// What the warm-up ran.
    pub warmup: WarmupReport,
    /// What its samples showed.
    pub check: CheckReport,
    /// Nothing was swapped.
    pub validated_only: bool,
}

/// A model as it stands.
#[derive(Debug, Clone)]
pub struct ModelStatus {
    /// Its name.
    pub name: ModelName,
    /// Where it stands.
    pub state: ModelState,
    /// What is live.
    pub live: Option<LiveStatus>,
    /// What a rollback would go back to.
    pub previous: Option<Version>,
    /// Versions on disk, oldest first.
    pub versions: Vec<Version>,
    /// Orders its changes.
    pub generation: Generation,
    /// The last load that failed, unless one succeeded since.
    pub last_error: Option<String>,
    /// Of the last reload that succeeded.
    pub last_phases: Option<Phases>,
}

/// The live version of a model.
#[derive(Debug, Clone)]
pub struct LiveStatus {
    /// Its number.
    pub version: Version,
    /// sha256 of its archive.
    pub sha256: String,
    /// sha256 of the weights that were laid over it.
    pub weights_sha256: Option<String>,
    /// Size of its archive.
    pub bytes: u64,
    /// When it went live.
    pub since: SystemTime,
    /// What it takes and returns.
    pub signature: Arc<Signature>,
    /// Version of torch that wrote the archive.
    pub torch_version: Option<String>,
    /// Most rows in one pass.
    pub max_batch: usize,
}

/// A change of state.
#[derive(Debug, Clone)]
pub struct ModelEvent {
    /// When.
    pub at: SystemTime,
    /// The model after the change.
    pub model: ModelStatus,
    /// What happened.
    pub change: Change,
    /// With [`Change::Failed`] and [`Change::Abandoned`]: why.
    pub error: Option<String>,
}

/// What happened to a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing: how it stands as a watch begins.
    Snapshot,
    /// Its first load has begun.
    Loading,
    /// Its first version is live.
    Ready,
    /// A reload has begun.
    Reloading,
    /// A reload has ended well.
    Reloaded,
    /// A load or reload failed.
    Failed,
    /// A load or reload gave way to a newer change, or to the server's end.
    Abandoned,
    /// It was unloaded.
    Unloaded,
}

impl Change {
    /// The name in the API and the logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Snapshot => "snapshot",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Reloading => "reloading",
            Self::Reloaded => "reloaded",
            Self::Failed => "failed",
            Self::Abandoned => "abandoned",
            Self::Unloaded => "unloaded",
        }
    }
}
