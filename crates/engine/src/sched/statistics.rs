//! What a version has done since it was loaded, in the counts that Triton's statistics have: rows and passes apart, and the
//! time of each part of a pass once for every request that was in it.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;

use torchlane_model::error::Reason;

/// A number of times, and how long they took together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Total {
    /// How often.
    pub count: u64,
    /// How long, all together.
    pub time: Duration,
}

impl Total {
    fn add(&mut self, times: u64, each: Duration) {
        self.count += times;
        self.time = self.time.saturating_add(each.saturating_mul(u32::try_from(times).unwrap_or(u32::MAX)));
    }
}

/// The parts of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parts<T> {
    /// Putting the inputs of its requests together.
    pub input: T,
    /// The model's own.
    pub infer: T,
    /// Taking its outputs apart.
    pub output: T,
}

impl Parts<Total> {
    fn add(&mut self, times: u64, each: Parts<Duration>) {
        self.input.add(times, each.input);
        self.infer.add(times, each.infer);
        self.output.add(times, each.output);
    }
}

/// Why a request got no answer, in the kinds that Triton's metrics tell apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// It was not let in, or not in time.
    Rejected,
    /// Its caller left.
    Canceled,
    /// The model failed.
    Backend,
    /// Anything else: what was asked, mostly.
    Other,
}

impl Failure {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rejected, Self::Canceled, Self::Backend, Self::Other];

    /// The kind of that reason.
    pub const fn of(reason: Reason) -> Self {
        match reason {
            Reason::QueueFull
            | Reason::Overloaded
            | Reason::ResourcePressure
            | Reason::RateLimited
            | Reason::TenantLimit
            | Reason::BreakerOpen
            | Reason::ModelNotReady
            | Reason::DeadlineExceeded
            | Reason::ShuttingDown => Self::Rejected,
            Reason::Cancelled => Self::Canceled,
            Reason::ForwardFailed | Reason::Internal => Self::Backend,
            _ => Self::Other,
        }
    }

    /// Triton's name of it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "REJECTED",
            Self::Canceled => "CANCELED",
            Self::Backend => "BACKEND",
            Self::Other => "OTHER",
        }
    }
}

/// All counts of one version.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts {
    /// When the last pass ended.
    pub last: Option<SystemTime>,
    /// Rows that were answered: a request with 8 of them counts 8.
    pub inferences: u64,
    /// Passes: a batch counts once.
    pub executions: u64,
    /// Requests that were answered, from when they were decoded.
    pub success: Total,
    /// Requests that were refused or failed, likewise.
    pub fail: Total,
    /// Those by why; kinds that have not been are not there.
    pub failures: BTreeMap<Failure, u64>,
    /// Waiting of requests that were answered: for a ticket and for an executor.
    pub queue: Total,
    /// The passes that they were in, once for each request.
    pub compute: Parts<Total>,
    /// Requests that the response cache answered, and finding their answers. They are among the successful ones, and in no pass.
    pub cache_hit: Total,
    /// Answered requests that were looked for there in vain: looking, and keeping their answers.
    pub cache_miss: Total,
    /// Passes by their rows, once for each pass.
    pub batches: BTreeMap<usize, Parts<Total>>,
}

/// One request that a pass has answered. It counts once its caller takes the answer: a caller that left meanwhile is a failure, and
/// is counted as one elsewhere.
#[derive(Debug)]
pub(super) struct Answered {
    /// Of the version that ran it.
    pub(super) statistics: Statistics,
    /// Rows that it had in the pass.
    pub(super) rows: usize,
    /// Since it was decoded.
    pub(super) total: Duration,
    /// Waiting before the pass.
    pub(super) queued: Duration,
    /// The pass.
    pub(super) took: Parts<Duration>,
}

impl Answered {
    /// The answer was taken.
    pub(super) fn count(self) {
        let mut counts = self.statistics.0.lock();
        counts.inferences += self.rows as u64;
        counts.success.add(1, self.total);
        counts.queue.add(1, self.queued);
        counts.compute.add(1, self.took);
    }
}

/// The counts of one version, shared by the threads that run it; clones count together.
#[derive(Debug, Clone, Default)]
pub struct Statistics(Arc<Mutex<Counts>>);

impl Statistics {
    /// How things stand.
    pub fn now(&self) -> Counts {
        self.0.lock().clone()
    }

    /// Requests that were answered, and those that were not.
    pub fn requests(&self) -> (u64, u64) {
        let counts = self.0.lock();
        (counts.success.count, counts.fail.count)
    }

