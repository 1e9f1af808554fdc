//! What the manager knows of one model beside its slot.

mod rest;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use rest::Rest;
pub(super) use rest::{Arrival, Demand, Demanded};

use super::{
    Expected, LiveStatus, LoadedStatus, ModelState, ModelStatus, Phases, beside::Side, flight::Shared,
    rollouts::Rollouts,
};
use crate::{
    backend::Servable,
    error::{Error, Reason, Result},
    model::{Generation, Label, ModelName, Version},
    registry::{Beside, ModelSlot},
    repository::{Found, VersionFiles},
};

/// One model. The async lock is single flight; the plain one guards facts and is never held across an await.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) slot: Arc<ModelSlot>,
    /// Held by the one change that is under way.
    turn: tokio::sync::Mutex<()>,
    /// Held while it is brought in line with what is on disk.
    syncing: Arc<tokio::sync::Mutex<()>>,
    newest: watch::Sender<Newest>,
    pub(super) shared: Shared,
    facts: Mutex<Facts>,
    /// Locked after `facts`, where both are.
    pub(super) rollouts: Mutex<Rollouts>,
}

/// The newest change, and how many that somebody asked for wait for their turn.
#[derive(Debug, Clone, Copy, Default)]
struct Newest {
    generation: Generation,
    waiting: usize,
}

/// A change that somebody asked for, until it has its turn; or an upload, until it is decided what becomes of it.
#[derive(Debug)]
pub(super) struct Waiting<'a> {
    entry: &'a Entry,
    pub(super) generation: Generation,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.entry.newest.send_modify(|newest| newest.waiting -= 1);
    }
}

pub(super) type Turn<'a> = tokio::sync::MutexGuard<'a, ()>;

/// Somebody chose what is live: what is on disk does not change that until something newer is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hold {
    /// The newest version on disk at that time, and what its files were.
    newest: Option<(Version, u64)>,
}

impl Hold {
    pub(super) fn at(found: &Found) -> Self {
        Self { newest: found.versions.last().map(|files| (files.version, files.stamp)) }
    }

    fn is_over(&self, found: &Found) -> bool {
        let newest = Self::at(found).newest;
        newest.is_some_and(|(version, stamp)| {
            self.newest.is_none_or(|(old, then)| version > old || version == old && stamp != then)
        })
    }
}

/// What a change does to a hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Holding {
    /// Leaves it.
    As,
    /// Ends it.
    End,
    /// Begins one.
    Begin(Hold),
}

#[derive(Debug, Default)]
struct Facts {
    versions: Vec<Version>,
    generation: Generation,
    live: Option<(LiveStatus, VersionFiles)>,
    previous: Option<Past>,
    beside: BTreeMap<Version, Side>,
    labels: BTreeMap<Label, Version>,
    rest: Rest,
    hold: Option<Hold>,
    /// It is forgotten: nothing may be loaded into it.
    retired: bool,
    /// What was on disk when it was last brought in line with that, and when to try again.
    synced: Option<(Found, Option<Instant>)>,
    failures: u32,
    /// What the model was said to be when it was last told what of that is not heeded.
    warned: Option<u64>,
    loading: Option<Loading>,
    last_error: Option<String>,
    last_phases: Option<Phases>,
}

impl Facts {
    fn hold(&mut self, holding: Holding) {
        match holding {
            Holding::As => {}
            Holding::End => self.hold = None,
            Holding::Begin(hold) => self.hold = Some(hold),
        }
    }
}

/// A version that is being loaded.
#[derive(Debug, Clone, Copy)]
pub(super) enum Loading {
    /// To take the live one's place.
    ToLive(Version),
    /// To stand beside it.
    Beside(Version),
}

impl Loading {
    fn version(self) -> Version {
        let (Self::ToLive(version) | Self::Beside(version)) = self;
        version
    }
}

/// What a rollback goes back to: the same files with the same digests.
#[derive(Debug, Clone)]
pub(super) struct Past {
    pub(super) files: VersionFiles,
    pub(super) expected: Expected,
}

