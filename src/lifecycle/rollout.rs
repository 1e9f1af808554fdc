//! Rollouts as the manager carries them out: beginning, changing, promoting, rolling back. What is decided is decided in
//! [`crate::rollout`]; here it is done.
//!
//! Promoting is a change like a reload, of a version that is loaded already. Rolling back changes nothing that is live: from one
//! moment to the next no request is sent to the new version any more, and it is dropped once those that it has are done.

use std::sync::Arc;

use tokio::time::Instant;

use super::{
    Asker, Change, Expected, Manager, RolloutState, RolloutStatus,
    entry::{Entry, Hold, Holding},
    manager::{Order, choose},
    rollouts::{Beginning, Decision},
    told::Told,
};
use crate::{
    admission::ControlPlace,
    error::{Error, Reason, Result},
    loader::Urgency,
    model::{RolloutPlan, Strategy, Version, VersionPlan},
    repository::{Found, VersionFiles},
};

/// A plan made from the one that holds where nothing is said.
pub type Patch = Box<dyn FnOnce(RolloutPlan) -> Result<RolloutPlan> + Send>;

/// What somebody wants of a rollout.
pub enum RolloutChange {
    /// Begin one, or go on by another plan.
    Plan {
        /// The new version. `None`: that of the rollout under way, else the newest on disk.
        version: Option<Version>,
        /// How.
        plan: Patch,
    },
    /// Put the new version live now.
    Promote,
    /// Take it back.
    Abort,
}

impl RolloutChange {
    /// Whether it only takes something back.
    pub fn undoes(&self) -> bool {
        matches!(self, Self::Abort)
    }
}

impl std::fmt::Debug for RolloutChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plan { .. } => "Plan",
            Self::Promote => "Promote",
            Self::Abort => "Abort",
        })
    }
}

/// What becomes of a version that should be live by what is on disk.
#[derive(Debug)]
pub(super) enum Way {
    /// It goes live, if it is not.
    AtOnce,
    /// It is rolled out.
    Beside(VersionFiles, Box<RolloutPlan>),
    /// Nothing: it was found bad, or somebody rolls it out by hand.
    Stays,
}

/// Only a newer version than the live one is rolled out, and only where the live one is still there to go on with.
pub(super) fn way(
    entry: &Entry,
    found: &Found,
    live: Option<Version>,
    target: Option<Version>,
    configured: &RolloutPlan,
) -> Way {
    let files = |version| found.versions.iter().find(|files| files.version == version);
    let (Some(live), Some(target)) = (live, target) else { return Way::AtOnce };
    let (Some(_), Some(target)) = (files(live), files(target).filter(|_| target > live)) else {
        return Way::AtOnce;
    };
    let rollouts = entry.rollouts.lock();
    let by_hand = rollouts.is_by_hand() && rollouts.versions().is_some_and(|(v, _, _)| v == target.version);
    if by_hand || rollouts.is_rejected(target) {
        return Way::Stays;
    }
    drop(rollouts);
    match configured.strategy {
        Strategy::None => Way::AtOnce,
        _ => Way::Beside(target.clone(), Box::new(configured.clone())),
    }
}

impl Manager {
    /// How a model's rollout stands, or how the last one ended.
    ///
    /// # Errors
    /// Unknown model.
    pub fn rollout(&self, model: &str) -> Result<Option<RolloutStatus>> {
        let entry = self.known(model)?;
        let rollouts = entry.rollouts.lock();
        Ok(rollouts.status(entry.name()))
    }

