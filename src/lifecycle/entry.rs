//! What the manager knows of one model beside its slot.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use parking_lot::Mutex;

use super::{LiveStatus, ModelState, ModelStatus, Phases};
use crate::{
    backend::Servable,
    model::{Generation, ModelName, Version},
    registry::ModelSlot,
    repository::VersionFiles,
};

/// One model. The async lock is single flight; the plain one guards facts and is never held across an await.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) slot: Arc<ModelSlot>,
    /// Held by the one change that is under way.
    pub(super) turn: tokio::sync::Mutex<()>,
    newest: AtomicU64,
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

/// What a rollback goes back to: the same files with the same digest.
#[derive(Debug, Clone)]
pub(super) struct Past {
    pub(super) files: VersionFiles,
    pub(super) sha256: String,
}

impl Entry {
    pub(super) fn new(slot: Arc<ModelSlot>) -> Self {
        let turn = tokio::sync::Mutex::new(());
        Self { slot, turn, newest: AtomicU64::new(0), facts: Mutex::default() }
    }

    pub(super) fn name(&self) -> &ModelName {
        self.slot.name()
    }

    /// A new generation: from here on changes with older ones are abandoned.
    pub(super) fn begin(&self) -> Generation {
        Generation(self.newest.fetch_add(1, Ordering::SeqCst) + 1)
    }

    pub(super) fn is_newest(&self, generation: Generation) -> bool {
        self.newest.load(Ordering::SeqCst) == generation.0
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
            bytes: servable.bytes,
            since: SystemTime::now(),
            signature: servable.signature.clone(),
            torch_version: servable.torch_version.clone(),
            max_batch: servable.max_batch,
        };
        let mut facts = self.facts.lock();
        facts.previous = facts.live.take().map(|(old, files)| Past { files, sha256: old.sha256 });
        facts.live = Some((live, files));
        facts.generation = generation;
        facts.last_error = None;
    }

    pub(super) fn went_away(&self, generation: Generation) {
        let mut facts = self.facts.lock();
        facts.previous = facts.live.take().map(|(old, files)| Past { files, sha256: old.sha256 });
        facts.generation = generation;
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
