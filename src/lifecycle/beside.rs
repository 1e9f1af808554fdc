//! Versions that are loaded beside the live one: each in a slot of its own, warmed up as if it were to go live, so that it
//! can take the live one's place at once.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Asker, Change, Manager, Prepared, entry::Entry, manager::Told};
use crate::{
    backend::Servable,
    error::{Error, Reason, Result},
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
        let told = |error: Option<&Error>| Told {
            version: Some(version),
            error: error.cloned(),
            asker: asker.clone(),
        };
        self.announce(entry, Change::LoadingBeside, told(None));
        let outcome = match self.room(entry, &files).await {
            Ok(room) => self.prepare(entry, files.clone(), None, room).await,
            Err(error) => Err(error),
        };
        let Prepared { servable, measured, .. } = match outcome {
            Ok(prepared) if entry.is_newest(generation) => prepared,
            Ok(prepared) => {
                self.discard(prepared.servable).await;
                let error = entry.superseded();
                self.announce(entry, Change::Abandoned, told(Some(&error)));
                return Err(error);
            }
            Err(error) => {
                let error = error.within(format!("version {version}"));
                let change =
                    if error.reason() == Reason::ShuttingDown { Change::Abandoned } else { Change::Failed };
                if change == Change::Failed {
                    entry.failed(error.to_string());
                }
                self.announce(entry, change, told(Some(&error)));
                return Err(error);
            }
        };
        let slot = Arc::new(entry.slot.for_another(servable.clone()));
        slot.profile().renew(&measured);
        let replaced = entry.put_beside(Side { slot, servable, files, measured });
        self.announce(entry, Change::LoadedBeside, told(None));
        if let Some(old) = replaced {
            self.empty(old).await;
        }
        Ok(())
    }

    /// Drops a version that is loaded beside the live one, once its requests have ended.
    pub(super) async fn drop_beside(&self, entry: &Entry, version: Version, asker: &Asker) {
        if let Some(side) = entry.take_beside(version) {
            let told = Told { version: Some(version), error: None, asker: asker.clone() };
            self.announce(entry, Change::DroppedBeside, told);
            self.empty(side).await;
        }
    }

    /// Waits until no request knows the slot any more, and drops what stands in it if it stands nowhere else.
    pub(super) async fn empty(&self, side: Side) {
        let Side { slot, servable, .. } = side;
        let give_up = Instant::now() + self.config.drain;
        let mut pause = Duration::from_micros(200);
        while Arc::strong_count(&slot) > 1 && Instant::now() < give_up {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(10));
        }
        drop(slot.swap(None));
        self.discard(servable).await;
    }
}
