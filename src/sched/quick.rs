//! Passes that are shorter than handing them over: a request that is alone, for a model that answers in microseconds,
//! is run by the thread that read it. Two wake-ups of a sleeping thread cost more than such a pass, and the second
//! thread finds the weights in another core's cache.
//!
//! What it risks is the wire: while a pass runs here, nothing else is read here. So a model must have shown in its
//! warm-up that it is quick, its code must be without loops and effects, a request must be no larger than what was
//! measured, and requests must come one at a time. A model that turns out slow loses the right until it is reloaded.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU32, AtomicUsize, Ordering},
    time::Duration,
};

/// A warm pass up to this long is quick.
pub const QUICK: Duration = Duration::from_micros(100);
/// A pass here that takes this long holds up the wire.
const SLOW: Duration = Duration::from_millis(1);
/// Slow passes in a row that cost a model the right: one may be the machine's fault.
const STRIKES: u32 = 3;
/// Requests in a row that came alone, before one is run where it was read.
const SEQUENTIAL: u32 = 8;

/// How much of a version's work is quick.
#[derive(Debug, Default)]
pub struct Quick {
    /// Bytes of the largest inputs that were quick in the warm-up. 0: none.
    bytes: AtomicUsize,
    strikes: AtomicU32,
}

impl Quick {
    /// Inputs of up to `bytes` are quick.
    pub fn up_to(bytes: usize) -> Self {
        Self { bytes: AtomicUsize::new(bytes), strikes: AtomicU32::new(0) }
    }

    /// Whether inputs of that size are.
    pub fn allows(&self, bytes: usize) -> bool {
        bytes <= self.bytes.load(Ordering::Relaxed) && bytes > 0
    }

    /// Notes a pass that was run where it was read.
    pub(super) fn took(&self, pass: Duration) {
        if pass < SLOW {
            self.strikes.store(0, Ordering::Relaxed);
        } else if self.strikes.fetch_add(1, Ordering::Relaxed) + 1 >= STRIKES {
            self.bytes.store(0, Ordering::Relaxed);
            tracing::info!(pass_us = pass.as_micros(), "passes are not quick any more: executors run them");
        }
    }
}

thread_local! {
    static PACE: Pace = const { Pace { since_wake: Cell::new(0), alone: Cell::new(0) } };
}

/// How requests reach this thread: one by one, or several at each turn.
struct Pace {
    /// Requests since the thread last woke up.
    since_wake: Cell<u32>,
    /// Times in a row that one was all there was.
    alone: Cell<u32>,
}

/// To be called whenever a thread of the wire wakes up.
pub fn wire_woke() {
    PACE.with(|pace| match pace.since_wake.replace(0) {
        // A wake-up for half a request, an answer or a timer.
        0 => {}
        1 => pace.alone.set(pace.alone.get().saturating_add(1)),
        _ => pace.alone.set(0),
    });
}

/// Counts a request; true where it is the only one at this turn, as those before it were. Never on threads that
/// [`wire_woke`] is not called on.
pub(super) fn comes_alone() -> bool {
    PACE.with(|pace| {
        let count = pace.since_wake.get().saturating_add(1);
        pace.since_wake.set(count);
        count == 1 && pace.alone.get() >= SEQUENTIAL
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
            seen.push(comes_alone());
            wire_woke();
        }
        assert_eq!(seen.iter().filter(|alone| **alone).count(), 2, "{seen:?}");
        assert!(!comes_alone() || !comes_alone(), "the second of a turn is not alone");
        wire_woke();
        assert!(!comes_alone(), "nor is the one after a turn of two");
    }

    #[test]
    fn nothing_is_alone_where_nobody_says_that_it_woke() {
        std::thread::spawn(|| assert!((0..100).all(|_| !comes_alone()))).join().unwrap();
    }

    #[test]
    fn three_slow_passes_in_a_row_cost_the_right() {
        let quick = Quick::up_to(100);
        assert!(quick.allows(100) && !quick.allows(101) && !quick.allows(0));
        for _ in 0..5 {
            quick.took(SLOW);
            quick.took(SLOW);
            quick.took(Duration::ZERO);
        }
        assert!(quick.allows(1));
        (0..3).for_each(|_| quick.took(SLOW));
        assert!(!quick.allows(1));
    }
}
