//! Carries out changes: one at a time for each model, in tasks of their own, so that a caller that hangs up does not
//! stop them.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::{
    sync::{broadcast, oneshot},
    time::Instant,
};
use tokio_util::task::TaskTracker;

use super::{
    Change, ModelEvent, ModelStatus, Prepared, ReloadReport,
    entry::{Entry, Past},
    prepare,
};
use crate::{
    backend::{Backend, Servable},
    error::{Error, Reason, Result},
    loader::LoaderPool,
    model::{Generation, ModelName, Version},
    registry::Registry,
    repository::{Directory, Found, RepositoryError, VersionFiles},
};

/// What the manager works with.
#[derive(Debug)]
pub struct ManagerConfig {
    /// Where models come from; the first that has a model wins.
    pub repositories: Vec<Directory>,
    /// Longest that a swap waits for requests on the old version before it reports; they still end on it.
    pub drain: Duration,
}

/// A reload, as asked for.
#[derive(Debug, Clone, Default)]
pub struct ReloadRequest {
    /// The model.
    pub model: String,
    /// `None`: the newest on disk.
    pub version: Option<Version>,
    /// The archive's digest, hexadecimal; checked where it is given.
    pub expected_sha256: Option<String>,
    /// Everything but the swap.
    pub validate_only: bool,
}

/// Told of every change after it is true: health, metrics.
pub type Observer = Box<dyn Fn(&ModelEvent) + Send + Sync>;

/// Loads, swaps, rolls back and unloads.
pub struct Manager {
    config: ManagerConfig,
    registry: Arc<Registry>,
    backend: Arc<dyn Backend>,
    loader: LoaderPool,
    entries: Mutex<BTreeMap<ModelName, Arc<Entry>>>,
    events: broadcast::Sender<ModelEvent>,
    observer: Observer,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Manager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Manager").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Manager {
    /// A manager with nothing loaded.
    pub fn new(
        config: ManagerConfig,
        registry: Arc<Registry>,
        backend: Arc<dyn Backend>,
        loader: LoaderPool,
        observer: Observer,
    ) -> Arc<Self> {
        let (events, _) = broadcast::channel(1024);
        let (entries, tasks) = (Mutex::default(), TaskTracker::new());
        Arc::new(Self { config, registry, backend, loader, entries, events, observer, tasks })
    }

    /// Gives memory that nothing uses back to the system, as a loader thread does after each piece of its work.
    pub async fn release_memory(&self) {
        let _closing = self.loader.run(|| ()).await;
    }

    /// Loads the newest version of every model in the repositories, side by side. A model whose newest version fails
    /// falls back to the next older one that loads; one without any does not keep the others from serving.
    ///
    /// # Errors
    /// A repository cannot be read.
    pub async fn load_all(self: &Arc<Self>) -> Result<usize, RepositoryError> {
        let mut names = Vec::new();
        for repository in &self.config.repositories {
            for found in repository.scan()? {
                let entry = self.entry(&found.name);
                if names.contains(&found.name) {
                    continue;
                }
                entry.set_versions(found.versions.iter().map(|files| files.version).collect());
                names.push(found.name);
            }
        }
        let loads: Vec<_> = names
            .iter()
            .map(|name| {
                let (manager, name) = (self.clone(), name.clone());
                self.tasks.spawn(async move { manager.load_newest(name).await })
            })
            .collect();
        let mut loaded = 0;
        for load in loads {
            loaded += usize::from(load.await.unwrap_or(false));
        }
        Ok(loaded)
    }

    async fn load_newest(self: &Arc<Self>, name: ModelName) -> bool {
        let versions = self.find(name.as_str()).map(|found| found.versions).unwrap_or_default();
        if versions.is_empty() {
            let error = format!("model '{name}' has no version: put an archive at {name}/1/model.pt");
            tracing::error!(model = %name, "{error}");
            self.entry(&name).failed(error);
            return false;
        }
        let mut problem = None;
        for files in versions.into_iter().rev() {
            let version = files.version;
            let request =
                ReloadRequest { model: name.to_string(), version: Some(version), ..ReloadRequest::default() };
            match self.reload(request).await {
                Ok(_) => {
                    if let Some(error) = problem {
                        // Serving an older version is better than serving none, but nobody may overlook it.
                        self.entry(&name).failed(error);
                        tracing::error!(model = %name, %version, "the newest version does not load: serving an older one");
                    }
                    return true;
                }
                // Somebody changes it already: an older version must not come after that.
                Err(error) if error.reason() == Reason::Superseded => return false,
                Err(error) => problem = problem.or(Some(format!("version {version}: {error}"))),
            }
        }
        false
    }

