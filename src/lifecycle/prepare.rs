//! From a version's files to a warmed servable. Blocking: runs on a loader thread.

use std::{
    fmt,
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use thiserror::Error;
use tokio::time::Instant;

use super::{
    CheckReport, Phases, Rules, WarmupReport, decisions, described::Described, footprint, golden, shapes,
    warmup,
};
use crate::{
    admission::Breaker,
    backend::{ArchiveSummary, Backend, BackendError, Module, Named, Pass, Servable, Task},
    ensemble::NESTED,
    error::{Error, Reason, shown},
    loader::{
        FileIdentity, Verified,
        archive::safety::Verdict,
        pace,
        seal::{self, Place},
        weights::{Overlay, Weights},
    },
    model::{
        ArgKind, Argument, Binding, Decision, DeclaredTensor, MissingBuffers, ModelManifest, ModelName,
        NamedTensor, Sample, Signature, read_samples,
    },
    registry::{InputShapes, ModelSlot},
    repository::VersionFiles,
    sched::{Measured, Quick, Statistics},
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
    /// Comparing what it answers.
    Check,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Verify => "verify",
            Self::Load => "load",
            Self::WarmUp => "warm-up",
            Self::Check => "check",
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
    /// The phase that `progress` is in has not ended within `limit`: a pass that loops for ever, say.
    pub fn too_long(progress: &Progress, limit: Duration) -> Self {
        let limit = humantime::format_duration(limit);
        let cause = format!(
            "it did not end within {limit} (loader.time_limit): its thread is left behind; look for a loop in the model, or allow more"
        );
        Self::new(progress.phase(), cause)
    }

    pub(super) fn new(phase: Phase, cause: impl fmt::Display) -> Self {
        Self { phase, cause: cause.to_string(), reason: Reason::LoadFailed }
    }
}

impl From<LoadFailure> for Error {
    fn from(failure: LoadFailure) -> Self {
        Self::new(failure.reason, failure.to_string())
    }
}

/// Which phase a preparation is in, for those who wait for it.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<AtomicU8>);

impl Progress {
    /// The phase that has begun last.
    pub fn phase(&self) -> Phase {
        match self.0.load(Ordering::Relaxed) {
            0 => Phase::Verify,
            1 => Phase::Load,
            2 => Phase::WarmUp,
            _ => Phase::Check,
        }
    }

    fn begin(&self, phase: Phase) {
        let number = match phase {
            Phase::Verify => 0,
            Phase::Load => 1,
            Phase::WarmUp => 2,
            Phase::Check => 3,
        };
        self.0.store(number, Ordering::Relaxed);
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
    /// What its samples showed.
    pub check: CheckReport,
    /// How long its passes took.
    pub measured: Vec<Measured>,
    /// Shapes that other versions have served and that this one does not take.
    pub forgotten: Vec<InputShapes>,
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
    /// That of the weights that are laid over it, likewise.
    pub expected_weights_sha256: Option<&'a str>,
    /// Shapes to warm up with where `model.toml` declares none.
    pub served: &'a [InputShapes],
    /// Sizes of batches that the live version runs.
    pub learned: &'a [usize],
    /// Where the version stands that serves now, to compare with. It is held only while it is compared: a load that does not
    /// end must not hold it for ever.
    pub live: Option<&'a ModelSlot>,
    /// Told of each phase as it begins.
    pub progress: Progress,
    /// What holds for every model.
    pub rules: &'a Rules,
}

impl<'a> Preparation<'a> {
    /// Of a version that stands alone: nothing serves beside it, nothing was served before.
    pub fn alone(model: &'a ModelName, files: &'a VersionFiles, rules: &'a Rules) -> Self {
        Self {
            model,
            files,
            expected_sha256: None,
            expected_weights_sha256: None,
            served: &[],
            learned: &[],
            live: None,
            progress: Progress::default(),
            rules,
        }
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

/// Why an attempt with one archive failed.
struct Attempt {
    failure: LoadFailure,
    /// The archive is not what is wanted, or cannot be read. An older one may do.
    by_archive: bool,
}

impl From<LoadFailure> for Attempt {
    fn from(failure: LoadFailure) -> Self {
        Self { failure, by_archive: false }
    }
}

/// Verifies, loads, warms up and checks. Weights without an archive lie over the nearest older archive that can be read.
///
/// # Errors
/// The phase that failed, and why: with the nearest archive, where there are several.
pub fn prepare(backend: &dyn Backend, of: &Preparation<'_>) -> Result<Prepared, LoadFailure> {
    let nearest = match attempt(backend, of) {
        Err(Attempt { failure, by_archive: true }) if !of.files.aside.below.is_empty() => failure,
        outcome => return outcome.map_err(|attempt| attempt.failure),
    };
    for archive in &of.files.aside.below {
        let files = VersionFiles { archive: archive.clone(), ..of.files.clone() };
        match attempt(backend, &Preparation { files: &files, progress: of.progress.clone(), ..*of }) {
            Err(Attempt { by_archive: true, .. }) => {}
            outcome => {
                tracing::warn!(
                    target: "torchlane::load", model = %of.model, version = %files.version,
                    "the weights lie over {}: the nearer archive {} cannot be used ({})",
                    archive.display(), of.files.archive.display(), nearest.cause
                );
                return outcome.map_err(|attempt| attempt.failure);
            }
        }
    }
    Err(nearest)
}

fn attempt(backend: &dyn Backend, of: &Preparation<'_>) -> Result<Prepared, Attempt> {
    let Preparation { files, expected_sha256, served, rules, .. } = *of;
    let before = backend.allocated();
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
    // Digests and signatures first: not a byte of a file that is not what it should be is parsed. Newer weights for an archive
    // that was read through already: what is known of it still holds.
    let known =
        |identity: &FileIdentity| files.weights.as_ref().and_then(|_weights| rules.known.get(identity));
    let place = Place::of(of.model, files.version);
    let broken = |error| Attempt { failure: verify(&error), by_archive: true };
    // A seal has the sizes of its files. Without one, a file of terabytes that is no archive is not read to its end.
    if files.seal.is_none()
        && !files.is_ensemble()
        && let Ok(identity) = FileIdentity::of(archive)
        && known(&identity).is_none()
    {
        pace::step(|| backend.glance(archive)).map_err(broken)?;
    }
    let hashed = |identity: &FileIdentity| known(identity).map(|known| known.sha256.clone());
    let checked = pace::step(|| seal::check(&place, files, &of.rules.integrity, &hashed))
        .map_err(|wrong| LoadFailure { reason: wrong.reason(), ..verify(&wrong) })?;
    let sha256 = &checked.sha256;
    let described = Described::read(files)?;
    let plan = described.plan(of.model)?;
    if let Some(expected) = expected_sha256.filter(|expected| !expected.eq_ignore_ascii_case(sha256)) {
        let cause = format!("sha256 of {} is {sha256}, {expected} was expected", archive.display());
        let failure = LoadFailure { reason: Reason::DigestMismatch, ..verify(&cause) };
        return Err(Attempt { failure, by_archive: true });
    }
    let verified = match known(&checked.archive) {
        Some(known) => known,
        None if plan.is_some() => {
            Arc::new(Verified { sha256: sha256.clone(), summary: ensemble(&described.manifest) })
        }
        None => {
            let summary = pace::step(|| backend.inspect(archive)).map_err(broken)?;
            Arc::new(Verified { sha256: sha256.clone(), summary })
        }
    };
    let summary = &verified.summary;
    check_safety(rules, archive, summary)?;
    let weights = weights(of, checked.bytes)?;
    let keeps = described.manifest.weights.missing_buffers == MissingBuffers::Keep;
    let overlay = overlay(files, weights.as_ref(), summary, keeps)?;
    let config = described.config.clone();
    let (manifest, signature) = described.for_archive(summary)?;
    let signature = Arc::new(signature);
    let (stateful, mut decisions) = decisions::about_state(summary.stateful.as_ref(), &manifest);
    decisions.extend(decisions::about_training(summary.training.as_ref()));
    decisions.extend(rules.safety.note(&summary.findings).map(|line| Decision::new("safety", line)));
    let max_batch = if stateful { 1 } else { manifest.batching.max_batch() };
    let samples = samples(files, &signature, max_batch)?;
    phases.verify = lap();

    of.progress.begin(Phase::Load);
    let load = at(Phase::Load);
    let loaded = match plan {
        Some(_) => Ok(Box::new(NoModule) as Box<dyn Module>),
        None => pace::step(|| {
            let name = of.model.as_str();
            let task = Task::new(format_args!("the load of model '{name}' version {}", files.version));
            let _running = task.begin();
            backend.load(archive, overlay.as_ref())
        }),
    };
    let module = loaded.map_err(|error| {
        tracing::error!(target: "torchlane::load", error = %error.full, archive = %archive.display(), "loading failed");
        load(&error)
    })?;
    let (module, serves) = Named::new(module, of.model, files.version);
    // What was hashed must be what was loaded.
    if let Some(changed) = checked.changed() {
        let cause =
            format!("{} changed while it was read: write versions aside and rename them", changed.display());
        return Err(load(&cause).into());
    }
    rules.known.keep(checked.archive, verified.clone());
    // They are in the module now: the warm-up need not have them in memory twice.
    let weights_sha256 = weights.map(|weights| weights.sha256);
    phases.load = lap();

    let mut servable = Servable {
        version: files.version,
        module: Box::new(module),
        signature,
        breaker: Breaker::new(manifest.scheduling.breaker_failures),
        manifest: Arc::new(manifest),
        config,
        effect_free: summary.effect_free,
        stateful,
        decisions: Arc::default(),
        quick: Arc::default(),
        max_batch,
        rows: Arc::default(),
        good: OnceLock::new(),
        sha256: checked.sha256,
        weights_sha256,
        bytes: checked.bytes,
        torch_version: summary.torch_version.clone(),
        memory_bytes: summary.tensor_bytes,
        ensemble: plan.map(Arc::new),
        serial: next_serial(),
        statistics: Statistics::default(),
        memory: OnceLock::new(),
    };
    decisions.into_iter().for_each(|decision| servable.decide(of.model, decision));
    if servable.ensemble.is_some() {
        // Its steps are warmed up by themselves, and its samples are those of its models.
        let (warmup, check, measured, forgotten) = Default::default();
        return Ok(Prepared { servable: Arc::new(servable), phases, warmup, check, measured, forgotten });
    }
    of.progress.begin(Phase::WarmUp);
    let planned = shapes::plan(&servable, served, &samples);
    let warmed = warmup::run(&servable, &planned, &samples, of.learned)
        .map_err(|error| LoadFailure::new(Phase::WarmUp, error))?;
    if let Some(decision) = servable.rows.decision() {
        servable.decide(of.model, decision);
    }
    if !warmed.forgotten.is_empty() {
        let text =
            "Shapes that earlier versions served do not fit this version, so torchlane has forgotten them.";
        servable.decide(of.model, Decision::new("warmup", text));
    }
    if let Some(device) = servable.module.names_device() {
        let text = format!(
            "The code names device '{device}', and torchlane runs on the CPU: requests that reach that code fail. Export the model on the CPU."
        );
        servable.decide(of.model, Decision::new("device", text));
    }
    let waits = !servable.manifest.batching.max_delay.is_zero();
    if servable.effect_free && !summary.loops && servable.max_concurrency() == 0 && !waits {
        servable.quick = Arc::new(Quick::up_to(warmed.quick_bytes));
    }
    phases.warm_up = lap();

    of.progress.begin(Phase::Check);
    let check = golden::run(&servable, &samples, || of.live?.lease())
        .map_err(|cause| LoadFailure::new(Phase::Check, cause))?;
    let gained = backend.allocated().zip(before).map(|(after, before)| after.saturating_sub(before));
    let sources: Vec<&Path> = std::iter::once(archive).chain(files.weights.as_deref()).collect();
    let estimate = backend.memory_estimate(&sources);
    let told = servable.module.memory_bytes();
    servable.memory_bytes = footprint::measured(told, gained, summary.tensor_bytes, estimate);
    phases.check = lap();
    phases.rested = pace::rested();
    serves.store(true, Ordering::Relaxed);
    Ok(Prepared {
        servable: Arc::new(servable),
        phases,
        warmup: warmed.report,
        check,
        measured: warmed.measured,
        forgotten: warmed.forgotten,
    })
}

/// What stands in the place of an archive's summary: the declared inputs are its arguments.
fn ensemble(manifest: &ModelManifest) -> ArchiveSummary {
    let argument = |input: &DeclaredTensor| Argument {
        name: input.name.as_str().into(),
        kind: ArgKind::Tensor,
        has_default: false,
        skips: 0,
    };
    ArchiveSummary { arguments: manifest.inputs.iter().map(argument).collect(), ..ArchiveSummary::default() }
}

/// An ensemble's: what runs are its steps.
struct NoModule;

impl Module for NoModule {
    fn forward(&self, _: Pass<'_>) -> Result<Vec<NamedTensor>, BackendError> {
        Err(BackendError::new(NESTED))
    }
}

fn next_serial() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Reads the samples of a version that has some: each must be a request that the model takes.
fn samples(
    files: &VersionFiles,
    signature: &Arc<Signature>,
    max_batch: usize,
) -> Result<Vec<Sample>, LoadFailure> {
    let Some(path) = files.samples.as_deref() else { return Ok(Vec::new()) };
    let wrong =
        |why: &dyn fmt::Display| LoadFailure::new(Phase::Verify, format_args!("{}: {why}", path.display()));
    let samples = read_samples(path).map_err(|error| wrong(&error))?;
    for (number, sample) in samples.iter().enumerate() {
        Binding::new(signature, &sample.inputs, max_batch)
            .map_err(|error| wrong(&format_args!("sample {number}: {error}")))?;
    }
    Ok(samples)
}

/// Reads the weights of a version that has some.
fn weights(of: &Preparation<'_>, archive_bytes: u64) -> Result<Option<Weights>, LoadFailure> {
    let verify = |cause: &dyn fmt::Display| LoadFailure::new(Phase::Verify, cause);
    let expected = of.expected_weights_sha256;
    let Some(path) = &of.files.weights else {
        return match expected {
            Some(expected) => {
                let cause = format!("version {} has no weights, {expected} were expected", of.files.version);
                Err(LoadFailure { reason: Reason::DigestMismatch, ..verify(&cause) })
            }
            None => Ok(None),
        };
    };
    let weights = pace::step(|| Weights::read(path, archive_bytes))
        .map_err(|error| verify(&format_args!("{}: {error}", path.display())))?;
    if let Some(expected) = expected.filter(|expected| !expected.eq_ignore_ascii_case(&weights.sha256)) {
        let cause = format!("sha256 of {} is {}, {expected} was expected", path.display(), weights.sha256);
        return Err(LoadFailure { reason: Reason::DigestMismatch, ..verify(&cause) });
    }
    Ok(Some(weights))
}

/// Holds weights against what the archive has.
fn overlay<'a>(
    files: &VersionFiles,
    weights: Option<&'a Weights>,
    summary: &'a ArchiveSummary,
    keeps_buffers: bool,
) -> Result<Option<Overlay<'a>>, LoadFailure> {
    let path = files.weights.as_deref().unwrap_or(&files.archive);
    let kept = if keeps_buffers { summary.buffers.as_slice() } else { &[] };
    let overlay = weights.map(|weights| Overlay::new(&summary.tensors, weights, kept)).transpose();
    let overlay = overlay
        .map_err(|error| LoadFailure::new(Phase::Verify, format_args!("{}: {error}", path.display())))?;
    let stays = overlay.map(|overlay| overlay.stays()).unwrap_or_default();
    if !stays.is_empty() {
        tracing::info!(
            target: "torchlane::load", weights = %path.display(), buffers = %shown(&stays.join(", "), 200),
            "the archive's own buffers stay: the weights lack them"
        );
    }
    Ok(overlay)
}
