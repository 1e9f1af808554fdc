//! What can be told of a model's life: its state, its last reload, and the events in between.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{RolloutBrief, RolloutState};
use crate::{
    backend::Servable,
    error::Error,
    loader::Urgency,
    model::{Decisions, Generation, Label, LoadMode, ModelName, Signature, Version},
    sched::Rows,
};

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
    /// Not in memory: the next request loads it.
    OnDemand,
}

impl ModelState {
    /// The name for people and programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unloaded => "unloaded",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Reloading => "reloading",
            Self::Failed => "failed",
            Self::OnDemand => "on_demand",
        }
    }
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
    /// Time in which loading stood still, at rest or because others had the CPU. It is part of the phases before the swap.
    pub rested: Duration,
    /// All of it.
    pub total: Duration,
}

impl Phases {
    /// Each with its name in metrics and records, in their order.
    pub fn named(&self) -> Vec<(&'static str, Duration)> {
        let Self { verify, load, warm_up, check, swap, drain, rested, total } = *self;
        vec![
            ("verify", verify),
            ("load", load),
            ("warm_up", warm_up),
            ("check", check),
            ("swap", swap),
            ("drain", drain),
            ("rested", rested),
            ("total", total),
        ]
    }
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
    /// What is being loaded.
    pub loading: Option<Version>,
    /// What is loaded beside the live version, oldest first.
    pub loaded: Vec<LoadedStatus>,
    /// Names of versions, but for `stable`.
    pub labels: BTreeMap<Label, Version>,
    /// The rollout that is under way, else how the last one ended.
    pub rollout: Option<RolloutBrief>,
    /// When it is loaded.
    pub load: LoadMode,
    /// It is not in memory, and the next request loads it, unless that is under way already.
    pub on_demand: bool,
    /// Bytes of memory that its versions take.
    pub resident_bytes: u64,
    /// The last load that failed, unless one succeeded since.
    pub last_error: Option<String>,
    /// Of the last reload that succeeded.
    pub last_phases: Option<Phases>,
    /// The live version only fails: its requests are rejected except for trials.
    pub breaker_open: bool,
}

impl ModelStatus {
    /// The rollout, if it is under way.
    pub fn rolling_out(&self) -> Option<RolloutBrief> {
        self.rollout.filter(|brief| brief.state == RolloutState::Running)
    }

    /// Whether requests are answered, be it after a load.
    pub fn serves(&self) -> bool {
        self.live.is_some() || self.on_demand
    }
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
    /// Bytes of memory that it takes, as measured when it was loaded.
    pub memory_bytes: u64,
    /// When it went live.
    pub since: SystemTime,
    /// What it takes and returns.
    pub signature: Arc<Signature>,
    /// Version of torch that wrote the archive.
    pub torch_version: Option<String>,
    /// Most rows in one pass, unless `rows` says that requests must run alone.
    pub max_batch: usize,
    /// How its results go with the rows of a pass.
    pub rows: Arc<Rows>,
    /// What torchlane decided about it.
    pub decisions: Arc<Decisions>,
}

impl LiveStatus {
    /// Most rows in one pass.
    pub fn max_batch(&self) -> usize {
        if self.rows.is_alone() { 1 } else { self.max_batch }
    }
}

/// A version that is loaded beside the live one.
#[derive(Debug, Clone)]
pub struct LoadedStatus {
    /// Its number.
    pub version: Version,
    /// sha256 of its archive.
    pub sha256: String,
    /// Size of its archive.
    pub bytes: u64,
    /// What torchlane decided about it.
    pub decisions: Arc<Decisions>,
}

impl LoadedStatus {
    pub(super) fn of(servable: &Servable) -> Self {
        Self {
            version: servable.version,
            sha256: servable.sha256.clone(),
            bytes: servable.bytes,
            decisions: servable.decisions.clone(),
        }
    }
}

/// Who or what asked for a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asker {
    /// The server's start.
    Start,
    /// Files in a repository changed.
    Repository,
    /// What was seen of a version that is rolled out.
    Rollout,
    /// A request for a model that was not in memory.
    Request,
    /// The memory budget: others needed the room.
    Budget,
    /// A caller of the API: the tenant it names, or where it calls from.
    Caller(Arc<str>),
}

impl Asker {
    /// How much a load that it asks for gives way to others.
    pub(super) fn urgency(&self) -> Urgency {
        match self {
            Self::Start => Urgency::AtOnce,
            Self::Request => Urgency::Hurried,
            _ => Urgency::Patient,
        }
    }
}

impl fmt::Display for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Repository => f.write_str("repository"),
            Self::Rollout => f.write_str("rollout"),
            Self::Request => f.write_str("request"),
            Self::Budget => f.write_str("memory budget"),
            Self::Caller(who) => write!(f, "caller {who}"),
        }
    }
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
    /// The version that it is about.
    pub version: Option<Version>,
    /// With [`Change::Failed`], [`Change::Abandoned`], [`Change::RolledBack`] and [`Change::RolloutAborted`]: why.
    pub error: Option<Error>,
    /// Who or what asked for it. With [`Change::Snapshot`]: nobody.
    pub asker: Option<Asker>,
    /// With a change that has ended: what it took.
    pub done: Option<Done>,
}

/// What a change took, and what it took the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Done {
    /// What was live before.
    pub previous: Option<Version>,
    /// Times; of a change that failed, all of it.
    pub phases: Phases,
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
    /// It is left to its next request.
    OnDemand,
    /// It had to go for others; its next request loads it again.
    Evicted,
    /// A version is being loaded beside the live one.
    LoadingBeside,
    /// A version is loaded beside the live one.
    LoadedBeside,
    /// A version beside the live one was dropped.
    DroppedBeside,
    /// A version beside the live one is being rolled out.
    RolloutStarted,
    /// More callers see it, or it goes on by another plan.
    RolloutChanged,
    /// It was good, and is live.
    Promoted,
    /// A caller went back to the version before; or, with an error, a version that was rolled out was bad, and the one that
    /// was live serves alone.
    RolledBack,
    /// The rollout gave way to something else, or to somebody.
    RolloutAborted,
    /// It is not in the repositories any more, and was unloaded.
    Removed,
}

impl Change {
    /// Whether a version may be gone by it.
    pub const fn retires(self) -> bool {
        match self {
            Self::Ready
            | Self::Reloaded
            | Self::Unloaded
            | Self::Evicted
            | Self::LoadedBeside
            | Self::DroppedBeside
            | Self::Promoted
            | Self::RolledBack
            | Self::RolloutAborted
            | Self::Removed => true,
            Self::Snapshot
            | Self::Loading
            | Self::Reloading
            | Self::Failed
            | Self::Abandoned
            | Self::OnDemand
            | Self::LoadingBeside
            | Self::RolloutStarted
            | Self::RolloutChanged => false,
        }
    }

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
            Self::OnDemand => "on_demand",
            Self::Evicted => "evicted",
            Self::LoadingBeside => "loading_beside",
            Self::LoadedBeside => "loaded_beside",
            Self::DroppedBeside => "dropped_beside",
            Self::RolloutStarted => "rollout_started",
            Self::RolloutChanged => "rollout_changed",
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled_back",
            Self::RolloutAborted => "rollout_aborted",
            Self::Removed => "removed",
        }
    }
}
