//! What the manager knows of one model beside its slot.

use std::{sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Expected, LiveStatus, ModelState, ModelStatus, Phases};
use crate::{
    backend::Servable,
    error::{Error, Reason, Result},
    model::{Generation, ModelName, Version},
    registry::ModelSlot,
    repository::VersionFiles,
};

/// One model. The async lock is single flight; the plain one guards facts and is never held across an await.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) slot: Arc<ModelSlot>,
    /// Held by the one change that is under way.
    turn: tokio::sync::Mutex<()>,
    newest: watch::Sender<Generation>,
    facts: Mutex<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    versions: Vec<Version>,
    generation: Generation,
    live: Option<(LiveStatus, VersionFiles)>,
    previous: Option<Past>,
    busy: bool,
    last_error: Option<String>,
    last_phases: Option<Phases>,
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
        Self { slot, turn, newest: watch::Sender::default(), facts: Mutex::default() }
    }

    pub(super) fn name(&self) -> &ModelName {
        self.slot.name()
    }

    /// A new generation: from here on changes with older ones are abandoned.
    pub(super) fn begin(&self) -> Generation {
        let mut mine = Generation::default();
        self.newest.send_modify(|newest| {
            newest.0 += 1;
            mine = *newest;
        });
        mine
    }

    pub(super) fn is_newest(&self, generation: Generation) -> bool {
        *self.newest.borrow() == generation
    }

    /// Waits for the change before to end. A newer one that comes in meanwhile ends the wait: nothing has been done yet.
    pub(super) async fn turn(&self, generation: Generation) -> Result<tokio::sync::MutexGuard<'_, ()>> {
        let mut newest = self.newest.subscribe();
        tokio::select! {
            biased;
            _ = newest.wait_for(|newest| *newest != generation) => Err(self.superseded()),
            turn = self.turn.lock() => Ok(turn),
        }
    }

    pub(super) fn superseded(&self) -> Error {
        let message = format!("a newer change of model '{}' came in: this one was abandoned", self.name());
        Error::new(Reason::Superseded, message)
    }

    pub(super) fn set_versions(&self, versions: Vec<Version>) {
        self.facts.lock().versions = versions;
    }

    pub(super) fn set_busy(&self, busy: bool) {
        self.facts.lock().busy = busy;
    }

    pub(super) fn failed(&self, error: String) {
        self.facts.lock().last_error = Some(error);
    }

    pub(super) fn previous(&self) -> Option<Past> {
        self.facts.lock().previous.clone()
    }

    /// The slot now holds `servable`, loaded from `files`.
    pub(super) fn went_live(&self, servable: &Servable, files: VersionFiles, generation: Generation) {
        let live = LiveStatus {
            version: servable.version,
            sha256: servable.sha256.clone(),
            weights_sha256: servable.weights_sha256.clone(),
            bytes: servable.bytes,
            since: SystemTime::now(),
            signature: servable.signature.clone(),
            torch_version: servable.torch_version.clone(),
            max_batch: servable.max_batch,
        };
        let mut facts = self.facts.lock();
        let old = facts.live.take().map(|(old, files)| Past::new(old, files));
        let is_this = |past: &Past| past.is(&live);
        match old {
            // The live version loaded again is no step: what was live before it still is what a rollback goes back to.
            Some(old) if is_this(&old) => {}
            Some(old) => facts.previous = Some(old),
            // After an unload it is what had been live then.
            None => facts.previous = facts.previous.take().filter(|past| !is_this(past)),
        }
        facts.live = Some((live, files));
        facts.generation = generation;
        facts.last_error = None;
    }

    pub(super) fn went_away(&self, generation: Generation) {
        let mut facts = self.facts.lock();
        facts.previous = facts.live.take().map(|(old, files)| Past::new(old, files));
        facts.generation = generation;
        facts.last_error = None;
    }

    pub(super) fn set_phases(&self, phases: Phases) {
        self.facts.lock().last_phases = Some(phases);
    }

    pub(super) fn status(&self) -> ModelStatus {
        let facts = self.facts.lock();
        let live = facts.live.as_ref().map(|(live, _)| live.clone());
        let state = match (live.is_some(), facts.busy) {
            (true, false) => ModelState::Ready,
            (true, true) => ModelState::Reloading,
            (false, true) => ModelState::Loading,
            (false, false) if facts.last_error.is_some() => ModelState::Failed,
            (false, false) => ModelState::Unloaded,
        };
        ModelStatus {
            name: self.name().clone(),
            state,
            live,
            previous: facts.previous.as_ref().map(|past| past.files.version),
            versions: facts.versions.clone(),
            generation: facts.generation,
            last_error: facts.last_error.clone(),
            last_phases: facts.last_phases,
        }
    }
}
