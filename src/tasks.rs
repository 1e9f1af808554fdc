//! Background tasks: each has a name, and one that panics is started again, ever later, is logged and counted.
//!
//! A task says by its [`Pulse`] that a round of its work went well. An essential one that panics [`LOST`] times in a row
//! without a good round is lost: the server is no longer alive until the task has one.

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures::FutureExt as _;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::task::TaskTracker;

/// Before the first new start; twice as long each time.
const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
/// Panics in a row after which a task counts as lost.
const LOST: u32 = 5;

/// Whether the server can go on without a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// It cannot: the process is to be replaced if the task is lost.
    Essential,
    /// It can.
    Useful,
}

/// The background tasks of a server. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Tasks {
    metrics: TaskMetrics,
    runtime: Handle,
    tracker: TaskTracker,
    lost: Arc<Mutex<BTreeSet<&'static str>>>,
}

/// By this a task says that a round of its work went well.
#[derive(Debug, Clone)]
pub(crate) struct Pulse {
    name: &'static str,
    failures: Arc<AtomicU32>,
    lost: Arc<Mutex<BTreeSet<&'static str>>>,
}

impl Pulse {
    /// A round went well.
    pub(crate) fn beat(&self) {
        if self.failures.swap(0, Ordering::Relaxed) >= LOST && self.lost.lock().remove(self.name) {
            tracing::info!(task = self.name, "the background task works again");
        }
    }
}

impl Tasks {
    /// No tasks yet. They run on `runtime`.
    pub(crate) fn new(metrics: TaskMetrics, runtime: Handle) -> Self {
        Self { metrics, runtime, tracker: TaskTracker::new(), lost: Arc::default() }
    }

    /// The name of an essential task that does not come back.
    pub(crate) fn lost(&self) -> Option<&'static str> {
        self.lost.lock().first().copied()
    }

    /// Runs a task until it returns or is aborted.
    pub(crate) fn keep<F>(
        &self,
        name: &'static str,
        need: Need,
        begin: impl FnMut(Pulse) -> F + Send + 'static,
    ) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tracker.spawn_on(self.clone().run(name, need, begin), &self.runtime)
    }

    /// The same, in the task or on the runtime of the caller.
    pub(crate) async fn run<F>(self, name: &'static str, need: Need, mut begin: impl FnMut(Pulse) -> F)
    where
        F: Future<Output = ()>,
    {
        let pulse = self.pulse(name);
        loop {
            // The beginning may panic too.
            let round = async { begin(pulse.clone()).await };
            if AssertUnwindSafe(round).catch_unwind().await.is_ok() {
                return;
            }
            tokio::time::sleep(self.failed(&pulse, need)).await;
        }
    }

    /// The same on the caller's thread.
    pub(crate) fn run_on_thread(&self, name: &'static str, need: Need, mut work: impl FnMut(&Pulse)) {
        let pulse = self.pulse(name);
        while catch_unwind(AssertUnwindSafe(|| work(&pulse))).is_err() {
            std::thread::sleep(self.failed(&pulse, need));
        }
    }

    fn pulse(&self, name: &'static str) -> Pulse {
        self.metrics.started(name);
        Pulse { name, failures: Arc::default(), lost: self.lost.clone() }
    }

    /// Takes note of a panic. Returns when the task may start again.
    fn failed(&self, pulse: &Pulse, need: Need) -> Duration {
        self.metrics.restarted(pulse.name);
        let failures = pulse.failures.fetch_add(1, Ordering::Relaxed) + 1;
        let pause = (FIRST * 2_u32.saturating_pow((failures - 1).min(16))).min(LONGEST);
        let lost = need == Need::Essential && failures >= LOST;
        if lost {
            self.lost.lock().insert(pulse.name);
        }
        tracing::error!(
            task = pulse.name,
            in_a_row = failures,
            ?pause,
            lost,
            "a background task panicked: it starts again after a pause"
        );
        pause
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TaskLabel {
    task: &'static str,
}

/// Their starts after a panic; clones count together.
#[derive(Debug, Clone, Default)]
pub struct TaskMetrics(Family<TaskLabel, Counter>);

impl TaskMetrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let help = "Background tasks that panicked and were started again";
        registry.register("task_restarts", help, self.0.clone());
    }

    /// A task starts for the first time: it is at 0, or the first restart would be no increase.
    fn started(&self, task: &'static str) {
        let _at_zero = self.0.get_or_create(&TaskLabel { task });
    }

    /// A task panicked and starts again.
    pub(crate) fn restarted(&self, task: &'static str) {
        self.0.get_or_create(&TaskLabel { task }).inc();
    }

    /// How often it did.
    #[cfg(test)]
    fn restarts(&self, task: &'static str) -> u64 {
        self.0.get_or_create(&TaskLabel { task }).get()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::time::Instant;

    use super::*;

    fn tasks() -> (Tasks, TaskMetrics) {
        let metrics = TaskMetrics::default();
        (Tasks::new(metrics.clone(), Handle::current()), metrics)
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_comes_back_and_is_counted() {
        let ((tasks, metrics), began) = (tasks(), Instant::now());
        let rounds = Arc::new(AtomicUsize::new(0));
        let counted = rounds.clone();
        let task = tasks.keep("shaky", Need::Essential, move |_| {
            let round = counted.fetch_add(1, Ordering::Relaxed);
            // The first one panics before there is a future.
            assert_ne!(round, 0, "bug");
            async move { assert!(round >= 4, "bug") }
        });
        task.await.unwrap();
        assert_eq!((rounds.load(Ordering::Relaxed), metrics.restarts("shaky")), (5, 4));
        assert_eq!(began.elapsed(), Duration::from_millis(100 + 200 + 400 + 800));
        assert_eq!(tasks.lost(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_essential_task_that_stays_away_is_lost_until_a_round_goes_well() {
        let (tasks, metrics) = tasks();
        let mends = Arc::new(AtomicUsize::new(0));
        let mended = mends.clone();
        let useful = tasks.keep("useful", Need::Useful, |_| async { panic!("bug") });
        let task = tasks.keep("needed", Need::Essential, move |pulse| {
            let mended = mended.clone();
            async move {
                tokio::time::sleep(Duration::from_secs(15)).await;
                assert!(mended.load(Ordering::Relaxed) > 0, "bug");
                pulse.beat();
                std::future::pending::<()>().await;
            }
        });
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert_eq!(
            (tasks.lost(), metrics.restarts("needed")),
            (None, 4),
            "a long round is none that went well"
        );
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(tasks.lost(), Some("needed"));
        mends.store(1, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(tasks.lost(), None);
        task.abort();
        useful.abort();
    }

    #[tokio::test]
    async fn a_thread_comes_back_too() {
        let (tasks, metrics) = tasks();
        let mut rounds = 0;
        tasks.run_on_thread("thread", Need::Useful, |_| {
            rounds += 1;
            assert!(rounds > 1, "bug");
        });
        assert_eq!((rounds, metrics.restarts("thread")), (2, 1));
    }
}
