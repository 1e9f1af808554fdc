//! Parts of a server that settings alone decide.

use std::{sync::Arc, time::Duration};

use super::{descriptors::Descriptors, server::StartError};
use crate::{
    admission::{CallerLimits, Callers},
    backend::{Backend, FakeBackend},
    config::{self, BackendKind, Loader, Settings},
    lifecycle::{History, ResidencyConfig, Rules},
    loader::{
        Pace,
        seal::{Integrity, Policy, TrustedKey},
    },
    sched::Scheduler,
    tasks::Tasks,
};

/// Loads give way to what the scheduler runs.
pub(super) fn pace(settings: &Loader, scheduler: &Arc<Scheduler>, executors: usize) -> Arc<Pace> {
    let scheduler = scheduler.clone();
    // Patience alone must not make a load take too long.
    Pace::new(settings.patience.min(settings.time_limit / 2), executors, move || {
        let seen = scheduler.snapshot();
        seen.busy.iter().sum::<Duration>() + seen.on_wire
    })
}

pub(super) fn backend(kind: BackendKind) -> Result<Arc<dyn Backend>, StartError> {
    match kind {
        BackendKind::Fake => Ok(Arc::new(FakeBackend)),
        #[cfg(feature = "torch")]
        BackendKind::Torch => Ok(Arc::new(torchlane_torch::TorchBackend::new())),
        #[cfg(not(feature = "torch"))]
        BackendKind::Torch => Err(StartError::NoTorch),
    }
}

/// What callers may hold.
pub(super) fn callers(server: &config::Server, descriptors: Descriptors, cpus: usize) -> Arc<Callers> {
    Callers::new(CallerLimits {
        bytes: server.max_in_flight_bytes.as_u64(),
        calls: server.max_open_calls as u64,
        grpc: descriptors.grpc,
        http: descriptors.http,
        heavy: (cpus / 2).max(2),
        share: server.caller_share,
    })
}

/// What becomes of changes, and the file that it is written to.
pub(super) fn history(settings: &Settings, tasks: &Tasks) -> Result<Arc<History>, StartError> {
    let path = settings.audit.file.as_deref();
    History::new(path, tasks).map(Arc::new).map_err(|source| {
        let path = path.unwrap_or(std::path::Path::new("")).to_owned();
        StartError::AuditLog { path, source }
    })
}

/// What every version must satisfy, by the settings.
pub(super) fn rules(settings: &Settings) -> Result<Rules, StartError> {
    Ok(Rules {
        integrity: integrity(&settings.integrity)?,
        safety: settings.safety.clone(),
        known: Arc::default(),
    })
}

fn integrity(settings: &config::Integrity) -> Result<Integrity, StartError> {
    let trusted = settings
        .trusted_keys
        .iter()
        .map(|key| TrustedKey::from_setting(key))
        .collect::<Result<Vec<_>, _>>()?;
    if !trusted.is_empty() && settings.policy != Policy::Signed {
        let policy = settings.policy.as_str();
        tracing::warn!("integrity.trusted_keys are not looked at: integrity.policy is {policy}, not signed");
    }
    Ok(Integrity { policy: settings.policy, trusted })
}

/// What is loaded when, by the settings.
pub(super) fn residency(settings: &Settings) -> ResidencyConfig {
    ResidencyConfig {
        load: settings.memory.load,
        reload: settings.memory.reload,
        max_wait: settings.memory.max_wait,
        max_waiting: settings.memory.max_waiting,
        max_waiting_per_model: settings.memory.max_waiting_per_model,
        at_once: settings.loader.threads,
    }
}
