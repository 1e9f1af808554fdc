//! Versions that are loaded beside the live one: each in a slot of its own, warmed up as if it were to go live, so that it
//! can take the live one's place at once.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    Asker, Change, Expected, Manager, Phases, Prepared,
    entry::{Entry, Loading},
    told::Told,
};
use crate::{
    backend::Servable,
    error::{Reason, Result},
    model::{Generation, Version},
    registry::ModelSlot,
    repository::VersionFiles,
    sched::Measured,
};

/// One of them.
#[derive(Debug, Clone)]
pub(super) struct Side {
    /// Holds it.
    pub(super) slot: Arc<ModelSlot>,
    pub(super) servable: Arc<Servable>,
    /// What it was loaded from.
    pub(super) files: VersionFiles,
    /// What its passes took when it was warmed up.
    pub(super) measured: Vec<Measured>,
}

impl Manager {
    /// Loads a version beside the live one. The caller has the model's turn.
    pub(super) async fn load_beside(
        &self,
        entry: &Entry,
        files: VersionFiles,
        generation: Generation,
        asker: &Asker,
    ) -> Result<()> {
        let version = files.version;
        let (started, told) = (Instant::now(), Told::of(Some(version), asker));
        let previous = entry.live().map(|(version, _)| version);
        self.announce(entry, Change::LoadingBeside, told.clone());
        let outcome = async {
            let files = self.materialize(files).await?;
            let room = self.room(entry, &files).await?;
            Ok((self.prepare(entry, files.clone(), Expected::default(), room, asker.urgency()).await?, files))
        };
        entry.set_loading(Some(Loading::Beside(version)));
        let outcome: Result<_> = outcome.await;
        entry.set_loading(None);
        let (Prepared { servable, measured, phases, .. }, files) = match outcome {
            Ok(prepared) if entry.is_newest(generation) => prepared,
            Ok((prepared, _)) => {
                self.discard(prepared.servable).await;
                let error = entry.superseded();
                self.announce(entry, Change::Abandoned, told.failed(&error));
                return Err(error);
            }
            Err(error) => {
                let error = error.within(format!("version {version}"));
                let change =
                    if error.reason() == Reason::ShuttingDown { Change::Abandoned } else { Change::Failed };
                if change == Change::Failed {
                    entry.failed(error.to_string());
                }
                let phases = Phases { total: started.elapsed(), ..Phases::default() };
                let told = told.done(previous, phases).failed(&error);
                self.trace(entry, &told);
                self.announce(entry, change, told);
                return Err(error);
            }
        };
        let slot = Arc::new(entry.slot.for_another(servable.clone()));
        slot.profile().renew(&measured);
        let replaced = entry.put_beside(Side { slot, servable, files, measured });
        let phases = Phases { total: started.elapsed(), ..phases };
        let told = told.done(previous, phases);
        self.trace(entry, &told);
        self.announce(entry, Change::LoadedBeside, told);
        if let Some(old) = replaced {
            self.empty(old).await;
        }
        Ok(())
    }

    /// Drops a version that is loaded beside the live one, once its requests have ended.
    pub(super) async fn drop_beside(&self, entry: &Entry, version: Version, asker: &Asker) {
        if let Some(side) = entry.take_beside(version) {
            self.announce(entry, Change::DroppedBeside, Told::of(Some(version), asker));
            self.empty(side).await;
        }
    }

    /// Waits until no request knows the slot any more, and drops what stands in it if it stands nowhere else.
    pub(super) async fn empty(&self, side: Side) {
        let Side { slot, servable, .. } = side;
        let _patience_ended = self.until_let_go(&slot).await;
        drop(slot.swap(None));
        self.discard(servable).await;
    }
}
