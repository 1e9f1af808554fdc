//! Runs one batch on the calling thread: newest lease, join, forward, split, reply.

use std::{sync::Arc, time::Duration};

use smallvec::SmallVec;
use tokio::time::Instant;
use torchlane_model::{
    Binding, ModelName, NamedTensor,
    error::{Error, LOGGED, Reason, Result, beginning, shown},
    tensor::HostTensor,
};

use super::{
    Job, Verdict,
    forward::{Failed, Ran, Request, forward},
    statistics::Answered,
    trial::trial,
};
use crate::{
    admission::{Asked, breaker_open, version_gone},
    backend::{BackendError, Servable},
    call::{InferReply, Timing},
    registry::Lease,
    trace::{BatchSpan, Passing, Went},
};

/// Runs `jobs`, which stand in one group, with the version that is live now, and answers each exactly once, or gives it back:
/// those are to be queued again. `renew` is called before each pass after the first.
pub(super) fn run(jobs: Vec<Job>, lease: Option<Lease>, renew: &(dyn Fn() + Sync)) -> Vec<Job> {
    let Some(slot) = jobs.first().map(|job| job.bound.slot.clone()) else { return Vec::new() };
    let Some(lease) = lease else {
        for job in jobs {
            let message = format!("model '{}' was unloaded while the request waited", slot.name());
            job.reply(Err(Error::new(Reason::ModelNotReady, message)));
        }
        return Vec::new();
    };
    let mut ready = Vec::with_capacity(jobs.len());
    let mut back = Vec::new();
    let mut rows = 0;
    for mut job in jobs {
        let wanted = job.bound.wanted;
        if !wanted.admits(lease.version) {
            job.reply(Err(version_gone(slot.name().as_str(), wanted, lease.version)));
            continue;
        }
        if lease.breaker.opened_after(job.submitted, || job.bound.scope()) {
            job.reply(Err(breaker_open(slot.name().as_str(), lease.version)));
            continue;
        }
        if job.alone && job.is_cancelled() {
            continue;
        }
        // A reload may have changed what the model takes since the request was bound.
        if !Arc::ptr_eq(&job.bound.binding.signature, &lease.signature) {
            match Binding::new(&lease.signature, &job.bound.call.inputs, lease.max_batch()) {
                Ok(binding) => {
                    let same = binding.key == job.bound.binding.key;
                    job.bound.binding = binding;
                    if !same {
                        back.push(job);
                        continue;
                    }
                }
                Err(error) => {
                    job.reply(Err(error));
                    continue;
                }
            }
        }
        rows += job.bound.binding.rows;
        if rows > lease.max_batch() && !ready.is_empty() {
            back.push(job);
        } else {
            ready.push(job);
        }
    }
    if lease.rows.is_alone() {
        back.extend(ready.split_off(1.min(ready.len())));
        back.iter_mut().for_each(|job| job.alone = true);
    }
    if ready.len() > 1 && lease.rows.shared().is_none() {
        back.extend(learn(ready, &lease, renew));
    } else if !ready.is_empty() {
        back.extend(run_together(ready, &lease, renew).back);
    }
    back
}

/// Runs the first two requests alone, and then learns from them whether requests may share a pass. Gives the others back, to run alone:
/// they have waited for company already.
fn learn(mut jobs: Vec<Job>, servable: &Servable, renew: &(dyn Fn() + Sync)) -> Vec<Job> {
    let mut back = jobs.split_off(2.min(jobs.len()));
    back.iter_mut().for_each(|job| job.alone = true);
    let Some(slot) = jobs.first().map(|job| job.bound.slot.clone()) else { return back };
    let inputs: Vec<Vec<NamedTensor>> = jobs.iter().map(|job| job.bound.call.inputs.clone()).collect();
    let mut good = true;
    for job in jobs {
        good &= run_together(vec![job], servable, renew).good;
        renew();
    }
    let [one, two] = inputs.as_slice() else { return back };
    let varied = if same(one, two) { varied(two) } else { two.clone() };
    if !good || same(one, &varied) || !servable.rows.try_begin() {
        return back;
    }
    let paced = |work: &(dyn Fn() -> _ + Sync)| {
        renew();
        work()
    };
    let verdict = trial(servable, [one, &varied], paced).unwrap_or_else(|error| {
        if servable.rows.is_patient() {
            return Verdict::Open;
        }
        Verdict::Alone(format!("requests together and alone could not be compared: {}", error.short))
    });
    decide(verdict, servable, slot.name());
    servable.rows.end_try();
    back
}

