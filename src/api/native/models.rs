//! Messages about models.

use std::time::{Duration, SystemTime};

use crate::{
    lifecycle::{ChangeRecord, ModelEvent, ModelState, ModelStatus, Phases, ReloadReport},
    model::{Decision, Decisions, Signature, TensorSpec},
    proto,
    sched::ProfilePoint,
};

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

fn timestamp(at: SystemTime) -> Option<prost_types::Timestamp> {
    Some(at.into())
}

fn phases(phases: Phases) -> proto::Phases {
    proto::Phases {
        verify: duration(phases.verify),
        load: duration(phases.load),
        warm_up: duration(phases.warm_up),
        swap: duration(phases.swap),
        drain: duration(phases.drain),
        total: duration(phases.total),
        check: duration(phases.check),
        rested: duration(phases.rested),
    }
}

fn spec(spec: &TensorSpec) -> proto::TensorSpec {
    proto::TensorSpec {
        name: spec.name.to_string(),
        datatype: spec.dtype.map(|dtype| dtype.as_str().to_owned()).unwrap_or_default(),
        shape: spec.shape.clone().unwrap_or_default(),
        any_shape: spec.shape.is_none(),
        optional: spec.optional,
        script_type: spec.script_type.clone(),
        labels: spec.labels.clone(),
    }
}

fn signature(signature: &Signature) -> proto::Signature {
    proto::Signature {
        inputs: signature.tensors().map(spec).collect(),
        outputs: signature.outputs().iter().map(spec).collect(),
    }
}

pub(super) fn model(status: ModelStatus) -> proto::Model {
    let state = match status.state {
        ModelState::Unloaded => proto::ModelState::Unloaded,
        ModelState::Loading => proto::ModelState::Loading,
        ModelState::Ready => proto::ModelState::Ready,
        ModelState::Reloading => proto::ModelState::Reloading,
        ModelState::Failed => proto::ModelState::Failed,
        ModelState::OnDemand => proto::ModelState::OnDemand,
    };
    let rolling_out = status.rolling_out();
    let mut model = proto::Model {
        breaker_open: status.breaker_open,
        rollout_version: rolling_out.map(|brief| brief.version.to_string()).unwrap_or_default(),
        rollout_percent: rolling_out.map(|brief| brief.percent).unwrap_or_default(),
        name: status.name.to_string(),
        state: state.into(),
        previous_version: status.previous.map(|v| v.to_string()).unwrap_or_default(),
        versions: status.versions.iter().map(ToString::to_string).collect(),
        generation: status.generation.0,
        load: status.load.as_str().to_owned(),
        resident_bytes: status.resident_bytes,
        last_error: status.last_error.unwrap_or_default(),
        last_phases: status.last_phases.map(phases),
        loaded: status
            .loaded
            .into_iter()
            .map(|loaded| proto::LoadedVersion {
                version: loaded.version.to_string(),
                sha256: loaded.sha256,
                bytes: loaded.bytes,
                decisions: decisions(&loaded.decisions),
            })
            .collect(),
        labels: status
            .labels
            .iter()
            .map(|(label, version)| (label.to_string(), version.to_string()))
            .collect(),
        ..proto::Model::default()
    };
    if let Some(live) = status.live {
        model.live_version = live.version.to_string();
        model.max_batch = u32::try_from(live.max_batch()).unwrap_or(u32::MAX);
        model.sha256 = live.sha256;
        model.weights_sha256 = live.weights_sha256.unwrap_or_default();
        model.bytes = live.bytes;
        model.live_since = timestamp(live.since);
        model.signature = Some(signature(&live.signature));
        model.torch_version = live.torch_version.unwrap_or_default();
        model.decisions = decisions(&live.decisions);
    }
    model
}

fn decisions(all: &Decisions) -> Vec<proto::Decision> {
    let one = |Decision { what, text }| proto::Decision { what: what.to_owned(), text };
    all.all().into_iter().map(one).collect()
}

pub(super) fn profile(points: &[ProfilePoint]) -> Vec<proto::ProfilePoint> {
    points
        .iter()
        .map(|point| proto::ProfilePoint {
            row_bytes: point.class.bytes(),
            rows: u32::try_from(point.rows).unwrap_or(u32::MAX),
            mean: duration(point.time.mean),
            deviation: duration(point.time.deviation),
            passes: point.time.passes,
        })
        .collect()
}

pub(super) fn event(event: ModelEvent) -> proto::ModelEvent {
    proto::ModelEvent {
        at: timestamp(event.at),
        change: event.change.as_str().to_owned(),
        error: event.error.as_ref().map(ToString::to_string).unwrap_or_default(),
        reason: event.error.map(|error| error.reason().as_str().to_owned()).unwrap_or_default(),
        version: event.version.map(|version| version.to_string()).unwrap_or_default(),
        asker: event.asker.map(|asker| asker.to_string()).unwrap_or_default(),
        previous_version: event
            .done
            .and_then(|done| done.previous)
            .map(|v| v.to_string())
            .unwrap_or_default(),
        phases: event.done.map(|done| phases(done.phases)),
        model: Some(model(event.model)),
    }
}

pub(super) fn change(record: ChangeRecord) -> proto::ModelChange {
    let version = |version: Option<u64>| version.map(|version| version.to_string()).unwrap_or_default();
    proto::ModelChange {
        at: record.at,
        model: record.model,
        change: record.change,
        asker: record.asker.unwrap_or_default(),
        version: version(record.version),
        previous_version: version(record.previous),
        live_version: version(record.live),
        generation: record.generation,
        sha256: record.sha256.unwrap_or_default(),
        bytes: record.bytes.unwrap_or_default(),
        phase_seconds: record.phases.into_iter().collect(),
        reason: record.reason.unwrap_or_default(),
        error: record.error.unwrap_or_default(),
    }
}

pub(super) fn snapshot(status: ModelStatus) -> proto::ModelEvent {
    let change = crate::lifecycle::Change::Snapshot;
    event(ModelEvent {
        at: SystemTime::now(),
        model: status,
        change,
        version: None,
        error: None,
        asker: None,
        done: None,
    })
}

pub(super) fn reload_response(report: ReloadReport) -> proto::ReloadModelResponse {
    let version = |v: Option<crate::model::Version>| v.map(|v| v.to_string()).unwrap_or_default();
    proto::ReloadModelResponse {
        model: report.model.to_string(),
        previous_version: version(report.previous),
        live_version: version(report.live),
        generation: report.generation.0,
        sha256: report.sha256,
        weights_sha256: report.weights_sha256.unwrap_or_default(),
        bytes: report.bytes,
        phases: Some(phases(report.phases)),
        warmup: Some(proto::Warmup {
            passes: report.warmup.passes,
            shapes: report.warmup.shapes,
            first_pass: duration(report.warmup.first_pass),
            steady_pass: duration(report.warmup.steady_pass),
            steady: report.warmup.steady,
        }),
        check: Some(proto::Check {
            samples: report.check.samples,
            from_expected: report.check.from_expected,
            from_live: report.check.from_live,
        }),
        validated_only: report.validated_only,
    }
}
