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

use super::{
    Asker, Change, CheckReport, Expected, ModelEvent, ModelStatus, Phases, Prepared, ReloadReport,
    ResidencyConfig, Rules, WarmupReport,
    beside::Side,
    entry::{Entry, Hold, Holding, Loading, Past, Turn, Waiting},
    flight::Share,
    lookup::choose,
    told::Told,
};
use torchlane_engine::trace::Traces;

use crate::{
    admission::{ControlPlace, unknown_model},
    backend::{Backend, Servable},
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

    pub(super) async fn carry_out(
        &self,
        entry: &Entry,
        order: Order,
        (turn, generation): (Turn<'_>, Generation),
        started: Instant,
        place: Option<ControlPlace>,
    ) -> Result<ReloadReport> {
        let previous = entry.live().map(|(version, _)| version);
        let had_version = previous.is_some();
        let (version, asker) = (Some(order.files.version), order.asker.clone());
        let told = |phases| Told::of(version, &asker).done(previous, phases);
        entry.set_loading(Some(Loading::ToLive(order.files.version)));
        let ended = match (order.urgency, had_version) {
            (Urgency::Undo, _) => Change::RolledBack,
            (_, true) => Change::Reloaded,
            (_, false) => Change::Ready,
        };
        let begun = if had_version { Change::Reloading } else { Change::Loading };
        self.announce(entry, begun, Told::of(version, &asker));
        let outcome = self.replace(entry, order, generation, started).await;
        entry.set_loading(None);
        let (mut report, old, side) = match outcome {
            Ok((report, old, side)) => {
                entry.set_phases(report.phases);
                self.announce(entry, ended, told(report.phases));
                (report, old, side)
            }
            Err(error) => {
                // Its files may be another's by now: what is the matter with them is for that to say.
                let error = if entry.is_newest(generation) { error } else { entry.superseded() };
                // Who gave way is no fault of the model.
                let gave_way = matches!(error.reason(), Reason::Superseded | Reason::ShuttingDown);
                if !gave_way {
                    entry.failed(error.to_string());
                }
                let told = told(Phases { total: started.elapsed(), ..Phases::default() }).failed(&error);
                self.trace(entry, &told);
                self.announce(entry, if gave_way { Change::Abandoned } else { Change::Failed }, told);
                return Err(error);
            }
        };
        let given_up = self.settle_rollout(entry, &asker);
        // The change is made: others need not wait until the last request on the old version has ended.
        drop((turn, place));
        let draining = Instant::now();
        if let Some(version) = given_up {
            self.tidy_beside(entry, version, &asker).await;
        }
        if let Some(side) = side {
            self.empty(side).await;
        }
        if let Some(old) = old {
            self.drain(old).await;
        }
        report.phases.drain = draining.elapsed();
        report.phases.total = started.elapsed();
        if entry.is_newest(generation) {
            entry.set_phases(report.phases);
        }
        self.trace(entry, &told(report.phases));
        Ok(report)
    }

    /// All of a reload but the swap. It changes nothing: it waits for no other change, makes none out of date, and is
    /// no event in the model's life.
    async fn validate(&self, entry: &Entry, files: VersionFiles, expected: Expected) -> Result<ReloadReport> {
        let started = Instant::now();
        let files = self.materialize(files).await?;
        let room = self.room(entry, &files).await?;
        let Prepared { servable, phases, warmup, check, .. } =
            self.prepare(entry, files, expected, room, Urgency::Patient).await?;
        let status = entry.status();
        let live = status.live.map(|live| live.version);
        let report = ReloadReport {
            model: entry.name().clone(),
            previous: live,
            live,
            generation: status.generation,
            sha256: servable.sha256.clone(),
            weights_sha256: servable.weights_sha256.clone(),
            bytes: servable.bytes,
            phases: Phases { total: started.elapsed(), ..phases },
            warmup,
            check,
            validated_only: true,
        };
        self.discard(servable).await;
        Ok(report)
    }

    /// Prepares a version, unless it is loaded already, and swaps it in. What stood there before is to be drained, and the
    /// slot beside it that it came from to be emptied.
    async fn replace(
        &self,
        entry: &Entry,
        order: Order,
        generation: Generation,
        started: Instant,
    ) -> Result<(ReloadReport, Option<Arc<Servable>>, Option<Side>)> {
        let Order { files, expected, holding, keep, room, urgency, .. } = order;
        let mut stepped_aside = None;
        let is_expected = |side: &Side| expected.is_of(&side.servable);
        let side = entry.side_of(&files).filter(is_expected);
        let (servable, files, mut phases, warmup, check, measured) = match &side {
            Some(side) => {
                let (servable, files) = (side.servable.clone(), side.files.clone());
                let nothing = (Phases::default(), WarmupReport::default(), CheckReport::default());
                (servable, files, nothing.0, nothing.1, nothing.2, side.measured.clone())
            }
            None => {
                let files = self.materialize(files).await?;
                let room = match room {
                    Some(room) => room,
                    None => {
                        let (room, old) = self.room_to_replace(entry, &files).await?;
                        stepped_aside = old;
                        room
                    }
                };
                let Prepared { servable, phases, warmup, check, measured, .. } =
                    self.prepare(entry, files.clone(), expected, room, urgency).await?;
                (servable, files, phases, warmup, check, measured)
            }
        };
        if !entry.is_newest(generation) {
            if side.is_none() {
                self.discard(servable).await;
            }
            return Err(entry.superseded());
        }
        let swapping = Instant::now();
        // First beside, then out of the way: whoever wants this very version finds it at every moment.
        let kept = keep.then(|| entry.keep_live_beside()).is_some_and(|kept| kept);
        entry.slot.profile().renew(&measured);
        let old = entry.slot.swap(Some(servable.clone()));
        entry.slot.touch(swapping);
        phases.swap = swapping.elapsed();
        phases.total = started.elapsed();
        entry.went_live(&servable, files, generation, holding);
        entry.rollouts.lock().accept(servable.version);
        let side = entry.take_beside(servable.version);
        let report = ReloadReport {
            model: entry.name().clone(),
            previous: old.as_ref().map(|old| old.version).or(stepped_aside),
            live: Some(servable.version),
            generation,
            sha256: servable.sha256.clone(),
            weights_sha256: servable.weights_sha256.clone(),
            bytes: servable.bytes,
            phases,
            warmup,
            check,
            validated_only: false,
        };
        Ok((report, old.filter(|_| !kept), side))
    }

    /// Waits until nobody else holds `old`, then drops it on a loader thread. Nobody can get hold of it any more, so
    /// the count only falls.
    pub(super) async fn drain(&self, old: Arc<Servable>) {
        if !self.until_let_go(&old).await {
            tracing::warn!(version = %old.version, "requests are still running on the old version: it is dropped after them");
        }
        self.discard(old).await;
    }

    /// Waits until nobody else holds it, as long as a drain may take. False: somebody still does.
    pub(super) async fn until_let_go<T>(&self, held: &Arc<T>) -> bool {
        let give_up = Instant::now() + self.config.drain;
        let mut pause = Duration::from_micros(200);
        while Arc::strong_count(held) > 1 && Instant::now() < give_up {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(10));
        }
        Arc::strong_count(held) == 1
    }
}
