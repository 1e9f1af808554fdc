//! What is noted of both versions while one is rolled out.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::{
    Passes, Sequence, Trials,
    passes::{at, histogram, ticks},
};
use crate::call::Timing;

/// One of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The version that was there before.
    Live,
    /// The new one.
    Candidate,
}

impl Side {
    /// The name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Candidate => "candidate",
        }
    }
}

/// How a request ended, as far as its version is to be praised or blamed for it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ending {
    /// With an answer.
    Answered {
        /// From received to answered.
        total: Duration,
        /// Where the time went.
        timing: Timing,
        /// Of the request's inputs.
        bytes: usize,
    },
    /// The version failed. Of the new one: where the live one answers the same request.
    Failed,
    /// The deadline passed.
    Late,
}

/// What a comparison of two answers came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Compared {
    /// As by [`super::difference`].
    By(f64),
    /// The other version gave no answer for a reason that says nothing of it.
    Dropped,
}

#[derive(Debug)]
struct Version {
    answered: u64,
    failed: u64,
    late: u64,
    total: Histogram<u32>,
    compute: Histogram<u32>,
}

impl Version {
    fn new() -> Self {
        Self { answered: 0, failed: 0, late: 0, total: histogram(), compute: histogram() }
    }

    fn note(&mut self, ending: Ending, is_shadow: bool) {
        match ending {
            Ending::Answered { total, timing, .. } => {
                self.answered += 1;
                self.compute.saturating_record(ticks(timing.compute));
                // A shadow waits in the lowest lane: its latency is nobody's.
                if !is_shadow {
                    self.total.saturating_record(ticks(total));
                }
            }
            Ending::Failed => self.failed += 1,
            Ending::Late => self.late += 1,
        }
    }

    fn seen(&self) -> SideSeen {
        SideSeen {
            answered: self.answered,
            failed: self.failed,
            late: self.late,
            p50: at(&self.total, 0.5),
            p99: at(&self.total, 0.99),
            compute_p50: at(&self.compute, 0.5),
            compute_p99: at(&self.compute, 0.99),
        }
    }
}

/// Everything noted so far.
#[derive(Debug)]
pub struct Evidence {
    live: Version,
    candidate: Version,
    passes: Passes,
    errors: Sequence,
    median: Sequence,
    tail: Sequence,
    drift: Sequence,
    fallbacks: u64,
    dropped: u64,
    largest: f64,
    /// Of those that can be told by a number.
    sum: f64,
    finite: u64,
}

impl Default for Evidence {
    fn default() -> Self {
        Self {
            live: Version::new(),
            candidate: Version::new(),
            passes: Passes::default(),
            errors: Sequence::default(),
            median: Sequence::default(),
            tail: Sequence::default(),
            drift: Sequence::default(),
            fallbacks: 0,
            dropped: 0,
            largest: 0.0,
            sum: 0.0,
            finite: 0,
        }
    }
}

impl Evidence {
    /// Notes how a request ended. `ratio` is how many times as long a pass of the new version may take.
    pub fn ended(&mut self, side: Side, ending: Ending, ratio: f64, is_shadow: bool) {
        if side == Side::Live {
            self.live.note(ending, is_shadow);
            if let Ending::Answered { timing, bytes, .. } = ending {
                self.passes.live(bytes, timing.batch_size, timing.compute);
            }
            return;
        }
        self.candidate.note(ending, is_shadow);
        self.errors.note(!matches!(ending, Ending::Answered { .. }));
        if let Ending::Answered { timing, bytes, .. } = ending
            && let Some((median, tail)) =
                self.passes.candidate(bytes, timing.batch_size, timing.compute, ratio)
        {
            self.median.note(median);
            self.tail.note(tail);
        }
    }

    /// A request that the new version failed was answered by the live one.
    pub fn fell_back(&mut self) {
        self.fallbacks += 1;
    }

    /// Notes a comparison; `most` is the largest difference that is none. `None`: any number is.
    pub fn compared(&mut self, compared: Compared, most: Option<f64>) {
        match compared {
            Compared::Dropped => self.dropped += 1,
            Compared::By(difference) => {
                self.drift.note(difference > most.unwrap_or(f64::MAX));
                self.largest = self.largest.max(difference);
                if difference.is_finite() {
                    self.sum += difference;
                    self.finite += 1;
                }
            }
        }
    }

    /// Begins the next window of the tests.
    pub fn turn(&mut self) {
        for sequence in [&mut self.errors, &mut self.median, &mut self.tail, &mut self.drift] {
            sequence.turn();
        }
    }

    /// In numbers.
    pub fn seen(&self) -> Seen {
        Seen {
            live: self.live.seen(),
            candidate: self.candidate.seen(),
            errors: self.errors,
            median: self.median,
            tail: self.tail,
            drift: self.drift,
            fallbacks: self.fallbacks,
            dropped: self.dropped,
            largest_difference: self.largest,
            mean_difference: if self.finite == 0 { 0.0 } else { self.sum / self.finite as f64 },
            callers: Callers::default(),
        }
    }
}

/// One version in numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SideSeen {
    /// Requests answered.
    pub answered: u64,
    /// Requests that it failed.
    pub failed: u64,
    /// Requests whose deadline passed.
    pub late: u64,
    /// Half of the answers took longer, from received to answered; shadows are not counted.
    pub p50: Duration,
    /// One in a hundred took longer.
    pub p99: Duration,
    /// The same of the executor's time for the pass, shadows included.
    pub compute_p50: Duration,
    /// One in a hundred passes took longer.
    pub compute_p99: Duration,
}

impl SideSeen {
    /// Requests that ended by its doing.
    pub fn requests(&self) -> u64 {
        self.answered + self.failed + self.late
    }

    /// Part of them that failed or were late.
    pub fn error_rate(&self) -> f64 {
        (self.failed + self.late) as f64 / self.requests().max(1) as f64
    }
}

/// The callers of a canary, by the keys that decide which version answers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Callers {
    /// Different keys, of which a thousand are told apart.
    pub keys: usize,
    /// Those of them that the new version answers at this step.
    pub in_share: usize,
    /// Requests without a key.
    pub without_key: u64,
}

/// What is known at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Seen {
    /// Of the live version.
    pub live: SideSeen,
    /// Of the new one.
    pub candidate: SideSeen,
    /// The new version's requests; hits failed or were late.
    pub errors: Sequence,
    /// Its passes; hits took longer than allowed by the live version's median.
    pub median: Sequence,
    /// Its passes; hits took longer than allowed by the live version's 90th percentile.
    pub tail: Sequence,
    /// Comparisons; hits were too far apart.
    pub drift: Sequence,
    /// Requests that the live version answered after the new one had failed.
    pub fallbacks: u64,
    /// Copies of requests that came to no comparison.
    pub dropped: u64,
    /// Of all comparisons; infinite where answers could not be compared.
    pub largest_difference: f64,
    /// Mean of the largest difference in each comparison that has one.
    pub mean_difference: f64,
    /// Of a canary.
    pub callers: Callers,
}

impl Seen {
    /// Comparisons, and those of them that were too far apart.
    pub fn comparisons(&self) -> Trials {
        self.drift.trials()
    }
}
