//! The last minute and the last hour of requests, by lane and by model, for those who watch.
//!
//! A recorder of its own: the histograms that are scraped cannot be read back, and their buckets (about three to a decade) are
//! too wide for a curve of percentiles. Time is cut into spans; one that is over is never written to again, so reading holds up
//! no request, and a request holds the lock of a present span for one addition. Memory is bounded: spans, kinds of failures
//! and models that are kept.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hdrhistogram::Histogram;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::model::Lane;

/// Of the curves of lanes: a minute of seconds, an hour of minutes.
const SPANS: u64 = 60;

/// A model's hour is shown as a whole, so a few spans do.
const MODEL_SPANS: u64 = 12;

/// Models whose hour is kept: 20 KiB each.
const MOST_MODELS: usize = 256;

/// The last minute and hour of each lane, and the last hour of models.
#[derive(Debug)]
pub struct Recent {
    began: Instant,
    minutes: [Ring; 4],
    hours: [Ring; 4],
    models: RwLock<HashMap<Box<str>, Arc<Ring>>>,
}

/// Spans of time, each at its number modulo how many are kept.
#[derive(Debug)]
struct Ring {
    each: Duration,
    spans: Box<[Mutex<Span>]>,
}

/// What one span of time saw.
#[derive(Debug)]
struct Span {
    /// Since [`Recent::began`]. `None`: none yet.
    number: Option<u64>,
    /// By reason.
    failed: Vec<(&'static str, u64)>,
    /// In microseconds.
    answered: Histogram<u32>,
}

/// One span.
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

/// Spans one after the other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Curve {
    /// The latest whole one last; those from before the start are empty.
    pub moments: Vec<Moment>,
    /// All of them together; of an hour, with the span that is under way.
    pub whole: Moment,
    /// Failures by reason, the most frequent first.
    pub reasons: Vec<(&'static str, u64)>,
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

impl Default for Span {
    fn default() -> Self {
        Self { number: None, failed: Vec::new(), answered: times() }
    }
}

impl Span {
    fn begin(&mut self, number: u64) {
        self.number = Some(number);
        self.failed.clear();
        self.answered.reset();
    }

    fn add_failed(&mut self, reason: &'static str, count: u64) {
        match self.failed.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, counted)) => *counted += count,
            None => self.failed.push((reason, count)),
        }
    }

    fn moment(&self) -> Moment {
        Moment {
            answered: self.answered.len(),
            failed: self.failed.iter().map(|(_, count)| count).sum(),
            p50: at(&self.answered, 0.5),
            p99: at(&self.answered, 0.99),
        }
    }
}

impl Ring {
    /// Keeps that many whole spans, and the one under way.
    fn new(spans: u64, each: Duration) -> Self {
        Self { each, spans: (0..=spans).map(|_| Mutex::new(Span::default())).collect() }
    }

    fn number(&self, since: Duration) -> u64 {
        u64::try_from(since.as_nanos() / self.each.as_nanos().max(1)).unwrap_or(u64::MAX)
    }

    fn span(&self, number: u64) -> Option<&Mutex<Span>> {
        self.spans.get(usize::try_from(number.checked_rem(self.spans.len() as u64)?).ok()?)
    }

    fn note(&self, since: Duration, ended: Result<Duration, &'static str>) {
        let now = self.number(since);
        let Some(span) = self.span(now) else { return };
        let mut span = span.lock();
        if span.number != Some(now) {
            span.begin(now);
        }
        match ended {
            Ok(took) => span.answered.saturating_record(micros(took)),
            Err(reason) => span.add_failed(reason, 1),
        }
    }

    fn read(&self, since: Duration, with_present: bool) -> Curve {
        let now = self.number(since);
        let mut all = Span::default();
        let mut moment = |ago: u64| {
            let number = now.checked_sub(ago)?;
            let span = self.span(number)?.lock();
            if span.number != Some(number) {
                return None;
            }
            let _same_bounds = all.answered.add(&span.answered);
            span.failed.iter().for_each(|(reason, count)| all.add_failed(reason, *count));
            Some(span.moment())
        };
        let kept = (self.spans.len() as u64).saturating_sub(1);
        let moments = (1..=kept).rev().map(|ago| moment(ago).unwrap_or_default()).collect();
        if with_present {
            moment(0);
        }
        all.failed.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
        Curve { moments, whole: all.moment(), reasons: all.failed }
    }
}

impl Default for Recent {
    /// Nothing yet.
    fn default() -> Self {
        let rings = |each| std::array::from_fn(|_| Ring::new(SPANS, Duration::from_secs(each)));
        Self { began: Instant::now(), minutes: rings(1), hours: rings(60), models: RwLock::default() }
    }
}

impl Recent {
    /// Notes a request that has just ended: with an answer after so long, or for a reason without one. `model` is empty if none
    /// of that name exists.
    pub fn note(&self, lane: Lane, model: &str, ended: Result<Duration, &'static str>) {
        let since = self.began.elapsed();
        for rings in [&self.minutes, &self.hours] {
            if let Some(ring) = rings.get(lane.index()) {
                ring.note(since, ended);
            }
        }
        if model.is_empty() {
            return;
        }
        if let Some(ring) = self.models.read().get(model) {
            return ring.note(since, ended);
        }
        let mut models = self.models.write();
        if models.len() >= MOST_MODELS {
            models.retain(|_, ring| !ring.read(since, true).is_empty());
        }
        if models.len() < MOST_MODELS {
            let each = Duration::from_secs(3600 / MODEL_SPANS);
            models
                .entry(model.into())
                .or_insert_with(|| Arc::new(Ring::new(MODEL_SPANS, each)))
                .note(since, ended);
        }
    }

