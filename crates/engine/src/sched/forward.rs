//! One pass for some requests: join, run, cut.

use std::{
    collections::HashSet,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use smallvec::SmallVec;
use tokio::time::Instant;
use torchlane_model::{
    Arg, Binding, NamedTensor, TensorSpec,
    tensor::{Joined, TensorError, join, split_rows},
};

use super::{padding, rows::Goes, statistics::Parts};
use crate::backend::{BackendError, Pass, Servable};

/// One of the requests of a batch.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) binding: &'a Binding,
    pub(super) inputs: &'a [NamedTensor],
}

/// A pass that went well.
#[derive(Default)]
pub(super) struct Ran {
    /// One list of outputs for each request.
    pub(super) answers: Vec<Vec<NamedTensor>>,
    /// Rows, with what was added to fill them up.
    pub(super) rows: usize,
    pub(super) took: Parts<Duration>,
}

/// Why requests got no answers.
#[derive(Debug)]
pub(super) enum Failed {
    /// The pass failed.
    Pass(BackendError),
    /// It went well, and what came out cannot be cut.
    Cut(BackendError),
}

impl From<BackendError> for Failed {
    fn from(error: BackendError) -> Self {
        Self::Pass(error)
    }
}

impl Failed {
    pub(super) fn error(&self) -> &BackendError {
        let (Self::Pass(error) | Self::Cut(error)) = self;
        error
    }
}

/// What a pass returned, before it is cut.
#[derive(Default)]
pub struct Whole {
    pub(super) outputs: Vec<NamedTensor>,
    /// Rows, with what was added to fill them up.
    pub(super) run: usize,
    input: Duration,
    infer: Duration,
}

/// Runs one request that nobody waits for, in the way of all requests, and returns all outputs.
///
/// # Errors
/// It does not fit the model, or the pass fails. One line.
pub fn alone(servable: &Servable, inputs: &[NamedTensor]) -> Result<Vec<NamedTensor>, String> {
    let binding = Binding::new(&servable.signature, inputs, servable.max_batch())
        .map_err(|error| error.message().to_owned())?;
    let ran = forward(&[Request { binding: &binding, inputs }], servable);
    let ran = ran.map_err(|failed| failed.error().short.clone())?;
    Ok(ran.answers.into_iter().next().unwrap_or_default())
}