fn same(one: &[NamedTensor], two: &[NamedTensor]) -> bool {
    one.iter().zip(two).all(|(one, two)| one.tensor.data() == two.tensor.data())
}

/// The same request with other values that are as likely to be legal: callers that only measure send one request again and again.
fn varied(inputs: &[NamedTensor]) -> Vec<NamedTensor> {
    let vary = |NamedTensor { name, tensor }: &NamedTensor| NamedTensor {
        name: name.clone(),
        tensor: turned(tensor).unwrap_or_else(|| tensor.clone()),
    };
    inputs.iter().map(vary).collect()
}

/// Each element has the place of the next.
fn turned(tensor: &HostTensor) -> Option<HostTensor> {
    let mut data = tensor.data().to_vec();
    if data.len() > tensor.dtype().size() {
        data.rotate_left(tensor.dtype().size());
    }
    HostTensor::from_backend(tensor.dtype(), tensor.shape().clone(), data.into()).ok()
}

/// Values of callers may be chosen to look harmless: two of their trials must agree.
const AGREED: u32 = 2;

fn decide(verdict: Verdict, servable: &Servable, model: &ModelName) {
    if servable.rows.learn(verdict, AGREED)
        && let Some(decision) = servable.rows.decision()
    {
        servable.decide(model, decision);
    }
}

/// What became of a batch.
#[derive(Default)]
struct Done {
    /// Its requests were answered well.
    good: bool,
    /// To be queued again.
    back: Vec<Job>,
}

fn run_together(mut jobs: Vec<Job>, servable: &Servable, renew: &(dyn Fn() + Sync)) -> Done {
    let started = Instant::now();
    let span = begin_span(&jobs, servable, started);
    let requests: SmallVec<[_; 16]> = jobs
        .iter()
        .map(|job| Request { binding: &job.bound.binding, inputs: &job.bound.call.inputs })
        .collect();
    let outcome = forward(&requests, servable);
    drop(requests);
    let ended = Instant::now();
    let compute = ended - started;
    if let Some(span) = span {
        let rows: usize = jobs.iter().map(|job| job.bound.binding.rows).sum();
        let went = |ran: &Ran| Went { rows, padded_rows: ran.rows, took: ran.took };
        span.end(ended, outcome.as_ref().map(went).map_err(|failed| failed.error().short.as_str()));
    }
    match outcome {
        Ok(Ran { answers, rows: rows_run, took }) => {
            servable.breaker.succeeded(started);
            if let (Some(job), Some(outputs)) = (jobs.first(), answers.first()) {
                // Only what went well: the next version is warmed up with it.
                job.bound.slot.served().record(servable, &job.bound.call.inputs, outputs);
                servable.remember_good(&job.bound.call.inputs);
            }
            let batch_size = jobs.iter().map(|job| job.bound.binding.rows).sum();
            servable.statistics.ran(batch_size, took);
            if let Some(job) = jobs.first() {
                job.bound.slot.profile().record(job.bound.class, rows_run, compute);
            }
            for (job, outputs) in jobs.into_iter().zip(answers) {
                let timing = timing(&job, started, compute, batch_size);
                let answered = Answered {
                    statistics: servable.statistics.clone(),
                    rows: job.bound.binding.rows,
                    total: ended - job.bound.call.received,
                    queued: timing.queue + timing.batch_wait,
                    took,
                };
                let outputs = select(outputs, &job.bound.call.outputs);
                let version = servable.version;
                let reply = outputs.map(|outputs| (InferReply { version, outputs, timing }, answered));
                job.reply(reply);
            }
            Done { good: true, back: Vec::new() }
        }
        Err(failed) if jobs.len() > 1 => {
            if let (Failed::Cut(error), Some(job)) = (failed, jobs.first()) {
                decide(Verdict::Alone(error.short), servable, job.bound.slot.name());
            }
            // One bad request must not fail the others: each gets its own pass and its own answer, in its own turn.
            for job in &mut jobs {
                job.alone = true;
            }
            Done { good: false, back: jobs }
        }
        Err(failed) => {
            let error = failed.error();
            for job in jobs {
                judge_failure(&job, servable, renew);
                let _in_span = job.bound.call.span.clone().entered();
                let answer =
                    forward_failed(error, job.bound.slot.name().as_str(), &job.bound.call.request_id);
                job.reply(Err(answer));
            }
            Done::default()
        }
    }
}

