//! Makes room for what is to be loaded, within the memory budget.

use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

use bytesize::ByteSize;
use tokio::time::Instant;

use super::{
    Asker, Change, Manager,
    entry::{Demanded, Entry},
    told::Told,
};
use crate::{
    backend::Servable,
    error::{Error, Reason, Result},
    files,
    model::{LoadMode, ModelName, Version},
    repository::VersionFiles,
    residency::{ReloadPolicy, Reservation, Room, Shortage, Standing},
};

/// Longest that a load waits for models that are in use. What is used for longer without a pause is wanted more.
const PATIENCE: Duration = Duration::from_secs(30);
/// Requests that end are not told of: so often is looked.
const LOOK: Duration = Duration::from_millis(5);

/// What is to be done with a model that is not loaded and that nobody has asked for.
#[derive(Debug)]
pub(super) enum Resting {
    /// It is left to its first request.
    Left,
    /// It is to be loaded; the room for it, where it was free.
    Load(Option<Reservation>),
}

impl Manager {
    /// What a version will take: what it took when it was loaded before, else by its files.
    ///
    /// # Errors
    /// The file system does not answer.
    async fn estimate(&self, entry: &Entry, files: &VersionFiles) -> Result<u64> {
        if let Some(bytes) = entry.footprint(files) {
            return Ok(bytes);
        }
        let (backend, of) = (self.backend.clone(), files.clone());
        let estimate = move || {
            let files: Vec<&Path> =
                std::iter::once(of.archive.as_path()).chain(of.weights.as_deref()).collect();
            backend.memory_estimate(&files)
        };
        Ok(files::run(files.place(), files::LOOK, estimate).await?)
    }

    /// Whether a model that is not loaded is to be, though no request has asked for it.
    ///
    /// # Errors
    /// The file system does not answer.
    pub(super) async fn resting(&self, entry: &Entry, files: &VersionFiles) -> Result<Resting> {
        let load = entry.load();
        if load == LoadMode::Lazy || load == LoadMode::Eager && entry.is_on_demand() {
            return Ok(Resting::Left);
        }
        let bytes = self.estimate(entry, files).await?;
        Ok(match self.config.memory.spare(entry.name(), bytes) {
            None if load == LoadMode::Eager => {
                tracing::info!(model = %entry.name(), bytes, "no room in memory.budget: it is left to its first request");
                Resting::Left
            }
            room => Resting::Load(room),
        })
    }

    /// Reserves what a version is thought to take. Models that nobody uses go for it, the one first that was used longest
    /// ago.
    ///
    /// # Errors
    /// It cannot be made to fit, or not in time.
    pub(super) async fn room(&self, entry: &Entry, files: &VersionFiles) -> Result<Reservation> {
        let bytes = self.estimate(entry, files).await?;
        self.room_for(entry, bytes).await
    }

    async fn room_for(&self, entry: &Entry, bytes: u64) -> Result<Reservation> {
        let give_up = Instant::now() + PATIENCE;
        // A load that only waits holds nothing that others need to load.
        let mut outside: Option<Arc<Demanded>> = None;
        loop {
            if let Some(room) = self.make_room(entry, bytes).await? {
                if let Some(demanded) = outside {
                    demanded.step_in().await;
                }
                return Ok(room);
            }
            outside = outside.or_else(|| entry.demanded().filter(|demanded| demanded.step_out()));
            if Instant::now() >= give_up {
                let message = format!(
                    "model '{}' needs {} of memory.budget, and all models that could go for it have been in use for {PATIENCE:?}",
                    entry.name(),
                    ByteSize(bytes)
                );
                return Err(Error::new(Reason::MemoryBudget, message).with_retry_after(PATIENCE));
            }
            let _looks = tokio::time::timeout(LOOK, self.config.memory.changed()).await;
        }
    }

    /// Reserves room, and evicts for it what nobody uses. `None`: what could go is in use.
    async fn make_room(&self, entry: &Entry, bytes: u64) -> Result<Option<Reservation>> {
        let memory = &self.config.memory;
        // What is evicted for one load is not for another that comes in between.
        let _order = memory.order().await;
        loop {
            let victims = match memory.admit(entry.name(), bytes, &self.standings()) {
                Room::Reserved(room) => return Ok(Some(room)),
                Room::Refused(shortage) => return Err(refusal(entry.name(), shortage)),
                Room::Evict(victims) => victims,
                Room::Wait => return Ok(None),
            };
            let evictions = victims.iter().map(|victim| self.evict(victim));
            if !futures::future::join_all(evictions).await.contains(&true) {
                return Ok(None);
            }
        }
    }

