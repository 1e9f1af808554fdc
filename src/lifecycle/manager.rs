//! Carries out changes: one at a time for each model. Whoever asks for one must see it through: dropping its future
//! half-way is safe for the live version, and leaves the model's state as it last was.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::{sync::broadcast, time::Instant};
use tokio_util::task::TaskTracker;

use super::{
    Change, LoadFailure, ModelEvent, ModelStatus, Phases, Preparation, Prepared, Progress, ReloadReport,
    Rules,
    entry::{Entry, Past},
    prepare, warmup,
};
use crate::{
    admission::ControlPlace,
    backend::{Backend, Servable},
    error::{Error, Reason, Result, shown},
    loader::{LoaderPool, Stopped},
    model::{Generation, ModelName, Version},
    registry::Registry,
    repository::{Directory, Found, RepositoryError, VersionFiles},
    sched::ProfilePoint,
};

/// What the manager works with.
#[derive(Debug)]
pub struct ManagerConfig {
    /// Where models come from; the first that has a model wins.
    pub repositories: Vec<Directory>,
    /// Longest that a swap waits for requests on the old version before it reports; they still end on it.
    pub drain: Duration,
    /// Longest that a load may take, warm-up included, before its thread is left behind.
    pub load_limit: Duration,
    /// What every version must satisfy.
    pub rules: Rules,
}

/// Digests that a version's files must have, hexadecimal; checked where they are given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Expected {
    /// Of the archive.
    pub sha256: Option<String>,
    /// Of the weights that are laid over it.
    pub weights_sha256: Option<String>,
}

/// A reload, as asked for.
#[derive(Debug, Clone, Default)]
pub struct ReloadRequest {
    /// The model.
    pub model: String,
    /// `None`: the newest on disk.
    pub version: Option<Version>,
    /// What the files must be.
    pub expected: Expected,
    /// Everything but the swap.
    pub validate_only: bool,
}

