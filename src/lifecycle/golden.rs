//! Runs a version on its samples before it serves: what comes out is held against what should, and against the version
//! that serves now.
//!
//! A sample takes the way of a request, padding included. The live version is run beside its own traffic, on a loader
//! thread; one that keeps state is left alone.

use super::CheckReport;
use crate::{
    backend::Servable,
    loader::pace,
    model::{CheckConfig, NamedTensor, Sample},
    registry::Lease,
    sched,
    tensor::{Difference, Distance, Tolerance, distance},
};

/// Any difference counts.
const EXACT: Tolerance = Tolerance { absolute: 0.0, relative: 0.0 };

/// Runs every sample. `live` is asked once, and only if the version is to be compared with it.
///
/// # Errors
/// One line: a sample that cannot be run, the output that is farthest from what was expected, or more difference from
/// the live version than `model.toml` allows.
pub(super) fn run(
    servable: &Servable,
    samples: &[Sample],
    live: impl FnOnce() -> Option<Lease>,
) -> Result<CheckReport, String> {
    let config = &servable.manifest.check;
    let mut report =
        CheckReport { samples: u32::try_from(samples.len()).unwrap_or(u32::MAX), ..CheckReport::default() };
    if samples.is_empty() {
        if config.compare_with_live {
            tracing::warn!(
                "check.compare_with_live has nothing to compare: the version has no samples.safetensors"
            );
        }
        return Ok(report);
    }
    if !config.compare_with_live && samples.iter().all(|sample| sample.outputs.is_empty()) {
        tracing::info!("samples.safetensors expects no outputs: its inputs only warm the version up");
    }
    let live = if config.compare_with_live { live().filter(may_be_run) } else { None };
    let (mut wrong, mut worst) = (0, Worst::default());
    let mut unlike = Worst::default();
    for (number, sample) in samples.iter().enumerate() {
        let at = |why: &dyn std::fmt::Display| format!("sample {number}: {why}");
        let found = pace::step(|| sched::alone(servable, &sample.inputs)).map_err(|error| at(&error))?;
        if !sample.outputs.is_empty() {
            let farthest = compare(&sample.outputs, &found, config).map_err(|why| at(&why))?;
            let largest = report.from_expected.unwrap_or(0.0).max(farthest.largest);
            report.from_expected = Some(largest);
            wrong += u32::from(farthest.element.is_some());
            worst.take(Worst { sample: number, ..farthest });
        }
        let Some(live) = &live else { continue };
        let compared = pace::step(|| sched::alone(live, &sample.inputs)).and_then(|now| apart(&now, &found));
        match compared {
            Ok(farthest) => unlike.take(Worst { sample: number, ..farthest }),
            Err(why) => {
                tracing::warn!(sample = number, "cannot be compared with the live version: {why}");
                unlike.take(Worst { sample: number, largest: f64::INFINITY, output: why, element: None });
            }
        }
    }
    if let Some(Difference { index, expected, found }) = worst.element {
        let Worst { sample, output, .. } = worst;
        let all = samples.len();
        return Err(format!(
            "{wrong} of {all} samples give other outputs than they expect: output '{output}' of sample {sample} is farthest, \
             {found} instead of {expected} at element {index} (check.atol, check.rtol)"
        ));
    }
    if let Some(live) = live {
        report.from_live = Some(unlike.largest);
        if let Some(most) = config.max_difference.filter(|most| unlike.largest > *most) {
            let Worst { sample, output, largest, .. } = unlike;
            return Err(format!(
                "it differs by {largest} from live version {}, {most} is allowed (check.max_difference): sample {sample}, {output}",
                live.version
            ));
        }
    }
    Ok(report)
}

/// A pass leaves nothing behind in it.
fn may_be_run(live: &Lease) -> bool {
    if live.stateful {
        tracing::warn!(version = %live.version, "the live version keeps state: it is not run for a comparison");
    }
    !live.stateful
}

/// The largest difference so far, and where it is.
#[derive(Debug, Clone, Default)]
struct Worst {
    sample: usize,
    output: String,
    largest: f64,
    /// The one that is farthest out of tolerance.
    element: Option<Difference>,
}

impl Worst {
    /// Keeps the larger one; what is out of tolerance is larger than anything within it.
    fn take(&mut self, other: Self) {
        if (other.element.is_some(), other.largest) >= (self.element.is_some(), self.largest) {
            *self = other;
        }
    }
}

/// What is expected against what was found, by the tolerance of each datatype.
fn compare(expected: &[NamedTensor], found: &[NamedTensor], config: &CheckConfig) -> Result<Worst, String> {
    largest(expected, found, |output| config.tolerance(output.tensor.dtype()))
}

/// How far two versions' answers are apart.
fn apart(now: &[NamedTensor], found: &[NamedTensor]) -> Result<Worst, String> {
    let farthest = largest(now, found, |_| EXACT)?;
    Ok(Worst { output: format!("output '{}'", farthest.output), element: None, ..farthest })
}

fn largest(
    expected: &[NamedTensor],
    found: &[NamedTensor],
    near: impl Fn(&NamedTensor) -> Tolerance,
) -> Result<Worst, String> {
    let mut worst = Worst::default();
    for output in expected {
        let name = &output.name;
        let answer = found.iter().find(|found| found.name == *name).ok_or_else(|| {
            let known = found.iter().map(|found| found.name.as_str()).collect::<Vec<_>>().join(", ");
            format!("the model has no output '{name}': it returned {known}")
        })?;
        let Distance { largest, farthest, .. } = distance(&output.tensor, &answer.tensor, near(output))
            .map_err(|why| format!("output '{name}' {why}"))?;
        worst.take(Worst { sample: 0, output: name.clone(), largest, element: farthest });
    }
    Ok(worst)
}
