//! Brings what is loaded in line with what is on disk.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use futures::StreamExt as _;
use tokio::time::Instant;

use super::{
    Asker, Change, Expected, Manager, Phases,
    described::Described,
    entry::{Entry, Holding},
    manager::{GLANCE, Order},
    rollout::{Way, way},
    room::Resting,
    told::Told,
};
use crate::{
    error::{Error, Reason, Result},
    files,
    model::{LoadMode, ModelManifest, ModelName, Version, VersionPlan},
    repository::{Found, RepositoryError, VersionFiles},
    residency::Reservation,
};

/// Calls that ask what is on disk share a look for this long.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Models whose files are looked at side by side.
const AT_ONCE: usize = 16;

/// After a failure the same files are tried again after this long, then twice as long, and so on.
pub(super) const AGAIN: Duration = Duration::from_secs(30);

/// Never longer than this.
pub(super) const AGAIN_AT_MOST: Duration = Duration::from_secs(3600);

impl Manager {
    /// Loads what should be loaded of every model in the repositories, side by side. A model whose newest version fails
    /// falls back to the next older one that loads; one without any does not keep the others from serving. What is lazy, or
    /// finds no room, is left to its first request. Files that were written within the last `settle` are looked at twice.
    /// Gives back what was found, and how many serve.
    ///
    /// # Errors
    /// A repository cannot be read.
    pub async fn load_all(
        self: &Arc<Self>,
        settle: Duration,
    ) -> Result<(Vec<Found>, usize), RepositoryError> {
        let mut found = self.scan().await?;
        let young = |files: &VersionFiles| files.is_younger_than(settle);
        if found.iter().flat_map(|found| &found.versions).any(young) {
            tokio::time::sleep(settle).await;
            let now = self.scan().await?;
            // What has changed meanwhile is still being written: it is left to a later look.
            let seen: HashMap<_, _> = found.iter().map(|found| (&found.name, &found.versions)).collect();
            let quiet = |name: &ModelName, files: &VersionFiles| {
                seen.get(name).is_some_and(|before| before.contains(files))
            };
            let settled = now.into_iter().filter_map(|Found { name, versions }| {
                let some = !versions.is_empty();
                let versions: Vec<_> = versions.into_iter().filter(|files| quiet(&name, files)).collect();
                (!some || !versions.is_empty()).then_some(Found { name, versions })
            });
            let settled: Vec<_> = settled.collect();
            found = settled;
        }
        self.take_note(&found);
        let ordered = self.in_order_of_start(found.clone()).await;
        if self.config.memory.is_limited() {
            let names = ordered.iter().map(|found| found.name.clone());
            self.starting.send_replace(names.collect());
        }
        let loads: Vec<_> = ordered
            .into_iter()
            .map(|found| {
                let manager = self.clone();
                self.tasks.spawn(async move {
                    let name = found.name.clone();
                    let serves = manager.sync(found, Asker::Start).await;
                    manager.claimed(&name);
                    serves
                })
            })
            .collect();
        let mut loaded = 0;
        for load in loads {
            loaded += usize::from(load.await.unwrap_or(false));
        }
        Ok((found, loaded))
    }

    /// Where not all fit the budget, what is pinned comes first, then what is newest.
    async fn in_order_of_start(&self, found: Vec<Found>) -> Vec<Found> {
        if !self.config.memory.is_limited() {
            return found;
        }
        let order = async |found: Found| {
            let load = self.manifest_of(&found).await.ok().and_then(|manifest| manifest.load);
            let is_pinned = load.unwrap_or(self.config.residency.load) == LoadMode::Pinned;
            let newest = found.versions.last().map(|newest| newest.archive.clone());
            let written = match newest {
                Some(archive) => {
                    let of = archive.clone();
                    let written = move || of.metadata().ok()?.modified().ok();
                    files::run(&archive, files::LOOK, written).await.ok().flatten()
                }
                None => None,
            };
            (Reverse((is_pinned, written)), found)
        };
        // Side by side: one file that does not answer delays no others.
        let mut ordered: Vec<_> = futures::stream::iter(found).map(order).buffered(AT_ONCE).collect().await;
        ordered.sort_by_key(|(order, _)| *order);
        ordered.into_iter().map(|(_, found)| found).collect()
    }

