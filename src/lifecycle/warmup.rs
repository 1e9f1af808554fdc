//! Runs a version until its latency is steady, before anybody waits for it.
//!
//! libtorch specialises on the first passes of each shape: a first pass may take a thousand times as long as the
//! tenth, and two are not always enough (three to four were, on libtorch 2.13). Runs on a loader thread; what one
//! thread has warmed up stays warm on the executors.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use thiserror::Error;
use tokio::time::Instant;

use super::{
    WarmupReport,
    shapes::{self, Planned},
    unlike::{self, Integers},
};
use crate::{
    backend::{BackendError, Pass, Servable},
    loader::pace,
    model::{Binding, NamedTensor, Sample},
    registry::InputShapes,
    sched::{Measured, ProfilePoint, QUICK, RowClass, by_leaf, guarded, rename, trial},
    tensor::{DType, HostTensor, Shape, byte_len, join},
    threads::cpu_time,
};

/// Two passes in a row that agree this closely are steady.
const STEADY: f64 = 0.10;
/// Fewer passes than this say nothing.
const MIN_PASSES: u32 = 3;

/// Why a version did not get through its warm-up.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum WarmupFailure {
    /// The declared shapes do not fit the model.
    #[error("warm-up shapes do not fit the model: {0}")]
    Shapes(String),
    /// A pass failed.
    #[error("a pass on shapes {shapes} failed: {cause}")]
    Pass {
        /// What was run.
        shapes: String,
        /// What the backend said.
        cause: String,
    },
    /// An output is not what `model.toml` declares.
    #[error("output '{output}' {why}")]
    Output {
        /// Its name.
        output: String,
        /// What is wrong with it.
        why: String,
    },
}

impl WarmupFailure {
    /// The shapes do not fit: not that the version fails at anything. libtorch has no codes for what went wrong, only words.
    fn is_of_shapes(&self) -> bool {
        const WORDS: [&str; 7] = ["shape", "size", "dimension", "dim ", "channel", "dtype", "scalar type"];
        match self {
            Self::Shapes(_) => true,
            Self::Pass { cause, .. } => WORDS.iter().any(|word| cause.contains(word)),
            Self::Output { .. } => false,
        }
    }
}

/// What a warm-up learned.
#[derive(Debug, Clone, Default)]
pub(super) struct Warmed {
    pub(super) report: WarmupReport,
    /// Those of the remembered shapes that do not fit this version.
    pub(super) forgotten: Vec<InputShapes>,
    /// Bytes of the largest inputs with a pass of at most [`QUICK`].
    pub(super) quick_bytes: usize,
    /// The shortest pass of each size.
    pub(super) measured: Vec<Measured>,
}

/// More learned sizes of batches than this are not run.
const LEARNED: usize = 8;

/// The sizes of batches that ran most, ascending: the next version will run them too, whether they are powers of two or not.
pub(super) fn learned(points: &[ProfilePoint]) -> Vec<usize> {
    let mut passes: BTreeMap<usize, u64> = BTreeMap::new();
    for point in points {
        *passes.entry(point.rows).or_default() += point.time.passes;
    }
    let mut most: Vec<_> = passes.into_iter().map(|(rows, passes)| (Reverse(passes), rows)).collect();
    most.sort_unstable();
    let mut sizes: Vec<_> = most.into_iter().take(LEARNED).map(|(_, rows)| rows).collect();
    sizes.sort_unstable();
    sizes
}

/// Runs every shape, with the values of `samples` where there are any, and for a batched model every size that its batches are padded to, or else every size from 1 up to its
/// limit in powers of two, and those that were `learned`. Remembered shapes that do not fit are left out.
pub(super) fn run(
    servable: &Servable,
    planned: &Planned,
    samples: &[Sample],
    learned: &[usize],
) -> Result<Warmed, WarmupFailure> {
    let mut warmed =
        Warmed { report: WarmupReport { steady: true, ..WarmupReport::default() }, ..Warmed::default() };
    let mut run = Run {
        servable,
        samples,
        learned,
        give_up: Instant::now() + servable.manifest.warmup.budget,
        seen: HashSet::new(),
    };
    for shape in &planned.sure {
        run.shape(shape, &mut warmed)?;
    }
    for remembered in &planned.remembered {
        let passes = shapes::padded(&servable.signature, vec![remembered.clone()]);
        let ran = passes.iter().try_for_each(|shape| run.shape(shape, &mut warmed));
        match ran {
            Err(failure) if failure.is_of_shapes() => warmed.forgotten.push(remembered.clone()),
            ran => ran?,
        }
    }
    Ok(warmed)
}

