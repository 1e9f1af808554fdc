//! From files to a version that can go live: fetched, booked in the budget, prepared on a loader thread.

use std::sync::Arc;

use super::{LoadFailure, Manager, Preparation, Prepared, Progress, entry::Entry, prepare, warmup};
use crate::{
    backend::Servable,
    error::{Error, Reason, Result},
    loader::{Stopped, Urgency},
    repository::VersionFiles,
    residency::Reservation,
};

/// Digests that a version's files must have, hexadecimal; checked where they are given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expected {
    /// Of the archive.
    pub sha256: Option<String>,
    /// Of the weights that are laid over it.
    pub weights_sha256: Option<String>,
}

impl Expected {
    /// Whether a version that is loaded already is what was expected.
    pub(super) fn is_of(&self, servable: &Servable) -> bool {
        let same = |expected: &Option<String>, is: Option<&String>| {
            expected.as_ref().is_none_or(|expected| is.is_some_and(|is| expected.eq_ignore_ascii_case(is)))
        };
        same(&self.sha256, Some(&servable.sha256))
            && same(&self.weights_sha256, servable.weights_sha256.as_ref())
    }
}

impl Manager {
    /// Sees to it that the files are on this machine, and stay there while they are held.
    pub(super) async fn materialize(&self, files: VersionFiles) -> Result<VersionFiles> {
        Ok(self.config.repositories.materialize(files).await?)
    }

    pub(super) async fn prepare(
        &self,
        entry: &Entry,
        files: VersionFiles,
        expected: Expected,
        room: Reservation,
        urgency: Urgency,
    ) -> Result<Prepared> {
        let sources = files.clone();
        let (backend, rules) = (self.backend.clone(), self.config.rules.clone());
        let (served, slot) = (entry.slot.served().all(), entry.slot.clone());
        let model = entry.name().clone();
        let learned = warmup::learned(&slot.profile().points());
        let (limit, progress) = (self.config.load_limit, Progress::default());
        let told = progress.clone();
        let prepared = self
            .loader
            .run_within(limit, urgency, move || {
                let of = Preparation {
                    model: &model,
                    files: &files,
                    expected_sha256: expected.sha256.as_deref(),
                    expected_weights_sha256: expected.weights_sha256.as_deref(),
                    served: &served,
                    learned: &learned,
                    live: Some(&slot),
                    progress: told,
                    rules: &rules,
                };
                prepare(backend.as_ref(), &of)
            })
            .await
            .map_err(|stopped| match stopped {
                Stopped::Closed => {
                    Error::new(Reason::ShuttingDown, "the server is stopping: nothing was changed")
                }
                Stopped::Panicked => {
                    Error::new(Reason::Internal, "a bug in torchlane: the server's log says where")
                }
                Stopped::TimeLimit => LoadFailure::too_long(&progress, limit).into(),
                Stopped::NoThread => {
                    let message =
                        "every loader thread is held by a load that does not end: restart the server";
                    Error::new(Reason::LoadFailed, message)
                }
            })?;
        let prepared = prepared?;
        match self.book(entry, &sources, &prepared.servable, room).await {
            Ok(()) => Ok(prepared),
            Err(error) => {
                self.discard(prepared.servable).await;
                Err(error)
            }
        }
    }

    /// Drops a version on a loader thread.
    pub(super) async fn discard(&self, servable: Arc<Servable>) {
        let _closing = self.loader.run(move || drop(servable)).await;
    }
}
