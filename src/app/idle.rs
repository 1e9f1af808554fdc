//! Memory that a burst took goes back to the system once the burst is over: libtorch's allocator would keep it.

use std::{sync::Arc, time::Duration};

use crate::{lifecycle::Manager, sched::Scheduler, tasks::Pulse};

/// The executors have run nothing for between one and two of these.
const QUIET: Duration = Duration::from_secs(5);

/// Gives memory back whenever the server has come to rest. Runs until it is dropped.
pub(super) async fn give_back(scheduler: Arc<Scheduler>, manager: Arc<Manager>, pulse: Pulse) {
    let mut watch = Watch::default();
    loop {
        tokio::time::sleep(QUIET).await;
        if watch.came_to_rest(scheduler.snapshot().batches) {
            manager.release_memory().await;
        }
        pulse.beat();
    }
}

#[derive(Debug, Default)]
struct Watch {
    batches: u64,
    ran: bool,
}

impl Watch {
    /// Whether this is the first look at which nothing has run since the one before.
    fn came_to_rest(&mut self, batches: u64) -> bool {
        let runs = batches != std::mem::replace(&mut self.batches, batches);
        let ran = std::mem::replace(&mut self.ran, runs);
        ran && !runs
    }
}

#[cfg(test)]
mod tests {
    use super::Watch;

    #[test]
    fn memory_is_given_back_once_after_each_burst() {
        let mut watch = Watch::default();
        let looks = [0, 0, 5, 9, 9, 9, 10, 10, 10];
        let rests: Vec<bool> = looks.into_iter().map(|batches| watch.came_to_rest(batches)).collect();
        assert_eq!(rests, [false, false, false, false, true, false, false, true, false]);
    }
}