struct Run<'a> {
    servable: &'a Servable,
    samples: &'a [Sample],
    learned: &'a [usize],
    give_up: Instant,
    seen: HashSet<Vec<Shape>>,
}

impl Run<'_> {
    fn shape(&mut self, shape: &InputShapes, warmed: &mut Warmed) -> Result<(), WarmupFailure> {
        let servable = self.servable;
        let mut untried = true;
        for rows in sizes(servable, shape, self.learned) {
            if Instant::now() >= self.give_up {
                warmed.report.steady = false;
                return Ok(());
            }
            let inputs = inputs(shape, rows, self.samples)?;
            // A declared batch may be one of the sizes that another declared shape grows to.
            let shapes: Vec<_> = inputs.iter().map(|input| input.tensor.shape().clone()).collect();
            if !self.seen.insert(shapes) {
                continue;
            }
            let shortest = settle(servable, &inputs, &mut self.give_up, &mut warmed.report)?;
            servable.remember_good(&inputs);
            let bytes = inputs.iter().map(|input| input.tensor.data().len()).sum();
            let counted = rows.unwrap_or(1);
            warmed.measured.push((RowClass::of(bytes, counted), counted, shortest));
            if shortest <= QUICK {
                warmed.quick_bytes = warmed.quick_bytes.max(bytes);
            }
            if rows.is_some() && std::mem::take(&mut untried) && servable.rows.shared().is_none() {
                learn_rows(servable, shape, self.samples);
                if servable.rows.is_alone() {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Compares rows together and alone. A trial that fails says nothing here: it is our choice of values that it may fail at.
fn learn_rows(servable: &Servable, shape: &InputShapes, samples: &[Sample]) {
    let rows = if servable.max_batch > 2 { [1, 2] } else { [1, 1] };
    for integers in [Integers::ZeroAndOne, Integers::Zero] {
        let Some([one, two]) = unlike::requests(shape, rows, samples, integers) else { return };
        match trial(servable, [&one, &two], |work| pace::step(work)) {
            Ok(verdict) => {
                servable.rows.learn(verdict, 1);
                return;
            }
            Err(error) => {
                tracing::debug!(error = %error.short, "requests together and alone could not be compared")
            }
        }
    }
}

fn sizes(servable: &Servable, shape: &InputShapes, learned: &[usize]) -> Vec<Option<usize>> {
    let has_rows = !shape.is_empty() && shape.iter().all(|(_, _, shape)| !shape.is_empty());
    if servable.max_batch() <= 1 || !has_rows {
        return vec![None];
    }
    let buckets = &servable.manifest.batching.buckets;
    if !buckets.is_empty() {
        return buckets.iter().copied().map(Some).collect();
    }
    let mut sizes: Vec<usize> =
        std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|n| *n < servable.max_batch).collect();
    sizes.push(servable.max_batch);
    sizes.extend(learned.iter().filter(|rows| (1..servable.max_batch).contains(*rows)));
    sizes.sort_unstable();
    sizes.dedup();
    sizes.into_iter().map(Some).collect()
}

fn inputs(
    shape: &InputShapes,
    rows: Option<usize>,
    samples: &[Sample],
) -> Result<Vec<NamedTensor>, WarmupFailure> {
    shape
        .iter()
        .map(|(name, dtype, shape)| {
            let mut shape = shape.clone();
            if let (Some(rows), Some(first)) = (rows, shape.first_mut()) {
                *first = i64::try_from(rows).unwrap_or(i64::MAX);
            }
            let tensor = match like(samples, name, *dtype, &shape) {
                Some(sampled) => Ok(sampled),
                None => HostTensor::zeros(*dtype, shape),
            }
            .map_err(|e| WarmupFailure::Shapes(format!("{name}: {e}")))?;
            Ok(NamedTensor { name: name.clone(), tensor })
        })
        .collect()
}

/// A tensor of that shape with the elements of a sample, over and over: a model that takes only some values (indices, say)
/// takes these. `None` where no sample has such an input.
fn like(samples: &[Sample], name: &str, dtype: DType, shape: &Shape) -> Option<HostTensor> {
    let of = || {
        let inputs = samples.iter().flat_map(|sample| &sample.inputs);
        inputs.filter(|input| input.name == *name && input.tensor.dtype() == dtype).map(|input| &input.tensor)
    };
    let sampled =
        of().find(|tensor| tensor.shape() == shape).or_else(|| of().find(|t| !t.data().is_empty()))?;
    if sampled.shape() == shape {
        return Some(sampled.clone());
    }
    let length = byte_len(dtype, shape).ok()?;
    let data: Vec<u8> = sampled.data().iter().copied().cycle().take(length).collect();
    HostTensor::new(dtype, shape.clone(), data.into()).ok()
}

/// Runs one shape until it is steady, and returns the time of the shortest pass.
fn settle(
    servable: &Servable,
    inputs: &[NamedTensor],
    give_up: &mut Instant,
    report: &mut WarmupReport,
) -> Result<Duration, WarmupFailure> {
    report.shapes += 1;
    let (mut first, mut last) = (Duration::ZERO, Duration::ZERO);
    let mut shortest = Duration::MAX;
    let mut steady = false;
    let mut last_cpu = Duration::ZERO;
    for pass in 0..servable.manifest.warmup.max_passes {
        let rested = pace::rested();
        let (outputs, took, cpu) = pace::step(|| {
            let (started, cpu) = (Instant::now(), cpu_time());
            let outputs = pass_once(servable, inputs);
            (outputs, started.elapsed(), cpu_time().saturating_sub(cpu))
        });
        let outputs = outputs?;
        report.passes += 1;
        // The budget is for what is done.
        *give_up += pace::rested().saturating_sub(rested);
        shortest = shortest.min(took);
        if pass == 0 {
            check_form(servable, &outputs)?;
            check_values(servable, inputs, &outputs)?;
            first = took;
        }
        // On a machine that is full a pass takes as long as others let it: what it takes of the CPU tells the same.
        steady = pass > 0 && (agree(took, last) || agree(cpu, last_cpu));
        (last, last_cpu) = (took, cpu);
        if (steady && pass + 1 >= MIN_PASSES) || Instant::now() >= *give_up {
            break;
        }
    }
    report.steady &= steady;
    if first > report.first_pass {
        (report.first_pass, report.steady_pass) = (first, last);
    }
    Ok(shortest)
}

fn agree(pass: Duration, last: Duration) -> bool {
    pass.abs_diff(last).as_secs_f64() <= STEADY * last.as_secs_f64()
}

fn pass_once(servable: &Servable, inputs: &[NamedTensor]) -> Result<Vec<NamedTensor>, WarmupFailure> {
    let binding = Binding::new(&servable.signature, inputs, servable.max_batch())
        .map_err(|error| WarmupFailure::Shapes(error.to_string()))?;
    let failed = |error: BackendError| {
        tracing::error!(target: "torchlane::forward", error = %error.full, "warm-up pass failed");
        let shapes = inputs
            .iter()
            .map(|i| format!("{} {:?}", i.name, i.tensor.shape().as_slice()))
            .collect::<Vec<_>>()
            .join(", ");
        WarmupFailure::Pass { shapes, cause: error.short }
    };
    let leaves =
        binding.leaves.iter().filter_map(|at| join(inputs.get(*at).map(|i| &i.tensor).into_iter())).collect();
    let args = by_leaf(&binding.args, &binding.leaves);
    let pass = Pass { args: &args, leaves, share_memory: servable.effect_free };
    guarded(servable, pass).and_then(|results| rename(results, servable)).map_err(failed)
}

fn check_form(servable: &Servable, outputs: &[NamedTensor]) -> Result<(), WarmupFailure> {
    for output in outputs {
        let spec = servable.signature.outputs().iter().find(|spec| *spec.name == *output.name);
        if let Some(why) = spec.and_then(|spec| spec.contradicts(&output.tensor)) {
            return Err(WarmupFailure::Output { output: output.name.clone(), why });
        }
    }
    Ok(())
}

/// Broken weights give NaN whatever goes in. A sound model may give it for zeros, which are our choice (a logarithm, a
/// division by a norm), so ones are tried then.
fn check_values(
    servable: &Servable,
    zeros: &[NamedTensor],
    outputs: &[NamedTensor],
) -> Result<(), WarmupFailure> {
    let broken = |outputs: &[NamedTensor]| {
        outputs.iter().find(|output| !is_finite(&output.tensor)).map(|output| output.name.clone())
    };
    if servable.manifest.warmup.allow_non_finite || broken(outputs).is_none() {
        return Ok(());
    }
    let ones: Vec<_> = zeros
        .iter()
        .map(|zero| NamedTensor { name: zero.name.clone(), tensor: ones_like(&zero.tensor) })
        .collect();
    match broken(&pass_once(servable, &ones)?) {
        None => Ok(()),
        Some(output) => {
            let why = "holds NaN or infinity, for inputs of zeros and of ones (warmup.allow_non_finite = true lets it pass)";
            Err(WarmupFailure::Output { output, why: why.to_owned() })
        }
    }
}

/// Ones where `zeros` holds floating-point numbers. Integers are often indices, and 0 is the one that is always there.
fn ones_like(zeros: &HostTensor) -> HostTensor {
    let one: &[u8] = match zeros.dtype() {
        DType::F16 => &half::f16::ONE.to_le_bytes(),
        DType::BF16 => &half::bf16::ONE.to_le_bytes(),
        DType::F32 => &1_f32.to_le_bytes(),
        DType::F64 => &1_f64.to_le_bytes(),
        _ => return zeros.clone(),
    };
    let data = one.repeat(zeros.data().len() / one.len());
    HostTensor::new(zeros.dtype(), zeros.shape().clone(), data.into()).unwrap_or_else(|_| zeros.clone())
}

fn is_finite(tensor: &HostTensor) -> bool {
    let data = tensor.data();
    // All exponent bits set is NaN or infinity, in every IEEE format.
    match tensor.dtype() {
        DType::F32 => {
            data.chunks_exact(4).filter_map(|b| b.try_into().ok()).all(|b| f32::from_le_bytes(b).is_finite())
        }
        DType::F64 => {
            data.chunks_exact(8).filter_map(|b| b.try_into().ok()).all(|b| f64::from_le_bytes(b).is_finite())
        }
        DType::F16 => data
            .chunks_exact(2)
            .filter_map(|b| b.try_into().ok())
            .all(|b| half::f16::from_le_bytes(b).is_finite()),
        DType::BF16 => data
            .chunks_exact(2)
            .filter_map(|b| b.try_into().ok())
            .all(|b| half::bf16::from_le_bytes(b).is_finite()),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::PassTime;

    #[test]
    fn the_sizes_that_ran_most_are_learned_over_all_sizes_of_rows() {
        let point = |bytes, rows, passes| {
            let time = PassTime { mean: Duration::ZERO, deviation: Duration::ZERO, passes };
            ProfilePoint { class: RowClass::of(bytes, 1), rows, time }
        };
        assert_eq!(learned(&[point(64, 3, 1), point(64, 6, 5), point(4096, 3, 1)]), [3, 6]);
        let many: Vec<_> = (1..20).map(|rows| point(64, rows, rows as u64)).collect();
        assert_eq!(learned(&many), (12..20).collect::<Vec<_>>());
    }
}
