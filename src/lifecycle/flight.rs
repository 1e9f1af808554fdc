//! Callers that ask for the same change of a model at the same time share one: it is carried out once, and all have its outcome.

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Expected, ReloadReport, entry::Waiting};
use crate::{
    error::{Error, Reason, Result},
    model::Generation,
    repository::VersionFiles,
};

type Outcome = Option<Result<ReloadReport>>;

/// The reload of a model that others may join.
#[derive(Debug, Default)]
pub(super) struct Shared(Mutex<Option<Underway>>);

#[derive(Debug)]
struct Underway {
    files: VersionFiles,
    expected: Expected,
    generation: Generation,
    outcome: watch::Receiver<Outcome>,
}

/// What a caller is to do.
pub(super) enum Share<'a> {
    /// It carries the change out, and says what came of it.
    Leads(Waiting<'a>, Leading),
    /// Another does.
    Joins(Joining),
}

/// By this others hear of the outcome. If it is dropped before, the change was broken off.
#[derive(Debug)]
pub(super) struct Leading(watch::Sender<Outcome>);

impl Leading {
    pub(super) fn ended(self, outcome: &Result<ReloadReport>) {
        self.0.send_replace(Some(outcome.clone()));
    }
}

/// A place among those that wait for the outcome.
#[derive(Debug)]
pub(super) struct Joining(watch::Receiver<Outcome>);

impl Joining {
    pub(super) async fn outcome(mut self) -> Result<ReloadReport> {
        let broken_off = || {
            let message = "another caller's reload of the same files was broken off: try again";
            Err(Error::new(Reason::Internal, message))
        };
        let outcome = self.0.wait_for(Option::is_some).await;
        outcome.ok().and_then(|outcome| outcome.clone()).unwrap_or_else(broken_off)
    }
}

impl Shared {
    /// Joins the reload of the very same files, unless something newer has come since. Otherwise `begin`s one.
    pub(super) fn share<'a>(
        &self,
        files: &VersionFiles,
        expected: &Expected,
        is_newest: impl FnOnce(Generation) -> bool,
        begin: impl FnOnce() -> Waiting<'a>,
    ) -> Share<'a> {
        let mut shared = self.0.lock();
        if let Some(underway) = shared.as_ref()
            && (&underway.files, &underway.expected) == (files, expected)
            && underway.outcome.borrow().is_none()
            && underway.outcome.has_changed().is_ok()
            && is_newest(underway.generation)
        {
            return Share::Joins(Joining(underway.outcome.clone()));
        }
        let waiting = begin();
        let (leads, outcome) = watch::channel(None);
        let (files, expected, generation) = (files.clone(), expected.clone(), waiting.generation);
        *shared = Some(Underway { files, expected, generation, outcome });
        Share::Leads(waiting, Leading(leads))
    }
}
