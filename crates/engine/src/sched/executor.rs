//! The executors: a fixed set of OS threads that take batches from one queue, whatever model they are for.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::time::Instant;
use torchlane_model::{Lane, Version};

mod work;

use super::{Handle, Job, PendingReply, QueueConfig, RunQueue, idle::Idle, job::Limits, quick};
use crate::{
    admission::{Breaker, Underway},
    backend::{Backend, ThreadRole},
    call::{Admitted, BoundCall},
    registry::{ModelSlot, SlotId},
    threads,
};

/// How many executors, and how wide each is.
#[derive(Debug, Clone, Copy)]
pub struct ExecutorConfig {
    /// Threads that run batches.
    pub threads: usize,
    /// Threads that one operator may use on each of them.
    pub intra_op: usize,
    /// How they are shared out.
    pub queue: QueueConfig,
    /// Threads that may take the place of stuck ones.
    pub spare: usize,
}

/// What waits and what has run.
#[derive(Debug, Clone, Default)]
pub struct SchedulerSnapshot {
    /// Jobs that wait for an executor, by lane.
    pub waiting: [usize; 4],
    /// Time that each executor has spent running batches.
    pub busy: Vec<Duration>,
    /// Time of quick passes, which the threads of the wire ran themselves.
    pub on_wire: Duration,
    /// Batches run since the start.
    pub batches: u64,
}

/// A pass that takes too long to be taken for one.
#[derive(Debug, Clone)]
pub struct StuckPass {
    /// The executor that is held by it.
    pub executor: usize,
    /// Its model.
    pub model: Arc<ModelSlot>,
    /// The version that it runs.
    pub version: Option<Version>,
    /// How long it has been running.
    pub running: Duration,
    /// Another thread took the executor's place.
    pub replaced: bool,
}

/// The run queue and its executors.
#[derive(Debug)]
pub struct Scheduler {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    backend: Arc<dyn Backend>,
    intra_op: usize,
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// One for each executor, so that the one to wake can be chosen.
    work: Vec<Condvar>,
    busy_ns: Vec<AtomicU64>,
    /// What each runs now.
    running: Vec<Mutex<Running>>,
    /// Threads that are there to run batches: not those that were given up.
    healthy: AtomicUsize,
    /// As many as there should be.
    wanted: usize,
    wire_ns: AtomicU64,
    batches: AtomicU64,
}

/// What an executor does.
#[derive(Debug, Default)]
struct Running {
    pass: Option<RunningPass>,
    /// Another has taken its place: it ends once its pass does, unless it is needed.
    given_up: bool,
}

#[derive(Debug)]
struct RunningPass {
    since: Instant,
    model: Arc<ModelSlot>,
    /// Of the version that runs, which need not be the live one any more.
    version: Option<(Version, Arc<Breaker>)>,
    lead: Lane,
    requests: usize,
    underway: Option<Underway>,
}

#[derive(Debug)]
struct State {
    queue: RunQueue<Job>,
    idle: Idle,
    /// The lane of the batch that each runs, by its most urgent job.
    leads: Vec<Option<Lane>>,
    /// Numbers of executors whose thread has ended.
    unused: Vec<usize>,
    closed: bool,
}

impl State {
    fn set_lead(&mut self, executor: usize, lane: Option<Lane>) {
        if let Some(lead) = self.leads.get_mut(executor) {
            *lead = lane;
        }
    }

    /// All executors run passes for lanes below `lane`, and nothing waits that is more urgent: the next to run would be this,
    /// once a pass has ended.
    fn only_lower_runs(&self, lane: Lane, executors: usize) -> bool {
        let running = self.leads.iter().flatten();
        running.clone().count() >= executors.max(1)
            && running.clone().all(|lead| *lead > lane)
            && self.queue.waiting().iter().take(lane.index()).all(|waiting| *waiting == 0)
    }
}

impl Shared {
    pub(super) fn cancel(&self, handle: Handle) {
        // The job, and with it its ticket, is dropped after the lock is free.
        let cancelled = self.state.lock().queue.remove(handle);
        drop(cancelled);
    }
}

