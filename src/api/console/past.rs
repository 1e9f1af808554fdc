//! Changes of models as the console tells of them: who asked, how long each phase took, what came of it.

use std::collections::HashSet;

use serde::Serialize;

use crate::lifecycle::{ChangeRecord, ModelStatus, Phases};

/// A change that has ended.
#[derive(Debug, Serialize)]
pub(super) struct ChangeView {
    model: String,
    at: String,
    change: String,
    asker: Option<String>,
    version: Option<String>,
    previous_version: Option<String>,
    live_version: Option<String>,
    generation: u64,
    sha256: Option<String>,
    /// One after the other.
    phases: Vec<PhaseView>,
    /// Part of the phases before the swap, in which it stood still.
    rested_seconds: f64,
    total_seconds: f64,
    reason: Option<String>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct PhaseView {
    phase: &'static str,
    seconds: f64,
}

/// The changes of that model, the newest first.
pub(super) fn of(status: &ModelStatus, records: Vec<ChangeRecord>) -> Vec<ChangeView> {
    views(std::slice::from_ref(status), records)
}

/// Whether a version could not be put to use. Other changes may have an error that says why they came to be.
pub(super) fn is_failure(record: &ChangeRecord) -> bool {
    record.change == "failed"
}

/// The last `most` changes of all models. Failures of models that have not loaded since come first, then the newest: a start of
/// many models must not push the one failure out. A load that fails again as it failed before counts once.
pub(super) fn latest(
    statuses: &[ModelStatus],
    mut records: Vec<ChangeRecord>,
    failures: Vec<ChangeRecord>,
    most: usize,
) -> Vec<ChangeView> {
    let is_open = |record: &ChangeRecord| {
        let of_it = |status: &&ModelStatus| status.name.as_str() == record.model;
        record.error.is_some()
            && statuses.iter().find(of_it).is_some_and(|status| status.last_error.is_some())
    };
    let mut open: Vec<_> = failures.into_iter().filter(is_open).collect();
    records.retain(|record| !open.contains(record));
    records.append(&mut open);
    let mut known = HashSet::new();
    let mut told = views(statuses, records);
    told.retain(|view| {
        view.error.is_none() || known.insert((view.model.clone(), view.version.clone(), view.error.clone()))
    });
    told.truncate(most);
    told
}

/// The newest first. What is written down of a change is what was known when its version went live; of a model's last one it is
/// known by now how long it took until the old version's requests had ended.
fn views(statuses: &[ModelStatus], mut records: Vec<ChangeRecord>) -> Vec<ChangeView> {
    records.reverse();
    let view = |mut record: ChangeRecord| {
        let status = statuses.iter().find(|status| status.name.as_str() == record.model);
        let is_last = |status: &&ModelStatus| {
            let went_live = matches!(record.change.as_str(), "ready" | "reloaded" | "rolled_back");
            went_live && record.error.is_none() && record.generation == status.generation.0
        };
        if let Some(phases) = status.filter(is_last).and_then(|status| status.last_phases) {
            let seconds =
                phases.named().into_iter().map(|(name, took)| (name.to_owned(), took.as_secs_f64()));
            record.phases = seconds.collect();
        }
        ChangeView::new(record)
    };
    records.into_iter().map(view).collect()
}

/// What is no phase of its own.
const SUMS: [&str; 2] = ["rested", "total"];

impl ChangeView {
    fn new(record: ChangeRecord) -> Self {
        let version = |version: Option<u64>| version.map(|version| version.to_string());
        let took = |phase: &str| record.phases.get(phase).copied().unwrap_or_default();
        let names = Phases::default().named().into_iter().map(|(phase, _)| phase);
        let phases = names.filter(|phase| !SUMS.contains(phase)).map(|phase| (phase, took(phase)));
        Self {
            model: record.model,
            phases: phases
                .filter(|(_, seconds)| *seconds > 0.0)
                .map(|(phase, seconds)| PhaseView { phase, seconds })
                .collect(),
            rested_seconds: took("rested"),
            total_seconds: took("total"),
            version: version(record.version),
            previous_version: version(record.previous),
            live_version: version(record.live),
            at: record.at,
            change: record.change,
            asker: record.asker,
            generation: record.generation,
            sha256: record.sha256,
            reason: record.reason,
            error: record.error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;
    use crate::model::Generation;

    fn status() -> ModelStatus {
        ModelStatus {
            last_phases: Some(Phases {
                load: Duration::from_millis(500),
                rested: Duration::from_millis(100),
                drain: Duration::from_millis(250),
                total: Duration::from_secs(1),
                ..Phases::default()
            }),
            generation: Generation(4),
            ..super::super::details::tests::status()
        }
    }

    fn record(change: &str, generation: u64) -> ChangeRecord {
        ChangeRecord {
            at: "2026-01-01T00:00:00.000Z".into(),
            model: "m".into(),
            change: change.into(),
            asker: Some("start".into()),
            version: Some(u64::MAX),
            previous: None,
            live: None,
            generation,
            sha256: None,
            bytes: None,
            phases: [("warm_up", 0.25), ("load", 0.5), ("total", 0.75)]
                .map(|(n, s)| (n.to_owned(), s))
                .into(),
            reason: None,
            error: None,
        }
    }

    #[test]
    fn the_last_change_has_its_drain_too_and_phases_come_in_their_order() {
        let records = vec![record("ready", 3), record("reloaded", 4), record("failed", 4)];
        let told = serde_json::to_value(of(&status(), records)).unwrap();
        let phases = |index: usize| &told[index]["phases"];
        assert_eq!((&told[0]["change"], &told[1]["change"]), (&json!("failed"), &json!("reloaded")));
        assert_eq!(
            phases(1),
            &json!([{"phase": "load", "seconds": 0.5}, {"phase": "drain", "seconds": 0.25}])
        );
        assert_eq!((&told[1]["rested_seconds"], &told[1]["total_seconds"]), (&json!(0.1), &json!(1.0)));
        let warmed = json!([{"phase": "load", "seconds": 0.5}, {"phase": "warm_up", "seconds": 0.25}]);
        assert_eq!((phases(0), phases(2)), (&warmed, &warmed));
        assert_eq!((&told[2]["version"], &told[2]["model"]), (&json!("18446744073709551615"), &json!("m")));
        let of_another = ChangeRecord { model: "gone".into(), ..record("reloaded", 4) };
        let told = serde_json::to_value(views(&[status()], vec![of_another])).unwrap();
        assert_eq!(told[0]["phases"], warmed, "another model's drain is not its own");
    }
    #[test]
    fn what_fails_again_as_before_is_told_once() {
        let failed = |error: &str, generation| ChangeRecord {
            error: Some(error.into()),
            ..record("failed", generation)
        };
        let records =
            vec![record("ready", 1), failed("a", 2), failed("b", 3), failed("a", 4), failed("a", 5)];
        let told = |most| -> Vec<_> {
            latest(&[status()], records.clone(), Vec::new(), most)
                .iter()
                .map(|view| view.generation)
                .collect()
        };
        assert_eq!((told(8), told(2)), (vec![5, 3, 1], vec![5, 3]));
    }

    #[test]
    fn a_failure_that_is_open_stays_ahead_of_newer_changes() {
        let failed = ChangeRecord { error: Some("broken".into()), ..record("failed", 1) };
        let of_another = ChangeRecord { model: "gone".into(), ..failed.clone() };
        let newer = (2..=10).map(|generation| record("ready", generation)).collect::<Vec<_>>();
        let told = |status: ModelStatus| -> Vec<_> {
            let views = latest(&[status], newer.clone(), vec![of_another.clone(), failed.clone()], 3);
            views.iter().map(|view| view.generation).collect()
        };
        let broken = ModelStatus { last_error: Some("broken".into()), ..status() };
        assert_eq!(told(broken), [1, 10, 9], "and that of a model that is gone does not");
        assert_eq!(told(status()), [10, 9, 8], "it has loaded since");
    }
}
