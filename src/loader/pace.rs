//! How loads give way to those who are served.
//!
//! The lowest priority is not enough. A loader on a core that happens to be free still takes caches, memory and perhaps half
//! of a shared core from its neighbour, and where three quarters of a machine are busy, passes that take a tenth longer make
//! everybody wait half as long again. So a loader rests between the steps of its work (a piece hashed, a pass run), for a
//! multiple of the CPU time that the step took. The multiple follows how busy the executors are, and how requests fare: it
//! grows while more of them are slow than were before the load began, and falls while no more are. On a machine with
//! nothing else to do there is no rest at all.

use std::{
    cell::RefCell,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

use self::tail::{Mark, Tail};
use crate::threads::cpu_time;

mod tail;

/// The rest on a machine whose executors are always busy, in CPU times of the step before it.
const FULL: f64 = 4.0;
/// What the fate of requests may make of that.
const GAIN: std::ops::RangeInclusive<f64> = 0.25..=4.0;
/// So many requests are looked at before it changes.
const JUDGED: u64 = 100;
/// This many times as many slow requests as before are too many.
const WORSE: f64 = 1.5;
/// With no more than this many it may be faster.
const FINE: f64 = 1.2;
/// A step of less CPU time goes on.
const STEP: Duration = Duration::from_millis(2);
/// A rest is looked at again after this long: the server may stop meanwhile.
const SLICE: Duration = Duration::from_millis(50);

/// Time that executors have spent on passes since the start, all together.
type Busy = Box<dyn Fn() -> Duration + Send + Sync>;

/// What loads and those who are served know of each other.
pub struct Pace {
    /// The longest that one piece of work rests in all.
    patience: Duration,
    executors: usize,
    busy: Busy,
    /// Pieces of work under way.
    loads: AtomicUsize,
    tail: Tail,
    /// Requests beside the loads, and those of them that were slow.
    beside: [AtomicU64; 2],
    gain: Mutex<Gain>,
    closed: AtomicBool,
}

#[derive(Debug)]
struct Gain {
    factor: f64,
    /// What was slow before the loads that are under way.
    mark: Option<Mark>,
}

impl std::fmt::Debug for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pace")
            .field("patience", &self.patience)
            .field("gain", &self.gain)
            .finish_non_exhaustive()
    }
}