/// Calls that ask what is on disk share a look for this long.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

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
    looked: tokio::sync::Mutex<Option<Instant>>,
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
        let (entries, tasks, looked) = (Mutex::default(), TaskTracker::new(), tokio::sync::Mutex::default());
        Arc::new(Self { config, registry, backend, loader, entries, events, observer, tasks, looked })
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
        let mut found = Vec::new();
        for repository in &self.config.repositories {
            found.append(&mut repository.scan()?);
        }
        let names = self.take_note(found);
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

    async fn load_newest(&self, name: ModelName) -> bool {
        let versions = match self.find(name.as_str()) {
            Ok(found) if !found.versions.is_empty() => found.versions,
            Ok(_) => {
                return self.cannot_begin(
                    &name,
                    format!("model '{name}' has no version: put an archive at {name}/1/model.pt"),
                );
            }
            Err(error) => return self.cannot_begin(&name, error.to_string()),
        };
        let mut problem = None;
        for files in versions.into_iter().rev() {
            let version = files.version;
            let request =
                ReloadRequest { model: name.to_string(), version: Some(version), ..ReloadRequest::default() };
            match self.reload(request, None).await {
                Ok(_) => {
                    if let Some(error) = problem {
                        // Serving an older version is better than serving none, but nobody may overlook it.
                        self.entry(&name).failed(error);
                        tracing::error!(model = %name, %version, "the newest version does not load: serving an older one");
                    }
                    return true;
                }
                // Somebody changes it already: an older version must not come after that.
                Err(error) if matches!(error.reason(), Reason::Superseded | Reason::ShuttingDown) => {
                    return false;
                }
                Err(error) => problem = problem.or(Some(format!("version {version}: {error}"))),
            }
        }
        false
    }

    fn cannot_begin(&self, name: &ModelName, error: String) -> bool {
        let entry = self.entry(name);
        entry.failed(error.clone());
        self.announce(&entry, Change::Failed, Some(error));
        false
    }

    /// Loads a version beside the live one, warms it up, swaps it in, and drops the old one once its last request has
    /// ended.
    ///
    /// # Errors
    /// Unknown model or version; the phase that failed and why; or a newer change came in.
    pub async fn reload(&self, request: ReloadRequest, place: Option<ControlPlace>) -> Result<ReloadReport> {
        let found = self.find(&request.model)?;
        let entry = self.entry(&found.name);
        entry.set_versions(found.versions.iter().map(|files| files.version).collect());
        let files = choose(&found, request.version)?;
        if request.validate_only {
            return self.validate(&entry, files, request.expected).await;
        }
        self.carry_out(&entry, files, request.expected, place).await
    }

    /// Goes back to the version that was live before, if its archive is still the same.
    ///
    /// # Errors
    /// There is none, or as for [`Manager::reload`].
    pub async fn rollback(&self, model: &str, place: Option<ControlPlace>) -> Result<ReloadReport> {
        let entry = self.known(model)?;
        let Past { files, expected } = entry.previous().ok_or_else(|| {
            Error::new(
                Reason::NoPreviousVersion,
                format!("model '{model}' has no earlier version to go back to"),
            )
        })?;
        self.carry_out(&entry, files, expected, place).await
    }

    /// Stops serving a model. Requests in flight end.
    ///
    /// # Errors
    /// Unknown model, or nothing was live.
    pub async fn unload(&self, model: &str, place: Option<ControlPlace>) -> Result<(Version, Generation)> {
        self.refresh().await;
        let entry = self.known(model)?;
        let nothing_live = || {
            let message = format!("model '{}' has no version live", entry.name());
            Error::new(Reason::ModelNotReady, message)
        };
        // A refusal must not make a load that is under way out of date.
        if entry.slot.lease().is_none() {
            return Err(nothing_live());
        }
        let generation = entry.begin();
        let turn = entry.turn(generation).await?;
        let old = entry.slot.swap(None).ok_or_else(nothing_live)?;
        entry.went_away(generation);
        self.announce(&entry, Change::Unloaded, None);
        let version = old.version;
        drop((turn, place));
        self.drain(old).await;
        Ok((version, generation))
    }

    /// Takes note of the models and versions that are on disk now. A look is at most [`LOOK_AGAIN`] old.
    pub async fn refresh(&self) {
        let mut looked = self.looked.lock().await;
        if looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
            return;
        }
        let repositories = self.config.repositories.clone();
        let scan = move || repositories.iter().map(Directory::scan).collect::<Result<Vec<_>, _>>();
        match tokio::task::spawn_blocking(scan).await {
            Ok(Ok(found)) => drop(self.take_note(found.into_iter().flatten().collect())),
            // What was known stays so.
            Ok(Err(error)) => tracing::warn!(%error, "cannot look for new versions"),
            Err(_panicked) => {}
        }
        *looked = Some(Instant::now());
    }

    /// Of several models with one name the first counts. Says which there are.
    fn take_note(&self, found: Vec<Found>) -> Vec<ModelName> {
        let mut on_disk = BTreeMap::new();
        for Found { name, versions } in found {
            on_disk.entry(name).or_insert(versions);
        }
        for entry in self.entries.lock().values().filter(|entry| !on_disk.contains_key(entry.name())) {
            entry.set_versions(Vec::new());
        }
        for (name, versions) in &on_disk {
            self.entry(name).set_versions(versions.iter().map(|files| files.version).collect());
        }
        on_disk.into_keys().collect()
    }

    /// Every model, by name.
    pub fn list(&self) -> Vec<ModelStatus> {
        self.entries.lock().values().map(|entry| entry.status()).collect()
    }

    /// One model, with what its passes take.
    ///
    /// # Errors
    /// Unknown model.
    pub fn get(&self, model: &str) -> Result<(ModelStatus, Vec<ProfilePoint>)> {
        let entry = self.known(model)?;
        Ok((entry.status(), entry.slot.profile().points()))
    }

    /// How every model stands, and the changes from here on.
    pub fn watch(&self) -> (Vec<ModelStatus>, broadcast::Receiver<ModelEvent>) {
        let changes = self.events.subscribe();
        (self.list(), changes)
    }

    /// Begins no load any more and waits for those of the start. Others are their callers' to wait for.
    pub async fn stop(&self) {
        self.loader.close();
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
        &self,
        entry: &Arc<Entry>,
        files: VersionFiles,
        expected: Expected,
        place: Option<ControlPlace>,
    ) -> Result<ReloadReport> {
        let generation = entry.begin();
        let started = Instant::now();
        let turn = entry.turn(generation).await?;
        let had_version = entry.slot.lease().is_some();
        entry.set_busy(true);
        self.announce(entry, if had_version { Change::Reloading } else { Change::Loading }, None);
        let outcome = self.replace(entry, files, expected, generation, started).await;
        entry.set_busy(false);
        let (mut report, old) = match outcome {
            Ok((report, old)) => {
                entry.set_phases(report.phases);
                self.announce(entry, if had_version { Change::Reloaded } else { Change::Ready }, None);
                (report, old)
            }
            Err(error) if matches!(error.reason(), Reason::Superseded | Reason::ShuttingDown) => {
                // No fault of the model.
                self.announce(entry, Change::Abandoned, Some(error.to_string()));
                return Err(error);
            }
            Err(error) => {
                entry.failed(error.to_string());
                self.announce(entry, Change::Failed, Some(error.to_string()));
                return Err(error);
            }
        };
        // The change is made: others need not wait until the last request on the old version has ended.
        drop((turn, place));
        let draining = Instant::now();
        if let Some(old) = old {
            self.drain(old).await;
        }
        report.phases.drain = draining.elapsed();
        report.phases.total = started.elapsed();
        if entry.is_newest(generation) {
            entry.set_phases(report.phases);
        }
        Ok(report)
    }

    /// All of a reload but the swap. It changes nothing: it waits for no other change, makes none out of date, and is
    /// no event in the model's life.
    async fn validate(&self, entry: &Entry, files: VersionFiles, expected: Expected) -> Result<ReloadReport> {
        let started = Instant::now();
        let Prepared { servable, phases, warmup, check, .. } = self.prepare(entry, files, expected).await?;
        let status = entry.status();
        let live = status.live.map(|live| live.version);
        let report = ReloadReport {
            model: entry.name().clone(),
            previous: live,
            live,
            generation: status.generation,
            sha256: servable.sha256.clone(),
            weights_sha256: servable.weights_sha256.clone(),
            bytes: servable.bytes,
            phases: Phases { total: started.elapsed(), ..phases },
            warmup,
            check,
            validated_only: true,
        };
        self.discard(servable).await;
        Ok(report)
    }

    async fn prepare(&self, entry: &Entry, files: VersionFiles, expected: Expected) -> Result<Prepared> {
        let (backend, rules) = (self.backend.clone(), self.config.rules.clone());
        let (served, slot) = (entry.slot.served().all(), entry.slot.clone());
        let learned = warmup::learned(&slot.profile().points());
        let (limit, progress) = (self.config.load_limit, Progress::default());
        let told = progress.clone();
        let prepared = self
            .loader
            .run_within(limit, move || {
                let of = Preparation {
                    files: &files,
                    expected_sha256: expected.sha256.as_deref(),
                    expected_weights_sha256: expected.weights_sha256.as_deref(),
                    served: &served,
                    learned: &learned,
                    live: Some(&slot),
                    progress: told,
                    rules: &rules,
                };
                prepare(backend.as_ref(), &of)
            })
            .await
            .map_err(|stopped| match stopped {
                Stopped::Closed => {
                    Error::new(Reason::ShuttingDown, "the server is stopping: nothing was changed")
                }
                Stopped::Panicked => {
                    Error::new(Reason::Internal, "a bug in torchlane: the server's log says where")
                }
                Stopped::TimeLimit => LoadFailure::too_long(&progress, limit).into(),
                Stopped::NoThread => {
                    let message =
                        "every loader thread is held by a load that does not end: restart the server";
                    Error::new(Reason::LoadFailed, message)
                }
            })?;
        Ok(prepared?)
    }

    /// Prepares a version and swaps it in. What stood there before is to be drained.
    async fn replace(
        &self,
        entry: &Arc<Entry>,
        files: VersionFiles,
        expected: Expected,
        generation: Generation,
        started: Instant,
    ) -> Result<(ReloadReport, Option<Arc<Servable>>)> {
        let Prepared { servable, mut phases, warmup, check, measured } =
            self.prepare(entry, files.clone(), expected).await?;
        if !entry.is_newest(generation) {
            self.discard(servable).await;
            return Err(entry.superseded());
        }
        entry.slot.profile().renew(&measured);
        let swapping = Instant::now();
        let old = entry.slot.swap(Some(servable.clone()));
        phases.swap = swapping.elapsed();
        phases.total = started.elapsed();
        entry.went_live(&servable, files, generation);
        let report = ReloadReport {
            model: entry.name().clone(),
            previous: old.as_ref().map(|old| old.version),
            live: Some(servable.version),
            generation,
            sha256: servable.sha256.clone(),
            weights_sha256: servable.weights_sha256.clone(),
            bytes: servable.bytes,
            phases,
            warmup,
            check,
            validated_only: false,
        };
        Ok((report, old))
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
            Some(error) if change == Change::Abandoned => {
                tracing::info!(target: "torchlane::models", model = %entry.name(), change = change.as_str(), live = version, "{error}")
            }
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
}

fn unknown(model: &str) -> Error {
    let shown = shown(model, 64);
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