    /// Waits until all models have claimed their room that may do so before this one. One whose files do not answer is not
    /// waited for long.
    async fn may_claim(&self, model: &ModelName) {
        let mut starting = self.starting.subscribe();
        let first = starting.wait_for(|starting| {
            !starting.contains(model) || starting.front().is_some_and(|first| first == model)
        });
        let _late = tokio::time::timeout(GLANCE, first).await;
    }

    /// A model of the start has its room, or needs none.
    fn claimed(&self, model: &ModelName) {
        self.starting.send_if_modified(|starting| {
            let before = starting.len();
            starting.retain(|other| other != model);
            starting.len() < before
        });
    }

    /// What is on disk now, by name: of several models with one name the first counts.
    ///
    /// # Errors
    /// A repository cannot be read.
    pub async fn scan(&self) -> Result<Vec<Found>, RepositoryError> {
        let mut found = Vec::new();
        for repository in &self.config.repositories {
            found.append(&mut repository.scan().await?);
        }
        let mut all: Vec<Found> = Vec::new();
        let mut names = std::collections::HashSet::new();
        all.extend(found.into_iter().filter(|found| names.insert(found.name.clone())));
        Ok(all)
    }

    /// Takes note of the models and versions that are on disk now. A look is at most [`LOOK_AGAIN`] old. One that takes
    /// longer than [`GLANCE`] goes on, and the caller has what was known before.
    pub async fn refresh(&self) {
        let underway = match (self.looked.clone().try_lock_owned(), self.me.upgrade()) {
            (Ok(mut looked), Some(manager)) => {
                if looked.is_some_and(|at| at.elapsed() < LOOK_AGAIN) {
                    return;
                }
                let look = self.tasks.spawn(async move {
                    match manager.scan().await {
                        Ok(found) => manager.take_note(&found),
                        // What was known stays so.
                        Err(error) => tracing::warn!(%error, "cannot look for new versions"),
                    }
                    *looked = Some(Instant::now());
                });
                futures::future::Either::Left(async { drop(look.await) })
            }
            // Others wait for the same look.
            _ => futures::future::Either::Right(async { drop(self.looked.lock().await) }),
        };
        let _late = tokio::time::timeout(GLANCE, underway).await;
    }

    /// Lists what is on disk, without loading it.
    pub(super) fn take_note(&self, found: &[Found]) {
        let names: Vec<ModelName> = found.iter().map(|found| found.name.clone()).collect();
        let slots = self.registry.insert_all(&names);
        let mut entries = self.entries.lock();
        for (found, slot) in found.iter().zip(slots) {
            let entry = entries.entry(found.name.clone()).or_insert_with(|| Arc::new(Entry::new(slot)));
            entry.set_versions(found.numbers());
        }
        let on_disk: std::collections::HashSet<_> = names.iter().collect();
        for entry in entries.values().filter(|entry| !on_disk.contains(entry.name())) {
            entry.set_versions(Vec::new());
        }
    }

    /// Loads what should be loaded and is not, and drops what should not. True if requests are answered afterwards.
    pub async fn sync(&self, found: Found, asker: Asker) -> bool {
        let entry = self.entry(&found.name);
        if entry.is_synced(&found, Instant::now()) {
            return entry.status().serves();
        }
        // Somebody changes it, or what lies there is on trial: what is said of that would mislead. The next look tries again.
        if entry.is_waited_for() {
            return entry.status().serves();
        }
        entry.set_versions(found.numbers());
        let outcome = self.bring_in_line(&entry, &found, &asker).await;
        match outcome {
            Ok(()) => entry.set_synced(found, true, Instant::now()),
            // Somebody changes it, or the server ends: nothing that could be mended here. The next look tries again.
            Err(error) if matches!(error.reason(), Reason::Superseded | Reason::ShuttingDown) => {}
            Err(_told) => entry.set_synced(found, false, Instant::now()),
        }
        entry.status().serves()
    }

