//! From a version's files to a warmed servable. Blocking: runs on a loader thread.

use std::{
    fmt,
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

use thiserror::Error;
use tokio::time::Instant;

use super::{Phases, Rules, WarmupReport, footprint, shapes, warmup};
use crate::{
    admission::Breaker,
    backend::{ArchiveSummary, Backend, Servable},
    error::{Error, Reason},
    loader::{
        archive::safety::Verdict,
        seal::{self, Place},
    },
    model::{ModelManifest, ModelName, Signature},
    registry::{InputShapes, Lease},
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
    /// What callers are told.
    pub reason: Reason,
}

impl LoadFailure {
    fn new(phase: Phase, cause: impl fmt::Display) -> Self {
        Self { phase, cause: cause.to_string(), reason: Reason::LoadFailed }
    }
}

impl From<LoadFailure> for Error {
    fn from(failure: LoadFailure) -> Self {
        Self::new(failure.reason, failure.to_string())
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

/// What a version is prepared from, and beside what.
#[derive(Debug)]
pub struct Preparation<'a> {
    /// The model that it is a version of.
    pub model: &'a ModelName,
    /// Where its files lie.
    pub files: &'a VersionFiles,
    /// The archive's digest, where the caller knows it.
    pub expected_sha256: Option<&'a str>,
    /// Shapes to warm up with where `model.toml` declares none.
    pub served: &'a [InputShapes],
    /// The version that serves now, to compare with.
    pub live: Option<Lease>,
    /// What holds for every model.
    pub rules: &'a Rules,
}

impl<'a> Preparation<'a> {
    /// Of a version that stands alone: nothing serves beside it, nothing was served before.
    pub fn alone(model: &'a ModelName, files: &'a VersionFiles, rules: &'a Rules) -> Self {
        Self { model, files, expected_sha256: None, served: &[], live: None, rules }
    }
}

/// Refuses, or logs, what is not known to be safe: before libtorch sees a byte of it.
fn check_safety(rules: &Rules, archive: &Path, summary: &ArchiveSummary) -> Result<(), LoadFailure> {
    match rules.safety.judge(&summary.findings) {
        Verdict::Serve => Ok(()),
        Verdict::Warn(line) => {
            tracing::warn!(target: "torchlane::load", archive = %archive.display(), "{line}");
            Ok(())
        }
        Verdict::Refuse(line) => {
            Err(LoadFailure { reason: Reason::UnsafeModel, ..LoadFailure::new(Phase::Verify, line) })
        }
    }
}

/// What the model's `model.toml` says, where it has one.
///
/// # Errors
/// It cannot be read.
pub(super) fn read_manifest(files: &VersionFiles) -> Result<ModelManifest, LoadFailure> {
    let verify = |cause: &dyn fmt::Display| LoadFailure::new(Phase::Verify, cause);
    let Some(path) = &files.manifest else { return Ok(ModelManifest::default()) };
    let wrong = |error: std::io::Error| verify(&format!("{}: {error}", path.display()));
    // What is no file may keep its reader waiting for ever.
    if !std::fs::metadata(path).map_err(wrong)?.is_file() {
        return Err(verify(&format!("{} is not a file", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(wrong)?;
    ModelManifest::parse(&text).map_err(|error| verify(&error))
}

/// Verifies, loads and warms up.
///
/// # Errors
/// The phase that failed, and why.
pub fn prepare(backend: &dyn Backend, of: &Preparation<'_>) -> Result<Prepared, LoadFailure> {
    let Preparation { files, expected_sha256, served, rules, .. } = *of;
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
    // Digests and signatures first: not a byte of a file that is not what it should be is parsed.
    let checked = seal::check(&Place::of(of.model, files.version), files, &of.rules.integrity)
        .map_err(|wrong| LoadFailure { reason: wrong.reason(), ..verify(&wrong) })?;
    let sha256 = &checked.sha256;
    if let Some(expected) = expected_sha256.filter(|expected| !expected.eq_ignore_ascii_case(sha256)) {
        let cause = format!("sha256 of {} is {sha256}, {expected} was expected", archive.display());
        return Err(LoadFailure { reason: Reason::DigestMismatch, ..verify(&cause) });
    }
    let summary = backend.inspect(archive).map_err(|error| verify(&error))?;
    check_safety(rules, archive, &summary)?;
    let manifest = read_manifest(files)?;
    let signature =
        Signature::new(summary.arguments, &summary.outputs, &manifest).map_err(|error| verify(&error))?;
    phases.verify = lap();

    let load = at(Phase::Load);
    let before_load = footprint::resident();
    let module = backend.load(archive).map_err(|error| {
        tracing::error!(target: "torchlane::load", error = %error.full, archive = %archive.display(), "loading failed");
        load(&error)
    })?;
    // What was hashed must be what was loaded.
    if let Some(changed) = checked.changed() {
        return Err(load(&format!(
            "{} changed while it was read: write versions aside and rename them",
            changed.display()
        )));
    }
    let gained = footprint::resident().saturating_sub(before_load);
    let sources: Vec<&Path> = std::iter::once(archive).chain(files.weights.as_deref()).collect();
    let estimate = backend.memory_estimate(&sources);
    let memory_bytes = footprint::measured(module.memory_bytes(), gained, summary.tensor_bytes, estimate);
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
        sha256: checked.sha256,
        bytes: checked.bytes,
        torch_version: summary.torch_version,
        memory_bytes,
        memory: OnceLock::new(),
    };
    let shapes = shapes::shapes(&servable, served).map_err(|cause| LoadFailure::new(Phase::WarmUp, cause))?;
    let shapes = shapes::padded(&servable.signature, shapes);
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