pub(super) fn forward(requests: &[Request<'_>], servable: &Servable) -> Result<Ran, Failed> {
    let sizes = padding::sizes(requests.iter().map(|request| request.binding));
    let Whole { outputs, run, input, infer } = whole(requests, servable, &sizes)?;
    let began = Instant::now();
    let mut rows: SmallVec<[usize; 16]> = requests.iter().map(|request| request.binding.rows).collect();
    let real: usize = rows.iter().sum();
    let mut answers = if requests.len() == 1 && run == real {
        vec![outputs]
    } else {
        rows.extend((run > real).then_some(run - real));
        cut(outputs, &rows, requests.len(), servable).map_err(Failed::Cut)?
    };
    for (answer, Request { binding, .. }) in answers.iter_mut().zip(requests).filter(|_| !sizes.is_empty()) {
        for output in answer {
            let spec = servable.signature.outputs().iter().find(|spec| *spec.name == *output.name);
            if let Some(by) = spec.and_then(|spec| spec.cut.as_ref()) {
                padding::cut_back(output, by, binding, &sizes)?;
            }
        }
    }
    Ok(Ran { answers, rows: run, took: Parts { input, infer, output: began.elapsed() } })
}

/// Joins the requests, padded to `sizes`, and runs them.
pub(super) fn whole(
    requests: &[Request<'_>],
    servable: &Servable,
    sizes: &[i64],
) -> Result<Whole, BackendError> {
    let Some(Binding { args, leaves: inputs, key, .. }) = requests.first().map(|request| request.binding)
    else {
        return Ok(Whole::default());
    };
    let began = Instant::now();
    let cannot = |error: TensorError| BackendError::new(error.to_string());
    let mut leaves: Vec<Joined> = Vec::with_capacity(inputs.len());
    for leaf in 0..inputs.len() {
        let parts = requests.iter().filter_map(|request| {
            let Request { binding, inputs } = *request;
            Some((binding, &inputs.get(*binding.leaves.get(leaf)?)?.tensor))
        });
        let joined = if sizes.is_empty() {
            join(parts.map(|(_, tensor)| tensor))
        } else {
            join(padding::padded(parts, leaf, sizes).map_err(cannot)?.iter())
        };
        leaves.push(joined.ok_or_else(|| BackendError::new("requests of unlike shapes met in one batch"))?);
    }
    let real = requests.iter().map(|request| request.binding.rows).sum();
    let run = match key {
        Some(_) => padding::fill_rows(&mut leaves, real, &servable.manifest.batching).map_err(cannot)?,
        None => real,
    };
    let args = by_leaf(args, inputs);
    let pass = Pass { args: &args, leaves, share_memory: servable.effect_free };
    let joined = Instant::now();
    let outputs = guarded(servable, pass)?;
    let infer = joined.elapsed();
    let outputs = rename(outputs, servable)?;
    Ok(Whole { outputs, run, input: joined - began, infer })
}

/// One list of outputs for each of the first `wanted` of `rows`.
fn cut(
    whole: Vec<NamedTensor>,
    rows: &[usize],
    wanted: usize,
    servable: &Servable,
) -> Result<Vec<Vec<NamedTensor>>, BackendError> {
    let known = servable.rows.shared();
    let real: i64 = rows.iter().sum::<usize>().try_into().unwrap_or(i64::MAX);
    let mut answers: Vec<_> = (0..wanted).map(|_| Vec::with_capacity(whole.len())).collect();
    for (at, NamedTensor { name, tensor }) in whole.into_iter().enumerate() {
        let goes = match known {
            Some(known) => known.get(at).copied(),
            // One request that was filled up with rows, and no trial yet: its owner declared these rows.
            None if wanted == 1 => {
                Some(if tensor.rows() == Some(real) { Goes::WithRows } else { Goes::Whole })
            }
            None => None,
        };
        let pieces = match goes {
            Some(Goes::WithRows) => split_rows(&tensor, rows).ok().flatten(),
            Some(Goes::Whole) => Some(vec![tensor; wanted]),
            None => None,
        };
        let pieces = pieces.ok_or_else(|| {
            BackendError::new(format!("output '{name}' does not have one row for each row of the batch"))
        })?;
        let spec = servable.signature.outputs().iter().find(|spec| *spec.name == *name);
        for (answer, tensor) in answers.iter_mut().zip(pieces) {
            if let Some(why) =
                spec.filter(|spec| spec.cut.is_none()).and_then(|spec| spec.contradicts(&tensor))
            {
                return Err(BackendError::new(format!("output '{name}' {why}")));
            }
            answer.push(NamedTensor { name: name.clone(), tensor });
        }
    }
    Ok(answers)
}

/// Runs a pass; a panic in the backend is an error like any other.
pub fn guarded(servable: &Servable, pass: Pass<'_>) -> Result<Vec<NamedTensor>, BackendError> {
    catch_unwind(AssertUnwindSafe(|| servable.module.forward(pass)))
        .unwrap_or_else(|_| Err(BackendError::new("the backend panicked")))
}

/// Gives results the names that the signature has for them.
pub fn rename(mut results: Vec<NamedTensor>, servable: &Servable) -> Result<Vec<NamedTensor>, BackendError> {
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
    if let Some(name) = twice(&results) {
        return Err(BackendError::new(format!(
            "the model returned two outputs named '{name}': give the keys of its dict other names"
        )));
    }
    Ok(results)
}

/// A name that two results have: a dict may have keys such as '' and 'output_0', or 'a.b' beside an 'a' that has a 'b'.
fn twice(results: &[NamedTensor]) -> Option<&str> {
    if results.len() < 2 {
        return None;
    }
    let mut names = HashSet::with_capacity(results.len());
    results.iter().map(|result| result.name.as_str()).find(|name| !names.insert(*name))
}

/// Leaves out what is not declared: of a dict the other keys, else what stands after the last declared result.
fn drop_extra(results: &mut Vec<NamedTensor>, declared: &[TensorSpec]) {
    let is_declared = |result: &NamedTensor| declared.iter().any(|output| *output.name == *result.name);
    // By place a result is called `output_0` and so on: any other name that is declared is a key.
    let by_key = results.iter().any(|result| !result.name.starts_with("output_") && is_declared(result));
    if by_key { results.retain(is_declared) } else { results.truncate(declared.len()) }
}

/// Arguments in which tensors are numbered in the order of the pass, not of the request.
pub fn by_leaf(args: &[Arg], leaves: &[usize]) -> Vec<Arg> {
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
