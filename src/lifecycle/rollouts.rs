//! What is known of a model's rollouts: the one under way, the last one, and the version that was found bad. Pure but for the
//! counts that it reads.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use crate::{
    model::{ModelName, RolloutPlan, Version},
    repository::VersionFiles,
    rollout::{Clock, Seen, Split, Verdict, judge},
};

/// How long a window of the tests is: a version that turns bad is held against what it did within this time, too.
const WINDOW: Duration = Duration::from_secs(30);

/// Where a rollout stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RolloutState {
    /// Under way.
    Running,
    /// The new version is live.
    Promoted,
    /// The new version was bad, and the live one serves alone.
    RolledBack,
    /// It gave way to something else, or to somebody.
    Aborted,
}

impl RolloutState {
    /// The name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Promoted => "promoted",
            Self::RolledBack => "rolled_back",
            Self::Aborted => "aborted",
        }
    }
}

/// A rollout in a few words.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RolloutBrief {
    /// The new version.
    pub version: Version,
    /// Where it stands.
    pub state: RolloutState,
    /// Percent of the callers that see it.
    pub percent: f64,
}

/// A rollout, with all that is known of it.
#[derive(Debug, Clone)]
pub struct RolloutStatus {
    /// The model.
    pub model: ModelName,
    /// The version that was live when it began.
    pub live: Version,
    /// The new one.
    pub version: Version,
    /// Where it stands.
    pub state: RolloutState,
    /// How it is carried out.
    pub plan: RolloutPlan,
    /// Percent of the callers that see the new version.
    pub percent: f64,
    /// The step it is at, from 0.
    pub step: usize,
    /// When it began.
    pub since: SystemTime,
    /// When it ended.
    pub ended: Option<SystemTime>,
    /// What the counts said last, or why it ended.
    pub verdict: String,
    /// The counts.
    pub seen: Seen,
}

#[derive(Debug)]
struct Underway {
    files: VersionFiles,
    live: Version,
    /// Somebody began it: what is on disk neither ends nor changes it.
    by_hand: bool,
    split: Arc<Split>,
    since: SystemTime,
    step: usize,
    step_began: Instant,
    /// Requests of the new version when the step began.
    before: u64,
    window: Instant,
    verdict: String,
    promoting: bool,
}

impl Underway {
    fn begin_step(&mut self, step: usize, now: Instant) {
        self.split = Arc::new(self.split.at_step(step));
        (self.step, self.step_began) = (step, now);
        self.before = self.split.seen().candidate.requests();
    }

    fn status(&self, model: &ModelName) -> RolloutStatus {
        RolloutStatus {
            model: model.clone(),
            live: self.live,
            version: self.files.version,
            state: RolloutState::Running,
            plan: self.split.plan().clone(),
            percent: self.split.percent(),
            step: self.step,
            since: self.since,
            ended: None,
            verdict: self.verdict.clone(),
            seen: self.split.seen(),
        }
    }
}

/// A rollout that begins.
#[derive(Debug)]
pub(super) struct Beginning {
    pub(super) files: VersionFiles,
    pub(super) live: Version,
    pub(super) plan: RolloutPlan,
    pub(super) by_hand: bool,
}

/// What a look at a rollout asks for.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Decision {
    /// More callers see the new version now.
    Stepped,
    Promote,
    RollBack(String),
}

/// All of a model's.
#[derive(Debug, Default)]
pub(super) struct Rollouts {
    underway: Option<Underway>,
    last: Option<RolloutStatus>,
    rejected: Option<(Version, u64)>,
}

impl Rollouts {
    pub(super) fn begin(&mut self, model: &ModelName, beginning: Beginning, now: Instant) {
        let Beginning { files, live, plan, by_hand } = beginning;
        // It is given another chance.
        self.rejected = self.rejected.filter(|(version, _)| *version != files.version);
        self.underway = Some(Underway {
            split: Arc::new(Split::new(model, files.version, plan)),
            files,
            live,
            by_hand,
            since: SystemTime::now(),
            step: 0,
            step_began: now,
            before: 0,
            window: now,
            verdict: "just begun".to_owned(),
            promoting: false,
        });
    }

