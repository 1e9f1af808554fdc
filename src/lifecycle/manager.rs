//! Carries out changes: one at a time for each model. Whoever asks for one must see it through: dropping its future
//! half-way is safe for the live version, and leaves the model's state as it last was.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{broadcast, watch},
    time::Instant,
};
use tokio_util::task::TaskTracker;
use torchlane_engine::trace::Traces;

use super::{
    Asker, Change, Expected, ModelEvent, ModelStatus, Phases, ReloadReport, ResidencyConfig, Rules,
    entry::{Entry, Hold, Holding, Past, Waiting},
    flight::Share,
    lookup::choose,
    told::Told,
};

use crate::{
    admission::{ControlPlace, unknown_model},
    backend::Backend,
    error::{Error, Reason, Result},
    loader::{LoaderPool, Urgency},
    model::{Generation, LoadMode, ModelManifest, ModelName, Version},
    registry::{ModelSlot, Registry},
    repository::{Repositories, Uploads, VersionFiles},
    residency::{Memory, Reservation},
    sched::ProfilePoint,
};

/// What the manager works with.
#[derive(Debug)]
pub struct ManagerConfig {
    /// Where models come from; the first that has a model wins.
    pub repositories: Repositories,
    /// Where models go that come with a call; one of the repositories.
    pub uploads: Option<Arc<Uploads>>,
    /// Longest that a swap waits for requests on the old version before it reports; they still end on it.
    pub drain: Duration,
    /// Longest that a load may take, warm-up included, before its thread is left behind.
    pub load_limit: Duration,
    /// What every version must satisfy.
    pub rules: Rules,
    /// What may be loaded at once.
    pub memory: Arc<Memory>,
    /// What is loaded when.
    pub residency: ResidencyConfig,
    /// Where loads and reloads are told of, step by step.
    pub traces: Option<Arc<Traces>>,
}

/// A reload, as asked for.
#[derive(Debug, Clone, Default)]
pub struct ReloadRequest {
    /// The model.
    pub model: String,
    /// `None`: the newest on disk.
    pub version: Option<Version>,
    /// What the files must be.
    pub expected: Expected,
    /// Everything but the swap.
    pub validate_only: bool,
}

/// A change that is to be carried out.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) files: VersionFiles,
    pub(super) expected: Expected,
    pub(super) holding: Holding,
    /// What is live now is to stay loaded beside what comes.
    pub(super) keep: bool,
    /// The room for it, where it is reserved already.
    pub(super) room: Option<Reservation>,
    /// How much its load gives way to others.
    pub(super) urgency: Urgency,
    pub(super) asker: Asker,
}

/// Longest that a call waits for a look at the disk that only makes its answer newer.
pub(super) const GLANCE: Duration = Duration::from_secs(2);

/// Told of every change after it is true: metrics, the history.
pub type Observer = Box<dyn Fn(&ModelEvent) + Send + Sync>;

