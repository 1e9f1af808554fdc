//! Looks at the repositories again and again, and brings what is loaded in line with what they hold.
//!
//! Looking is the truth: it works on every file system. Where the system tells of changes (inotify and its like) the next
//! look comes at once, that is all.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use notify::{RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{Asker, Manager};
use crate::{
    repository::{Found, Settle, Source},
    tasks::Pulse,
};

/// How repositories are watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchConfig {
    /// Between two looks. Zero: they are not watched.
    pub interval: Duration,
    /// Files that changed within this time may still be being written.
    pub settle: Duration,
}

/// Between two looks that the system's hints ask for.
const LEAST: Duration = Duration::from_millis(50);

/// What looks have found so far. It outlives a look that panics.
#[derive(Debug)]
pub(crate) struct Watched {
    settle: Settle,
    had_models: bool,
}

impl Watched {
    /// Begins with what was there when the models were loaded at the start.
    pub(crate) fn new(config: WatchConfig, begin: &[Found]) -> Self {
        let mut settle = Settle::new(config.settle);
        settle.begin(begin, Instant::now());
        Self { settle, had_models: !begin.is_empty() }
    }
}

/// Watches until it is dropped. `hint` asks for a look at once.
pub(crate) async fn watch(
    manager: Arc<Manager>,
    config: WatchConfig,
    watched: &mut Watched,
    hint: Arc<Notify>,
    pulse: Pulse,
) {
    let Watched { settle, had_models } = watched;
    // Without an interval only what asks for a look gets one.
    let (interval, _hints) = if config.interval.is_zero() {
        (Duration::MAX, None)
    } else {
        (config.interval, Some(hints(&manager, &hint)))
    };
    let mut trouble = None;
    let mut again = None;
    loop {
        let by =
            again.map_or(Duration::MAX, |again: Instant| again.saturating_duration_since(Instant::now()));
        tokio::time::sleep(LEAST).await;
        let _woken = tokio::time::timeout(by.min(interval), hint.notified()).await;
        let found = match manager.scan().await {
            Ok(found) if found.is_empty() && *had_models => Err(EMPTY.to_owned()),
            Ok(found) => Ok(found),
            Err(error) => Err(error.to_string()),
        };
        let found = match found {
            Ok(found) => {
                if trouble.take().is_some() {
                    tracing::info!("the repositories can be read again");
                }
                found
            }
            // What serves goes on serving.
            Err(error) => {
                if trouble.as_ref() != Some(&error) {
                    tracing::error!(%error, "cannot look for new versions: models stay as they are");
                    trouble = Some(error);
                }
                pulse.beat();
                continue;
            }
        };
        *had_models |= !found.is_empty();
        manager.take_note(&found);
        let settled = settle.look(found, Instant::now());
        again = settled.again;
        for found in settled.quiet {
            manager.clone().sync_soon(found);
        }
        for name in settled.gone {
            manager.clone().forget_soon(name);
        }
        pulse.beat();
    }
}

/// An empty directory stands where a volume is not mounted.
const EMPTY: &str = "the repositories hold no model any more (is a volume not mounted?)";

/// Lives as long as the system's hints are wanted.
type Hints = Arc<Mutex<Option<notify::RecommendedWatcher>>>;

/// Wakes the next look up when the system tells of a change below a repository. A thread of its own sets that up: on a slow
/// file system a large repository takes minutes.
fn hints(manager: &Manager, hint: &Arc<Notify>) -> Hints {
    let hints = Hints::default();
    let (wake, wanted) = (hint.clone(), Arc::downgrade(&hints));
    let roots: Vec<PathBuf> =
        manager.config.repositories.iter().filter_map(Source::root).map(Path::to_owned).collect();
    let set_up = move || {
        let looks = wake.clone();
        let told = move |event: notify::Result<notify::Event>| {
            // Reading a file is no change: a load would wake up the look that follows it.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                wake.notify_one();
            }
        };
        let mut watcher = match notify::recommended_watcher(told) {
            Ok(watcher) => watcher,
            Err(error) => {
                tracing::info!(%error, "no hints from the system: changes are seen by looking");
                return;
            }
        };
        for root in roots {
            if let Err(error) = watcher.watch(&root, RecursiveMode::Recursive) {
                tracing::info!(%error, root = %root.display(), "no hints from the system here: changes are seen by looking");
            }
        }
        if let Some(wanted) = wanted.upgrade() {
            *wanted.lock() = Some(watcher);
            // What changed before this moment has given no hint.
            looks.notify_one();
        }
    };
    if let Err(error) = std::thread::Builder::new().name("hints".to_owned()).spawn(set_up) {
        tracing::info!(%error, "no hints from the system: changes are seen by looking");
    }
    hints
}

impl Manager {
    /// Brings a model in line in a task of its own, unless one is at it already.
    fn sync_soon(self: Arc<Self>, found: Found) {
        let entry = self.entry(&found.name);
        if entry.is_synced(&found, Instant::now()) {
            return;
        }
        let Some(at_it) = entry.sync_alone() else { return };
        let tasks = self.tasks.clone();
        tasks.spawn(async move {
            self.sync(found, Asker::Repository).await;
            drop(at_it);
        });
    }

    fn forget_soon(self: Arc<Self>, name: crate::model::ModelName) {
        let tasks = self.tasks.clone();
        tasks.spawn(async move { self.forget(&name).await });
    }
}
