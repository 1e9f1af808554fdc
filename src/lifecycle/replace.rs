//! Loads a version and puts it in the place of the live one.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Change, CheckReport, Expected, Phases, Prepared, ReloadReport, WarmupReport,
    beside::Side,
    entry::{Entry, Loading, Turn},
    manager::{Manager, Order},
    told::Told,
};
use crate::{
    admission::ControlPlace,
    backend::Servable,
    error::{Reason, Result},
    loader::Urgency,
    model::Generation,
    repository::VersionFiles,
};

impl Manager {
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
    pub(super) async fn validate(
        &self,
        entry: &Entry,
        files: VersionFiles,
        expected: Expected,
    ) -> Result<ReloadReport> {
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
        // First beside, then out of the way: a request for this very version finds it at every moment.
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

    /// Waits until nothing else holds `old`, then drops it on a loader thread. No request can get hold of it any more, so
    /// the count only falls.
    pub(super) async fn drain(&self, old: Arc<Servable>) {
        if !self.until_let_go(&old).await {
            tracing::warn!(version = %old.version, "requests are still running on the old version: it is dropped after them");
        }
        self.discard(old).await;
    }

    /// Waits until nothing else holds it, as long as a drain may take. False: something still does.
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