impl Pace {
    /// A load rests at most `patience` in all. `busy` says how long the `executors` have worked since they were started.
    pub fn new(
        patience: Duration,
        executors: usize,
        busy: impl Fn() -> Duration + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            patience,
            executors: executors.max(1),
            busy: Box::new(busy),
            loads: AtomicUsize::new(0),
            tail: Tail::default(),
            beside: [AtomicU64::new(0), AtomicU64::new(0)],
            gain: Mutex::new(Gain { factor: 1.0, mark: None }),
            closed: AtomicBool::new(false),
        })
    }

    /// Never rests.
    pub fn none() -> Arc<Self> {
        Self::new(Duration::ZERO, 1, || Duration::ZERO)
    }

    /// A request was answered, so long after it came.
    pub fn served(&self, took: Duration) {
        if self.loads.load(Ordering::Relaxed) == 0 {
            return self.tail.add(took);
        }
        let [seen, slow] = &self.beside;
        seen.fetch_add(1, Ordering::Relaxed);
        if took >= self.tail.slow() {
            slow.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// No more rests.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// This thread begins a piece of work.
    pub(super) fn begin(self: &Arc<Self>) -> Underway {
        if self.loads.fetch_add(1, Ordering::Relaxed) == 0 {
            let mut gain = self.gain.lock();
            gain.mark = self.tail.mark();
            self.beside.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        }
        let work = Work {
            pace: self.clone(),
            cpu: cpu_time(),
            rested: Duration::ZERO,
            since: Instant::now(),
            busy: (self.busy)(),
        };
        WORK.with_borrow_mut(|current| *current = Some(work));
        Underway { pace: self.clone() }
    }

    /// How many times as long as a step its rest is, for executors of which so many are busy.
    fn stretch(&self, busy: f64) -> f64 {
        let mut gain = self.gain.lock();
        let [seen, slow] = &self.beside;
        let judged = seen.load(Ordering::Relaxed);
        if let Some(mark) = gain.mark
            && judged >= JUDGED
        {
            seen.store(0, Ordering::Relaxed);
            gain.factor =
                judge(gain.factor, slow.swap(0, Ordering::Relaxed) as f64 / judged as f64, mark.share);
        }
        busy.clamp(0.0, 1.0) * FULL * gain.factor
    }
}

/// The next factor, where `share` of the requests were slow and `usual` are without loads.
fn judge(factor: f64, share: f64, usual: f64) -> f64 {
    let factor = if share > WORSE * usual {
        factor * 1.5
    } else if share <= FINE * usual {
        factor * 0.85
    } else {
        factor
    };
    factor.clamp(*GAIN.start(), *GAIN.end())
}

/// A piece of work is under way on this thread while it lives.
#[derive(Debug)]
pub(super) struct Underway {
    pace: Arc<Pace>,
}

impl Drop for Underway {
    fn drop(&mut self) {
        WORK.with_borrow_mut(|work| *work = None);
        self.pace.loads.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a loader thread is at.
struct Work {
    pace: Arc<Pace>,
    /// CPU time of the thread when its last rest ended.
    cpu: Duration,
    rested: Duration,
    /// When it began, and what the executors had done by then.
    since: Instant,
    busy: Duration,
}

thread_local! {
    static WORK: RefCell<Option<Work>> = const { RefCell::new(None) };
}

/// Ends a step of work: a loader thread rests as long as it should, any other does not. Gives the time that it took.
pub(crate) fn rest() -> Duration {
    WORK.with_borrow_mut(|work| work.as_mut().map_or(Duration::ZERO, Work::rest))
}

/// How long the work that is under way on this thread has rested so far.
pub(crate) fn rested() -> Duration {
    WORK.with_borrow(|work| work.as_ref().map_or(Duration::ZERO, |work| work.rested))
}

impl Work {
    fn rest(&mut self) -> Duration {
        let pace = &self.pace;
        let left = pace.patience.saturating_sub(self.rested);
        let step = cpu_time().saturating_sub(self.cpu);
        if left.is_zero() || step < STEP {
            return Duration::ZERO;
        }
        let began = Instant::now();
        let available = (began - self.since) * u32::try_from(pace.executors).unwrap_or(u32::MAX);
        let busy =
            (pace.busy)().saturating_sub(self.busy).div_duration_f64(available.max(Duration::from_nanos(1)));
        let until = began + step.mul_f64(pace.stretch(busy)).min(left);
        while !pace.closed.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(SLICE));
        }
        self.cpu = cpu_time();
        let rested = began.elapsed();
        self.rested += rested;
        rested
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(pace: &Pace, requests: u32, millis: u64) {
        (0..requests).for_each(|_| pace.served(Duration::from_millis(millis)));
    }

    #[test]
    fn rests_follow_how_busy_the_executors_are() {
        let pace = Pace::new(Duration::MAX, 2, || Duration::ZERO);
        assert_eq!([0.0, 0.5, 1.0, 7.0].map(|busy| pace.stretch(busy)), [0.0, FULL / 2.0, FULL, FULL]);
    }

    #[test]
    fn more_slow_requests_than_before_make_them_longer_and_no_more_make_them_shorter() {
        let pace = Pace::new(Duration::MAX, 2, || Duration::ZERO);
        served(&pace, 950, 10);
        served(&pace, 50, 100);
        let underway = pace.begin();
        served(&pace, 94, 10);
        served(&pace, 5, 100);
        assert_eq!(pace.stretch(1.0), FULL, "too few to judge by");
        served(&pace, 1, 10);
        let faster = pace.stretch(1.0);
        assert!(faster < FULL, "5 of 100, as before");
        served(&pace, 93, 10);
        served(&pace, 7, 100);
        assert_eq!(pace.stretch(1.0), faster, "7 of 100 may be chance");
        served(&pace, 90, 10);
        served(&pace, 10, 100);
        assert!(pace.stretch(1.0) > faster, "10 of 100 are too many");
        (0..100).for_each(|_| {
            served(&pace, 100, 100);
            pace.stretch(1.0);
        });
        assert_eq!(pace.stretch(1.0), FULL * GAIN.end(), "there is a limit");
        drop(underway);
        served(&pace, 1000, 100);
        let _underway = pace.begin();
        assert_eq!(pace.stretch(1.0), FULL * GAIN.end(), "the next load goes on where the last one ended");
    }

    /// Uses the CPU for at least a step.
    fn step() {
        let until = cpu_time() + STEP;
        while cpu_time() < until {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn only_steps_of_loaders_beside_busy_executors_are_followed_by_a_rest_and_patience_ends() {
        step();
        assert_eq!(rest(), Duration::ZERO, "no loader thread");
        let idle = Pace::new(Duration::MAX, 1, || Duration::ZERO);
        {
            let _underway = idle.begin();
            step();
            assert!(rest() < STEP, "nobody is served");
        }
        let start = Instant::now();
        let pace = Pace::new(Duration::from_millis(30), 1, move || start.elapsed());
        let _underway = pace.begin();
        assert_eq!(rest(), Duration::ZERO, "that was no step");
        for _ in 0..10 {
            step();
            rest();
        }
        assert!(rested() >= Duration::from_millis(30), "patience is used up");
        step();
        assert_eq!(rest(), Duration::ZERO);
    }

    #[test]
    fn nobody_rests_once_the_server_stops() {
        let start = Instant::now();
        let pace = Pace::new(Duration::MAX, 1, move || start.elapsed());
        let _underway = pace.begin();
        pace.close();
        step();
        assert!(rest() < STEP);
    }
}
