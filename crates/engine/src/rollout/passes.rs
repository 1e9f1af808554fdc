//! Whether passes of the new version take longer than the live one's of the same size. Pure.
//!
//! A new version gets fewer requests, so its batches are smaller and its waiting is different: what is compared is the
//! executor's time for a pass, with passes of requests of about the same bytes and of as many rows or more. A pass with more
//! rows takes no less, so that a new version that is no slower is never wronged by that.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use hdrhistogram::Histogram;

use crate::sched::RowClass;

/// Fewer passes of the live version than this are no measure.
const LEAST: u64 = 30;
/// So many passes of the live version are "just now".
const LATEST: usize = 32;
/// A pass that is longer by less than this is as fast: for passes of microseconds a cold cache is as much.
const SLACK: Duration = Duration::from_micros(200);
/// Sizes that are kept; later ones are not compared.
const MOST_SIZES: usize = 32;

/// Bytes of a request, and rows of the pass up to a power of two.
type Size = (RowClass, u32);

/// The times of one size.
#[derive(Debug)]
struct Times {
    /// In units of 100 ns.
    all: Histogram<u32>,
    latest: VecDeque<Duration>,
    recent: Recent,
    median: Duration,
    slow: Duration,
}

impl Times {
    /// The larger of what was usual and what is just now: while something else slows the whole machine down, passes of the new
    /// version are held against the live one's of that time.
    fn read(&mut self) {
        let mut latest: Vec<_> = self.latest.iter().copied().collect();
        latest.sort_unstable();
        let now = |nth: usize| latest.get(latest.len() * nth / 10).copied().unwrap_or_default();
        self.median = at(&self.all, 0.5).max(now(5));
        self.slow = at(&self.all, 0.9).max(now(9));
    }
}

/// Requests that shared a pass have the very same time, to the nanosecond: it counts once.
#[derive(Debug, Default)]
struct Recent {
    times: [Duration; 8],
    next: usize,
}

impl Recent {
    fn is_new(&mut self, took: Duration) -> bool {
        if self.times.contains(&took) {
            return false;
        }
        if let Some(place) = self.times.get_mut(self.next % 8) {
            *place = took;
        }
        self.next = self.next.wrapping_add(1);
        true
    }
}

/// Times of the live version's passes by size, for those of the new one to be held against.
#[derive(Debug, Default)]
pub struct Passes {
    live: BTreeMap<Size, Times>,
    candidate: Recent,
}

/// A histogram of times up to 10 minutes, in units of 100 ns, to two digits.
#[expect(clippy::expect_used, reason = "the bounds are constants")]
pub(super) fn histogram() -> Histogram<u32> {
    Histogram::new_with_bounds(1, 6_000_000_000, 2).expect("valid bounds")
}

pub(super) fn ticks(took: Duration) -> u64 {
    u64::try_from(took.as_nanos() / 100).unwrap_or(u64::MAX).max(1)
}

pub(super) fn at(times: &Histogram<u32>, quantile: f64) -> Duration {
    Duration::from_nanos(times.value_at_quantile(quantile).saturating_mul(100))
}

fn size(bytes: usize, rows: usize) -> Size {
    (RowClass::of(bytes, 1), rows.max(1).next_power_of_two().ilog2())
}

impl Passes {
    /// Notes a pass of the live version, with requests of so many bytes and so many rows in all.
    pub fn live(&mut self, bytes: usize, rows: usize, took: Duration) {
        let size = size(bytes, rows);
        if !self.live.contains_key(&size) && self.live.len() >= MOST_SIZES {
            return;
        }
        let times = self.live.entry(size).or_insert_with(|| Times {
            all: histogram(),
            latest: VecDeque::with_capacity(LATEST),
            recent: Recent::default(),
            median: Duration::ZERO,
            slow: Duration::ZERO,
        });
        if !times.recent.is_new(took) {
            return;
        }
        times.all.saturating_record(ticks(took));
        if times.latest.len() == LATEST {
            times.latest.pop_front();
        }
        times.latest.push_back(took);
        // Not after each: requests wait for it.
        if times.all.len().checked_sub(LEAST).is_some_and(|more| more.is_multiple_of(4)) {
            times.read();
        }
    }