impl Past {
    fn new(live: LiveStatus, files: VersionFiles) -> Self {
        let expected = Expected { sha256: Some(live.sha256), weights_sha256: live.weights_sha256 };
        Self { files, expected }
    }

    fn is(&self, live: &LiveStatus) -> bool {
        let Expected { sha256, weights_sha256 } = &self.expected;
        let same = sha256.as_ref() == Some(&live.sha256) && *weights_sha256 == live.weights_sha256;
        self.files.version == live.version && same
    }
}

impl Entry {
    pub(super) fn new(slot: Arc<ModelSlot>) -> Self {
        let turn = tokio::sync::Mutex::new(());
        Self {
            slot,
            turn,
            syncing: Arc::default(),
            newest: watch::Sender::default(),
            shared: Shared::default(),
            facts: Mutex::default(),
            rollouts: Mutex::default(),
        }
    }

    pub(super) fn name(&self) -> &ModelName {
        self.slot.name()
    }

    /// A new generation, asked for by somebody: from here on changes with older ones are abandoned.
    pub(super) fn begin(&self) -> Waiting<'_> {
        let mut generation = Generation::default();
        self.newest.send_modify(|newest| {
            newest.generation.0 += 1;
            newest.waiting += 1;
            generation = newest.generation;
        });
        Waiting { entry: self, generation }
    }

    pub(super) fn is_newest(&self, generation: Generation) -> bool {
        self.newest.borrow().generation == generation
    }

    /// Whether a change that somebody asked for waits, or an upload is on trial.
    pub(super) fn is_waited_for(&self) -> bool {
        self.newest.borrow().waiting > 0
    }

    /// Waits for the change before to end. A newer one that comes in meanwhile ends the wait: nothing has been done yet.
    pub(super) async fn turn(&self, waiting: Waiting<'_>) -> Result<Turn<'_>> {
        let mut newest = self.newest.subscribe();
        tokio::select! {
            biased;
            _ = newest.wait_for(|newest| newest.generation != waiting.generation) => Err(self.superseded()),
            turn = self.turn.lock() => {
                if self.facts.lock().retired { Err(self.gone()) } else { Ok(turn) }
            }
        }
    }

    fn gone(&self) -> Error {
        let message = format!("model '{}' was removed from the repositories meanwhile", self.name());
        Error::new(Reason::UnknownModel, message).with_field("model")
    }

    /// A turn and a generation that nobody asked for: it comes after all changes that somebody did ask for.
    /// `None`: such a change waits.
    pub(super) async fn quiet_turn(&self) -> Option<(Turn<'_>, Generation)> {
        let turn = self.turn.lock().await;
        self.begin_quietly().map(|generation| (turn, generation))
    }

    /// The caller has the turn.
    fn begin_quietly(&self) -> Option<Generation> {
        if self.facts.lock().retired {
            return None;
        }
        let mut generation = Generation::default();
        let begun = self.newest.send_if_modified(|newest| {
            let free = newest.waiting == 0;
            newest.generation.0 += u64::from(free);
            generation = newest.generation;
            free
        });
        begun.then_some(generation)
    }

    /// A turn to drop what nobody needs any more: it makes no other change out of date.
    pub(super) async fn turn_to_tidy(&self) -> Turn<'_> {
        self.turn.lock().await
    }

    pub(super) fn superseded(&self) -> Error {
        let message = format!("a newer change of model '{}' came in: this one was abandoned", self.name());
        Error::new(Reason::Superseded, message)
    }

    pub(super) fn set_versions(&self, versions: Vec<Version>) {
        self.facts.lock().versions = versions;
    }

    /// Logs what of the model's description is not heeded, unless that was done for the same `stamp` of it.
    pub(super) fn warn_once(&self, warnings: &[String], stamp: u64) {
        if self.facts.lock().warned.replace(stamp) == Some(stamp) {
            return;
        }
        for warning in warnings {
            tracing::warn!(target: "torchlane::load", model = %self.name(), "{warning}");
        }
    }

    pub(super) fn set_loading(&self, loading: Option<Loading>) {
        self.facts.lock().loading = loading;
    }

    pub(super) fn failed(&self, error: String) {
        let mut facts = self.facts.lock();
        facts.last_error = Some(error);
        if facts.live.is_none() {
            facts.rest.broke();
        }
    }

    pub(super) fn previous(&self) -> Option<Past> {
        self.facts.lock().previous.clone()
    }

    /// The slot now holds `servable`, loaded from `files`.
    pub(super) fn went_live(
        &self,
        servable: &Servable,
        files: VersionFiles,
        generation: Generation,
        holding: Holding,
    ) {
        let live = LiveStatus {
            version: servable.version,
            sha256: servable.sha256.clone(),
            weights_sha256: servable.weights_sha256.clone(),
            bytes: servable.bytes,
            memory_bytes: servable.memory_bytes,
            since: SystemTime::now(),
            signature: servable.signature.clone(),
            torch_version: servable.torch_version.clone(),
            max_batch: servable.max_batch,
            decisions: servable.decisions.clone(),
        };
        let mut facts = self.facts.lock();
        // What was evicted was live as far as a rollback is concerned.
        let away = facts.rest.take_away();
        let old = facts.live.take().map(|(old, files)| Past::new(old, files)).or(away);
        let is_this = |past: &Past| past.is(&live);
        match old {
            // The live version loaded again is no step: what was live before it still is what a rollback goes back to.
            Some(old) if is_this(&old) => {}
            Some(old) => facts.previous = Some(old),
            // After an unload it is what had been live then.
            None => facts.previous = facts.previous.take().filter(|past| !is_this(past)),
        }
        facts.live = Some((live, files));
        facts.rest.came();
        facts.hold(holding);
        facts.generation = generation;
        facts.last_error = None;
    }

    pub(super) fn went_away(&self, generation: Generation, holding: Holding) {
        let mut facts = self.facts.lock();
        facts.hold(holding);
        let away = facts.rest.take_away();
        facts.rest.gone();
        facts.previous = facts.live.take().map(|(old, files)| Past::new(old, files)).or(away);
        facts.generation = generation;
        facts.last_error = None;
    }

    /// What is live and what it was loaded from.
    pub(super) fn live(&self) -> Option<(Version, VersionFiles)> {
        self.facts.lock().live.as_ref().map(|(live, files)| (live.version, files.clone()))
    }

    /// Whether what is live is what somebody chose, seeing that `found` is on disk now.
    pub(super) fn is_held(&self, found: &Found) -> bool {
        let mut facts = self.facts.lock();
        facts.hold = facts.hold.take().filter(|hold| !hold.is_over(found));
        facts.hold.is_some()
    }

    /// Versions that are loaded beside the live one, and what each was loaded from.
    pub(super) fn beside(&self) -> Vec<VersionFiles> {
        self.facts.lock().beside.values().map(|side| side.files.clone()).collect()
    }

    /// The one that was loaded from these very files.
    pub(super) fn side_of(&self, files: &VersionFiles) -> Option<Side> {
        self.facts.lock().beside.get(&files.version).filter(|side| side.files == *files).cloned()
    }

    /// The one of that number.
    pub(super) fn side(&self, version: Version) -> Option<Side> {
        self.facts.lock().beside.get(&version).cloned()
    }

    /// Requests find it from now on. Gives back what had its place.
    pub(super) fn put_beside(&self, side: Side) -> Option<Side> {
        let mut facts = self.facts.lock();
        let old = facts.beside.insert(side.servable.version, side);
        self.publish(&facts);
        old
    }

    /// Puts what is live into a slot of its own too, so that it can leave this one. False: nothing is live.
    pub(super) fn keep_live_beside(&self) -> bool {
        let mut facts = self.facts.lock();
        let Some(files) = facts.live.as_ref().map(|(_, files)| files.clone()) else { return false };
        let Some(servable) = self.slot.standing() else { return false };
        let slot = Arc::new(self.slot.for_another(servable.clone()));
        facts.beside.insert(servable.version, Side { slot, servable, files, measured: Vec::new() });
        self.publish(&facts);
        true
    }

    /// Requests do not find it any more.
    pub(super) fn take_beside(&self, version: Version) -> Option<Side> {
        let mut facts = self.facts.lock();
        let side = facts.beside.remove(&version);
        self.publish(&facts);
        side
    }

    pub(super) fn set_labels(&self, labels: BTreeMap<Label, Version>) {
        let mut facts = self.facts.lock();
        facts.labels = labels;
        self.publish(&facts);
    }

    fn publish(&self, facts: &Facts) {
        let slots = facts.beside.iter().map(|(version, side)| (*version, side.slot.clone())).collect();
        let split = self.rollouts.lock().split();
        self.slot.set_beside(Beside { slots, labels: facts.labels.clone(), split });
    }

    /// A rollout has changed: requests are split by it from now on.
    pub(super) fn republish(&self) {
        self.publish(&self.facts.lock());
    }

    /// `None`: somebody is at it already.
    pub(super) fn sync_alone(&self) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        self.syncing.clone().try_lock_owned().ok()
    }

    /// The model is forgotten: who still has this entry must not load anything into it.
    pub(super) fn retire(&self) {
        self.facts.lock().retired = true;
    }

    /// Whether it has been brought in line with `found` already, and it is not time to try again.
    pub(super) fn is_synced(&self, found: &Found, now: Instant) -> bool {
        let facts = self.facts.lock();
        let again = |again: &Option<Instant>| again.is_some_and(|again| again <= now);
        facts.synced.as_ref().is_some_and(|(with, at)| with == found && !again(at))
    }

    /// It has been brought in line with `found`, or that failed: then it is tried again after ever longer times.
    pub(super) fn set_synced(&self, found: Found, well: bool, now: Instant) {
        let mut facts = self.facts.lock();
        let changed = facts.synced.as_ref().is_none_or(|(with, _)| *with != found);
        facts.failures = if well || changed { 0 } else { facts.failures.saturating_add(1) };
        let wait = super::sync::AGAIN * 2_u32.saturating_pow(facts.failures.min(16));
        let again = (!well).then(|| now + wait.min(super::sync::AGAIN_AT_MOST));
        facts.synced = Some((found, again));
    }

    pub(super) fn set_phases(&self, phases: Phases) {
        self.facts.lock().last_phases = Some(phases);
    }

    pub(super) fn status(&self) -> ModelStatus {
        let facts = self.facts.lock();
        let live = facts.live.as_ref().map(|(live, _)| live.clone());
        let state = match (live.is_some(), matches!(facts.loading, Some(Loading::ToLive(_)))) {
            (true, false) => ModelState::Ready,
            (true, true) => ModelState::Reloading,
            (false, true) => ModelState::Loading,
            (false, false) if facts.rest.answers() => ModelState::OnDemand,
            (false, false) if facts.last_error.is_some() => ModelState::Failed,
            (false, false) => ModelState::Unloaded,
        };
        let beside = facts.beside.values().map(|side| side.servable.memory_bytes);
        let resident = live.iter().map(|live| live.memory_bytes).chain(beside).fold(0, u64::saturating_add);
        ModelStatus {
            name: self.name().clone(),
            state,
            live,
            previous: facts.previous.as_ref().map(|past| past.files.version),
            versions: facts.versions.clone(),
            generation: facts.generation,
            loading: facts.loading.map(Loading::version),
            loaded: facts.beside.values().map(|side| LoadedStatus::of(&side.servable)).collect(),
            labels: facts.labels.clone(),
            rollout: self.rollouts.lock().brief(),
            load: facts.rest.load(),
            on_demand: facts.rest.answers(),
            resident_bytes: resident,
            last_error: facts.last_error.clone(),
            last_phases: facts.last_phases,
            breaker_open: self.slot.lease().is_some_and(|lease| lease.breaker.is_open()),
        }
    }
}
