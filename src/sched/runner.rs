//! Runs one batch on the calling thread: newest lease, join, forward, split, reply.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    Job, padding,
    statistics::{Answered, Parts},
};
use crate::{
    admission::{breaker_open, version_gone},
    backend::{BackendError, Pass, Servable},
    call::{InferReply, Timing},
    error::{Error, LOGGED, Reason, Result, beginning, shown},
    model::{Arg, Binding, NamedTensor, TensorSpec},
    registry::Lease,
    telemetry::{BatchSpan, Passing, Went},
    tensor::{HostTensor, Joined, TensorError, join, split_rows},
};

/// Runs `jobs`, which stand in one group, with the version that is live now, and answers each exactly once.
pub(super) fn run(jobs: Vec<Job>, lease: Option<Lease>) {
    let Some(slot) = jobs.first().map(|job| job.bound.slot.clone()) else { return };
    let Some(lease) = lease else {
        for job in jobs {
            let message = format!("model '{}' was unloaded while the request waited", slot.name());
            job.reply(Err(Error::new(Reason::ModelNotReady, message)));
        }
        return;
    };
    let mut ready = Vec::with_capacity(jobs.len());
    let mut alone = Vec::new();
    let mut rows = 0;
    for mut job in jobs {
        let wanted = job.bound.wanted;
        if !wanted.admits(lease.version) {
            job.reply(Err(version_gone(slot.name().as_str(), wanted, lease.version)));
            continue;
        }
        if lease.breaker.opened_after(job.submitted) {
            job.reply(Err(breaker_open(slot.name().as_str(), lease.version)));
            continue;
        }
        // A reload may have changed what the model takes since the request was bound.
        if !Arc::ptr_eq(&job.bound.binding.signature, &lease.signature) {
            match Binding::new(&lease.signature, &job.bound.call.inputs, lease.max_batch) {
                Ok(binding) => {
                    let same = binding.key == job.bound.binding.key;
                    job.bound.binding = binding;
                    if !same {
                        alone.push(job);
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
        if rows > lease.max_batch && !ready.is_empty() { alone.push(job) } else { ready.push(job) }
    }
    if !ready.is_empty() {
        run_together(ready, &lease);
    }
    for job in alone {
        run_together(vec![job], &lease);
    }
}

fn run_together(jobs: Vec<Job>, servable: &Servable) {
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
        span.end(ended, outcome.as_ref().map(went).map_err(|error| error.short.as_str()));
    }
    match outcome {
        Ok(Ran { answers, rows: rows_run, took }) => {
            servable.breaker.succeeded(started);
            if let (Some(job), Some(outputs)) = (jobs.first(), answers.first()) {
                // Only what went well: the next version is warmed up with it.
                job.bound.slot.served().record(servable, &job.bound.call.inputs, outputs);
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
        }
        Err(_) if jobs.len() > 1 => {
            // One bad request must not fail the others: each gets its own pass and its own answer.
            for job in jobs {
                run_together(vec![job], servable);
            }
        }
        Err(error) => {
            let breaker = &servable.breaker;
            if breaker.failed(Instant::now()) {
                let began = Instant::now();
                if jobs.iter().all(|job| works(job, servable)) {
                    breaker.succeeded(began)
                } else {
                    breaker.open(began)
                }
            }
            for job in jobs {
                let _in_span = job.bound.call.span.clone().entered();
                let answer =
                    forward_failed(&error, job.bound.slot.name().as_str(), &job.bound.call.request_id);
                job.reply(Err(answer));
            }
        }
    }
}

/// For the traced ones of `jobs`; `None` if none is.
fn begin_span(jobs: &[Job], servable: &Servable, began: Instant) -> Option<BatchSpan> {
    let model = jobs.first()?.bound.slot.name();
    let pass = Passing { model, version: servable.version, requests: jobs.len(), began };
    BatchSpan::begin(jobs.iter().filter_map(|job| job.bound.call.trace.as_deref()), &pass)
}

/// Whether the version answers inputs as its warm-up had them, zeros, in the shapes of this request: then it was the values of
/// the request that it threw at. A model that may keep something between passes is not asked: it would keep the zeros.
fn works(job: &Job, servable: &Servable) -> bool {
    if servable.stateful {
        return false;
    }
    let Binding { args, leaves: inputs, .. } = &job.bound.binding;
    let tensors = inputs.iter().filter_map(|at| job.bound.call.inputs.get(*at)).map(|input| &input.tensor);
    let leaves = tensors.map(|like| {
        let zeros = HostTensor::zeros(like.dtype(), like.shape().clone()).ok()?;
        join([&zeros].into_iter())
    });
    let args = by_leaf(args, inputs);
    let pass = |leaves| Pass { args: &args, leaves, share_memory: servable.effect_free };
    leaves.collect::<Option<_>>().is_some_and(|leaves| guarded(servable, pass(leaves)).is_ok())
}

fn timing(job: &Job, started: Instant, compute: Duration, batch_size: usize) -> Timing {
    let batch_wait = started.duration_since(job.submitted);
    Timing { queue: job.queued, batch_wait, compute, batch_size, from_cache: false }
}

/// Runs one request that nobody waits for, in the way of all requests, and returns all outputs.
///
/// # Errors
/// It does not fit the model, or the pass fails. One line.
pub(crate) fn alone(servable: &Servable, inputs: &[NamedTensor]) -> Result<Vec<NamedTensor>, String> {
    let binding = Binding::new(&servable.signature, inputs, servable.max_batch)
        .map_err(|error| error.message().to_owned())?;
    let ran = forward(&[Request { binding: &binding, inputs }], servable).map_err(|error| error.short)?;
    Ok(ran.answers.into_iter().next().unwrap_or_default())
}

/// One of the requests of a batch.
#[derive(Clone, Copy)]
struct Request<'a> {
    binding: &'a Binding,
    inputs: &'a [NamedTensor],
}

/// A pass that went well.
#[derive(Default)]
struct Ran {
    /// One list of outputs for each request.
    answers: Vec<Vec<NamedTensor>>,
    /// Rows, with what was added to fill them up.
    rows: usize,
    took: Parts<Duration>,
}

fn forward(requests: &[Request<'_>], servable: &Servable) -> Result<Ran, BackendError> {
    let Some(Binding { args, leaves: inputs, key, .. }) = requests.first().map(|request| request.binding)
    else {
        return Ok(Ran::default());
    };
    let began = Instant::now();
    let cannot = |error: TensorError| BackendError::new(error.to_string());
    let bindings = requests.iter().map(|request| request.binding);
    let sizes = padding::sizes(bindings.clone());
    let mut leaves: Vec<Joined> = Vec::with_capacity(inputs.len());
    for leaf in 0..inputs.len() {
        let parts = requests.iter().filter_map(|request| {
            let Request { binding, inputs } = *request;
            Some((binding, &inputs.get(*binding.leaves.get(leaf)?)?.tensor))
        });
        let joined = if sizes.is_empty() {
            join(parts.map(|(_, tensor)| tensor))
        } else {
            join(padding::padded(parts, leaf, &sizes).map_err(cannot)?.iter())
        };
        leaves.push(joined.ok_or_else(|| BackendError::new("requests of unlike shapes met in one batch"))?);
    }
    let mut rows: SmallVec<[usize; 16]> = bindings.clone().map(|binding| binding.rows).collect();
    let real = rows.iter().sum();
    let run = match key {
        Some(_) => padding::fill_rows(&mut leaves, real, &servable.manifest.batching).map_err(cannot)?,
        None => real,
    };
    let args = by_leaf(args, inputs);
    let pass = Pass { args: &args, leaves, share_memory: servable.effect_free };
    let joined = Instant::now();
    let whole = guarded(servable, pass)?;
    let inferred = Instant::now();
    let named = rename(whole, servable)?;
    let mut answers = if requests.len() == 1 && run == real {
        vec![named]
    } else {
        rows.extend((run > real).then_some(run - real));
        split(named, &rows, requests.len())?
    };
    for (answer, binding) in answers.iter_mut().zip(bindings).filter(|_| !sizes.is_empty()) {
        for output in answer {
            let spec = servable.signature.outputs().iter().find(|spec| *spec.name == *output.name);
            if let Some(by) = spec.and_then(|spec| spec.cut.as_ref()) {
                padding::cut_back(output, by, binding, &sizes)?;
            }
        }
    }
    let took = Parts { input: joined - began, infer: inferred - joined, output: inferred.elapsed() };
    Ok(Ran { answers, rows: run, took })
}

/// One list of outputs for each of the first `wanted` of `rows`.
fn split(
    whole: Vec<NamedTensor>,
    rows: &[usize],
    wanted: usize,
) -> Result<Vec<Vec<NamedTensor>>, BackendError> {
    let mut answers: Vec<_> = (0..wanted).map(|_| Vec::with_capacity(whole.len())).collect();
    for NamedTensor { name, tensor } in whole {
        let pieces = split_rows(&tensor, rows).ok().flatten().ok_or_else(|| {
            BackendError::new(format!("output '{name}' does not have one row for each row of the batch"))
        })?;
        for (answer, tensor) in answers.iter_mut().zip(pieces) {
            answer.push(NamedTensor { name: name.clone(), tensor });
        }
    }
    Ok(answers)
}

/// Runs a pass; a panic in the backend is an error like any other.
pub(crate) fn guarded(servable: &Servable, pass: Pass<'_>) -> Result<Vec<NamedTensor>, BackendError> {
    catch_unwind(AssertUnwindSafe(|| servable.module.forward(pass)))
        .unwrap_or_else(|_| Err(BackendError::new("the backend panicked")))
}

/// Gives results the names that the signature has for them.
pub(crate) fn rename(
    mut results: Vec<NamedTensor>,
    servable: &Servable,
) -> Result<Vec<NamedTensor>, BackendError> {
    let signature = &servable.signature;
    if signature.drops_extra_outputs() {
        drop_extra(&mut results, signature.outputs());
    }
    if signature.outputs_declared() && results.len() != signature.outputs().len() {
        let (declared, got) = (signature.outputs().len(), results.len());
        return Err(BackendError::new(format!("{declared} outputs are declared, the model returned {got}")));
    }
    for (position, result) in results.iter_mut().enumerate() {
        let name = signature.output_name(position, &result.name);
        if name != result.name {
            result.name = name.to_owned();
        }
    }
    Ok(results)
}

/// Leaves out what is not declared: of a dict the other keys, else what stands after the last declared result.
fn drop_extra(results: &mut Vec<NamedTensor>, declared: &[TensorSpec]) {
    let is_declared = |result: &NamedTensor| declared.iter().any(|output| *output.name == *result.name);
    // By place a result is called `output_0` and so on: any other name that is declared is a key.
    let by_key = results.iter().any(|result| !result.name.starts_with("output_") && is_declared(result));
    if by_key { results.retain(is_declared) } else { results.truncate(declared.len()) }
}

/// Arguments in which tensors are numbered in the order of the pass, not of the request.
pub(crate) fn by_leaf(args: &[Arg], leaves: &[usize]) -> Vec<Arg> {
    let at = |input: &usize| leaves.iter().position(|leaf| leaf == input).unwrap_or(0);
    args.iter()
        .map(|arg| match arg {
            Arg::Tensor(input) => Arg::Tensor(at(input)),
            Arg::List(items) => Arg::List(items.iter().map(at).collect()),
            Arg::Dict(items) => {
                Arg::Dict(items.iter().map(|(key, input)| (key.clone(), at(input))).collect())
            }
            Arg::Tuple(items) => Arg::Tuple(by_leaf(items, leaves)),
            other => other.clone(),
        })
        .collect()
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
