//! From a version's files to a warmed servable. Blocking: runs on a loader thread.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::time::Instant;

use super::{Phases, WarmupReport, warmup};
use crate::{
    admission::Breaker,
    backend::{Backend, Servable},
    error::{Error, Reason},
    loader::{FileIdentity, digest},
    model::{ModelManifest, Signature},
    registry::InputShapes,
    repository::VersionFiles,
    sched::{Measured, Quick},
};

/// The phases that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Reading the files, hashing, inspecting.
    Verify,
    /// Loading into the backend.
    Load,
    /// Running it.
    WarmUp,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verify => "verify",
            Self::Load => "load",
            Self::WarmUp => "warm-up",
        })
    }
}

/// Why a version could not be prepared.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{phase} failed: {cause}")]
pub struct LoadFailure {
    /// Where.
    pub phase: Phase,
    /// One line.
    pub cause: String,
    /// The archive's digest is not the one asked for.
    pub digest_mismatch: bool,
}

impl LoadFailure {
    fn new(phase: Phase, cause: impl fmt::Display) -> Self {
        Self { phase, cause: cause.to_string(), digest_mismatch: false }
    }
}

impl From<LoadFailure> for Error {
    fn from(failure: LoadFailure) -> Self {
        let reason = if failure.digest_mismatch { Reason::DigestMismatch } else { Reason::LoadFailed };
        Self::new(reason, failure.to_string())
    }
}

/// A servable that nobody can reach yet.
#[derive(Debug)]
pub struct Prepared {
    /// The version.
    pub servable: Arc<Servable>,
    /// Times so far.
    pub phases: Phases,
    /// What the warm-up ran.
    pub warmup: WarmupReport,
    /// How long its passes took.
    pub measured: Vec<Measured>,
}

/// Verifies, loads and warms up. `served` are shapes to warm up with where `model.toml` declares none.
///
/// # Errors
/// The phase that failed, and why.
pub fn prepare(
    backend: &dyn Backend,
    files: &VersionFiles,
    expected_sha256: Option<&str>,
    served: &[InputShapes],
) -> Result<Prepared, LoadFailure> {
    let mut phases = Phases::default();
    let mut clock = Instant::now();
    let mut lap = || {
        let now = Instant::now();
        let took: Duration = now - clock;
        clock = now;
        took
    };

    let at = |phase| move |cause: &dyn fmt::Display| LoadFailure::new(phase, cause);
    let verify = at(Phase::Verify);
    let archive = files.archive.as_path();
    let readable = |error: std::io::Error| verify(&format!("{}: {error}", archive.display()));
    let before = FileIdentity::of(archive).map_err(readable)?;
    let summary = backend.inspect(archive).map_err(|error| verify(&error))?;
    let sha256 = digest(archive).map_err(readable)?;
    if let Some(expected) = expected_sha256.filter(|expected| !expected.eq_ignore_ascii_case(&sha256)) {
        let cause = format!("sha256 of {} is {sha256}, {expected} was expected", archive.display());
        return Err(LoadFailure { digest_mismatch: true, ..verify(&cause) });
    }
    let manifest = match &files.manifest {
        None => ModelManifest::default(),
        Some(path) => {
            let wrong = |error: std::io::Error| verify(&format!("{}: {error}", path.display()));
            if !std::fs::metadata(path).map_err(wrong)?.is_file() {
                return Err(verify(&format!("{} is not a file", path.display())));
            }
            let text = std::fs::read_to_string(path).map_err(wrong)?;
            ModelManifest::parse(&text).map_err(|error| verify(&error))?
        }
    };
    let signature =
        Signature::new(summary.arguments, &summary.outputs, &manifest).map_err(|error| verify(&error))?;
    phases.verify = lap();

    let load = at(Phase::Load);
    let module = backend.load(archive).map_err(|error| {
        tracing::error!(target: "torchlane::load", error = %error.full, archive = %archive.display(), "loading failed");
        load(&error)
    })?;
    // What was hashed must be what was loaded.
    if FileIdentity::of(archive).ok() != Some(before) {
        return Err(load(&format!(
            "{} changed while it was read: write versions aside and rename them",
            archive.display()
        )));
    }
    phases.load = lap();

    let max_batch = if summary.stateful { 1 } else { manifest.batching.max_batch() };
    let mut servable = Servable {
        version: files.version,
        module,
        signature: Arc::new(signature),
        breaker: Breaker::new(manifest.scheduling.breaker_failures),
        manifest: Arc::new(manifest),
        effect_free: summary.effect_free,
        stateful: summary.stateful,
        quick: Arc::default(),
        max_batch,
        sha256,
        bytes: before.size,
        torch_version: summary.torch_version,
    };
    let shapes = shapes(&servable, served).map_err(|cause| LoadFailure::new(Phase::WarmUp, cause))?;
    let shapes = padded(&servable.signature, shapes);
    let warmed = warmup::run(&servable, &shapes).map_err(|error| LoadFailure::new(Phase::WarmUp, error))?;
    if !warmed.batchable && servable.max_batch > 1 {
        tracing::warn!(archive = %archive.display(), "results do not follow the batch: requests are run one by one");
        servable.max_batch = 1;
    }
    let waits = !servable.manifest.batching.max_delay.is_zero();
    if servable.effect_free && !summary.loops && servable.max_concurrency() == 0 && !waits {
        servable.quick = Arc::new(Quick::up_to(warmed.quick_bytes));
    }
    phases.warm_up = lap();
    Ok(Prepared { servable: Arc::new(servable), phases, warmup: warmed.report, measured: warmed.measured })
}

