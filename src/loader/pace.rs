//! How loads give way to those who are served.
//!
//! The steps of a load run at idle priority: not only do they get no more than others leave, but whoever wakes up takes their
//! core for a free one, which at nice 19 it is not. That is not enough. A loader on a core that happens to be free still takes
//! caches, memory and perhaps half of a shared core from its neighbour, and where three quarters of a machine are busy,
//! passes that take a tenth longer make everybody wait half as long again. So a loader rests between the steps of its work
//! (a piece hashed, a pass run), for a multiple of the CPU time that the step took. The multiple follows how busy the executors
//! are, and how requests fare: it grows while more of them are slow than were before the load began, and falls while no
//! more are. On a machine with nothing else to do there is no rest at all.
//!
//! All of that takes no longer than `loader.patience`: then the load goes on at nice 19 and without rests. A thread does not come
//! back from a lower priority, so each step has a thread of its own; where a machine is full one that needs 100 ms of a CPU
//! may wait for many seconds. What lies between steps, such as dropping a version or giving memory back, is short and holds
//! locks that everybody needs: it runs at normal priority, so that nobody waits for one that waits for a CPU. So does all of a load
//! that begins with the server, when nobody is served yet.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use torchlane_archive::between_pieces;

use self::tail::{Mark, Tail};
use super::pool::STACK_BYTES;

use crate::{
    backend::{Backend, ThreadRole},
    threads::{self, cpu_time},
};

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

/// How much a load gives way to others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// It runs at idle priority and rests, as long as there is patience.
    Patient,
    /// Somebody waits for it: at nice 19, without rests.
    Hurried,
    /// It undoes what went wrong: as [`Urgency::Hurried`], and before all other loads, on a thread that is kept for it.
    Undo,
    /// Nobody is served yet whom it could disturb: like any thread. On a machine that is full of other programs one that gave way to
    /// them might not end.
    AtOnce,
}

/// Time that executors have spent on passes since the start, all together.
type Busy = Box<dyn Fn() -> Duration + Send + Sync>;

