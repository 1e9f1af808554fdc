//! Models for people.

use std::time::Duration;

use crate::{
    cli::show::{Cell, Table, Tone, or_dash, show_bytes, show_duration, show_time},
    proto::{self, ModelState},
};

/// Enough of a digest to tell it from others.
fn short(sha256: &str) -> String {
    or_dash(sha256.get(..12).unwrap_or_default())
}

pub(super) fn list(models: &[proto::Model]) {
    let row = |model: &proto::Model| {
        let (state, tone) = state(model);
        let (note, weight) = note(model);
        vec![
            Cell::from(model.name.clone()),
            Cell::toned(state, tone),
            or_dash(&model.live_version).into(),
            show_bytes(model.bytes).into(),
            resident(model).into(),
            or_dash(&since(model)).into(),
            or_dash(&model.versions.join(", ")).into(),
            short(&model.sha256).into(),
            Cell::toned(note, weight),
        ]
    };
    let header = ["MODEL", "STATE", "LIVE", "SIZE", "MEMORY", "SINCE", "ON DISK", "SHA256", "NOTE"];
    let spare = ["SHA256", "SIZE", "ON DISK", "SINCE", "MEMORY"];
    Table::new(&header, models.iter().map(row).collect()).spare(&spare).print();
}

/// What was decided about versions beside the live one, where it is something else.
fn of_others(model: &proto::Model) -> impl Iterator<Item = (&str, &proto::Decision)> {
    let all = model
        .loaded
        .iter()
        .flat_map(|loaded| loaded.decisions.iter().map(|decision| (loaded.version.as_str(), decision)));
    all.filter(|(_, decision)| !model.decisions.contains(decision))
}

/// What there is to know of a model beside its state.
fn note(model: &proto::Model) -> (String, Tone) {
    let mut notes = Vec::new();
    if model.breaker_open {
        notes.push("it only fails: requests are rejected except for a trial every 1 to 30 s".to_owned());
    }
    if !model.rollout_version.is_empty() {
        let share = if model.rollout_percent > 0.0 {
            format!(", {} % of the callers", model.rollout_percent)
        } else {
            String::new()
        };
        notes.push(format!("version {} is rolled out{share}", model.rollout_version));
    }
    if !model.last_error.is_empty() {
        notes.push(model.last_error.clone());
    }
    let tone = match (model.breaker_open || model.state() == ModelState::Failed, model.last_error.is_empty())
    {
        (true, _) => Tone::Bad,
        (false, false) => Tone::Warn,
        (false, true) => Tone::Plain,
    };
    (notes.join("; "), tone)
}

pub(super) fn event(event: &proto::ModelEvent) {
    let model = event.model.clone().unwrap_or_default();
    let at = event.at.map(|at| show_time(&at.to_string())).unwrap_or_default();
    let error = if event.error.is_empty() { String::new() } else { format!(": {}", event.error) };
    let tone = if error.is_empty() { Tone::Plain } else { Tone::Bad };
    let change = tone.paint(&event.change);
    println!("{at}  {}  {change}  version {}{error}", model.name, or_dash(&model.live_version));
}

pub(super) fn history(changes: &[proto::ModelChange]) {
    if changes.is_empty() {
        println!("nothing has changed yet");
        return;
    }
    let row = |change: &proto::ModelChange| {
        let from = if change.previous_version.is_empty() || change.previous_version == change.version {
            String::new()
        } else {
            format!("{} -> ", change.previous_version)
        };
        let took = change.phase_seconds.get("total").map(|seconds| {
            let took = Duration::try_from_secs_f64(*seconds).unwrap_or_default();
            show_duration(took.try_into().ok())
        });
        // Only a failure is an error: others say why they came to be.
        let (why, tone) = match change.change.as_str() {
            "failed" => (format!("{}: {}", change.reason, change.error), Tone::Bad),
            _ => (change.error.clone(), Tone::Plain),
        };
        vec![
            Cell::from(show_time(&change.at)),
            change.model.clone().into(),
            Cell::toned(change.change.clone(), tone),
            format!("{from}{}", or_dash(&change.version)).into(),
            short(&change.sha256).into(),
            or_dash(&took.unwrap_or_default()).into(),
            change.asker.clone().into(),
            Cell::toned(why, tone),
        ]
    };
    let header = ["AT", "MODEL", "CHANGE", "VERSION", "SHA256", "TOOK", "ASKED BY", "WHY"];
    Table::new(&header, changes.iter().map(row).collect()).spare(&["SHA256", "TOOK", "ASKED BY"]).print();
}

