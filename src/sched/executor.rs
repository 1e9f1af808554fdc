//! The executors: a fixed set of OS threads that take batches from one queue, whatever model they are for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{Charge, Handle, Job, PendingReply, QueueConfig, RunQueue, quick, runner};
use crate::{
    admission::Tenant,
    backend::{Backend, ThreadRole},
    call::{Admitted, BoundCall},
    error::{Error, Reason},
    model::Lane,
    registry::SlotId,
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

/// The run queue and its executors.
#[derive(Debug)]
pub struct Scheduler {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    /// One for each executor, so that the one to wake can be chosen.
    work: Vec<Condvar>,
    busy_ns: Vec<AtomicU64>,
    wire_ns: AtomicU64,
    batches: AtomicU64,
}

#[derive(Debug)]
struct State {
    queue: RunQueue<Job>,
    /// Executors that sleep, the last to fall asleep at the end: it is woken first, while its caches still hold
    /// the weights. They wait in this order only; who is told to wake up is taken out at once.
    idle: Vec<usize>,
    closed: bool,
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
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                queue: RunQueue::new(config.queue),
                idle: Vec::with_capacity(threads),
                closed: false,
            }),
            work: (0..threads).map(|_| Condvar::new()).collect(),
            busy_ns: (0..threads).map(|_| AtomicU64::new(0)).collect(),
            wire_ns: AtomicU64::new(0),
            batches: AtomicU64::new(0),
        });
        let threads = (0..threads)
            .map(|index| {
                let (shared, backend) = (shared.clone(), backend.clone());
                std::thread::Builder::new().name(format!("exec-{index}")).spawn(move || {
                    let _guard = backend.enter_thread(ThreadRole::Executor { intra_op: config.intra_op });
                    shared.work_until_closed(index);
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { shared, threads })
    }

    /// Queues a call for the executors.
    pub fn submit(&self, admitted: Admitted<BoundCall>) -> PendingReply {
        let Admitted { call, ticket, queued } = admitted;
        let alone = quick::comes_alone();
        let (limits, quick) = call.slot.lease().map_or(((1, 0), false), |lease| {
            let quick = alone && lease.quick.allows(call.call.input_bytes());
            ((lease.max_batch, lease.max_concurrency()), quick)
        });
        let (job, receiver) = Job::new(call, Some(ticket), queued, limits);
        let mut state = self.shared.state.lock();
        if state.closed {
            drop(state);
            // Dropping the job closes the channel, which reads as "shutting down".
            return PendingReply { receiver, waiting: None };
        }
        if quick && state.idle.len() == self.shared.work.len() && state.queue.is_empty() {
            drop(state);
            self.shared.run_here(job);
            return PendingReply { receiver, waiting: None };
        }
        let handle = state.queue.push(job);
        let wake = state.idle.pop();
        drop(state);
        if let Some(sleeper) = wake.and_then(|index| self.shared.work.get(index)) {
            sleeper.notify_one();
        }
        PendingReply { receiver, waiting: Some((self.shared.clone(), handle)) }
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
        if !threads::join(std::mem::take(&mut self.threads), PATIENCE) {
            tracing::warn!("a forward pass did not end: it is abandoned");
        }
    }
}

impl Shared {
    fn work_until_closed(&self, index: usize) {
        let Some(sleep) = self.work.get(index) else { return };
        let mut ended = None;
        loop {
            let popped = {
                let mut state = self.state.lock();
                if let Some(Ended { slot, lead, costs }) = ended.take() {
                    state.queue.finished(slot, lead, &costs);
                }
                loop {
                    let idle = state.idle.len();
                    let popped = state.queue.pop(Instant::now(), idle);
                    if !popped.jobs.is_empty() || !popped.late.is_empty() {
                        break popped;
                    }
                    if state.closed {
                        return;
                    }
                    state.idle.push(index);
                    sleep.wait(&mut state);
                }
            };
            for job in popped.late {
                let passed = job.bound.call.deadline.is_some_and(|deadline| deadline <= Instant::now());
                let message = if passed {
                    "the deadline passed while the request waited for an executor"
                } else {
                    "what was left of the deadline when an executor was free is less than a pass takes"
                };
                job.reply(Err(Error::new(Reason::DeadlineExceeded, message)));
            }
            ended = self.run(popped.jobs, index);
        }
    }

    /// Runs a quick pass on the calling thread, a thread of the wire.
    fn run_here(&self, job: Job) {
        let slot = job.bound.slot.clone();
        let started = Instant::now();
        runner::run(vec![job]);
        let took = started.elapsed();
        if let Some(lease) = slot.lease() {
            lease.quick.took(took);
        }
        self.wire_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    fn run(&self, jobs: Vec<Job>, index: usize) -> Option<Ended> {
        let (slot, lead) = jobs.first().map(|job| (job.bound.slot.id(), job.bound.lane))?;
        // Who had how many rows in it.
        let mut parts: SmallVec<[Part; 2]> = SmallVec::new();
        for BoundCall { lane, tenant, binding, .. } in jobs.iter().map(|job| &job.bound) {
            let rows = binding.rows.max(1);
            match parts.iter_mut().find(|part| part.lane == *lane && part.tenant.id() == tenant.id()) {
                Some(part) => (part.rows, part.requests) = (part.rows + rows, part.requests + 1),
                None => parts.push(Part { lane: *lane, tenant: tenant.clone(), rows, requests: 1 }),
            }
        }
        let started = Instant::now();
        runner::run(jobs);
        let took = started.elapsed();
        if let Some(busy) = self.busy_ns.get(index) {
            busy.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        self.batches.fetch_add(1, Ordering::Relaxed);
        let total: usize = parts.iter().map(|part| part.rows).sum();
        let costs = parts.into_iter().map(|Part { lane, tenant, rows, requests }| {
            let cost = took.mul_f64(rows as f64 / total as f64);
            tenant.charge(cost / requests, requests);
            Charge { lane, tenant: tenant.id(), weight: tenant.weight(), cost }
        });
        Some(Ended { slot, lead, costs: costs.collect() })
    }
}

/// What one tenant has in a batch.
struct Part {
    lane: Lane,
    tenant: Arc<Tenant>,
    rows: usize,
    requests: u32,
}

/// A batch that has run.
struct Ended {
    slot: SlotId,
    /// Of the job that it was formed around.
    lead: Lane,
    /// What it cost whom.
    costs: SmallVec<[Charge; 2]>,
}
