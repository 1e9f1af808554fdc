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
use smallvec::SmallVec;
use tokio::time::Instant;
use torchlane_model::{
    Lane, Version,
    error::{Error, Reason},
};

use super::{
    Charge, Handle, Job, PendingReply, QueueConfig, RunQueue, idle::Idle, job::Limits, quick, runner,
};
use crate::{
    admission::{Breaker, Tenant, Underway},
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
            tracing::warn!("a forward pass did not end: it is abandoned");
        }
    }
}

impl Shared {
    /// After a panic outside of a pass: its jobs are gone, and the thread goes on without them.
    fn recover(&self, index: usize) {
        tracing::error!(executor = index, "an executor panicked outside of a pass: its requests are lost");
        let Some(running) = self.running.get(index) else { return };
        let mut state = self.state.lock();
        let mut running = running.lock();
        state.idle.woke(index);
        if let Some(pass) = running.pass.take().filter(|_| !running.given_up) {
            state.queue.finished(pass.model.id(), pass.lead);
        }
        if !running.given_up {
            state.set_lead(index, None);
        }
    }

    /// Queues jobs again that were not answered.
    fn put_back(&self, jobs: Vec<Job>) {
        if jobs.is_empty() {
            return;
        }
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            // As in `submit`: dropped, they read as "shutting down".
            return;
        }
        for job in jobs {
            state.queue.push(job);
            let next = state.idle.wake_next();
            self.wake(next);
        }
    }

    fn work_until_closed(&self, index: usize) {
        let Some(sleep) = self.work.get(index) else { return };
        let mut ended = None;
        loop {
            let popped = {
                let mut state = self.state.lock();
                let given_up = self.running.get(index).is_some_and(|running| running.lock().given_up);
                if let Some(Ended { slot, lead, costs }) = ended.take() {
                    state.queue.charge(&costs);
                    if !given_up {
                        state.queue.finished(slot, lead);
                        state.set_lead(index, None);
                    }
                }
                if given_up && !self.comes_back(index) {
                    state.unused.push(index);
                    return;
                }
                loop {
                    let idle = state.idle.len();
                    let popped = state.queue.pop(Instant::now(), idle);
                    if !popped.jobs.is_empty() || !popped.late.is_empty() {
                        if popped.more || popped.wait_until.is_some() {
                            // While this one is busy, another must wake up for the rest, and for jobs that are held back. The
                            // notice of one that was put in may have come to this one.
                            let next = state.idle.wake_next();
                            self.wake(next);
                        }
                        state.set_lead(index, popped.jobs.first().map(|job| job.bound.lane));
                        break popped;
                    }
                    if state.closed {
                        return;
                    }
                    state.idle.sleeps(index);
                    match popped.wait_until {
                        None => sleep.wait(&mut state),
                        Some(until) => {
                            let _by_notice = sleep.wait_until(&mut state, until.into_std());
                        }
                    }
                    state.idle.woke(index);
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

    fn wake(&self, executor: Option<usize>) {
        if let Some(sleeper) = executor.and_then(|index| self.work.get(index)) {
            sleeper.notify_one();
        }
    }

    /// Runs a quick pass on the calling thread, a thread of the wire.
    fn run_here(&self, job: Job) {
        let Some(lease) = job.bound.slot.lease() else {
            runner::run(vec![job], None, &|| {});
            return;
        };
        let (lane, tenant) = (job.bound.lane, job.bound.tenant.clone());
        let (quick, since, cpu) = (lease.quick.clone(), Instant::now(), threads::cpu_time());
        let back = runner::run(vec![job], Some(lease), &|| {});
        self.put_back(back);
        // By the thread's own time: while executors are busy the system may have run others instead.
        quick.took(threads::cpu_time().saturating_sub(cpu));
        let took = since.elapsed();
        tenant.charge(took, 1);
        let charge = Charge { lane, tenant: tenant.id(), weight: tenant.weight(), cost: took };
        self.state.lock().queue.charge(&[charge]);
        self.wire_ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
    }

    /// An executor that was given up works again, unless another thread has taken its place.
    fn comes_back(&self, index: usize) -> bool {
        let Some(running) = self.running.get(index) else { return false };
        if self.healthy.load(Ordering::Relaxed) >= self.wanted {
            return false;
        }
        running.lock().given_up = false;
        self.healthy.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn begins(&self, index: usize, pass: RunningPass) {
        if let Some(running) = self.running.get(index) {
            running.lock().pass = Some(pass);
        }
    }

    /// Another pass begins for the same batch: each has its own time.
    fn renew(&self, index: usize) {
        let Some(running) = self.running.get(index) else { return };
        if let Some(pass) = running.lock().pass.as_mut() {
            pass.since = Instant::now();
        }
    }

    /// The pass has ended. If it was given up, its version may be tried again.
    fn ends(&self, index: usize) {
        let Some(running) = self.running.get(index) else { return };
        let (pass, given_up) = {
            let mut running = running.lock();
            (running.pass.take(), running.given_up)
        };
        if let Some((_, breaker)) = pass.filter(|_| given_up).and_then(|pass| pass.version) {
            breaker.freed();
        }
    }

    fn run(&self, mut jobs: Vec<Job>, index: usize) -> Option<Ended> {
        let (model, lead) = jobs.first().map(|job| (job.bound.slot.clone(), job.bound.lane))?;
        let slot = model.id();
        // Who had how many rows in it.
        let mut parts: SmallVec<[Part; 2]> = SmallVec::new();
        for BoundCall { lane, tenant, binding, .. } in jobs.iter().map(|job| &job.bound) {
            let rows = binding.rows.max(1);
            match parts.iter_mut().find(|part| part.lane == *lane && part.tenant.id() == tenant.id()) {
                Some(part) => (part.rows, part.requests) = (part.rows + rows, part.requests + 1),
                None => parts.push(Part { lane: *lane, tenant: tenant.clone(), rows, requests: 1 }),
            }
        }
        let rows: usize = parts.iter().map(|part| part.rows).sum();
        let takes = jobs.first().and_then(|job| model.profile().time(job.bound.class, rows));
        let aheads = jobs.iter_mut().filter_map(|job| job.bound.ahead.take());
        let underway = Underway::begin(aheads, takes.map_or(Duration::ZERO, |time| time.mean));
        let (since, lease) = (Instant::now(), model.lease());
        let version = lease.as_ref().map(|lease| (lease.version, lease.breaker.clone()));
        let requests = jobs.len();
        self.begins(index, RunningPass { since, model, version, lead, requests, underway });
        let back = runner::run(jobs, lease, &|| self.renew(index));
        self.ends(index);
        self.put_back(back);
        let took = since.elapsed();
        if let Some(busy) = self.busy_ns.get(index) {
            busy.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        self.batches.fetch_add(1, Ordering::Relaxed);
        let costs = parts.into_iter().map(|Part { lane, tenant, rows: own, requests }| {
            let cost = took.mul_f64(own as f64 / rows as f64);
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
