//! A model as the console shows it when it is opened: what it takes and returns, its versions, what passes take, and what became
//! of its changes.

use std::collections::BTreeSet;

use serde::Serialize;

use super::{
    Console,
    models::{Counted, HourView, ModelView},
    past::{self, ChangeView},
};
use crate::{
    error::Result,
    lifecycle::ModelStatus,
    model::{Decision, Signature, Step, TensorSpec, Version},
    sched::ProfilePoint,
};

/// Changes that are told of.
const CHANGES: usize = 50;

#[derive(Debug, Serialize)]
pub(super) struct Details {
    #[serde(flatten)]
    model: ModelView,
    description: String,
    /// `None`: it is not in memory.
    signature: Option<SignatureView>,
    /// Most rows in one pass.
    max_batch: Option<usize>,
    torch_version: Option<String>,
    /// What torchlane decided.
    decisions: Vec<DecisionView>,
    weights_sha256: Option<String>,
    /// Of an ensemble, as they are written down.
    steps: Vec<StepView>,
    /// On disk or loaded, the newest first.
    versions: Vec<VersionView>,
    profile: Vec<PointView>,
    /// The newest first.
    changes: Vec<ChangeView>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct DecisionView {
    /// `None`: the live one.
    version: Option<String>,
    #[serde(flatten)]
    decision: Decision,
}

#[derive(Debug, Serialize)]
struct SignatureView {
    /// As requests send them: the keys of a dict where they are declared.
    inputs: Vec<TensorView>,
    outputs: Vec<TensorView>,
}

#[derive(Debug, Serialize)]
struct TensorView {
    name: String,
    /// `None`: any.
    datatype: Option<&'static str>,
    /// -1 is any size. `None`: any shape.
    shape: Option<Vec<i64>>,
    optional: bool,
    script_type: String,
    labels: Vec<String>,
}

#[derive(Debug, Serialize)]
struct StepView {
    model: String,
    /// A number or a label. Empty: the live one.
    version: String,
    /// The ensemble's names of the tensors that it takes.
    takes: Vec<String>,
    /// And of those that it makes.
    makes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct VersionView {
    version: String,
    /// `live`, `loaded` (beside it), or `on_disk`.
    state: &'static str,
    /// A rollback goes back to it.
    is_previous: bool,
    labels: Vec<String>,
    /// Of one that is loaded.
    sha256: Option<String>,
    /// Likewise.
    bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct PointView {
    row_bytes: u64,
    rows: usize,
    mean_seconds: f64,
    deviation_seconds: f64,
    passes: u64,
}

/// The model of that name.
///
/// # Errors
/// There is none.
pub(super) fn read(console: &Console, name: &str) -> Result<Details> {
    let manager = &console.with.manager;
    let (status, profile) = manager.get(name)?;
    let slot = console.with.metrics.sources().and_then(|sources| sources.models.get(name));
    let lease = slot.as_ref().and_then(|slot| slot.lease());
    let rollout = manager.rollout(name)?;
    let counted = slot.as_ref().map(Counted::new).unwrap_or_default();
    let live = status.live.as_ref();
    Ok(Details {
        model: ModelView::new(&status, counted, HourView::of(console, name), rollout.as_ref()),
        steps: lease.iter().flat_map(|lease| &lease.manifest.steps).map(StepView::new).collect(),
        description: lease.map(|lease| lease.manifest.description.clone()).unwrap_or_default(),
        signature: live.map(|live| SignatureView::new(&live.signature)),
        max_batch: live.map(|live| live.max_batch()),
        torch_version: live.and_then(|live| live.torch_version.clone()),
        decisions: decisions(&status),
        weights_sha256: live.and_then(|live| live.weights_sha256.clone()),
        versions: versions(&status),
        profile: profile.iter().map(PointView::new).collect(),
        changes: past::of(&status, console.with.history.last(Some(name), CHANGES)),
    })
}

impl SignatureView {
    fn new(signature: &Signature) -> Self {
        Self {
            inputs: signature.tensors().map(TensorView::new).collect(),
            outputs: signature.outputs().iter().map(TensorView::new).collect(),
        }
    }
}

impl TensorView {
    fn new(spec: &TensorSpec) -> Self {
        Self {
            name: spec.name.to_string(),
            datatype: spec.dtype.map(|dtype| dtype.as_str()),
            shape: spec.shape.clone(),
            optional: spec.optional,
            script_type: spec.script_type.clone(),
            labels: spec.labels.clone(),
        }
    }
}

impl StepView {
    fn new(step: &Step) -> Self {
        Self {
            model: step.model.clone(),
            version: step.version.clone(),
            takes: step.inputs.values().cloned().collect(),
            makes: step.outputs.values().cloned().collect(),
        }
    }
}

impl PointView {
    fn new(point: &ProfilePoint) -> Self {
        Self {
            row_bytes: point.class.bytes(),
            rows: point.rows,
            mean_seconds: point.time.mean.as_secs_f64(),
            deviation_seconds: point.time.deviation.as_secs_f64(),
            passes: point.time.passes,
        }
    }
}

/// About the live version, and then what is otherwise about those beside it.
fn decisions(status: &ModelStatus) -> Vec<DecisionView> {
    let live = status.live.as_ref().map(|live| live.decisions.all()).unwrap_or_default();
    let beside = status.loaded.iter().flat_map(|loaded| {
        let version = loaded.version.to_string();
        loaded.decisions.all().into_iter().map(move |decision| (version.clone(), decision))
    });
    let beside: Vec<_> = beside
        .filter(|(_, decision)| !live.contains(decision))
        .map(|(version, decision)| DecisionView { version: Some(version), decision })
        .collect();
    live.into_iter().map(|decision| DecisionView { version: None, decision }).chain(beside).collect()
}

fn versions(status: &ModelStatus) -> Vec<VersionView> {
    let live = status.live.as_ref().map(|live| (live.version, &live.sha256, live.bytes));
    let beside = status.loaded.iter().map(|loaded| (loaded.version, &loaded.sha256, loaded.bytes));
    // One that is gone from the disk may still be loaded.
    let mut all: BTreeSet<Version> = status.versions.iter().copied().collect();
    all.extend(live.into_iter().chain(beside.clone()).map(|(version, ..)| version));
    let view = |version: Version| {
        let is_live = live.is_some_and(|(live, ..)| live == version);
        let loaded = live.into_iter().chain(beside.clone()).find(|(loaded, ..)| *loaded == version);
        let labels = status.labels.iter().filter(|(_, labelled)| **labelled == version);
        VersionView {
            version: version.to_string(),
            state: match (is_live, loaded) {
                (true, _) => "live",
                (false, Some(_)) => "loaded",
                (false, None) => "on_disk",
            },
            is_previous: status.previous == Some(version),
            labels: labels.map(|(label, _)| label.to_string()).collect(),
            sha256: loaded.map(|(_, sha256, _)| sha256.clone()),
            bytes: loaded.map(|(.., bytes)| bytes),
        }
    };
    all.into_iter().rev().map(view).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        lifecycle::{LoadedStatus, ModelState},
        model::{Generation, LoadMode},
    };

    pub(in super::super) fn status() -> ModelStatus {
        ModelStatus {
            name: "m".parse().unwrap(),
            state: ModelState::Unloaded,
            live: None,
            previous: Some(Version(2)),
            versions: vec![Version(1), Version(2), Version(10)],
            generation: Generation(4),
            loading: None,
            loaded: vec![LoadedStatus {
                version: Version(3),
                sha256: "ab".to_owned(),
                bytes: 10,
                decisions: Arc::default(),
            }],
            labels: [("canary".parse().unwrap(), Version(10))].into(),
            rollout: None,
            load: LoadMode::Eager,
            on_demand: false,
            resident_bytes: 0,
            last_error: None,
            last_phases: None,
            breaker_open: false,
        }
    }

    #[test]
    fn what_was_decided_is_of_all_versions_in_memory() {
        let status = status();
        let (state, batching) = (Decision::new("state", "kept"), Decision::new("batching", "alone"));
        let about =
            |decision: &Decision| DecisionView { version: Some("3".into()), decision: decision.clone() };
        let all = [&state, &batching].map(|decision| {
            assert!(status.loaded[0].decisions.add(decision.clone()));
            about(decision)
        });
        assert_eq!(decisions(&status), all);
        let json = serde_json::to_value(&all).unwrap();
        assert_eq!(json[0], serde_json::json!({ "version": "3", "what": "state", "text": "kept" }));
    }

    #[test]
    fn versions_are_those_on_disk_and_those_in_memory() {
        let told = versions(&status());
        let told: Vec<_> =
            told.iter().map(|v| (v.version.as_str(), v.state, v.is_previous, v.bytes)).collect();
        let expected = [
            ("10", "on_disk", false, None),
            ("3", "loaded", false, Some(10)),
            ("2", "on_disk", true, None),
            ("1", "on_disk", false, None),
        ];
        assert_eq!(told, expected);
        assert_eq!(versions(&status())[0].labels, ["canary"]);
    }
}