/// Loads, swaps, rolls back and unloads.
pub struct Manager {
    pub(super) config: ManagerConfig,
    pub(super) registry: Arc<Registry>,
    pub(super) backend: Arc<dyn Backend>,
    pub(super) loader: LoaderPool,
    pub(super) entries: Mutex<BTreeMap<ModelName, Arc<Entry>>>,
    pub(super) events: broadcast::Sender<ModelEvent>,
    pub(super) observer: Observer,
    pub(super) tasks: TaskTracker,
    /// When the repositories were looked at last. Held by the look that is under way.
    pub(super) looked: Arc<tokio::sync::Mutex<Option<Instant>>>,
    /// Models of the start that have not claimed their room yet, in the order in which they may.
    pub(super) starting: watch::Sender<VecDeque<ModelName>>,
    pub(super) me: Weak<Self>,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Manager {
    /// A manager with nothing loaded.
    pub fn new(
        config: ManagerConfig,
        registry: Arc<Registry>,
        backend: Arc<dyn Backend>,
        loader: LoaderPool,
        observer: Observer,
    ) -> Arc<Self> {
        let (events, _) = broadcast::channel(1024);
        let (entries, tasks, looked) = (Mutex::default(), TaskTracker::new(), Arc::default());
        Arc::new_cyclic(|me| {
            let me = me.clone();
            let starting = watch::Sender::default();
            Self { config, registry, backend, loader, entries, events, observer, tasks, looked, starting, me }
        })
    }

    /// Gives memory that nothing uses back to the system, as a loader thread does after each piece of its work.
    pub async fn release_memory(&self) {
        let _closing = self.loader.run(|| ()).await;
    }

    /// Loads a version beside the live one, warms it up, swaps it in, and drops the old one once its last request has
    /// ended. Waits for an upload that is on trial.
    ///
    /// # Errors
    /// Unknown model or version; the phase that failed and why; or a newer change came in.
    pub async fn reload(
        &self,
        request: ReloadRequest,
        asker: Asker,
        place: Option<ControlPlace>,
    ) -> Result<ReloadReport> {
        self.after_uploads(&request.model).await;
        self.reload_what_is_there(request, asker, place).await
    }

    /// The same, be it proven or not.
    pub(super) async fn reload_what_is_there(
        &self,
        request: ReloadRequest,
        asker: Asker,
        place: Option<ControlPlace>,
    ) -> Result<ReloadReport> {
        let found = self.find(&request.model).await?;
        let entry = self.entry(&found.name);
        entry.set_versions(found.numbers());
        if request.validate_only {
            let files = choose(&found, request.version)?;
            return self.validate(&entry, files, request.expected).await;
        }
        let manifest = self.manifest_of(&found).await.unwrap_or_default();
        let plan = manifest.versions.plan(&found.numbers());
        entry.set_load(self.load_mode(&manifest));
        let files = choose(&found, request.version.or(plan.live))?;
        // Whoever asks for another version than the one that the repository is for wants to keep it.
        let as_planned = plan.live.is_none_or(|live| live == files.version);
        let holding = if as_planned { Holding::End } else { Holding::Begin(Hold::at(&found)) };
        let live = entry.live().map(|(version, _)| version);
        let keep = live.is_some_and(|live| live != files.version && plan.beside.contains(&live));
        let order = Order {
            files,
            expected: request.expected,
            holding,
            keep,
            room: None,
            urgency: Urgency::Patient,
            asker,
        };
        let is_newest = |generation| entry.is_newest(generation);
        match entry.shared.share(&order.files, &order.expected, is_newest, || entry.begin()) {
            Share::Joins(joining) => {
                // It only waits: others may have its place.
                drop(place);
                joining.outcome().await
            }
            Share::Leads(waiting, leading) => {
                let outcome = self.change_in_turn(&entry, order, waiting, place).await;
                leading.ended(&outcome);
                outcome
            }
        }
    }

    /// Goes back to the version that was live before, if its archive is still the same.
    ///
    /// # Errors
    /// There is none, or as for [`Manager::reload`].
    pub async fn rollback(
        &self,
        model: &str,
        asker: Asker,
        place: Option<ControlPlace>,
    ) -> Result<ReloadReport> {
        self.after_uploads(model).await;
        let entry = self.known(model)?;
        let Past { files, expected } = entry.previous().ok_or_else(|| {
            Error::new(
                Reason::NoPreviousVersion,
                format!("model '{model}' has no earlier version to go back to"),
            )
        })?;
        let holding = self.holding(model).await;
        let version = files.version;
        let order =
            Order { files, expected, holding, keep: false, room: None, urgency: Urgency::Undo, asker };
        self.change(&entry, order, place).await.map_err(|error| match error.reason() {
            Reason::DigestMismatch => error.within(format_args!(
                "what was live is not on disk any more (restore version {version}'s files, or reload another version)"
            )),
            _ => error,
        })
    }

    /// Stops serving a model. Requests in flight end.
    ///
    /// # Errors
    /// Unknown model, or nothing was live.
    pub async fn unload(
        &self,
        model: &str,
        asker: Asker,
        place: Option<ControlPlace>,
    ) -> Result<(Version, Generation)> {
        self.refresh().await;
        let entry = self.known(model)?;
        let nothing_live = || {
            let message = format!("model '{}' has no version live: there is nothing to unload", entry.name());
            Error::new(Reason::ModelNotReady, message)
        };
        // A refusal must not make a load that is under way out of date.
        if entry.slot.lease().is_none() && !entry.is_on_demand() {
            return Err(nothing_live());
        }
        let waiting = entry.begin();
        let generation = waiting.generation;
        let turn = entry.turn(waiting).await?;
        // Looked up first: between the swap and the facts nothing may wait, or they would contradict each other.
        let holding = self.holding(model).await;
        let old = entry.slot.swap(None);
        // One that is not in memory is unloaded too: no request brings it back.
        let version = match &old {
            Some(old) => old.version,
            None => entry.would_come().ok_or_else(nothing_live)?,
        };
        entry.went_away(generation, holding);
        self.settle_rollout(&entry, &asker);
        let told = Told::of(Some(version), &asker).done(Some(version), Phases::default());
        self.announce(&entry, Change::Unloaded, told);
        for files in entry.beside() {
            self.drop_beside(&entry, files.version, &asker).await;
        }
        drop((turn, place));
        if let Some(old) = old {
            self.drain(old).await;
        }
        Ok((version, generation))
    }

    /// Every model, by name.
    pub fn list(&self) -> Vec<ModelStatus> {
        self.entries.lock().values().map(|entry| entry.status()).collect()
    }

    /// One model, with what its passes take.
    ///
    /// # Errors
    /// Unknown model.
    pub fn get(&self, model: &str) -> Result<(ModelStatus, Vec<ProfilePoint>)> {
        let entry = self.known(model)?;
        Ok((entry.status(), entry.slot.profile().points()))
    }

    /// The slot of a model that is left to its next request.
    pub fn on_demand(&self, model: &str) -> Option<Arc<ModelSlot>> {
        let entry = self.known(model).ok()?;
        entry.is_on_demand().then(|| entry.slot.clone())
    }

    /// How every model stands, and the changes from here on.
    pub fn watch(&self) -> (Vec<ModelStatus>, broadcast::Receiver<ModelEvent>) {
        let changes = self.events.subscribe();
        (self.list(), changes)
    }

    /// Begins no load any more and waits for those of the start. Others are their callers' to wait for.
    pub async fn stop(&self) {
        self.loader.close();
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub(super) fn entry(&self, name: &ModelName) -> Arc<Entry> {
        let mut entries = self.entries.lock();
        entries
            .entry(name.clone())
            .or_insert_with(|| Arc::new(Entry::new(self.registry.get_or_insert(name))))
            .clone()
    }

    /// When a model is loaded. An ensemble takes no room: it is always there.
    pub(super) fn load_mode(&self, manifest: &ModelManifest) -> LoadMode {
        if manifest.steps.is_empty() {
            manifest.load.unwrap_or(self.config.residency.load)
        } else {
            LoadMode::Pinned
        }
    }

    pub(super) fn known(&self, model: &str) -> Result<Arc<Entry>> {
        self.entries.lock().get(model).cloned().ok_or_else(|| unknown_model(model, &self.registry))
    }

    /// What is live from now on is what somebody chose.
    async fn holding(&self, model: &str) -> Holding {
        let found = match tokio::time::timeout(GLANCE, self.find(model)).await {
            Ok(found) => found.ok(),
            // What is taken back does not wait for a disk: what was there at the last look has to do.
            Err(_) => self.known(model).ok().and_then(|entry| entry.last_found()),
        };
        found.map_or(Holding::As, |found| Holding::Begin(Hold::at(&found)))
    }

    /// A change that somebody asked for: newer than all before it, and it waits for its turn.
    pub(super) async fn change(
        &self,
        entry: &Entry,
        order: Order,
        place: Option<ControlPlace>,
    ) -> Result<ReloadReport> {
        self.change_in_turn(entry, order, entry.begin(), place).await
    }

    async fn change_in_turn(
        &self,
        entry: &Entry,
        order: Order,
        waiting: Waiting<'_>,
        place: Option<ControlPlace>,
    ) -> Result<ReloadReport> {
        let started = Instant::now();
        let generation = waiting.generation;
        let turn = entry.turn(waiting).await?;
        self.carry_out(entry, order, (turn, generation), started, place).await
    }
}
