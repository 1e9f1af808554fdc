//! What changes of models do to the metrics.

use super::{InfoLabels, Metrics, PhaseLabels, RELOADS, ReloadLabels};
use crate::lifecycle::{Asker, Change, ModelEvent, Phases};

impl Metrics {
    fn residency_event(&self, event: &ModelEvent) {
        let cause = match &event.asker {
            Some(Asker::Start) => "start",
            Some(Asker::Repository) => "repository",
            Some(Asker::Request) => "request",
            Some(Asker::Caller(_)) => "caller",
            Some(Asker::Rollout) => "rollout",
            Some(Asker::Budget) | None => {
                if event.change == Change::Evicted {
                    self.residency.evicted();
                }
                return;
            }
        };
        let undone = event.change == Change::RolledBack && event.error.is_none();
        if undone || matches!(event.change, Change::Ready | Change::Reloaded) {
            self.residency.went_live(cause);
        }
    }

    /// Notes a change of a model.
    pub fn model_event(&self, event: &ModelEvent) {
        self.residency_event(event);
        let model = event.model.name.to_string();
        if event.change == Change::Removed {
            return self.forget(&model);
        }
        if event.change.retires() {
            let status = &event.model;
            let stay = status.live.iter().map(|live| live.version);
            let stay = stay.chain(status.previous).chain(status.loading);
            let stay: Vec<_> = stay.chain(status.loaded.iter().map(|loaded| loaded.version)).collect();
            self.requests.keep_only(&model, &stay);
        }
        let result = match event.change {
            Change::Ready | Change::Reloaded => Some("ok"),
            // A caller went back. The end of a rollout has an error.
            Change::RolledBack if event.error.is_none() => Some("ok"),
            Change::Failed => Some("failed"),
            _ => None,
        };
        if let Some(result) = result {
            self.reloads.get_or_create(&ReloadLabels { model: model.clone(), result }).inc();
        }
        if let Some(phases) = event.model.last_phases {
            self.phases(&model, phases);
        }
        let rollout = event.model.rollout.map(|rollout| (rollout.version, rollout.state.as_str()));
        self.rollouts.is_at(event.model.name.as_str(), rollout);
        let mut live = self.live.lock();
        if let Some(old) = live.remove(&model) {
            self.info.remove(&old);
        }
        if let Some(now) = &event.model.live {
            let labels = InfoLabels {
                model: model.clone(),
                version: now.version.to_string(),
                sha256: now.sha256.clone(),
            };
            self.info.get_or_create(&labels).set(1);
            live.insert(model, labels);
        }
    }

    /// A model is gone, and all of its series with it.
    fn forget(&self, model: &str) {
        let of = || model.to_owned();
        self.requests.forget(model);
        for result in RELOADS {
            self.reloads.remove(&ReloadLabels { model: of(), result });
        }
        for (phase, _) in Phases::default().named() {
            self.phases.remove(&PhaseLabels { model: of(), phase });
        }
        if let Some(old) = self.live.lock().remove(model) {
            self.info.remove(&old);
        }
        self.rollouts.forget(model);
        self.cache.forget(model);
    }

    pub(super) fn phases(&self, model: &str, phases: Phases) {
        for (phase, took) in phases.named().into_iter().filter(|(phase, _)| *phase != "total") {
            self.phases
                .get_or_create(&PhaseLabels { model: model.to_owned(), phase })
                .set(took.as_secs_f64());
        }
    }
}
