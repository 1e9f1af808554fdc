//! What is said of a change: to the log, to those who watch, and to the observer.

use std::time::SystemTime;

use torchlane_engine::trace::ReloadEnd;

use super::{Asker, Change, Done, Manager, ModelEvent, Phases, entry::Entry};
use crate::{error::Error, model::Version};

/// What is said of a change beside the state that it leads to.
#[derive(Debug, Clone)]
pub(super) struct Told {
    pub(super) version: Option<Version>,
    pub(super) error: Option<Error>,
    pub(super) asker: Asker,
    pub(super) done: Option<Done>,
}

impl Told {
    pub(super) fn of(version: Option<Version>, asker: &Asker) -> Self {
        Self { version, error: None, asker: asker.clone(), done: None }
    }

    pub(super) fn failed(self, error: &Error) -> Self {
        Self { error: Some(error.clone()), ..self }
    }

    pub(super) fn done(self, previous: Option<Version>, phases: Phases) -> Self {
        Self { done: Some(Done { previous, phases }), ..self }
    }
}

impl Manager {
    /// Writes a load or reload down that has ended, drain included, where traces are asked for.
    pub(super) fn trace(&self, entry: &Entry, told: &Told) {
        if let (Some(traces), Some(version), Some(done)) = (&self.config.traces, told.version, told.done) {
            let Done { previous, phases } = done;
            let (model, asker, error) = (entry.name(), &told.asker, told.error.as_ref());
            let (asker, phases) = (asker.to_string(), phases.named());
            traces.reload(&ReloadEnd { model, version, previous, asker: &asker, phases: &phases, error });
        }
    }

    pub(super) fn announce(&self, entry: &Entry, change: Change, told: Told) {
        let Told { version, error, asker, done } = told;
        let event = ModelEvent {
            at: SystemTime::now(),
            model: entry.status(),
            change,
            version,
            error,
            asker: Some(asker),
            done,
        };
        let live = event.model.live.as_ref().map(|live| live.version.0);
        let (model, name, about) = (entry.name(), change.as_str(), version.map(|version| version.0));
        let asker = event.asker.as_ref().map(ToString::to_string);
        match &event.error {
            // What somebody or something newer wanted is no error.
            Some(error) if matches!(change, Change::Abandoned | Change::RolloutAborted) => {
                tracing::info!(target: "torchlane::models", %model, change = name, version = about, live, asker, "{}", error.for_log())
            }
            Some(error) => {
                tracing::error!(target: "torchlane::models", %model, change = name, version = about, live, asker, reason = error.reason().as_str(), "{}", error.for_log())
            }
            // There may be thousands of them at the start.
            None if change == Change::OnDemand => {
                tracing::debug!(target: "torchlane::models", %model, change = name, asker, "model changed")
            }
            None => {
                tracing::info!(target: "torchlane::models", %model, change = name, version = about, live, asker, "model changed")
            }
        }
        (self.observer)(&event);
        let _nobody_watches = self.events.send(event);
    }
}
