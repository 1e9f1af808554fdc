//! What became of every change, for those who ask later: the last ones in memory, and all of them in a file if one is named.
//! A server that starts reads the end of the file, so that its memory goes back to before its start.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::Path,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{Change, ModelEvent, audit::Writer};
use crate::tasks::Tasks;

/// One change, as it ended. Numbers of bytes and seconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// RFC 3339, UTC.
    pub at: String,
    /// The model.
    pub model: String,
    /// What happened, as in the API: `reloaded`, `failed`, `unloaded`, ...
    pub change: String,
    /// Who or what asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asker: Option<String>,
    /// The version that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// What was live before it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<u64>,
    /// What is live after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<u64>,
    /// Orders the changes of one model.
    pub generation: u64,
    /// Of the archive of `version`, where that is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Its size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long each phase took, in seconds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub phases: BTreeMap<String, f64>,
    /// With a failure: the stable name of the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// With a failure: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl ChangeRecord {
    /// `None`: it is no end but a beginning.
    pub fn of(event: &ModelEvent) -> Option<Self> {
        if matches!(
            event.change,
            Change::Snapshot | Change::Loading | Change::Reloading | Change::LoadingBeside
        ) {
            return None;
        }
        let model = &event.model;
        let live = model.live.as_ref().map(|live| (live.version, &live.sha256, live.bytes));
        let loaded = model.loaded.iter().map(|loaded| (loaded.version, &loaded.sha256, loaded.bytes));
        let about = live.into_iter().chain(loaded).find(|(version, ..)| Some(*version) == event.version);
        let phases = event.done.map(|done| done.phases.named()).unwrap_or_default();
        Some(Self {
            at: humantime::format_rfc3339_millis(event.at).to_string(),
            model: model.name.to_string(),
            change: event.change.as_str().to_owned(),
            asker: event.asker.as_ref().map(ToString::to_string),
            version: event.version.map(|version| version.0),
            previous: event.done.and_then(|done| done.previous).map(|version| version.0),
            live: live.map(|(version, ..)| version.0),
            generation: model.generation.0,
            sha256: about.map(|(_, sha256, _)| sha256.clone()),
            bytes: about.map(|(_, _, bytes)| bytes),
            phases: phases
                .into_iter()
                .filter(|(_, took)| !took.is_zero())
                .map(|(name, took)| (name.to_owned(), took.as_secs_f64()))
                .collect(),
            reason: event.error.as_ref().map(|error| error.reason().as_str().to_owned()),
            error: event.error.as_ref().map(ToString::to_string),
        })
    }
}

/// Changes that are kept in memory.
const KEPT: usize = 1000;

/// The changes so far.
#[derive(Debug, Default)]
pub struct History {
    recent: Mutex<VecDeque<ChangeRecord>>,
    writer: Option<Writer>,
}

impl History {
    /// In memory alone, or with the file at `path`, which is made if it is not there.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub(crate) fn new(path: Option<&Path>, tasks: &Tasks) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let (writer, last) = Writer::start(path, KEPT, tasks)?;
        Ok(Self { recent: Mutex::new(last), writer: Some(writer) })
    }

    /// Takes note of a change that has ended; others are left out.
    pub fn record(&self, event: &ModelEvent) {
        let Some(record) = ChangeRecord::of(event) else { return };
        if let (Some(writer), Ok(line)) = (&self.writer, serde_json::to_string(&record)) {
            writer.write(line);
        }
        let mut recent = self.recent.lock();
        recent.push_back(record);
        if recent.len() > KEPT {
            recent.pop_front();
        }
    }

    /// The last `most` changes of a model, or of all, the newest last.
    pub fn last(&self, model: Option<&str>, most: usize) -> Vec<ChangeRecord> {
        self.last_where(|record| model.is_none_or(|model| record.model == model), most)
    }

    /// The last `most` changes that are `wanted`, the newest last.
    pub fn last_where(&self, wanted: impl Fn(&ChangeRecord) -> bool, most: usize) -> Vec<ChangeRecord> {
        let recent = self.recent.lock();
        let mut last: Vec<_> =
            recent.iter().rev().filter(|record| wanted(record)).take(most).cloned().collect();
        last.reverse();
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(model: &str, generation: u64) -> ChangeRecord {
        ChangeRecord {
            at: "2026-01-01T00:00:00.000Z".into(),
            model: model.into(),
            change: "reloaded".into(),
            asker: Some("repository".into()),
            version: Some(2),
            previous: Some(1),
            live: Some(2),
            generation,
            sha256: Some("ab".into()),
            bytes: Some(45),
            phases: [("load".to_owned(), 0.5)].into(),
            reason: None,
            error: None,
        }
    }

    fn tasks() -> Tasks {
        Tasks::new(crate::tasks::TaskMetrics::default(), tokio::runtime::Handle::current())
    }

    #[tokio::test]
    async fn a_server_remembers_what_was_before_its_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let lines: String = (0..3).map(|i| serde_json::to_string(&record("m", i)).unwrap() + "\n").collect();
        std::fs::write(&path, format!("{lines}{{\"at\": \"half a li")).unwrap();
        let history = History::new(Some(&path), &tasks()).unwrap();
        assert_eq!(history.last(Some("m"), 2), [record("m", 1), record("m", 2)]);
        assert_eq!(history.last(Some("n"), 2), []);
        let writer = history.writer.as_ref().unwrap();
        writer.write(serde_json::to_string(&record("n", 4)).unwrap());
        drop(history);
        let again = History::new(Some(&path), &tasks()).unwrap();
        assert_eq!(again.last(None, 10).len(), 4, "the half line is passed over, the one after it is whole");
        assert_eq!(again.last(Some("n"), 10), [record("n", 4)]);
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_written_is_an_error_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        assert!(History::new(Some(&dir.path().join("no/such/dir.jsonl")), &tasks()).is_err());
    }
}