    /// Room for a version that replaces the live one. Where both do not fit together the policy decides. Gives back what
    /// had to go first.
    pub(super) async fn room_to_replace(
        &self,
        entry: &Entry,
        files: &VersionFiles,
    ) -> Result<(Reservation, Option<Version>)> {
        let refused = match self.room(entry, files).await {
            Ok(room) => return Ok((room, None)),
            Err(error) => error,
        };
        if refused.reason() != Reason::MemoryBudget
            || self.config.residency.reload != ReloadPolicy::UnloadFirst
        {
            return Err(refused);
        }
        let Some(old) = entry.step_aside() else { return Err(refused) };
        tracing::info!(model = %entry.name(), version = %old, "old and new version do not fit memory.budget together: the old one goes first");
        let give_up = Instant::now() + self.config.drain;
        while entry.slot.in_use() > 0 && Instant::now() < give_up {
            tokio::time::sleep(LOOK).await;
        }
        let servable = entry.slot.swap(None);
        entry.slot.reopen();
        if let Some(servable) = servable {
            self.drain(servable).await;
        }
        Ok((self.room(entry, files).await?, Some(old)))
    }

    /// A version has been loaded: it is booked with what it takes. What is more than was thought needs room too.
    ///
    /// # Errors
    /// There is none: the version must not go live.
    pub(super) async fn book(
        &self,
        entry: &Entry,
        files: &VersionFiles,
        servable: &Servable,
        room: Reservation,
    ) -> Result<()> {
        let (thought, takes) = (room.bytes(), servable.memory_bytes);
        // Whatever becomes of it: the next estimate is better.
        entry.remember_footprint(files, takes);
        let more = match takes.checked_sub(thought).filter(|more| *more > 0) {
            Some(more) => self.room_for(entry, more).await.map(Some),
            None => Ok(None),
        };
        let booked = more.map(|more| {
            if let Some(more) = more {
                room.absorb(more);
            }
            room.settle(takes);
        });
        // It is freed with the version, also where that is dropped at once.
        let _once = servable.memory.set(room);
        booked.map_err(|error| {
            error.within(format!("it takes {} where {} were expected", ByteSize(takes), ByteSize(thought)))
        })
    }

    /// How all models stand that have something loaded.
    fn standings(&self) -> HashMap<ModelName, Standing> {
        let entries = self.entries.lock();
        let names = self.config.memory.models();
        let standing = |name: ModelName| {
            let standing = entries.get(&name)?.standing();
            Some((name, standing))
        };
        names.into_iter().filter_map(standing).collect()
    }

    /// Drops every version of a model that nobody uses: the next request loads it again. False: somebody uses it or
    /// changes it after all.
    async fn evict(&self, name: &ModelName) -> bool {
        let Some(entry) = self.entries.lock().get(name).cloned() else { return false };
        let Some((turn, generation)) = entry.free_turn() else { return false };
        let Some(evicted) = entry.evict_idle(generation) else { return false };
        self.config.memory.evicted(name);
        let told = Told::of(Some(evicted.version), &Asker::Budget);
        self.announce(&entry, Change::Evicted, told);
        drop(turn);
        let sides = evicted.sides.into_iter().map(|side| side.servable);
        let all: Vec<Arc<Servable>> = evicted.old.into_iter().chain(sides).collect();
        for servable in all {
            self.drain(servable).await;
        }
        true
    }
}

fn refusal(model: &ModelName, shortage: Shortage) -> Error {
    let Shortage { bytes, budget, own, pinned } = shortage;
    let mut taken = Vec::new();
    if own > 0 {
        taken.push(format!("its versions in memory take {}", ByteSize(own)));
    }
    if pinned > 0 {
        taken.push(format!("pinned models take {}", ByteSize(pinned)));
    }
    let taken = if taken.is_empty() { String::new() } else { format!(", of which {}", taken.join(" and ")) };
    let hint = if own > 0 { ", or set memory.reload = 'unload_first'" } else { "" };
    let message = format!(
        "model '{model}' needs {} of memory.budget = {}{taken}: raise it{hint}",
        ByteSize(bytes),
        ByteSize(budget)
    );
    Error::new(Reason::MemoryBudget, message)
}
