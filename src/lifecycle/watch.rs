//! Looks at each repository again and again, and brings what is loaded in line with what it holds. Each is looked at by itself:
//! one that does not answer holds up no other.
//!
//! Looking is the truth: it works on every file system. Where the system tells of changes (inotify and its like) the next
//! look comes at once, that is all.

use std::{path::Path, sync::Arc, time::Duration};

use notify::{RecursiveMode, Watcher as _};
use tokio::{sync::Notify, time::Instant};

use super::{Asker, Manager};
use crate::repository::{Found, Settle};

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
    /// How long to wait at most, and whether a hint from the system may cut that short: changes below a repository that cannot be
    /// read say nothing about whether it can.
    fn wait(&self, interval: Duration, now: Instant) -> (Duration, bool) {
        if self.failed > 0 {
            let pause = RETRY.start * 2_u32.saturating_pow((self.failed - 1).min(16));
            return (pause.min(RETRY.end), false);
        }
        let by = self.again.map_or(Duration::MAX, |again| again.saturating_duration_since(now));
        (by.min(interval), true)
    }
}

/// Watches the repository at `at` until it is dropped. `begin` is what was there when its models were loaded at the start.
/// Without an interval this ends once the repository has been read.
pub async fn watch(manager: Arc<Manager>, at: usize, config: WatchConfig, begin: Vec<Found>) {
    let Some(repository) = manager.config.repositories.get(at) else { return };
    let mut settle = Settle::new(config.settle);
    settle.begin(&begin, Instant::now());
    let hint = Arc::new(Notify::new());
    let _hints = if config.interval.is_zero() { None } else { hints(repository.root(), &hint) };
    let interval = if config.interval.is_zero() { Duration::MAX } else { config.interval };
    let mut pace = Pace { failed: u32::from(repository.is_in_trouble()), ..Pace::default() };
    while !config.interval.is_zero() || pace.failed > 0 || pace.again.is_some() {
        tokio::time::sleep(LEAST).await;
        match pace.wait(interval, Instant::now()) {
            (wait, true) => drop(tokio::time::timeout(wait, hint.notified()).await),
            (wait, false) => tokio::time::sleep(wait).await,
        }
        let look = repository.look().await;
        manager.take_note();
        if look.trouble.is_some() {
            // What serves goes on serving.
            pace = Pace { again: None, failed: pace.failed.saturating_add(1) };
            continue;
        }
        let settled = settle.look(look.found, Instant::now());
        pace = Pace { again: settled.again, failed: 0 };
        // Another repository that comes before this one may have the model too.
        for found in settled.quiet {
            if manager.config.repositories.owner(&found.name) == Some(at) {
                manager.clone().sync_soon(found);
            }
        }
        for name in settled.gone {
            if manager.config.repositories.owner(&name).is_some()
                || !manager.entries.lock().contains_key(&name)
            {
                settle.forget(&name);
            } else {
                manager.clone().forget_soon(name, at);
            }
        }
    }
}

/// Wakes the next look up when the system tells of a change below a repository.
fn hints(root: Option<&Path>, hint: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    let root = root?;
    let wake = hint.clone();
    let told = move |event: notify::Result<notify::Event>| {
        // Reading a file is no change: a load would wake up the look that follows it.
        if event.is_ok_and(|event| !event.kind.is_access()) {
            wake.notify_one();
        }
    };
    let watcher = notify::recommended_watcher(told).and_then(|mut watcher| {
        watcher.watch(root, RecursiveMode::Recursive)?;
        Ok(watcher)
    });
    watcher
        .inspect_err(|error| {
            tracing::info!(%error, root = %root.display(), "no hints from the system here: changes are seen by looking");
        })
        .ok()
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

    fn forget_soon(self: Arc<Self>, name: crate::model::ModelName, at: usize) {
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
        let due = Some(now - Duration::from_secs(1));
        let wait = |failed| Pace { again: due, failed }.wait(Duration::from_secs(2), now);
        assert_eq!(wait(0), (Duration::ZERO, true));
        let waits: Vec<_> = (1..=8).map(|failed| wait(failed).0.as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert!(!wait(1).1 && wait(u32::MAX).0 == RETRY.end);
    }
}
