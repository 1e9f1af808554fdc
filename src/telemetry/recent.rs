//! The last minute of requests, second by second and lane by lane, for those who watch.
//!
//! A recorder of its own: the histograms that are scraped cannot be read back, and their buckets (about three to a decade) are
//! too wide for a curve of percentiles. A second that is over is never written to again, so reading holds up no request; a
//! request holds the lock of its lane's present second for one addition.

use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::model::Lane;

/// Whole seconds that are told of.
const SECONDS: u64 = 60;

/// Those, and the one that is under way.
const KEPT: u64 = SECONDS + 1;

/// The last minute of each lane.
#[derive(Debug)]
pub struct Recent {
    began: Instant,
    /// By lane. A second stands at its number modulo [`KEPT`].
    lanes: [Box<[Mutex<Second>]>; 4],
}

/// What one second saw.
#[derive(Debug)]
struct Second {
    /// Since [`Recent::began`]. `None`: none yet.
    number: Option<u64>,
    failed: u64,
    /// In microseconds.
    answered: Histogram<u32>,
}

/// One second of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Moment {
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that were refused or failed.
    pub failed: u64,
    /// Half of the answers took longer, from the decoded request to the answer. `None`: there was none.
    pub p50: Option<Duration>,
    /// One answer in a hundred took longer.
    pub p99: Option<Duration>,
}

/// The last minute of a lane.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Minute {
    /// Sixty of them, the latest last; those from before the start are empty.
    pub seconds: Vec<Moment>,
    /// All of them together.
    pub whole: Moment,
}

/// Up to a minute, in microseconds, to one digit: what is told is at most 1/16 too long. 1.5 KB each.
#[expect(clippy::expect_used, reason = "the bounds are constants")]
fn times() -> Histogram<u32> {
    Histogram::new_with_bounds(1, 60_000_000, 1).expect("valid bounds")
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

fn at(times: &Histogram<u32>, quantile: f64) -> Option<Duration> {
    (!times.is_empty()).then(|| Duration::from_micros(times.value_at_quantile(quantile)))
}

impl Default for Second {
    fn default() -> Self {
        Self { number: None, failed: 0, answered: times() }
    }
}

impl Second {
    fn begin(&mut self, number: u64) {
        self.number = Some(number);
        self.failed = 0;
        self.answered.reset();
    }
}

impl Default for Recent {
    /// Nothing yet.
    fn default() -> Self {
        let seconds = || (0..KEPT).map(|_| Mutex::new(Second::default())).collect::<Box<[_]>>();
        Self { began: Instant::now(), lanes: std::array::from_fn(|_| seconds()) }
    }
}

impl Recent {
    /// Notes a request that has just ended: with an answer after so long, or without one.
    pub fn note(&self, lane: Lane, answered_after: Option<Duration>) {
        let now = self.began.elapsed().as_secs();
        let Some(second) = self.second(lane, now) else { return };
        let mut second = second.lock();
        if second.number != Some(now) {
            second.begin(now);
        }
        match answered_after {
            Some(took) => second.answered.saturating_record(micros(took)),
            None => second.failed += 1,
        }
    }

    /// The last minute of a lane, without the second that is under way.
    pub fn read(&self, lane: Lane) -> Minute {
        let now = self.began.elapsed().as_secs();
        let (mut answered, mut failed) = (times(), 0);
        let mut moment = |ago: u64| {
            let number = now.checked_sub(ago)?;
            let second = self.second(lane, number)?.lock();
            if second.number != Some(number) {
                return None;
            }
            let _same_bounds = answered.add(&second.answered);
            failed += second.failed;
            Some(Moment {
                answered: second.answered.len(),
                failed: second.failed,
                p50: at(&second.answered, 0.5),
                p99: at(&second.answered, 0.99),
            })
        };
        let seconds = (1..=SECONDS).rev().map(|ago| moment(ago).unwrap_or_default()).collect();
        let (p50, p99) = (at(&answered, 0.5), at(&answered, 0.99));
        Minute { seconds, whole: Moment { answered: answered.len(), failed, p50, p99 } }
    }

    fn second(&self, lane: Lane, number: u64) -> Option<&Mutex<Second>> {
        self.lanes.get(lane.index())?.get(usize::try_from(number % KEPT).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Not more than 1/16 off.
    fn is_about(told: Option<Duration>, expected: Duration) -> bool {
        told.is_some_and(|told| told >= expected && told <= expected + expected / 16)
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_is_told_of_once_it_is_over_and_for_a_minute() {
        let recent = Recent::default();
        for took in 1..=100 {
            recent.note(Lane::High, Some(MS * took));
        }
        recent.note(Lane::High, None);
        assert_eq!(recent.read(Lane::High).whole, Moment::default(), "it is under way");
        tokio::time::advance(Duration::from_secs(1)).await;
        recent.note(Lane::High, Some(MS * 500));
        for ago in 1..=SECONDS {
            let minute = recent.read(Lane::High);
            let index = usize::try_from(SECONDS - ago).unwrap();
            let second = minute.seconds[index];
            assert_eq!((minute.seconds.len(), second.answered, second.failed), (60, 100, 1), "{ago} s ago");
            assert!(is_about(second.p50, MS * 50) && is_about(second.p99, MS * 99), "{second:?}");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let minute = recent.read(Lane::High);
        assert_eq!((minute.whole.answered, minute.whole.failed), (1, 0), "what came a second later is left");
        assert_eq!(recent.read(Lane::Low).whole, Moment::default(), "another lane");
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_has_the_percentiles_of_all_its_answers() {
        let recent = Recent::default();
        for _ in 0..10 {
            for _ in 0..99 {
                recent.note(Lane::Normal, Some(MS));
            }
            recent.note(Lane::Normal, Some(MS * 200));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        recent.note(Lane::Normal, Some(Duration::from_secs(3600)));
        tokio::time::advance(Duration::from_secs(1)).await;
        let Minute { seconds, whole } = recent.read(Lane::Normal);
        assert_eq!(whole.answered, 1001);
        assert!(is_about(whole.p50, MS), "{whole:?}");
        assert!(is_about(whole.p99, MS * 200), "{whole:?}");
        let last = seconds.last().unwrap();
        assert!(
            last.p50.unwrap() >= Duration::from_secs(59),
            "what is longer than can be told is the most: {last:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_used_again_has_forgotten_what_was() {
        let recent = Recent::default();
        recent.note(Lane::Critical, Some(MS * 900));
        recent.note(Lane::Critical, None);
        tokio::time::advance(Duration::from_secs(KEPT)).await;
        recent.note(Lane::Critical, Some(MS));
        tokio::time::advance(Duration::from_secs(1)).await;
        let whole = recent.read(Lane::Critical).whole;
        assert_eq!((whole.answered, whole.failed), (1, 0));
        assert!(is_about(whole.p99, MS), "{whole:?}");
    }
}