/// Passes by size, and which size gives the most rows a second.
pub(super) fn profile(model: &proto::Model) {
    if model.profile.is_empty() {
        println!("nothing has run yet");
        return;
    }
    let seconds = |d: Option<prost_types::Duration>| {
        d.and_then(|d| Duration::try_from(d).ok()).unwrap_or_default().as_secs_f64()
    };
    let speed = |point: &proto::ProfilePoint| f64::from(point.rows) / seconds(point.mean).max(1e-9);
    let fastest = |row_bytes| {
        let same = model.profile.iter().filter(|point| point.row_bytes == row_bytes);
        same.map(speed).fold(1e-9, f64::max)
    };
    let row = |point: &proto::ProfilePoint| {
        let speed = speed(point);
        let bar = "█".repeat((speed / fastest(point.row_bytes) * 16.0).round() as usize);
        vec![
            show_bytes(point.row_bytes),
            point.rows.to_string(),
            show_duration(point.mean),
            format!("± {}", show_duration(point.deviation)),
            point.passes.to_string(),
            format!("{speed:.0}"),
            bar,
        ]
    };
    let header = ["ROW", "ROWS", "PASS", "", "PASSES", "ROWS/S", ""];
    Table::new(&header, model.profile.iter().map(row).collect()).print();
}

fn since(model: &proto::Model) -> String {
    model.live_since.map(|at| show_time(&at.to_string())).unwrap_or_default()
}

/// What it takes, where it is in memory.
fn resident(model: &proto::Model) -> String {
    if model.live_version.is_empty() { "-".to_owned() } else { show_bytes(model.resident_bytes) }
}

fn state(model: &proto::Model) -> (&'static str, Tone) {
    if model.breaker_open {
        return ("breaker open", Tone::Bad);
    }
    match model.state() {
        ModelState::Unspecified => ("unknown", Tone::Quiet),
        ModelState::Unloaded => ("unloaded", Tone::Quiet),
        ModelState::Loading => ("loading", Tone::Warn),
        ModelState::Ready => ("ready", Tone::Good),
        ModelState::Reloading => ("reloading", Tone::Good),
        ModelState::Failed => ("failed", Tone::Bad),
        ModelState::OnDemand => ("on demand", Tone::Quiet),
    }
}

pub(super) fn model(model: &proto::Model) {
    let (state, tone) = state(model);
    println!("{}: {}", model.name, tone.paint(state));
    let since = match since(model).as_str() {
        "" => String::new(),
        at => format!(", since {at}"),
    };
    println!("live version  {} (generation {}{since})", or_dash(&model.live_version), model.generation);
    println!("before it     {}", or_dash(&model.previous_version));
    println!("on disk       {}", or_dash(&model.versions.join(", ")));
    println!("sha256        {}", or_dash(&model.sha256));
    if !model.weights_sha256.is_empty() {
        println!("weights       {}", model.weights_sha256);
    }
    println!("size          {}", show_bytes(model.bytes));
    println!("memory        {} ({})", resident(model), or_dash(&model.load));
    println!("max batch     {}", model.max_batch);
    let (note, tone) = note(model);
    if !note.is_empty() {
        println!("note          {}", tone.paint(&note));
    }
    for proto::Decision { what, text } in &model.decisions {
        println!("{what:<13} {text}");
    }
    for (version, proto::Decision { what, text }) in of_others(model) {
        println!("{what:<13} version {version}: {text}");
    }
    if let Some(phases) = model.last_phases {
        println!("last reload   {} ({} warm-up)", show_duration(phases.total), show_duration(phases.warm_up));
    }
    let Some(signature) = &model.signature else { return };
    let row = |(kind, spec): (&str, &proto::TensorSpec)| {
        let shape = if spec.any_shape { "any".to_owned() } else { format!("{:?}", spec.shape) };
        let datatype = if spec.datatype.is_empty() { "any" } else { &spec.datatype };
        let optional = if spec.optional { ", optional" } else { "" };
        let script_type = format!("{}{optional}", spec.script_type);
        vec![kind.to_owned(), spec.name.clone(), datatype.to_owned(), shape, script_type]
    };
    let inputs = signature.inputs.iter().map(|spec| ("input", spec));
    let outputs = signature.outputs.iter().map(|spec| ("output", spec));
    println!();
    let header = ["", "NAME", "DATATYPE", "SHAPE", "TYPE"];
    Table::new(&header, inputs.chain(outputs).map(row).collect()).print();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_breakers_and_rollouts() {
        let healthy = proto::Model {
            name: "m".into(),
            state: ModelState::Ready.into(),
            live_since: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 }),
            ..proto::Model::default()
        };
        assert_eq!((state(&healthy), note(&healthy)), (("ready", Tone::Good), (String::new(), Tone::Plain)));
        assert_eq!(since(&healthy), "2023-11-14 22:13:20Z");
        let refused = proto::Model { breaker_open: true, ..healthy.clone() };
        assert_eq!(state(&refused), ("breaker open", Tone::Bad));
        assert!(note(&refused).0.contains("rejected"));
        let rolled = proto::Model {
            rollout_version: "3".into(),
            rollout_percent: 12.5,
            last_error: "load failed: broken".into(),
            ..healthy
        };
        let text = "version 3 is rolled out, 12.5 % of the callers; load failed: broken";
        assert_eq!(note(&rolled), (text.to_owned(), Tone::Warn));
    }
}