    /// Carries on by another plan, from its first step, with what is known so far.
    pub(super) fn change(&mut self, plan: RolloutPlan, now: Instant) {
        if let Some(underway) = &mut self.underway {
            underway.split = Arc::new(underway.split.by_plan(plan));
            underway.by_hand = true;
            underway.begin_step(0, now);
        }
    }

    /// Ends the one that is under way. A version that is `rejected` is not tried again before its files change.
    pub(super) fn end(
        &mut self,
        model: &ModelName,
        state: RolloutState,
        why: &str,
        rejected: bool,
    ) -> Option<Version> {
        let underway = self.underway.take()?;
        let percent = if state == RolloutState::Promoted { 100.0 } else { 0.0 };
        let (ended, verdict) = (Some(SystemTime::now()), why.to_owned());
        let version = underway.files.version;
        self.last = Some(RolloutStatus { state, percent, ended, verdict, ..underway.status(model) });
        if rejected {
            self.rejected = Some((version, underway.files.stamp));
        }
        Some(version)
    }

    /// What the counts of the one that is under way ask for. A step is taken at once.
    pub(super) fn look(&mut self, now: Instant) -> Option<Decision> {
        let underway = self.underway.as_mut()?;
        if now.saturating_duration_since(underway.window) >= WINDOW {
            underway.window = now;
            underway.split.turn();
        }
        let seen = underway.split.seen();
        let clock = Clock {
            step: underway.step,
            since: now.saturating_duration_since(underway.step_began),
            requests: seen.candidate.requests().saturating_sub(underway.before),
        };
        match judge(underway.split.plan(), &seen, &clock) {
            Verdict::Wait(why) => {
                underway.verdict = why;
                None
            }
            Verdict::Step => {
                underway.begin_step(underway.step + 1, now);
                underway.verdict = format!("good so far; {} % of the callers now", underway.split.percent());
                Some(Decision::Stepped)
            }
            Verdict::Promote => {
                underway.verdict = format!("good for {} requests", seen.candidate.requests());
                (!std::mem::replace(&mut underway.promoting, true)).then_some(Decision::Promote)
            }
            Verdict::RollBack(why) => Some(Decision::RollBack(why)),
        }
    }

    /// The promotion came to nothing: the next look may ask for it again.
    pub(super) fn not_promoted(&mut self) {
        if let Some(underway) = &mut self.underway {
            underway.promoting = false;
        }
    }

    /// The new version of the one that is under way, the version it stands beside, and what the counts said last.
    pub(super) fn versions(&self) -> Option<(Version, Version, String)> {
        self.underway.as_ref().map(|u| (u.files.version, u.live, u.verdict.clone()))
    }

    pub(super) fn underway(&self) -> Option<(VersionFiles, RolloutPlan)> {
        self.underway.as_ref().map(|underway| (underway.files.clone(), underway.split.plan().clone()))
    }

    pub(super) fn is_by_hand(&self) -> bool {
        self.underway.as_ref().is_some_and(|underway| underway.by_hand)
    }

    pub(super) fn is_rejected(&self, files: &VersionFiles) -> bool {
        self.rejected == Some((files.version, files.stamp))
    }

    /// Somebody wants this version after all.
    pub(super) fn accept(&mut self, version: Version) {
        self.rejected = self.rejected.filter(|(rejected, _)| *rejected != version);
    }

    pub(super) fn split(&self) -> Option<Arc<Split>> {
        self.underway.as_ref().map(|underway| underway.split.clone())
    }

    pub(super) fn brief(&self) -> Option<RolloutBrief> {
        let running = self.underway.as_ref().map(|underway| RolloutBrief {
            version: underway.files.version,
            state: RolloutState::Running,
            percent: underway.split.percent(),
        });
        let last = |last: &RolloutStatus| RolloutBrief {
            version: last.version,
            state: last.state,
            percent: last.percent,
        };
        running.or(self.last.as_ref().map(last))
    }

    /// The one that is under way, else the last one.
    pub(super) fn status(&self, model: &ModelName) -> Option<RolloutStatus> {
        self.underway.as_ref().map(|underway| underway.status(model)).or_else(|| self.last.clone())
    }
}