/// Declared shapes; else those that a fixed signature implies; else those served so far.
fn shapes(servable: &Servable, served: &[InputShapes]) -> Result<Vec<InputShapes>, String> {
    let inputs = servable.signature.inputs();
    let declared = &servable.manifest.warmup.shapes;
    if !declared.is_empty() {
        return declared
            .iter()
            .map(|entry| {
                entry
                    .iter()
                    .map(|(name, shape)| {
                        let spec = inputs.iter().find(|spec| *spec.name == **name);
                        let dtype = spec.and_then(|spec| spec.dtype).unwrap_or(DTYPE_GUESS);
                        Ok((name.clone(), dtype, shape.as_slice().into()))
                    })
                    .collect()
            })
            .collect();
    }
    let implied: Option<InputShapes> = inputs
        .iter()
        .filter(|spec| !spec.optional)
        .map(|spec| {
            let (dtype, mut shape) = (spec.dtype?, spec.shape.clone()?);
            if let Some(first) = shape.first_mut().filter(|first| **first == -1 && servable.max_batch > 1) {
                *first = 1;
            }
            if let Some((size, to)) =
                spec.pad.as_ref().and_then(|pad| Some((shape.get_mut(pad.dim)?, pad.to.first()?)))
            {
                *size = *to;
            }
            (!shape.contains(&-1)).then(|| (spec.name.to_string(), dtype, shape.as_slice().into()))
        })
        .collect();
    if let Some(implied) = implied.filter(|shapes| !shapes.is_empty()) {
        return Ok(vec![implied]);
    }
    // Shapes of an older version need not fit this one: those that do not are left out.
    let fits = |shapes: &InputShapes| {
        inputs.iter().all(|spec| {
            spec.optional || shapes.iter().any(|(name, _, _)| *name == *spec.name || name.is_empty())
        })
    };
    Ok(served.iter().filter(|shapes| fits(shapes)).cloned().collect())
}

/// The shapes that passes will have: where an input is padded to fixed sizes, each of these in place of its own.
fn padded(signature: &Signature, shapes: Vec<InputShapes>) -> Vec<InputShapes> {
    let pads = || {
        let inputs = signature.inputs().iter();
        inputs.filter_map(|spec| Some((&spec.name, spec.pad.as_ref().filter(|pad| !pad.to.is_empty())?)))
    };
    let sizes: BTreeSet<i64> = pads().flat_map(|(_, pad)| pad.to.iter().copied()).collect();
    if sizes.is_empty() {
        return shapes;
    }
    let mut all = Vec::new();
    for (shapes, size) in shapes.iter().flat_map(|shapes| sizes.iter().map(move |size| (shapes, size))) {
        let mut shapes = shapes.clone();
        for (name, _, shape) in &mut shapes {
            let Some((_, pad)) = pads().find(|(of, _)| ***of == **name || name.is_empty()) else { continue };
            // What is longer than all of them keeps its own.
            let (Some(own), Some(largest)) = (shape.get_mut(pad.dim), pad.to.last()) else { continue };
            if *own <= *largest {
                *own = pad.to.iter().copied().find(|to| to >= size).unwrap_or(*largest);
            }
        }
        if !all.contains(&shapes) {
            all.push(shapes);
        }
    }
    all
}

const DTYPE_GUESS: crate::tensor::DType = crate::tensor::DType::F32;
