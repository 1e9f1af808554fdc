//! Which requests are slow: slower than nearly all were while nothing was loaded.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Quarters of octaves of microseconds: the last is everything from an hour on.
const CLASSES: usize = 128;
/// At least this share is called slow. Rarer ones would tell the same much later.
const SLOW: f64 = 0.03;
/// Fewer requests say nothing.
const ENOUGH: u64 = 100;
/// Older ones count half from here on.
const MANY: u64 = 5000;

/// Times of requests while nothing was loaded. Adding takes no lock.
#[derive(Debug)]
pub(super) struct Tail {
    classes: [AtomicU64; CLASSES],
    /// From how many microseconds on a request is slow.
    slow: AtomicU64,
}

/// What is slow, and how much of it was.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mark {
    pub(super) share: f64,
}

impl Default for Tail {
    fn default() -> Self {
        Self { classes: std::array::from_fn(|_| AtomicU64::new(0)), slow: AtomicU64::new(u64::MAX) }
    }
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

fn class(micros: u64) -> usize {
    let micros = micros.max(4);
    let octave = micros.ilog2();
    let quarter = (micros >> (octave - 2)) & 3;
    (4 * (octave as usize - 2) + quarter as usize).min(CLASSES - 1)
}

/// The least that lies above a class, in microseconds.
fn above(class: usize) -> u64 {
    let (octave, quarter) = (class / 4 + 2, class as u64 % 4);
    (4 + quarter + 1) << (octave - 2)
}

impl Tail {
    pub(super) fn add(&self, took: Duration) {
        if let Some(class) = self.classes.get(class(micros(took))) {
            class.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Requests that take longer are slow.
    pub(super) fn slow(&self) -> Duration {
        Duration::from_micros(self.slow.load(Ordering::Relaxed))
    }

    /// Draws the line by what was seen so far. `None` if that is too little.
    pub(super) fn mark(&self) -> Option<Mark> {
        let counts: Vec<u64> = self.classes.iter().map(|class| class.load(Ordering::Relaxed)).collect();
        let all: u64 = counts.iter().sum();
        if all < ENOUGH {
            return None;
        }
        let mut slow = 0;
        let mut line = CLASSES;
        for (class, count) in counts.iter().enumerate().rev() {
            slow += count;
            line = class;
            if slow as f64 >= SLOW * all as f64 {
                break;
            }
        }
        self.slow.store(line.checked_sub(1).map_or(0, above), Ordering::Relaxed);
        if all > MANY {
            for class in &self.classes {
                let _halved =
                    class.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(count / 2));
            }
        }
        Some(Mark { share: slow as f64 / all as f64 })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seen(micros: impl IntoIterator<Item = u64>) -> (Tail, Option<Mark>) {
        let tail = Tail::default();
        micros.into_iter().for_each(|micros| tail.add(Duration::from_micros(micros)));
        let mark = tail.mark();
        (tail, mark)
    }

    #[test]
    fn too_few_requests_draw_no_line() {
        let (tail, mark) = seen(0..ENOUGH - 1);
        assert_eq!((mark, tail.slow()), (None, Duration::from_micros(u64::MAX)));
    }

    #[test]
    fn where_all_take_the_same_none_is_slower() {
        let (tail, mark) = seen([1000; 200]);
        assert_eq!(mark, Some(Mark { share: 1.0 }));
        assert!(tail.slow() < Duration::from_micros(1000));
    }

    #[test]
    fn old_requests_fade() {
        let tail = Tail::default();
        let add = |count: u64, micros| (0..count).for_each(|_| tail.add(Duration::from_micros(micros)));
        add(2 * MANY, 1000);
        tail.mark();
        add(MANY, 50_000);
        assert!(tail.mark().is_some_and(|mark| (mark.share - 0.5).abs() < 0.01));
    }

    proptest! {
        #[test]
        fn each_time_lies_in_its_class(micros: u64) {
            let class = class(micros);
            prop_assert!(class == CLASSES - 1 || micros < above(class));
            prop_assert!(class == 0 || micros >= above(class - 1));
        }

        #[test]
        fn the_line_parts_those_that_were_seen_as_it_says(
            times in prop::collection::vec(1_u64..10_000_000, 100..1000)
        ) {
            let (tail, mark) = seen(times.iter().copied());
            let slow = times.iter().filter(|micros| Duration::from_micros(**micros) >= tail.slow()).count();
            let share = slow as f64 / times.len() as f64;
            prop_assert!(mark.is_some_and(|mark| (mark.share - share).abs() < 1e-9));
            prop_assert!(share >= SLOW);
        }
    }
}