    /// Begins, changes or ends a rollout.
    ///
    /// # Errors
    /// Unknown model or version, nothing to change, a plan that cannot be carried out, or the new version does not load.
    pub async fn set_rollout(
        &self,
        model: &str,
        change: RolloutChange,
        asker: Asker,
        place: Option<ControlPlace>,
    ) -> Result<RolloutStatus> {
        match change {
            // An end waits for nothing: neither for an upload nor for a disk.
            RolloutChange::Abort => {
                let entry = self.known(model)?;
                let why = format!("aborted by {asker}");
                let ended = self.end_rollout(&entry, RolloutState::Aborted, &why, true, &asker);
                let version = ended.ok_or_else(|| none(&entry))?;
                let status = status_of(&entry);
                drop(place);
                self.tidy_beside(&entry, version, &asker).await;
                status
            }
            RolloutChange::Plan { version, plan } => {
                let (entry, found) = self.looked_up(model).await?;
                self.plan_rollout(&entry, &found, version, plan, &asker).await?;
                status_of(&entry)
            }
            RolloutChange::Promote => {
                let (entry, _) = self.looked_up(model).await?;
                let order = self.promotion(&entry, asker).await.ok_or_else(|| none(&entry))?;
                let _report = self.change(&entry, order, place).await?;
                status_of(&entry)
            }
        }
    }

    /// The model with what is on disk of it now.
    async fn looked_up(&self, model: &str) -> Result<(Arc<Entry>, Found)> {
        self.after_uploads(model).await;
        let found = self.find(model).await?;
        let entry = self.entry(&found.name);
        entry.set_versions(found.numbers());
        Ok((entry, found))
    }

    async fn plan_rollout(
        &self,
        entry: &Entry,
        found: &Found,
        version: Option<Version>,
        patch: Patch,
        asker: &Asker,
    ) -> Result<()> {
        let live = || entry.live().map(|(live, _)| live).ok_or_else(|| not_ready(entry));
        let underway = entry.rollouts.lock().underway();
        let newest = found.versions.last().map(|files| files.version);
        let wanted = version.or(underway.as_ref().map(|(files, _)| files.version)).or(newest);
        let files = choose(found, wanted)?;
        if files.version == live()? {
            let message = format!("version {} is live already: name another to roll out", files.version);
            return Err(Error::new(Reason::BadRequest, message).with_field("version"));
        }
        let same = underway.filter(|(old, _)| *old == files);
        let before = match &same {
            Some((_, plan)) => plan.clone(),
            None => self.manifest_of(found).await.unwrap_or_default().rollout,
        };
        let plan = patch(before)?;
        let wrong = |message: String| Error::new(Reason::BadRequest, message).with_field("plan");
        if plan.strategy == Strategy::None {
            return Err(wrong("say how it is to be rolled out: canary, shadow or ab".to_owned()));
        }
        plan.check().map_err(|error| wrong(error.to_string()))?;
        if same.is_some() {
            entry.rollouts.lock().change(plan, Instant::now());
            entry.republish();
            self.announce(entry, Change::RolloutChanged, Told::of(Some(files.version), asker));
            return Ok(());
        }
        let waiting = entry.begin();
        let generation = waiting.generation;
        let turn = entry.turn(waiting).await?;
        if entry.side_of(&files).is_none() {
            self.load_beside(entry, files.clone(), generation, asker).await?;
        }
        let before = self.begin_rollout(entry, files, plan, true, asker)?;
        drop(turn);
        if let Some(before) = before {
            self.tidy_beside(entry, before, asker).await;
        }
        Ok(())
    }

    /// Begins a rollout of a version that is loaded beside the live one, in the place of any other. Gives back the version of
    /// that, which is to be dropped.
    pub(super) fn begin_rollout(
        &self,
        entry: &Entry,
        files: VersionFiles,
        plan: RolloutPlan,
        by_hand: bool,
        asker: &Asker,
    ) -> Result<Option<Version>> {
        let (live, _) = entry.live().ok_or_else(|| not_ready(entry))?;
        let version = files.version;
        let why = format!("version {version} is rolled out now");
        let before = self.end_rollout(entry, RolloutState::Aborted, &why, false, asker);
        let beginning = Beginning { files, live, plan, by_hand };
        entry.rollouts.lock().begin(entry.name(), beginning, Instant::now());
        entry.republish();
        self.announce(entry, Change::RolloutStarted, Told::of(Some(version), asker));
        Ok(before.filter(|before| *before != version))
    }