    /// A pass over `rows` rows has ended.
    pub(super) fn ran(&self, rows: usize, took: Parts<Duration>) {
        let now = SystemTime::now();
        let mut counts = self.0.lock();
        counts.last = Some(now);
        counts.executions += 1;
        counts.batches.entry(rows).or_default().add(1, took);
    }

    /// A request that other models have answered for this one, `compute` long altogether.
    pub fn ran_elsewhere(&self, total: Duration, queued: Duration, compute: Duration) {
        let took = Parts { infer: compute, ..Parts::default() };
        self.ran(1, took);
        Answered { statistics: self.clone(), rows: 1, total, queued, took }.count();
    }

    /// A request that the response cache answered, `total` after it was decoded; finding the answer took `lookup`.
    ///
    /// As Triton counts (`UpdateSuccessCacheHit` in its core): it succeeded and it waited (for nothing, here), but no row was
    /// inferred, no pass ran, and the time of the last inference stays.
    pub fn hit(&self, total: Duration, lookup: Duration) {
        let mut counts = self.0.lock();
        counts.success.add(1, total);
        counts.queue.add(1, Duration::ZERO);
        counts.cache_hit.add(1, lookup);
    }

    /// A request that was looked for there in vain and has been answered by a pass since: so long took `lookup`, and so long
    /// keeping the answer.
    ///
    /// As Triton counts (`UpdateSuccessCacheMiss`): only once it is answered, for lookup and insertion together, and whether the
    /// answer could be kept or not. The pass has counted the request until its end, so the insertion comes on top.
    pub fn missed(&self, lookup: Duration, insertion: Duration) {
        let mut counts = self.0.lock();
        counts.success.time = counts.success.time.saturating_add(insertion);
        counts.cache_miss.add(1, lookup.saturating_add(insertion));
    }

    /// A request that got no answer, `total` after it was decoded.
    pub fn failed(&self, total: Duration, why: Failure) {
        let mut counts = self.0.lock();
        counts.fail.add(1, total);
        *counts.failures.entry(why).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn answered(statistics: &Statistics, rows: usize, total: u32, queued: u32, took: Parts<Duration>) {
        let (total, queued) = (MS * total, MS * queued);
        Answered { statistics: statistics.clone(), rows, total, queued, took }.count();
    }

    #[test]
    fn rows_count_as_inferences_and_a_batch_as_one_execution() {
        let statistics = Statistics::default();
        let took = Parts { input: MS, infer: MS * 10, output: MS * 2 };
        statistics.ran(8, took);
        answered(&statistics, 8, 20, 7, took);
        statistics.ran(3, took);
        answered(&statistics, 1, 20, 7, took);
        answered(&statistics, 2, 30, 17, took);
        statistics.failed(MS * 5, Failure::of(Reason::QueueFull));
        let counts = statistics.now();
        assert_eq!((counts.inferences, counts.executions), (11, 2));
        assert_eq!(counts.success, Total { count: 3, time: MS * 70 });
        assert_eq!(counts.queue, Total { count: 3, time: MS * 31 });
        assert_eq!(counts.fail, Total { count: 1, time: MS * 5 });
        assert_eq!(counts.failures, BTreeMap::from([(Failure::Rejected, 1)]));
        assert_eq!(counts.compute.infer, Total { count: 3, time: MS * 30 }, "once for each request");
        assert_eq!(counts.batches.keys().copied().collect::<Vec<_>>(), [3, 8]);
        assert_eq!(counts.batches[&3].infer, Total { count: 1, time: MS * 10 }, "once for each pass");
        assert!(counts.last.is_some());
        assert_eq!(statistics.requests(), (3, 1));
    }

    #[test]
    fn a_cache_hit_is_a_success_and_no_inference_and_a_miss_counts_once_it_is_answered() {
        let statistics = Statistics::default();
        statistics.hit(MS * 4, MS);
        let counts = statistics.now();
        assert_eq!((counts.success, counts.queue.count), (Total { count: 1, time: MS * 4 }, 1));
        assert_eq!(counts.cache_hit, Total { count: 1, time: MS }, "the lookup alone");
        assert_eq!((counts.inferences, counts.executions, counts.compute.infer.count), (0, 0, 0));
        assert_eq!(counts.last, None, "nothing was inferred");

        statistics.ran(1, Parts::default());
        answered(&statistics, 1, 20, 7, Parts::default());
        assert_eq!(statistics.now().cache_miss.count, 0, "not yet");
        statistics.missed(MS * 2, MS * 3);
        let counts = statistics.now();
        assert_eq!(counts.cache_miss, Total { count: 1, time: MS * 5 }, "lookup and insertion");
        assert_eq!(counts.success, Total { count: 2, time: MS * 27 }, "the lookup was in it");
        assert_eq!((counts.inferences, counts.executions), (1, 1));
    }
}
