//! Passes that are shorter than handing them over: a request that is alone, for a model that answers in microseconds,
//! is run by the thread that read it. Two wake-ups of a sleeping thread cost more than such a pass, and the second
//! thread finds the weights in another core's cache.
//!
//! So is an urgent one while all executors run passes for lower lanes, which cannot be broken off.
//!
//! What it risks is the wire: while a pass runs here, nothing else is read here. So a model must have shown in its
//! warm-up that it is quick, its code must be without loops and effects, a request must be no larger than what was
//! measured, and requests must come one at a time, or be urgent and take little of the thread's turn. A model that turns out slow loses the right until it is reloaded.

use std::{
    cell::Cell,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// A warm pass up to this long is quick.
pub const QUICK: Duration = Duration::from_micros(100);
/// A pass here that takes this long holds up the wire.
const SLOW: Duration = Duration::from_millis(1);
/// Slow passes within [`WINDOW`] that cost a model the right: one may be cold caches.
const STRIKES: u32 = 3;
const WINDOW: Duration = Duration::from_secs(60);
/// One that takes this long costs it at once.
const FAR_TOO_SLOW: Duration = Duration::from_millis(10);
/// Requests in a row that came alone, before one is run where it was read.
const SEQUENTIAL: u32 = 8;
/// Time that urgent ones may take at one turn of the thread that reads.
const TURN: Duration = Duration::from_millis(2);

/// How much of a version's work is quick.
#[derive(Debug, Default)]
pub struct Quick {
    /// Bytes of the largest inputs that were quick in the warm-up. 0: none.
    bytes: AtomicUsize,
    /// Slow passes, since the first of them.
    strikes: Mutex<Option<(Instant, u32)>>,
}

impl Quick {
    /// Inputs of up to `bytes` are quick.
    pub fn up_to(bytes: usize) -> Self {
        Self { bytes: AtomicUsize::new(bytes), ..Self::default() }
    }

    /// Whether inputs of that size are.
    pub fn allows(&self, bytes: usize) -> bool {
        bytes <= self.bytes.load(Ordering::Relaxed) && bytes > 0
    }

    /// Notes a pass that was run where it was read, by the thread's own time. Sizes inside a model may depend on values, so
    /// a pass may turn out long that was quick before.
    pub(super) fn took(&self, pass: Duration) {
        PACE.with(|pace| pace.spent.set(pace.spent.get() + pass));
        if pass < SLOW {
            return;
        }
        let mut strikes = self.strikes.lock();
        let now = Instant::now();
        let (since, before) = strikes.filter(|(since, _)| now - *since < WINDOW).unwrap_or((now, 0));
        *strikes = Some((since, before + 1));
        if before + 1 >= STRIKES || pass >= FAR_TOO_SLOW {
            self.bytes.store(0, Ordering::Relaxed);
            tracing::info!(target: "torchlane::sched", pass_us = pass.as_micros(), "passes are not quick any more: executors run them");
        }
    }
}

thread_local! {
    static PACE: Pace = const { Pace { on_wire: Cell::new(false), spent: Cell::new(Duration::ZERO), since_wake: Cell::new(0), alone: Cell::new(0) } };
}

/// How requests reach this thread: one by one, or several at each turn.
struct Pace {
    /// It is a thread of the wire.
    on_wire: Cell<bool>,
    /// On passes, since the thread last woke up.
    spent: Cell<Duration>,
    /// Requests since the thread last woke up.
    since_wake: Cell<u32>,
    /// Times in a row that one was all there was.
    alone: Cell<u32>,
}

/// To be called whenever a thread of the wire wakes up.
pub fn wire_woke() {
    PACE.with(|pace| {
        pace.on_wire.set(true);
        pace.spent.set(Duration::ZERO);
        match pace.since_wake.replace(0) {
            // A wake-up for half a request, an answer or a timer.
            0 => {}
            1 => pace.alone.set(pace.alone.get().saturating_add(1)),
            _ => pace.alone.set(0),
        }
    });
}

/// How a request stands among those that this thread read at one turn. Neither is true on threads that [`wire_woke`] is
/// never called on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// It is the only one, as those before it were.
    pub(super) alone: bool,
    /// Passes have taken little of the turn so far.
    pub(super) early: bool,
}

/// Counts a request.
pub(super) fn turn() -> Turn {
    PACE.with(|pace| {
        let count = pace.since_wake.get().saturating_add(1);
        pace.since_wake.set(count);
        Turn {
            alone: count == 1 && pace.alone.get() >= SEQUENTIAL,
            early: pace.on_wire.get() && pace.spent.get() < TURN,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_alone_once_those_before_it_were() {
        let mut seen = Vec::new();
        for _ in 0..10 {
            wire_woke();
            seen.push(turn().alone);
            wire_woke();
        }
        assert_eq!(seen.iter().filter(|alone| **alone).count(), 2, "{seen:?}");
        assert!(!turn().alone || !turn().alone, "the second of a turn is not alone");
        wire_woke();
        assert!(!turn().alone, "nor is the one after a turn of two");
    }

    #[test]
    fn nothing_is_alone_where_nobody_says_that_it_woke() {
        let neither = Turn { alone: false, early: false };
        std::thread::spawn(move || assert!((0..100).all(|_| turn() == neither))).join().unwrap();
    }

    #[test]
    fn it_is_early_until_passes_have_taken_their_part_of_the_turn() {
        let quick = Quick::up_to(100);
        for _ in 0..2 {
            wire_woke();
            for _ in 0..20 {
                assert!(turn().early);
                quick.took(TURN / 20);
            }
            assert!(!turn().early);
        }
    }

    #[test]
    fn slow_passes_cost_the_right() {
        let quick = Quick::up_to(100);
        assert!(quick.allows(100) && !quick.allows(101) && !quick.allows(0));
        for _ in 0..STRIKES {
            assert!(quick.allows(1));
            quick.took(Duration::ZERO);
            quick.took(SLOW);
        }
        assert!(!quick.allows(1), "quick ones in between do not help");
        let quick = Quick::up_to(100);
        quick.took(FAR_TOO_SLOW);
        assert!(!quick.allows(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_pass_now_and_then_is_forgiven() {
        let quick = Quick::up_to(100);
        for _ in 0..10 {
            quick.took(SLOW);
            quick.took(SLOW);
            tokio::time::advance(WINDOW).await;
        }
        assert!(quick.allows(1));
    }
}
