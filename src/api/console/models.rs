//! Models as the console lists them.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

use super::{
    Console,
    overview::{self, MomentView, ReasonView},
    rollout::{RolloutView, time},
};
use crate::{
    lifecycle::{LoadedStatus, ModelStatus, RolloutStatus},
    registry::{ModelSlot, Registry},
};

/// A model. Versions are texts: numbers of 64 bits are more than JavaScript's hold.
#[derive(Debug, Serialize)]
pub(super) struct ModelView {
    name: String,
    state: &'static str,
    live_version: Option<String>,
    live_since: Option<String>,
    /// What a rollback goes back to.
    previous_version: Option<String>,
    /// Beside the live one.
    loaded: Vec<LoadedView>,
    labels: BTreeMap<String, String>,
    generation: u64,
    /// Of the live archive.
    sha256: Option<String>,
    bytes: Option<u64>,
    /// Memory of all its versions.
    resident_bytes: u64,
    /// `eager`, `lazy` or `pinned`.
    load: &'static str,
    last_error: Option<String>,
    /// The live version only fails: requests are rejected except for trials.
    breaker_open: bool,
    #[serde(flatten)]
    counted: Counted,
    /// The last hour. `None`: nobody asked it for anything.
    hour: Option<HourView>,
    /// The one under way; where the model is told of alone, else the last one.
    rollout: Option<RolloutView>,
}

#[derive(Debug, Serialize)]
struct LoadedView {
    version: String,
    sha256: String,
    bytes: u64,
}

/// What its versions have done since they were loaded. A reload begins at 0 again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct Counted {
    answered: u64,
    failed: u64,
}

/// All of them, in the order of `statuses`.
pub(super) fn list(
    console: &Console,
    statuses: &[ModelStatus],
    registry: Option<&Registry>,
) -> Vec<ModelView> {
    let manager = &console.with.manager;
    let view = |status: &ModelStatus| {
        let slot = registry.and_then(|registry| registry.get(status.name.as_str()));
        // What it has come to is read only where there is something to be read.
        let rollout = status.rolling_out().and_then(|_| manager.rollout(status.name.as_str()).ok().flatten());
        let counted = slot.as_ref().map(Counted::new).unwrap_or_default();
        ModelView::new(status, counted, HourView::of(console, status.name.as_str()), rollout.as_ref())
    };
    statuses.iter().map(view).collect()
}

/// A model's requests, whatever version they were for.
#[derive(Debug, Serialize)]
pub(super) struct HourView {
    #[serde(flatten)]
    whole: MomentView,
    /// The most frequent first.
    reasons: Vec<ReasonView>,
}

impl HourView {
    /// Of that model.
    pub(super) fn of(console: &Console, model: &str) -> Option<Self> {
        let curve = console.with.metrics.recent()?.model(model)?;
        Some(Self { whole: MomentView::new(curve.whole), reasons: overview::reasons(curve.reasons) })
    }
}

impl ModelView {
    pub(super) fn new(
        status: &ModelStatus,
        counted: Counted,
        hour: Option<HourView>,
        rollout: Option<&RolloutStatus>,
    ) -> Self {
        let live = status.live.as_ref();
        Self {
            name: status.name.to_string(),
            state: status.state.as_str(),
            live_version: live.map(|live| live.version.to_string()),
            live_since: live.map(|live| time(live.since)),
            previous_version: status.previous.map(|version| version.to_string()),
            loaded: status.loaded.iter().map(LoadedView::new).collect(),
            labels: status
                .labels
                .iter()
                .map(|(label, version)| (label.to_string(), version.to_string()))
                .collect(),
            generation: status.generation.0,
            sha256: live.map(|live| live.sha256.clone()),
            bytes: live.map(|live| live.bytes),
            resident_bytes: status.resident_bytes,
            load: status.load.as_str(),
            last_error: status.last_error.clone(),
            breaker_open: status.breaker_open,
            counted,
            hour,
            rollout: rollout.map(RolloutView::new),
        }
    }
}

impl LoadedView {
    fn new(loaded: &LoadedStatus) -> Self {
        let LoadedStatus { version, sha256, bytes, .. } = loaded;
        Self { version: version.to_string(), sha256: sha256.clone(), bytes: *bytes }
    }
}

impl Counted {
    /// Of the version in that slot and of those beside it.
    pub(super) fn new(slot: &Arc<ModelSlot>) -> Self {
        let mut counted = Self::default();
        for lease in slot.all().iter().filter_map(|slot| slot.lease()) {
            let (answered, failed) = lease.statistics.requests();
            counted.answered += answered;
            counted.failed += failed;
        }
        counted
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, SystemTime};

    use serde_json::json;

    use super::*;
    use crate::{
        lifecycle::{LiveStatus, ModelState},
        model::{Generation, LoadMode, Signature, Version},
    };

    pub(in super::super) fn status() -> ModelStatus {
        ModelStatus {
            name: "digits".parse().unwrap(),
            state: ModelState::Ready,
            live: Some(LiveStatus {
                version: Version(u64::MAX),
                sha256: "ab".repeat(32),
                weights_sha256: None,
                bytes: 1000,
                memory_bytes: 2000,
                since: SystemTime::UNIX_EPOCH + Duration::from_secs(86_400),
                signature: Arc::new(Signature::default()),
                torch_version: None,
                max_batch: 1,
                rows: Arc::default(),
                decisions: Arc::default(),
            }),
            previous: Some(Version(1)),
            versions: vec![Version(1), Version(u64::MAX)],
            generation: Generation(7),
            loading: None,
            loaded: vec![LoadedStatus {
                version: Version(3),
                sha256: "cd".repeat(32),
                bytes: 10,
                decisions: Arc::default(),
            }],
            labels: [("canary".parse().unwrap(), Version(3))].into(),
            rollout: None,
            load: LoadMode::Pinned,
            on_demand: false,
            resident_bytes: 2500,
            last_error: None,
            last_phases: None,
            breaker_open: true,
        }
    }

    #[test]
    fn a_model_is_told_in_words_and_numbers() {
        let counted = Counted { answered: 5, failed: 1 };
        let told = serde_json::to_value(ModelView::new(&status(), counted, None, None)).unwrap();
        let expected = json!({
            "name": "digits", "state": "ready", "live_version": "18446744073709551615",
            "live_since": "1970-01-02T00:00:00Z", "previous_version": "1",
            "loaded": [{"version": "3", "sha256": "cd".repeat(32), "bytes": 10}], "labels": {"canary": "3"},
            "generation": 7, "sha256": "ab".repeat(32), "bytes": 1000, "resident_bytes": 2500, "load": "pinned",
            "last_error": null, "answered": 5, "failed": 1, "breaker_open": true, "hour": null, "rollout": null,
        });
        assert_eq!(told, expected);
    }

    #[test]
    fn a_model_that_is_not_loaded_has_its_error() {
        let failed = ModelStatus {
            state: ModelState::Failed,
            live: None,
            loaded: Vec::new(),
            last_error: Some("load failed: broken".to_owned()),
            ..status()
        };
        let told = serde_json::to_value(ModelView::new(&failed, Counted::default(), None, None)).unwrap();
        assert_eq!((&told["state"], &told["live_version"]), (&json!("failed"), &json!(null)));
        assert_eq!((&told["last_error"], &told["sha256"]), (&json!("load failed: broken"), &json!(null)));
    }
}
