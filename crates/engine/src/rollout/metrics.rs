//! Metrics of rollouts: few, and only of models that have one.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use torchlane_model::Version;

use super::{Ending, Side};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SideLabels {
    model: String,
    side: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    model: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    model: String,
    version: String,
    state: &'static str,
}

/// What is counted of rollouts.
#[derive(Debug, Default)]
pub struct RolloutMetrics {
    requests: Family<SideLabels, Counter>,
    fallbacks: Family<ModelLabel, Counter>,
    copies: Family<ResultLabels, Counter>,
    state: Family<StateLabels, Gauge>,
    shown: parking_lot::Mutex<std::collections::HashMap<String, StateLabels>>,
}

impl RolloutMetrics {
    /// Puts them into the catalogue.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "rollout_requests",
            "Requests of a model with a rollout by the version they were sent to",
            self.requests.clone(),
        );
        registry.register(
            "rollout_fallbacks",
            "Requests that the live version answered because the new one failed them",
            self.fallbacks.clone(),
        );
        registry.register(
            "rollout_copies",
            "Copies of requests run to compare two versions",
            self.copies.clone(),
        );
        registry.register("rollout_state", "1 for the state of a model's last rollout", self.state.clone());
    }

    /// A request that was sent to one side has ended.
    pub fn ended(&self, model: &str, side: Side, ending: &Ending) {
        let outcome = match ending {
            Ending::Answered { .. } => "ok",
            Ending::Failed => "failed",
            Ending::Late => "late",
        };
        let labels = SideLabels { model: model.to_owned(), side: side.as_str(), outcome };
        self.requests.get_or_create(&labels).inc();
    }

    /// The live version answered in the place of the new one.
    pub fn fell_back(&self, model: &str) {
        self.fallbacks.get_or_create(&ModelLabel { model: model.to_owned() }).inc();
    }

    /// What became of a copy: `same`, `different`, `failed` or `dropped`.
    pub fn mirrored(&self, model: &str, result: &'static str) {
        self.copies.get_or_create(&ResultLabels { model: model.to_owned(), result }).inc();
    }

    /// A model is gone, and all of its series with it.
    pub fn forget(&self, model: &str) {
        let of = || model.to_owned();
        for side in [Side::Live, Side::Candidate] {
            for outcome in ["ok", "failed", "late"] {
                self.requests.remove(&SideLabels { model: of(), side: side.as_str(), outcome });
            }
        }
        self.fallbacks.remove(&ModelLabel { model: of() });
        for result in ["same", "different", "failed", "dropped"] {
            self.copies.remove(&ResultLabels { model: of(), result });
        }
        if let Some(old) = self.shown.lock().remove(model) {
            self.state.remove(&old);
        }
    }

    /// What a model's last rollout is at, by its version.
    pub fn is_at(&self, model: &str, rollout: Option<(Version, &'static str)>) {
        let mut shown = self.shown.lock();
        if let Some(old) = shown.remove(model) {
            self.state.remove(&old);
        }
        if let Some((version, state)) = rollout {
            let labels = StateLabels { model: model.to_owned(), version: version.to_string(), state };
            self.state.get_or_create(&labels).set(1);
            shown.insert(model.to_owned(), labels);
        }
    }
}
