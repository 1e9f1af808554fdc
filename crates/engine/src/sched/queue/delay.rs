//! Keeping jobs waiting for others to share their batch, where a model asks for it (`batching.max_delay`).
//!
//! A group that is held is out of the order: other work runs meanwhile. It comes back when enough rows wait, when the first
//! of its jobs has waited as long as it may, or when an urgent job joins it. So nothing is looked at again before it must be.

use std::time::Duration;

use tokio::time::Instant;
use torchlane_model::Lane;

use super::{Handle, RunQueue, Schedulable};

/// A timer, and the thread that it wakes, may be late by this much: deadlines are kept all the same.
const SLACK: Duration = Duration::from_millis(1);

/// Why a group does not run yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held {
    pub(super) until: Instant,
    /// Rows that are worth a batch at once.
    enough: usize,
}

/// How long `job` may be kept waiting.
pub(super) fn of(job: &impl Schedulable) -> Duration {
    job.batching().map_or(Duration::ZERO, |batching| batching.max_delay)
}

impl<J: Schedulable> RunQueue<J> {
    /// That job was put into a group that is held: nobody needs to be woken for it.
    pub fn is_held(&self, handle: &Handle) -> bool {
        !self.held.is_empty() && self.groups.get(&handle.group).is_some_and(|group| group.held.is_some())
    }

    /// Takes a group out of the order if its jobs should wait for more; true where they should.
    pub(super) fn hold(&mut self, id: u64, now: Instant) -> bool {
        let Some(group) = self.groups.get_mut(&id).filter(|group| group.key.batch.is_some()) else {
            return false;
        };
        let Some(any) = group.jobs.iter().next() else { return false };
        if of(any).is_zero() || group.jobs.len(Lane::Critical) > 0 {
            return false;
        }
        let buckets = any.batching().map_or(&[][..], |batching| &batching.buckets);
        let profile = any.profile().filter(|_| self.learned);
        let enough = profile.map_or(any.max_batch(), |(profile, class)| {
            profile.enough_rows(class, any.max_batch(), self.max_block, buckets)
        });
        if group.rows >= enough {
            return false;
        }
        let until = group.jobs.iter().map(|job| latest_start(job, enough, self.max_block)).min();
        let Some(until) = until.filter(|until| *until > now) else { return false };
        for (lane, tenant, place) in group.heads() {
            self.heads.remove(lane, tenant, place);
        }
        group.held = Some(Held { until, enough });
        self.held.insert((until, id));
        true
    }

    /// Puts groups that have waited long enough back into the order.
    pub(super) fn release_due(&mut self, now: Instant) {
        while let Some(&(until, id)) = self.held.first().filter(|(until, _)| *until <= now) {
            self.release(until, id);
        }
    }

    /// Does so for a group whose wait ends with `job`, which is about to join it.
    pub(super) fn release_for(&mut self, id: u64, job: &J) {
        if self.held.is_empty() {
            return;
        }
        let Some(group) = self.groups.get(&id) else { return };
        let Some(held) = group.held else { return };
        let ends = job.lane() == Lane::Critical
            || group.rows + job.rows() >= held.enough
            || latest_start(job, held.enough, self.max_block) < held.until;
        if ends {
            self.release(held.until, id);
        }
    }

    fn release(&mut self, until: Instant, id: u64) {
        self.held.remove(&(until, id));
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.held = None;
        if !self.slots.get(&group.key.slot).is_some_and(super::SlotRun::is_full) {
            self.index(id);
        }
    }
}

/// When `job` must run at the latest, in a pass of that many rows: once its wait is over, and in time for its deadline. What
/// such a pass takes is `unknown` where none has run.
fn latest_start(job: &impl Schedulable, rows: usize, unknown: Duration) -> Instant {
    let waited = job.submitted() + of(job);
    let Some(deadline) = job.deadline() else { return waited };
    let time = job.profile().and_then(|(profile, class)| profile.time(class, rows));
    let pass = time.map_or(unknown, |time| time.mean + 2 * time.deviation);
    deadline.checked_sub(pass + SLACK).map_or(job.submitted(), |start| start.min(waited))
}
