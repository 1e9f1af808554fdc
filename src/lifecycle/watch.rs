//! Looks at each repository again and again, and brings what is loaded in line with what it holds. Each is looked at by itself:
//! one that does not answer holds up no other.
//!
//! Looking is the truth: it works on every file system. Where the system tells of changes (inotify and its like) the next
//! look comes at once, that is all.

use std::{path::PathBuf, sync::Arc, time::Duration};

use notify::{RecursiveMode, Watcher as _};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{Asker, Manager};
use crate::{
    model::ModelName,
    repository::{Found, Settle},
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

/// Between two looks at a repository that cannot be read: twice as long each time.
const RETRY: std::ops::Range<Duration> = Duration::from_millis(500)..Duration::from_secs(30);

/// When the next look is due.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    /// Files that changed are quiet by then.
    again: Option<Instant>,
    /// Looks in a row that failed.
    failed: u32,
}

impl Pace {
    /// How long to wait at most, and whether a hint may cut that short: changes below a repository that cannot be read say
    /// nothing about whether it can.
    fn wait(&self, interval: Duration, now: Instant) -> (Duration, bool) {
        if self.failed > 0 {
            let pause = RETRY.start * 2_u32.saturating_pow((self.failed - 1).min(16));
            return (pause.min(RETRY.end), false);
        }
        let by = self.again.map_or(Duration::MAX, |again| again.saturating_duration_since(now));
        (by.min(interval), true)
    }
}

/// What looks at one repository have found so far. It outlives a look that panics.
#[derive(Debug)]
pub(crate) struct Watched(Settle);

impl Watched {
    /// Begins with what was there when its models were loaded at the start.
    pub(crate) fn new(config: WatchConfig, begin: &[Found]) -> Self {
        let mut settle = Settle::new(config.settle);
        settle.begin(begin, Instant::now());
        Self(settle)
    }
}

/// Watches the repository at `at` until it is dropped. `hint` asks for a look at once.
pub(crate) async fn watch(
    (manager, at): (Arc<Manager>, usize),
    config: WatchConfig,
    Watched(settle): &mut Watched,
    hint: Arc<Notify>,
    pulse: Pulse,
) {
    let repositories = &manager.config.repositories;
    let Some(repository) = repositories.get(at) else { return };
    // Without an interval only what asks for a look gets one, and a repository that could not be read.
    let (interval, _hints) = match repository.root().filter(|_| !config.interval.is_zero()) {
        Some(root) => (config.interval, Some(hints(root.to_owned(), &hint))),
        None if config.interval.is_zero() => (Duration::MAX, None),
        None => (config.interval, None),
    };
    let mut pace = Pace { failed: u32::from(repository.is_in_trouble()), ..Pace::default() };
    loop {
        tokio::time::sleep(LEAST).await;
        match pace.wait(interval, Instant::now()) {
            (wait, true) => drop(tokio::time::timeout(wait, hint.notified()).await),
            (wait, false) => tokio::time::sleep(wait).await,
        }
        let look = repository.look().await;
        manager.take_note();
        pulse.beat();
        if look.trouble.is_some() {
            // What serves goes on serving.
            pace = Pace { again: None, failed: pace.failed.saturating_add(1) };
            continue;
        }
        let settled = settle.look(look.found, Instant::now());
        pace = Pace { again: settled.again, failed: 0 };
        // A repository that comes before this one may have the model too.
        for found in settled.quiet {
            if repositories.owner(&found.name) == Some(at) {
                manager.clone().sync_soon(found);
            }
        }
        for name in settled.gone {
            let is_known = manager.entries.lock().contains_key(&name);
            if is_known && repositories.owner(&name).is_none() {
                manager.clone().forget_soon(name, at);
            } else {
                settle.forget(&name);
            }
        }
    }
}

/// Lives as long as the system's hints are wanted.
type Hints = Arc<Mutex<Option<notify::RecommendedWatcher>>>;

/// Wakes the next look up when the system tells of a change below a repository. A thread of its own sets that up: on a slow
/// file system a large repository takes minutes.
fn hints(root: PathBuf, hint: &Arc<Notify>) -> Hints {
    let hints = Hints::default();
    let (wake, wanted) = (hint.clone(), Arc::downgrade(&hints));
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
        if let Err(error) = watcher.watch(&root, RecursiveMode::Recursive) {
            tracing::info!(%error, root = %root.display(), "no hints from the system here: changes are seen by looking");
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

    fn forget_soon(self: Arc<Self>, name: ModelName, at: usize) {
        let Some(at_it) = self.entry(&name).sync_alone() else { return };
        let tasks = self.tasks.clone();
        tasks.spawn(async move {
            if self.config.repositories.lost(&name, at).await {
                self.forget(&name).await;
            }
            drop(at_it);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_that_cannot_be_read_is_asked_less_and_less() {
        let now = Instant::now();
        // What was due before it failed must not make each wait nothing.
        let again = Some(now);
        let wait = |failed| Pace { again, failed }.wait(Duration::from_secs(2), now);
        assert_eq!(wait(0), (Duration::ZERO, true));
        let waits: Vec<_> = (1..=8).map(|failed| wait(failed).0.as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert!(!wait(1).1 && wait(u32::MAX).0 == RETRY.end);
    }
}