    /// Whether a pass of the new version took longer than `ratio` times the live version's median, and than `ratio` times its
    /// 90th percentile. `None`: there is nothing to compare it with, or it was noted before.
    pub fn candidate(
        &mut self,
        bytes: usize,
        rows: usize,
        took: Duration,
        ratio: f64,
    ) -> Option<(bool, bool)> {
        let (class, rows) = size(bytes, rows);
        let known = |times: &&Times| !times.median.is_zero();
        let like = self.live.range((class, rows)..=(class, u32::MAX)).map(|(_, times)| times).find(known)?;
        if !self.candidate.is_new(took) {
            return None;
        }
        let over = |live: Duration| took > live.mul_f64(ratio).max(live + SLACK);
        Some((over(like.median), over(like.slow)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: f64) -> Duration {
        Duration::from_secs_f64(ms / 1e3)
    }

    #[test]
    fn passes_are_held_against_those_of_their_size_or_larger() {
        let mut passes = Passes::default();
        assert_eq!(passes.candidate(100, 1, ms(9.0), 1.5), None, "nothing is known");
        for i in 0..100 {
            passes.live(100, 4, ms(4.0 + f64::from(i) / 1e3));
            passes.live(100, 16, ms(16.0 + f64::from(i) / 1e3));
        }
        assert_eq!(passes.candidate(100, 4, ms(5.0), 1.5), Some((false, false)));
        assert_eq!(passes.candidate(100, 4, ms(7.0), 1.5), Some((true, true)));
        assert_eq!(passes.candidate(100, 1, ms(5.1), 1.5), Some((false, false)), "smaller than any");
        assert_eq!(passes.candidate(100, 9, ms(12.0), 1.5), Some((false, false)), "between two");
        assert_eq!(passes.candidate(100, 17, ms(99.0), 1.5), None, "larger than any");
        assert_eq!(passes.candidate(100_000, 4, ms(98.0), 1.5), None, "other requests");
    }

    #[test]
    fn what_slows_both_down_is_not_the_new_versions_fault() {
        let mut passes = Passes::default();
        (0..1000).for_each(|i| passes.live(100, 1, ms(2.0 + f64::from(i) / 1e4)));
        assert_eq!(passes.candidate(100, 1, ms(8.0), 1.5), Some((true, true)));
        (0..40).for_each(|i| passes.live(100, 1, ms(8.0 + f64::from(i) / 1e4)));
        assert_eq!(passes.candidate(100, 1, ms(8.1), 1.5), Some((false, false)), "a noisy neighbour");
        (0..40).for_each(|i| passes.live(100, 1, ms(2.2 + f64::from(i) / 1e4)));
        assert_eq!(passes.candidate(100, 1, ms(8.2), 1.5), Some((true, true)), "it has left");
    }

    #[test]
    fn a_pass_counts_once_and_microseconds_are_forgiven() {
        let mut passes = Passes::default();
        for _ in 0..100 {
            passes.live(100, 1, ms(0.010));
        }
        assert_eq!(passes.candidate(100, 1, ms(1.0), 1.5), None, "one pass with 100 requests is one pass");
        (0..100).for_each(|i| passes.live(100, 1, Duration::from_nanos(10_000 + i)));
        assert_eq!(passes.candidate(100, 1, ms(0.15), 1.5), Some((false, false)));
        assert_eq!(passes.candidate(100, 1, ms(1.0), 1.5), Some((true, true)));
        assert_eq!(passes.candidate(100, 1, ms(1.0), 1.5), None, "the same pass");
    }
}