/// Counts a failure, and finds out whether it is the version that fails or what its caller sent.
fn judge_failure(job: &Job, servable: &Servable, renew: &(dyn Fn() + Sync)) {
    let breaker = &servable.breaker;
    let scope = job.bound.scope();
    match breaker.failed(Instant::now(), &scope) {
        Asked::Nothing => {}
        Asked::Probe { callers } => {
            renew();
            let began = Instant::now();
            // A model that may keep something between passes is not asked: it would keep the probe.
            let keeps = servable.stateful;
            match servable.good_inputs().filter(|_| !keeps) {
                _ if keeps && callers > 1 => breaker.open(began),
                _ if keeps => {}
                Some(good) if alone_works(servable, good) => breaker.succeeded(began),
                Some(_) => breaker.open(began),
                // It has never answered well. Zeros are what a warm-up would have run.
                None if zeros_work(job, servable) => breaker.succeeded(began),
                None => breaker.open_for(began, scope),
            }
        }
    }
}

fn alone_works(servable: &Servable, inputs: &[NamedTensor]) -> bool {
    super::alone(servable, inputs).is_ok()
}

/// Whether the version answers zeros in the shapes of this request.
fn zeros_work(job: &Job, servable: &Servable) -> bool {
    let zeros = job.bound.call.inputs.iter().map(|NamedTensor { name, tensor }| {
        let tensor = HostTensor::zeros(tensor.dtype(), tensor.shape().clone()).ok()?;
        Some(NamedTensor { name: name.clone(), tensor })
    });
    zeros.collect::<Option<Vec<_>>>().is_some_and(|zeros| alone_works(servable, &zeros))
}

/// For the traced ones of `jobs`; `None` if none is.
fn begin_span(jobs: &[Job], servable: &Servable, began: Instant) -> Option<BatchSpan> {
    let model = jobs.first()?.bound.slot.name();
    let pass = Passing { model, version: servable.version, requests: jobs.len(), began };
    BatchSpan::begin(jobs.iter().filter_map(|job| job.bound.call.trace.as_deref()), &pass)
}

fn timing(job: &Job, started: Instant, compute: Duration, batch_size: usize) -> Timing {
    let batch_wait = started.duration_since(job.submitted);
    Timing { queue: job.queued, batch_wait, compute, batch_size, from_cache: false }
}

fn select(outputs: Vec<NamedTensor>, wanted: &[String]) -> Result<Vec<NamedTensor>> {
    if wanted.is_empty() {
        return Ok(outputs);
    }
    wanted
        .iter()
        .map(|name| {
            outputs.iter().find(|output| output.name == *name).cloned().ok_or_else(|| {
                let known = outputs.iter().map(|o| o.name.as_str()).collect::<Vec<_>>().join(", ");
                let message = format!("the model has no output '{name}': it returned {known}");
                Error::new(Reason::UnknownOutput, message).with_field("outputs")
            })
        })
        .collect()
}

fn forward_failed(error: &BackendError, model: &str, request_id: &str) -> Error {
    // The log line bears the same id as the answer, and has everything that libtorch said.
    let full = beginning(&error.full, 64 * 1024);
    tracing::error!(target: "torchlane::forward", incident = &*shown(request_id, LOGGED), model, error = full, "forward failed");
    let (short, id) = (shown(&error.short, 300), shown(request_id, 64));
    Error::new(
        Reason::ForwardFailed,
        format!("the model failed: {short} (incident {id}: the server's log has it in full)"),
    )
}