    /// The last minute of a lane by seconds, without the one that is under way.
    pub fn minute(&self, lane: Lane) -> Curve {
        self.minutes.get(lane.index()).map(|ring| ring.read(self.began.elapsed(), false)).unwrap_or_default()
    }

    /// The last hour of a lane by minutes.
    pub fn hour(&self, lane: Lane) -> Curve {
        self.hours.get(lane.index()).map(|ring| ring.read(self.began.elapsed(), true)).unwrap_or_default()
    }

    /// The last hour of a model. `None`: nobody asked it for anything.
    pub fn model(&self, model: &str) -> Option<Curve> {
        let ring = self.models.read().get(model).cloned()?;
        Some(ring.read(self.began.elapsed(), true)).filter(|curve| !curve.is_empty())
    }
}

impl Curve {
    fn is_empty(&self) -> bool {
        self.whole == Moment::default()
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
            recent.note(Lane::High, "m", Ok(MS * took));
        }
        recent.note(Lane::High, "m", Err("LATE"));
        assert_eq!(recent.minute(Lane::High).whole, Moment::default(), "it is under way");
        tokio::time::advance(Duration::from_secs(1)).await;
        recent.note(Lane::High, "m", Ok(MS * 500));
        for ago in 1..=SPANS {
            let minute = recent.minute(Lane::High);
            let index = usize::try_from(SPANS - ago).unwrap();
            let second = minute.moments[index];
            assert_eq!((minute.moments.len(), second.answered, second.failed), (60, 100, 1), "{ago} s ago");
            assert!(is_about(second.p50, MS * 50) && is_about(second.p99, MS * 99), "{second:?}");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let minute = recent.minute(Lane::High);
        assert_eq!((minute.whole.answered, minute.whole.failed), (1, 0), "what came a second later is left");
        assert_eq!(recent.minute(Lane::Low).whole, Moment::default(), "another lane");
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_has_the_percentiles_of_all_its_answers() {
        let recent = Recent::default();
        for _ in 0..10 {
            for _ in 0..99 {
                recent.note(Lane::Normal, "", Ok(MS));
            }
            recent.note(Lane::Normal, "", Ok(MS * 200));
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        recent.note(Lane::Normal, "", Ok(Duration::from_secs(3600)));
        tokio::time::advance(Duration::from_secs(1)).await;
        let Curve { moments, whole, .. } = recent.minute(Lane::Normal);
        assert_eq!(whole.answered, 1001);
        assert!(is_about(whole.p50, MS), "{whole:?}");
        assert!(is_about(whole.p99, MS * 200), "{whole:?}");
        let last = moments.last().unwrap();
        assert!(
            last.p50.unwrap() >= Duration::from_secs(59),
            "what is longer than can be told is the most: {last:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_is_used_again_has_forgotten_what_was() {
        let recent = Recent::default();
        recent.note(Lane::Critical, "", Ok(MS * 900));
        recent.note(Lane::Critical, "", Err("LATE"));
        tokio::time::advance(Duration::from_secs(SPANS + 1)).await;
        recent.note(Lane::Critical, "", Ok(MS));
        tokio::time::advance(Duration::from_secs(1)).await;
        let whole = recent.minute(Lane::Critical).whole;
        assert_eq!((whole.answered, whole.failed), (1, 0));
        assert!(is_about(whole.p99, MS), "{whole:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_hour_has_its_failures_by_model_and_reason_and_forgets_them() {
        let recent = Recent::default();
        recent.note(Lane::Low, "m", Ok(MS * 7));
        recent.note(Lane::Low, "m", Err("FORWARD_FAILED"));
        for _ in 0..3 {
            recent.note(Lane::Low, "m", Err("DEADLINE_EXCEEDED"));
        }
        recent.note(Lane::Low, "", Err("UNKNOWN_MODEL"));
        let now = recent.model("m").unwrap();
        assert_eq!((now.whole.answered, now.whole.failed), (1, 4), "at once: it is what is looked for");
        assert_eq!(now.reasons, [("DEADLINE_EXCEEDED", 3), ("FORWARD_FAILED", 1)]);
        assert!(is_about(now.whole.p99, MS * 7) && recent.model("other").is_none());
        tokio::time::advance(Duration::from_secs(59 * 60)).await;
        assert_eq!(recent.model("m").unwrap(), Curve { moments: recent.model("m").unwrap().moments, ..now });
        let lane = recent.hour(Lane::Low);
        assert_eq!((lane.moments.len(), lane.moments[1].failed, lane.whole.failed), (60, 5, 5));
        assert_eq!(lane.reasons.len(), 3);
        tokio::time::advance(Duration::from_secs(7 * 60)).await;
        assert!(recent.model("m").is_none() && recent.hour(Lane::Low).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn names_of_models_are_bounded_and_idle_ones_make_room() {
        let recent = Recent::default();
        for number in 0..MOST_MODELS + 10 {
            recent.note(Lane::Low, &format!("m{number}"), Ok(MS));
        }
        assert!(recent.model("m0").is_some() && recent.model(&format!("m{MOST_MODELS}")).is_none());
        tokio::time::advance(Duration::from_secs(2 * 3600)).await;
        recent.note(Lane::Low, "later", Ok(MS));
        assert!(recent.model("later").is_some() && recent.models.read().len() == 1);
    }
}