    pub(super) async fn bring_in_line(&self, entry: &Entry, found: &Found, asker: &Asker) -> Result<()> {
        let manifest = match self.described(found).await {
            Ok(manifest) => manifest,
            Err(error) => {
                entry.failed(error.to_string());
                self.announce(entry, Change::Failed, Told::of(None, asker).failed(&error));
                return Err(error);
            }
        };
        let plan = manifest.versions.plan(&found.numbers());
        // Not at each load of a model that comes and goes.
        for (label, version) in plan.missing.iter().filter(|_| *asker != Asker::Request) {
            tracing::warn!(
                target: "torchlane::models", model = %entry.name(), %label, %version,
                "model.toml gives a label to a version that is not there"
            );
        }
        entry.set_load(self.load_mode(&manifest));
        let live = entry.live();
        // What somebody chose stays, but follows its own files and `model.toml`.
        let target = match (entry.is_held(found), &live) {
            (true, Some((version, _))) => Some(*version),
            // It was evicted: it comes back as what it was.
            (true, None) => entry.away().map(|away| away.files.version),
            (false, _) => plan.live,
        };
        let serves = live.as_ref().map(|(version, _)| *version);
        let way = way(entry, found, serves, target, &manifest.rollout);
        let target = if matches!(way, Way::AtOnce) { target } else { serves };
        let mut room = None;
        if live.is_none()
            && *asker != Asker::Request
            && let Some(files) = target.and_then(|version| files_of(found, version))
        {
            self.may_claim(entry.name()).await;
            let resting = self.resting(entry, files).await;
            self.claimed(entry.name());
            match resting? {
                Resting::Load(reserved) => room = reserved,
                Resting::Left => {
                    entry.set_labels(plan.labels.clone());
                    self.leave_to_requests(entry, asker);
                    return Ok(());
                }
            }
        }
        let mut outcome = Ok(());
        if let Some(files) = target.and_then(|version| files_of(found, version))
            && live.as_ref().is_none_or(|(_, old)| old != files)
        {
            let step =
                Step { found, plan: &plan, files, live: live.as_ref().map(|(version, _)| *version), room };
            outcome = self.make_live(entry, step, asker).await;
            if live.is_none()
                && let Err(error) = &outcome
                && may_fall_back(error)
            {
                self.fall_back(entry, found, files.version, error, asker).await?;
            }
        }
        let live = entry.live().map(|(version, _)| version);
        self.end_stale_rollout(entry, found, &way, asker);
        let rolled_out = match &way {
            Way::Beside(files, _) => Some(files.version),
            _ => entry.rollouts.lock().versions().map(|(version, _, _)| version),
        };
        let beside: BTreeSet<Version> = plan.beside.iter().copied().chain(rolled_out).collect();
        let wanted: Vec<&VersionFiles> = if live.is_some() {
            let newest_first = beside.iter().rev().filter(|version| Some(**version) != live);
            newest_first.filter_map(|version| files_of(found, *version)).collect()
        } else {
            Vec::new()
        };
        entry.set_labels(plan.labels.clone());
        for old in entry.beside().iter().filter(|old| !wanted.contains(old)) {
            // One that has changed is replaced by its successor, not dropped before it is there.
            if !wanted.iter().any(|files| files.version == old.version) {
                let (_turn, _) = entry.quiet_turn().await.ok_or_else(|| entry.superseded())?;
                self.drop_beside(entry, old.version, asker).await;
            }
        }
        for files in wanted {
            if entry.side_of(files).is_some() {
                continue;
            }
            let (_turn, generation) = entry.quiet_turn().await.ok_or_else(|| entry.superseded())?;
            let loaded = self.load_beside(entry, files.clone(), generation, asker).await;
            outcome = outcome.and(loaded);
        }
        outcome.and(self.follow_disk(entry, found, way, asker))
    }

    async fn described(&self, found: &Found) -> Result<ModelManifest> {
        if found.versions.is_empty() {
            let name = &found.name;
            // One that cannot be read says what is the matter.
            self.find(name.as_str()).await?;
            let message = format!("model '{name}' has no version: put an archive at {name}/1/model.pt");
            return Err(Error::new(Reason::LoadFailed, message));
        }
        self.manifest_of(found).await
    }

    /// What the model's `model.toml` or `config.pbtxt` says. What of it is not heeded is logged, once for each change of it,
    /// and what the model's name keeps from it.
    ///
    /// # Errors
    /// It cannot be read, or fetched.
    pub(super) async fn manifest_of(&self, found: &Found) -> Result<ModelManifest> {
        let hidden = found.name.hidden_by_route();
        let Some(newest) = found.versions.last().filter(|files| files.manifest.is_some()) else {
            if hidden.is_some() {
                self.entry(&found.name).warn_once(hidden.as_slice(), 0);
            }
            return Ok(ModelManifest::default());
        };
        let newest = self.materialize(newest.clone()).await?;
        let of = newest.clone();
        let mut described = files::run(newest.place(), files::LOOK, move || Described::read(&of)).await??;
        described.warnings.extend(hidden);
        self.entry(&found.name).warn_once(&described.warnings, newest.manifest_stamp);
        Ok(described.manifest)
    }

