//! Memory that a burst took goes back to the system once the burst is over: libtorch's allocator would keep it. That is so also where
//! others are served meanwhile.

use std::{sync::Arc, time::Duration};

use crate::{admission::Callers, lifecycle::Manager, sched::Scheduler, tasks::Pulse, telemetry::Door};

/// The executors have run nothing for between one and two of these.
const QUIET: Duration = Duration::from_secs(5);

/// Looks at what callers hold between two looks at the executors.
const LOOKS: u32 = 20;

/// What a call and a connection take besides their messages, about.
const CALL: u64 = 12 << 10;
const CONNECTION: u64 = 32 << 10;

/// Less is not worth it: giving memory back takes a moment, and getting it again another.
const MUCH: u64 = 16 << 20;

/// Gives memory back whenever the server has come to rest, and when callers hold much less than they did. Runs until it is dropped.
pub(super) async fn give_back(
    scheduler: Arc<Scheduler>,
    manager: Arc<Manager>,
    callers: Arc<Callers>,
    pulse: Pulse,
) {
    let (mut watch, mut tide) = (Watch::default(), Tide::default());
    loop {
        for _ in 0..LOOKS {
            tokio::time::sleep(QUIET / LOOKS).await;
            tide.look(held(&callers));
        }
        let fell = tide.fell();
        if watch.came_to_rest(scheduler.snapshot().batches) || fell {
            manager.release_memory().await;
        }
        pulse.beat();
    }
}

fn held(callers: &Callers) -> u64 {
    let connections = callers.connections(Door::Grpc) + callers.connections(Door::Http);
    callers.bytes() + CALL * callers.calls() + CONNECTION * connections
}

/// What callers hold, and held.
#[derive(Debug, Default)]
struct Tide {
    high: u64,
    now: u64,
}

impl Tide {
    fn look(&mut self, held: u64) {
        self.high = self.high.max(held);
        self.now = held;
    }

    /// It was much, and most of it is gone.
    fn fell(&mut self) -> bool {
        let fell = self.high - self.now >= MUCH && self.now < self.high / 2;
        if fell {
            self.high = self.now;
        }
        fell
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
    use super::*;

    #[test]
    fn memory_is_given_back_once_after_each_burst() {
        let mut watch = Watch::default();
        let looks = [0, 0, 5, 9, 9, 9, 10, 10, 10];
        let rests: Vec<bool> = looks.into_iter().map(|batches| watch.came_to_rest(batches)).collect();
        assert_eq!(rests, [false, false, false, false, true, false, false, true, false]);
    }

    #[test]
    fn what_a_flood_leaves_goes_back_while_others_are_served() {
        let mut tide = Tide::default();
        let mut fell = |held: &[u64]| {
            held.iter().for_each(|held| tide.look(held << 20));
            tide.fell()
        };
        assert!(!fell(&[1, 2, 1]), "little");
        assert!(!fell(&[100, 90]) && !fell(&[60]), "most is there still");
        assert!(fell(&[40]) && !fell(&[40, 39]), "once");
        assert!(fell(&[200, 1]), "between two looks at the executors too");
    }
}