    /// Ends the rollout that is under way: from here on no request is sent to its version. Gives back which that was.
    pub(super) fn end_rollout(
        &self,
        entry: &Entry,
        state: RolloutState,
        why: &str,
        rejected: bool,
        asker: &Asker,
    ) -> Option<Version> {
        let version = entry.rollouts.lock().end(entry.name(), state, why, rejected)?;
        entry.republish();
        let (change, error) = match state {
            RolloutState::Promoted => (Change::Promoted, None),
            RolloutState::RolledBack => {
                let message = format!("version {version} was rolled back: {why}");
                (Change::RolledBack, Some(Error::new(Reason::RolledBack, message)))
            }
            RolloutState::Running | RolloutState::Aborted => {
                let message = format!("the rollout of version {version} ended: {why}");
                (Change::RolloutAborted, Some(Error::new(Reason::Superseded, message)))
            }
        };
        self.announce(entry, change, Told { error, ..Told::of(Some(version), asker) });
        Some(version)
    }

    /// What is live has changed: a rollout has come to its end by that, unless its live version was only loaded again. Gives
    /// back the version of one that was given up.
    pub(super) fn settle_rollout(&self, entry: &Entry, asker: &Asker) -> Option<Version> {
        let live = entry.live().map(|(live, _)| live);
        let (version, beside, verdict) = entry.rollouts.lock().versions()?;
        if live == Some(version) {
            self.end_rollout(entry, RolloutState::Promoted, &verdict, false, asker);
            return None;
        }
        if live == Some(beside) && !matches!(asker, Asker::Caller(_)) {
            return None;
        }
        let why =
            live.map_or_else(|| "nothing is live".to_owned(), |live| format!("version {live} was put live"));
        self.end_rollout(entry, RolloutState::Aborted, &why, false, asker)
    }

    /// Drops a version that was rolled out, unless it is to be loaded all the same.
    pub(super) async fn tidy_beside(&self, entry: &Entry, version: Version, asker: &Asker) {
        let _turn = entry.turn_to_tidy().await;
        let again = entry.rollouts.lock().versions().is_some_and(|(now, _, _)| now == version);
        let plan = self.plan_of(entry).await.map(|(_, plan)| plan).unwrap_or_default();
        if !again && !plan.beside.contains(&version) {
            self.drop_beside(entry, version, asker).await;
        }
    }

    /// After a look at the disk: a rollout whose version is not there any more, or is not the newest, ends before it is dropped.
    pub(super) fn end_stale_rollout(&self, entry: &Entry, found: &Found, way: &Way, asker: &Asker) {
        let Some((version, _, _)) = entry.rollouts.lock().versions() else { return };
        let gone = found.versions.iter().all(|files| files.version != version);
        let why = match way {
            _ if gone => "its files were removed".to_owned(),
            Way::Beside(files, _) if files.version != version => format!("version {} came", files.version),
            _ => return,
        };
        self.end_rollout(entry, RolloutState::Aborted, &why, false, asker);
    }

    /// After a look at the disk: begins the rollout of a version that has been loaded for it, or begins it again where its
    /// files have changed.
    pub(super) fn follow_disk(&self, entry: &Entry, found: &Found, way: Way, asker: &Asker) -> Result<()> {
        let underway = entry.rollouts.lock().underway();
        let by_hand = entry.rollouts.lock().is_by_hand();
        let (files, plan) = match (way, &underway) {
            (Way::Beside(files, plan), _) => (files, *plan),
            (_, Some((old, plan))) => match found.versions.iter().find(|now| now.version == old.version) {
                Some(now) => (now.clone(), plan.clone()),
                None => return Ok(()),
            },
            (_, None) => return Ok(()),
        };
        let is_new = underway.is_none_or(|(old, _)| old != files);
        if is_new && entry.side_of(&files).is_some() {
            self.begin_rollout(entry, files, plan, by_hand, asker)?;
        }
        Ok(())
    }