    /// Loads a version beside the live one, warms it up, swaps it in, and drops the old one once its last request has
    /// ended.
    ///
    /// # Errors
    /// Unknown model or version; the phase that failed and why; or a newer change came in.
    pub async fn reload(self: &Arc<Self>, request: ReloadRequest) -> Result<ReloadReport> {
        let found = self.find(&request.model)?;
        let entry = self.entry(&found.name);
        entry.set_versions(found.versions.iter().map(|files| files.version).collect());
        let files = choose(&found, request.version)?;
        self.carry_out(entry, files, request.expected_sha256, request.validate_only).await
    }

    /// Goes back to the version that was live before, if its archive is still the same.
    ///
    /// # Errors
    /// There is none, or as for [`Manager::reload`].
    pub async fn rollback(self: &Arc<Self>, model: &str) -> Result<ReloadReport> {
        let entry = self.known(model)?;
        let Past { files, sha256 } = entry.previous().ok_or_else(|| {
            Error::new(
                Reason::NoPreviousVersion,
                format!("model '{model}' has no earlier version to go back to"),
            )
        })?;
        self.carry_out(entry, files, Some(sha256), false).await
    }

    /// Stops serving a model. Requests in flight end.
    ///
    /// # Errors
    /// Unknown model, or nothing was live.
    pub async fn unload(self: &Arc<Self>, model: &str) -> Result<(Version, Generation)> {
        let entry = self.known(model)?;
        let manager = self.clone();
        let generation = entry.begin();
        self.detached(async move {
            let _turn = entry.turn.lock().await;
            let Some(old) = entry.slot.swap(None) else {
                let message = format!("model '{}' has no version live", entry.name());
                return Err(Error::new(Reason::ModelNotReady, message));
            };
            entry.went_away(generation);
            manager.announce(&entry, Change::Unloaded, None);
            let version = old.version;
            manager.drain(old).await;
            Ok((version, generation))
        })
        .await
    }

    /// Every model, by name.
    pub fn list(&self) -> Vec<ModelStatus> {
        self.entries.lock().values().map(|entry| entry.status()).collect()
    }

    /// One model.
    ///
    /// # Errors
    /// Unknown model.
    pub fn get(&self, model: &str) -> Result<ModelStatus> {
        Ok(self.known(model)?.status())
    }

    /// How every model stands, and the changes from here on.
    pub fn watch(&self) -> (Vec<ModelStatus>, broadcast::Receiver<ModelEvent>) {
        let changes = self.events.subscribe();
        (self.list(), changes)
    }

