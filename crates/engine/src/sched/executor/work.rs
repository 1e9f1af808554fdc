//! What a thread of the executors does, from one batch to the next.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use smallvec::SmallVec;
use tokio::time::Instant;
use torchlane_model::{
    Lane,
    error::{Error, Reason},
};

use super::{
    super::{Charge, Job, runner},
    RunningPass, Shared,
};
use crate::{
    admission::{Tenant, Underway},
    call::BoundCall,
    registry::SlotId,
    threads,
};

impl Shared {
    /// After a panic outside of a pass: its jobs are gone, and the thread goes on without them.
    pub(super) fn recover(&self, index: usize) {
        tracing::error!(target: "torchlane::sched", executor = index, "an executor panicked outside of a pass: its requests are lost");
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

    pub(super) fn work_until_closed(&self, index: usize) {
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

    pub(super) fn wake(&self, executor: Option<usize>) {
        if let Some(sleeper) = executor.and_then(|index| self.work.get(index)) {
            sleeper.notify_one();
        }
    }

    /// Runs a quick pass on the calling thread, a thread of the wire.
    pub(super) fn run_here(&self, job: Job) {
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