    async fn make_live(&self, entry: &Entry, step: Step<'_>, asker: &Asker) -> Result<()> {
        let Step { found, plan, files, live, room } = step;
        let started = Instant::now();
        let turn = entry.quiet_turn().await.ok_or_else(|| entry.superseded())?;
        // Somebody may have loaded it meanwhile: a request is content with any.
        if *asker == Asker::Request && entry.live().is_some() {
            return Ok(());
        }
        let stays = |version: Version| version != files.version && plan.beside.contains(&version);
        let order = Order {
            files: files.clone(),
            // What somebody chose comes back as that, or not at all.
            expected: entry
                .away()
                .filter(|away| away.files.version == files.version && entry.is_held(found))
                .map(|away| away.expected)
                .unwrap_or_default(),
            // While it waited for its turn somebody may have chosen another.
            holding: if entry.is_held(found) { Holding::As } else { Holding::End },
            keep: live.is_some_and(stays),
            room,
            urgency: asker.urgency(),
            asker: asker.clone(),
        };
        self.carry_out(entry, order, turn, started, None).await.map(|_report| ())
    }

    /// Requests load it from now on.
    fn leave_to_requests(&self, entry: &Entry, asker: &Asker) {
        if entry.leave_to_requests() {
            self.announce(entry, Change::OnDemand, Told::of(None, asker));
        }
    }

    /// Nothing is live and the version that should be does not load: the newest of the others that does.
    async fn fall_back(
        &self,
        entry: &Entry,
        found: &Found,
        failed: Version,
        error: &Error,
        asker: &Asker,
    ) -> Result<()> {
        for files in found.versions.iter().rev().filter(|files| files.version < failed) {
            let turn = entry.quiet_turn().await.ok_or_else(|| entry.superseded())?;
            let order = Order {
                files: files.clone(),
                expected: Expected::default(),
                holding: Holding::As,
                keep: false,
                room: None,
                urgency: asker.urgency(),
                asker: asker.clone(),
            };
            match self.carry_out(entry, order, turn, Instant::now(), None).await {
                Ok(_report) => {
                    // Serving an older version is better than serving none, but nobody may overlook it.
                    entry.failed(format!("version {failed}: {error}"));
                    tracing::error!(
                        model = %entry.name(), version = %files.version,
                        "the newest version does not load: serving an older one"
                    );
                    return Ok(());
                }
                Err(error) if !may_fall_back(&error) => return Err(error),
                Err(_told) => {}
            }
        }
        entry.failed(format!("version {failed}: {error}"));
        Ok(())
    }

    /// A model that is in no repository any more: it is unloaded once its requests have ended, and forgotten.
    pub(super) async fn forget(&self, name: &ModelName) {
        let Some(entry) = self.entries.lock().get(name).cloned() else { return };
        let Some((turn, generation)) = entry.quiet_turn().await else { return };
        // It may have come back while this waited.
        if !matches!(self.find(name.as_str()).await, Err(error) if error.reason() == Reason::UnknownModel) {
            return;
        }
        let old = entry.slot.swap(None);
        entry.went_away(generation, Holding::End);
        self.settle_rollout(&entry, &Asker::Repository);
        let version = old.as_ref().map(|old| old.version);
        for files in entry.beside() {
            self.drop_beside(&entry, files.version, &Asker::Repository).await;
        }
        entry.retire();
        self.entries.lock().remove(name);
        self.registry.remove(name);
        let told = Told::of(version, &Asker::Repository).done(version, Phases::default());
        self.announce(&entry, Change::Removed, told);
        drop(turn);
        if let Some(old) = old {
            self.drain(old).await;
        }
    }
}

/// A version that is to go live, among others.
struct Step<'a> {
    found: &'a Found,
    plan: &'a VersionPlan,
    files: &'a VersionFiles,
    live: Option<Version>,
    /// The room for it, where it is reserved already.
    room: Option<Reservation>,
}

fn files_of(found: &Found, version: Version) -> Option<&VersionFiles> {
    found.versions.iter().find(|files| files.version == version)
}

/// Whether an older version may be tried: not when somebody changes the model already, there is no room, or the server
/// ends.
fn may_fall_back(error: &Error) -> bool {
    !matches!(error.reason(), Reason::Superseded | Reason::ShuttingDown | Reason::MemoryBudget)
}