/// What loads and those who are served know of each other.
pub struct Pace {
    /// The longest that one piece of work takes for the sake of others.
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
    /// A load takes at most `patience` longer than it would alone. `busy` says how long the `executors` have worked since they were started.
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
    pub(super) fn begin(self: &Arc<Self>, backend: &Arc<dyn Backend>, urgency: Urgency) -> Underway {
        if self.loads.fetch_add(1, Ordering::Relaxed) == 0 {
            self.gain.lock().mark = self.tail.mark();
            self.beside.iter().for_each(|count| count.store(0, Ordering::Relaxed));
        }
        WORK.set(Some(Work {
            pace: self.clone(),
            backend: backend.clone(),
            patience: if urgency == Urgency::Patient { self.patience } else { Duration::ZERO },
            at_once: urgency == Urgency::AtOnce,
            rested: Duration::ZERO,
            cpu: cpu_time(),
            since: Instant::now(),
            busy: (self.busy)(),
        }));
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
        WORK.set(None);
        self.pace.loads.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a loader thread is at.
struct Work {
    pace: Arc<Pace>,
    backend: Arc<dyn Backend>,
    /// How much longer it may take for the sake of others.
    patience: Duration,
    /// See [`Urgency::AtOnce`].
    at_once: bool,
    /// Time that it has not worked so far, by its own will or because others did.
    rested: Duration,
    /// CPU time of the thread when its last rest ended.
    cpu: Duration,
    /// When it began, and what the executors had done by then.
    since: Instant,
    busy: Duration,
}

thread_local! {
    static WORK: RefCell<Option<Work>> = const { RefCell::new(None) };
}

/// Runs a step of a load. On a loader thread it runs at a low priority, idle and followed by a rest while there is patience; on
/// any other it just runs.
pub(crate) fn step<T: Send>(step: impl FnOnce() -> T + Send) -> T {
    let Some(work) = WORK.take() else { return step() };
    let (began, rested) = (Instant::now(), work.rested);
    let (mut step, mut result, mut worked) = (Some(step), None, Duration::ZERO);
    let thread = std::thread::Builder::new().name("load-step".to_owned()).stack_size(STACK_BYTES);
    let mut moved = Some(work);
    std::thread::scope(|scope| {
        let on_thread = || {
            let Some(mut work) = moved.take() else { return };
            // Where the system does not allow it, loading still works, only less politely.
            let _unable = match (work.at_once, work.patience.is_zero()) {
                (true, _) => Ok(()),
                (false, true) => threads::give_way(),
                (false, false) => threads::run_when_idle(),
            };
            let _guard = work.backend.clone().enter_thread(ThreadRole::Loader);
            work.cpu = cpu_time();
            WORK.set(Some(work));
            between_pieces(|| {
                rest();
            });
            result = step.take().map(|step| catch_unwind(AssertUnwindSafe(step)));
            rest();
            worked = cpu_time();
            moved = WORK.take();
        };
        // It is waited for at the end of the scope. Where there are no more threads there is still this one.
        let _started = thread.spawn_scoped(scope, on_thread).is_ok();
    });
    if let Some(mut work) = moved {
        let rests = work.rested.saturating_sub(rested);
        work.lost(began.elapsed().saturating_sub(worked).saturating_sub(rests));
        work.cpu = cpu_time();
        WORK.set(Some(work));
    }
    match (result, step) {
        (Some(Ok(value)), _) => value,
        (Some(Err(panic)), _) => resume_unwind(panic),
        (None, Some(step)) => step(),
        (None, None) => unreachable!("a step that was begun has a result"),
    }
}

/// Ends a part of a step: a loader thread rests as long as it should, any other does not. Gives the time that it took.
pub(crate) fn rest() -> Duration {
    WORK.with_borrow_mut(|work| work.as_mut().map_or(Duration::ZERO, Work::rest))
}

/// How long the work that is under way on this thread has not worked so far.
pub(crate) fn rested() -> Duration {
    WORK.with_borrow(|work| work.as_ref().map_or(Duration::ZERO, |work| work.rested))
}

impl Work {
    fn lost(&mut self, time: Duration) {
        self.rested += time;
        self.patience = self.patience.saturating_sub(time);
    }

    fn rest(&mut self) -> Duration {
        let step = cpu_time().saturating_sub(self.cpu);
        if self.patience.is_zero() || step < STEP {
            return Duration::ZERO;
        }
        let pace = &self.pace;
        let began = Instant::now();
        let available = (began - self.since) * u32::try_from(pace.executors).unwrap_or(u32::MAX);
        let busy = (pace.busy)().saturating_sub(self.busy);
        let busy = busy.div_duration_f64(available.max(Duration::from_nanos(1)));
        let until = began + step.mul_f64(pace.stretch(busy)).min(self.patience);
        while !pace.closed.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            std::thread::sleep(left.min(SLICE));
        }
        let rested = began.elapsed();
        self.lost(rested);
        self.cpu = cpu_time();
        rested
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::FakeBackend;

    fn begin(pace: &Arc<Pace>) -> Underway {
        let backend: Arc<dyn Backend> = Arc::new(FakeBackend);
        pace.begin(&backend, Urgency::Patient)
    }

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
        let underway = begin(&pace);
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
        let _underway = begin(&pace);
        assert_eq!(pace.stretch(1.0), FULL * GAIN.end(), "the next load goes on where the last one ended");
    }

    /// Uses the CPU for at least a step.
    fn work() {
        let until = cpu_time() + STEP;
        while cpu_time() < until {
            std::hint::spin_loop();
        }
    }

    #[test]
    fn only_steps_of_loaders_beside_busy_executors_are_followed_by_a_rest_and_patience_ends() {
        work();
        assert_eq!(rest(), Duration::ZERO, "no loader thread");
        let idle = Pace::new(Duration::MAX, 1, || Duration::ZERO);
        {
            let _underway = begin(&idle);
            work();
            assert!(rest() < STEP, "nobody is served");
        }
        let start = Instant::now();
        let pace = Pace::new(Duration::from_millis(30), 1, move || start.elapsed());
        let _underway = begin(&pace);
        assert_eq!(rest(), Duration::ZERO, "that was no step");
        for _ in 0..10 {
            work();
            rest();
        }
        assert!(rested() >= Duration::from_millis(30), "patience is used up");
        work();
        assert_eq!(rest(), Duration::ZERO);
    }

    /// What idle priority is called.
    const IDLE: i32 = 5;

    /// The niceness and the scheduling policy of this thread, which is 0 if it is the usual one.
    #[cfg(target_os = "linux")]
    fn priority() -> (i32, i32) {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // From the third field on: the second is a name, in brackets.
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        (fields[19 - 3].parse().unwrap(), fields[41 - 3].parse().unwrap())
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn steps_run_at_idle_priority_until_patience_ends_and_hurried_ones_at_the_lowest_of_the_others() {
        let usual = priority();
        assert_eq!(step(priority), usual, "no loader thread");
        let start = Instant::now();
        let pace = Pace::new(Duration::from_secs(60), 1, move || start.elapsed());
        let underway = begin(&pace);
        assert_eq!((step(priority).1, priority()), (IDLE, usual));
        let rests = step(|| {
            work();
            rest()
        });
        assert!(rests > Duration::ZERO && rested() >= rests, "rests within a step count");
        let panicked = catch_unwind(|| step(|| panic!("bug"))).unwrap_err();
        assert_eq!(panicked.downcast_ref(), Some(&"bug"));
        assert_eq!(step(priority).1, IDLE, "and the work goes on");
        WORK.with_borrow_mut(|work| work.as_mut().unwrap().lost(Duration::from_secs(60)));
        assert_eq!(step(priority), (19, 0), "no patience is left");
        drop(underway);
        let backend: Arc<dyn Backend> = Arc::new(FakeBackend);
        let hurried = pace.begin(&backend, Urgency::Hurried);
        assert_eq!(step(priority), (19, 0));
        drop(hurried);
        let _at_once = pace.begin(&backend, Urgency::AtOnce);
        assert_eq!(step(priority), usual);
    }

    #[test]
    fn nobody_rests_once_the_server_stops() {
        let start = Instant::now();
        let pace = Pace::new(Duration::MAX, 1, move || start.elapsed());
        let _underway = begin(&pace);
        pace.close();
        work();
        assert!(rest() < STEP);
    }
}