impl Scheduler {
    /// Starts the executors.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn start(config: ExecutorConfig, backend: &Arc<dyn Backend>) -> std::io::Result<Self> {
        let threads = config.threads.max(1);
        let most = threads + config.spare;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: RunQueue::new(config.queue),
                idle: Idle::default(),
                leads: vec![None; most],
                unused: (0..most).rev().collect(),
                closed: false,
            }),
            work: (0..most).map(|_| Condvar::new()).collect(),
            busy_ns: (0..most).map(|_| AtomicU64::new(0)).collect(),
            running: (0..most).map(|_| Mutex::default()).collect(),
            healthy: AtomicUsize::new(0),
            wanted: threads,
            wire_ns: AtomicU64::new(0),
            batches: AtomicU64::new(0),
        });
        let scheduler =
            Self { shared, threads: Mutex::default(), backend: backend.clone(), intra_op: config.intra_op };
        for _ in 0..threads {
            scheduler.add_thread(&mut scheduler.shared.state.lock())?;
        }
        Ok(scheduler)
    }

    /// Starts one more executor; false where there are as many as there may be.
    fn add_thread(&self, state: &mut State) -> std::io::Result<bool> {
        let Some(index) = state.unused.pop() else { return Ok(false) };
        if let Some(running) = self.shared.running.get(index) {
            *running.lock() = Running::default();
        }
        let (shared, backend, intra_op) = (self.shared.clone(), self.backend.clone(), self.intra_op);
        let work = move || {
            let _guard = backend.enter_thread(ThreadRole::Executor { intra_op });
            while catch_unwind(AssertUnwindSafe(|| shared.work_until_closed(index))).is_err() {
                shared.recover(index);
            }
        };
        let spawned = std::thread::Builder::new().name(format!("exec-{index}")).spawn(work);
        let thread = match spawned {
            Ok(thread) => thread,
            Err(error) => {
                state.unused.push(index);
                return Err(error);
            }
        };
        let mut threads = self.threads.lock();
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        self.shared.healthy.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Gives up executors whose pass has been running for longer than `limit`, opens the breaker of the version that they
    /// run, lets others have the places of their batches, and starts other threads while there are any to spare. Each is
    /// named once.
    pub fn give_up_stuck(&self, limit: Duration) -> Vec<StuckPass> {
        let mut stuck = Vec::new();
        let mut state = self.shared.state.lock();
        for (executor, running) in self.shared.running.iter().enumerate() {
            let mut running = running.lock();
            if running.given_up {
                continue;
            }
            let Some(pass) = running.pass.as_mut().filter(|pass| pass.since.elapsed() >= limit) else {
                continue;
            };
            if let Some((_, breaker)) = &pass.version {
                breaker.trip(Instant::now());
            }
            pass.underway = None;
            state.queue.finished(pass.model.id(), pass.lead);
            state.set_lead(executor, None);
            stuck.push(StuckPass {
                executor,
                model: pass.model.clone(),
                version: pass.version.as_ref().map(|(version, _)| *version),
                running: pass.since.elapsed(),
                replaced: false,
            });
            running.given_up = true;
            self.shared.healthy.fetch_sub(1, Ordering::Relaxed);
        }
        for pass in &mut stuck {
            pass.replaced = self.add_thread(&mut state).unwrap_or(false);
            let next = state.idle.wake_next();
            self.shared.wake(next);
        }
        stuck
    }

    /// Executors that are not held by a stuck pass.
    pub fn healthy(&self) -> usize {
        self.shared.healthy.load(Ordering::Relaxed)
    }

    /// Queues a call for the executors.
    pub fn submit(&self, admitted: Admitted<BoundCall>) -> PendingReply {
        let Admitted { call, ticket, queued } = admitted;
        let (turn, lane) = (quick::turn(), call.lane);
        let (limits, quick) = call.slot.lease().map_or_else(Default::default, |lease| {
            let quick = (turn.alone || turn.early) && lease.quick.allows(call.call.input_bytes());
            (Limits::of(&lease), quick)
        });
        let (job, receiver) = Job::new(call, Some(ticket), queued, limits);
        let mut state = self.shared.state.lock();
        if state.closed {
            drop(state);
            // Dropping the job closes the channel, which reads as "shutting down".
            return PendingReply { receiver, waiting: None };
        }
        let nothing_else = turn.alone && state.idle.len() >= self.healthy() && state.queue.is_empty();
        let only_lower = turn.early && state.only_lower_runs(lane, self.healthy());
        if quick && (nothing_else || only_lower) {
            drop(state);
            self.shared.run_here(job);
            return PendingReply { receiver, waiting: None };
        }
        let handle = state.queue.push(job);
        // Whoever holds jobs back sees to it that they are looked at in time.
        let wake = if state.queue.is_held(&handle) { None } else { state.idle.wake_next() };
        drop(state);
        self.shared.wake(wake);
        PendingReply { receiver, waiting: Some((self.shared.clone(), handle)) }
    }

    /// Requests in the batches that executors run now, by the slots of their models.
    pub fn running(&self) -> HashMap<SlotId, usize> {
        let mut requests = HashMap::new();
        for running in &self.shared.running {
            if let Some(pass) = &running.lock().pass {
                *requests.entry(pass.model.id()).or_default() += pass.requests;
            }
        }
        requests
    }

    /// What waits and what has run.
    pub fn snapshot(&self) -> SchedulerSnapshot {
        SchedulerSnapshot {
            waiting: self.shared.state.lock().queue.waiting(),
            busy: self
                .shared
                .busy_ns
                .iter()
                .map(|ns| Duration::from_nanos(ns.load(Ordering::Relaxed)))
                .enumerate()
                // Spare ones that were never needed are not shown.
                .filter(|(index, busy)| *index < self.shared.wanted || !busy.is_zero())
                .map(|(_, busy)| busy)
                .collect(),
            on_wire: Duration::from_nanos(self.shared.wire_ns.load(Ordering::Relaxed)),
            batches: self.shared.batches.load(Ordering::Relaxed),
        }
    }
}

/// Running batches had the server's grace time before.
const PATIENCE: Duration = Duration::from_secs(1);

impl Drop for Scheduler {
    /// Jobs that still wait are told that the server stops. Running batches cannot be broken off: those that take longer
    /// than [`PATIENCE`] are left to the end of the process.
    fn drop(&mut self) {
        let waiting = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            state.queue.drain()
        };
        drop(waiting);
        for sleeper in &self.shared.work {
            sleeper.notify_one();
        }
        if !threads::join(std::mem::take(&mut *self.threads.lock()), PATIENCE) {
            tracing::warn!(target: "torchlane::sched", "a forward pass did not end: it is abandoned");
        }
    }
}