    /// Looks at the counts of all rollouts and does what they ask for; what takes time goes on in tasks of its own.
    pub fn look_at_rollouts(self: &Arc<Self>, now: Instant) {
        let entries: Vec<_> = self.entries.lock().values().cloned().collect();
        for entry in entries {
            let Some((version, _, _)) = entry.rollouts.lock().versions() else { continue };
            if entry.side(version).is_none() {
                let (aborted, why) = (RolloutState::Aborted, "its version is not loaded any more");
                self.end_rollout(&entry, aborted, why, false, &Asker::Rollout);
                continue;
            }
            let decision = entry.rollouts.lock().look(now);
            match decision {
                None => {}
                Some(Decision::Stepped) => {
                    entry.republish();
                    self.announce(&entry, Change::RolloutChanged, Told::of(Some(version), &Asker::Rollout));
                }
                Some(Decision::RollBack(why)) => {
                    let (back, rejected) = (RolloutState::RolledBack, true);
                    self.end_rollout(&entry, back, &why, rejected, &Asker::Rollout);
                    let manager = self.clone();
                    self.tasks
                        .spawn(async move { manager.tidy_beside(&entry, version, &Asker::Rollout).await });
                }
                Some(Decision::Promote) => {
                    let manager = self.clone();
                    self.tasks.spawn(async move { manager.promote(&entry).await });
                }
            }
        }
    }

    /// Puts the new version live, unless somebody changes the model: then the next look may ask for it again.
    async fn promote(&self, entry: &Entry) {
        if let Some(turn) = entry.quiet_turn().await
            && let Some(order) = self.promotion(entry, Asker::Rollout).await
        {
            let _told = self.carry_out(entry, order, turn, Instant::now(), None).await;
        }
        entry.rollouts.lock().not_promoted();
    }

    /// What is there of a model, and what `model.toml` wants of it.
    async fn plan_of(&self, entry: &Entry) -> Option<(Found, VersionPlan)> {
        let found = self.find(entry.name().as_str()).await.ok()?;
        let plan = self.manifest_of(&found).await.unwrap_or_default().versions.plan(&found.numbers());
        Some((found, plan))
    }

    async fn promotion(&self, entry: &Entry, asker: Asker) -> Option<Order> {
        let (version, _, _) = entry.rollouts.lock().versions()?;
        let files = entry.side(version)?.files;
        let (found, plan) = match self.plan_of(entry).await {
            Some((found, plan)) => (Some(found), plan),
            None => (None, VersionPlan::default()),
        };
        let holding = match found {
            // Somebody rolled out another version than the one that the repository is for, and wants to keep it.
            Some(found) if plan.live.is_some_and(|live| live != version) => Holding::Begin(Hold::at(&found)),
            _ => Holding::End,
        };
        let live = entry.live().map(|(live, _)| live);
        let keep = live.is_some_and(|live| live != version && plan.beside.contains(&live));
        Some(Order {
            files,
            expected: Expected::default(),
            holding,
            keep,
            room: None,
            urgency: Urgency::Patient,
            asker,
        })
    }
}

fn status_of(entry: &Entry) -> Result<RolloutStatus> {
    let status = entry.rollouts.lock().status(entry.name());
    status.ok_or_else(|| none(entry))
}

fn none(entry: &Entry) -> Error {
    Error::new(Reason::NoRollout, format!("no version of model '{}' is being rolled out", entry.name()))
}

fn not_ready(entry: &Entry) -> Error {
    let message = format!(
        "model '{}' has no version live: reload it, there is nothing to roll out beside",
        entry.name()
    );
    Error::new(Reason::ModelNotReady, message)
}