    /// Waits until no change is under way.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn entry(&self, name: &ModelName) -> Arc<Entry> {
        let mut entries = self.entries.lock();
        entries
            .entry(name.clone())
            .or_insert_with(|| Arc::new(Entry::new(self.registry.get_or_insert(name))))
            .clone()
    }

    fn known(&self, model: &str) -> Result<Arc<Entry>> {
        self.entries.lock().get(model).cloned().ok_or_else(|| unknown(model))
    }

    fn find(&self, model: &str) -> Result<Found> {
        let name: ModelName = model.parse().map_err(|_| unknown(model))?;
        for repository in &self.config.repositories {
            match repository.find(&name) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) => return Err(Error::new(Reason::LoadFailed, error.to_string())),
            }
        }
        Err(unknown(model))
    }

    async fn carry_out(
        self: &Arc<Self>,
        entry: Arc<Entry>,
        files: VersionFiles,
        expected_sha256: Option<String>,
        validate_only: bool,
    ) -> Result<ReloadReport> {
        let manager = self.clone();
        // A validation changes nothing, so it makes no other change out of date.
        let generation = (!validate_only).then(|| entry.begin());
        self.detached(async move {
            let started = Instant::now();
            let _turn = entry.turn.lock().await;
            manager.still_newest(&entry, generation)?;
            let had_version = entry.slot.lease().is_some();
            entry.set_busy(true);
            manager.announce(&entry, if had_version { Change::Reloading } else { Change::Loading }, None);
            let outcome = manager.replace(&entry, files, expected_sha256, generation, started).await;
            entry.set_busy(false);
            match &outcome {
                Ok(report) => {
                    if !validate_only {
                        entry.set_phases(report.phases);
                    }
                    manager.announce(
                        &entry,
                        if had_version { Change::Reloaded } else { Change::Ready },
                        None,
                    );
                }
                Err(error) => {
                    entry.failed(error.to_string());
                    manager.announce(&entry, Change::Failed, Some(error.to_string()));
                }
            }
            outcome
        })
        .await
    }

    async fn replace(
        &self,
        entry: &Arc<Entry>,
        files: VersionFiles,
        expected_sha256: Option<String>,
        generation: Option<Generation>,
        started: Instant,
    ) -> Result<ReloadReport> {
        let prepared = {
            let (backend, files) = (self.backend.clone(), files.clone());
            let served = entry.slot.served().all();
            self.loader
                .run(move || prepare(backend.as_ref(), &files, expected_sha256.as_deref(), &served))
                .await
                .ok_or_else(|| Error::new(Reason::Internal, "the loader stopped before it was done"))?
        };
        let Prepared { servable, mut phases, warmup } = prepared?;
        let before = entry.slot.lease().map(|lease| lease.version);
        let mut report = ReloadReport {
            model: entry.name().clone(),
            previous: before,
            live: before,
            generation: entry.status().generation,
            sha256: servable.sha256.clone(),
            bytes: servable.bytes,
            phases,
            warmup,
            validated_only: generation.is_none(),
        };
        let Some(generation) = generation else {
            self.discard(servable).await;
            phases.total = started.elapsed();
            report.phases = phases;
            return Ok(report);
        };
        if let Err(superseded) = self.still_newest(entry, Some(generation)) {
            self.discard(servable).await;
            return Err(superseded);
        }
        let swapping = Instant::now();
        let old = entry.slot.swap(Some(servable.clone()));
        phases.swap = swapping.elapsed();
        entry.went_live(&servable, files, generation);
        drop(servable);
        let draining = Instant::now();
        if let Some(old) = old {
            self.drain(old).await;
        }
        phases.drain = draining.elapsed();
        phases.total = started.elapsed();
        report.live = entry.status().live.map(|live| live.version);
        report.generation = generation;
        report.phases = phases;
        Ok(report)
    }

    fn still_newest(&self, entry: &Entry, generation: Option<Generation>) -> Result<()> {
        if generation.is_none_or(|generation| entry.is_newest(generation)) {
            return Ok(());
        }
        let message = format!("a newer change of model '{}' came in: this one was abandoned", entry.name());
        Err(Error::new(Reason::Superseded, message))
    }

    /// Waits until nobody else holds `old`, then drops it on a loader thread. Nobody can get hold of it any more, so
    /// the count only falls.
    async fn drain(&self, old: Arc<Servable>) {
        let give_up = Instant::now() + self.config.drain;
        let mut pause = Duration::from_micros(200);
        while Arc::strong_count(&old) > 1 && Instant::now() < give_up {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(10));
        }
        if Arc::strong_count(&old) > 1 {
            tracing::warn!(version = %old.version, "requests are still running on the old version: it is dropped after them");
        }
        self.discard(old).await;
    }

    async fn discard(&self, servable: Arc<Servable>) {
        let _closing = self.loader.run(move || drop(servable)).await;
    }

    fn announce(&self, entry: &Entry, change: Change, error: Option<String>) {
        let event = ModelEvent { at: SystemTime::now(), model: entry.status(), change, error };
        let version = event.model.live.as_ref().map(|live| live.version.0);
        match &event.error {
            Some(error) => {
                tracing::error!(target: "torchlane::models", model = %entry.name(), change = change.as_str(), live = version, "{error}")
            }
            None => {
                tracing::info!(target: "torchlane::models", model = %entry.name(), change = change.as_str(), live = version, "model changed")
            }
        }
        (self.observer)(&event);
        let _nobody_watches = self.events.send(event);
    }

    /// Runs a change in a task of the manager's own and waits for it.
    async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (done, outcome) = oneshot::channel();
        self.tasks.spawn(async move {
            let _caller_left = done.send(work.await);
        });
        outcome.await.unwrap_or_else(|_| {
            Err(Error::new(Reason::ShuttingDown, "the server stopped before this was done"))
        })
    }
}

fn unknown(model: &str) -> Error {
    let shown: String = model.chars().take(64).collect();
    Error::new(Reason::UnknownModel, format!("no model '{shown}' in the repositories")).with_field("model")
}

fn choose(found: &Found, wanted: Option<Version>) -> Result<VersionFiles> {
    let choice = match wanted {
        None => found.versions.last(),
        Some(version) => found.versions.iter().find(|files| files.version == version),
    };
    choice.cloned().ok_or_else(|| {
        let have =
            found.versions.iter().map(|files| files.version.to_string()).collect::<Vec<_>>().join(", ");
        let have = if have.is_empty() { "no versions".to_owned() } else { format!("versions {have}") };
        let wanted = wanted.map_or_else(|| "a version".to_owned(), |version| format!("version {version}"));
        Error::new(Reason::UnknownVersion, format!("model '{}' has {have} on disk, not {wanted}", found.name))
            .with_field("version")
    })
}
