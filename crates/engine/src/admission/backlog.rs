//! The work that is in the server, and how far estimates by it are off. Pure.
//!
//! Work is counted in the order in which it will run: all of the lanes above; of the same lane the tenant's own with an
//! earlier deadline, and of other tenants what their shares let them have meanwhile. Passes that run hold their executors
//! for what is left of them.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use smallvec::SmallVec;
use tokio::time::Instant;
use torchlane_model::{Lane, TenantId};

use crate::registry::SlotId;

/// Part of the calls let in that may be late.
const MAY_BE_LATE: f64 = 0.03;
/// What one call that would have been refused and was in time says, beside one that was let in and was late.
const TOO_CAREFUL: f64 = 0.5;
/// How fast the margin follows.
const STEP: f64 = 0.05;
/// Bounds of what estimates are multiplied by.
const MARGINS: std::ops::RangeInclusive<f64> = 0.3..=8.0;
/// Shorter estimates say more about the machine's moods than about the queue.
const TELLING: Duration = Duration::from_millis(2);

/// One tenant's work in one lane, in ns of an executor.
#[derive(Debug, Default)]
struct Work {
    weight: f64,
    total: u64,
    calls: usize,
    /// By deadline, in ms since the start.
    due: BTreeMap<u64, u64>,
}

#[derive(Debug, Default)]
struct LaneWork {
    total: u64,
    tenants: HashMap<TenantId, Work>,
}

/// A call's place in the backlog.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) lane: Lane,
    pub(super) tenant: TenantId,
    /// Its deadline, in ms since the start.
    pub(super) due: u64,
    /// In ns of an executor.
    pub(super) work: u64,
}

/// All work that waits or runs.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    lanes: [LaneWork; 4],
    /// When the passes that run are expected to end, each by a number of its own.
    running: SmallVec<[(u64, Instant); 8]>,
    passes: u64,
    margins: HashMap<(SlotId, Lane), f64>,
}

impl Backlog {
    pub(super) fn add(&mut self, entry: Entry, weight: f64) {
        let Some(lane) = self.lanes.get_mut(entry.lane.index()) else { return };
        lane.total += entry.work;
        let tenant = lane.tenants.entry(entry.tenant).or_default();
        tenant.weight = weight;
        tenant.total += entry.work;
        tenant.calls += 1;
        *tenant.due.entry(entry.due).or_default() += entry.work;
    }

    pub(super) fn remove(&mut self, entry: Entry) {
        let Some(lane) = self.lanes.get_mut(entry.lane.index()) else { return };
        lane.total -= entry.work;
        let Some(tenant) = lane.tenants.get_mut(&entry.tenant) else { return };
        tenant.total -= entry.work;
        tenant.calls -= 1;
        if let Some(work) = tenant.due.get_mut(&entry.due) {
            *work -= entry.work;
            if *work == 0 {
                tenant.due.remove(&entry.due);
            }
        }
        if tenant.calls == 0 {
            lane.tenants.remove(&entry.tenant);
        }
    }

    /// A pass has begun that is expected to end then.
    pub(super) fn begin(&mut self, until: Instant) -> u64 {
        self.passes += 1;
        self.running.push((self.passes, until));
        self.passes
    }

    /// That pass has ended.
    pub(super) fn end(&mut self, pass: u64) {
        self.running.retain(|(running, _)| *running != pass);
    }

    /// Work that waits and runs before such an entry has run, itself not included, in ns.
    fn ahead_of(&self, entry: Entry, weight: f64) -> u64 {
        let above: u64 = self.lanes.iter().take(entry.lane.index()).map(|lane| lane.total).sum();
        let Some(lane) = self.lanes.get(entry.lane.index()) else { return above };
        let own: u64 = lane
            .tenants
            .get(&entry.tenant)
            .map_or(0, |own| own.due.range(..=entry.due).map(|(_, w)| w).sum());
        let others = lane.tenants.iter().filter(|(tenant, _)| **tenant != entry.tenant).map(|(_, other)| {
            let meanwhile = (own + entry.work) as f64 * other.weight / weight;
            other.total.min(meanwhile as u64)
        });
        above + own + others.sum::<u64>()
    }

    /// How long until an executor takes such an entry: each takes of what is ahead as soon as its pass has ended.
    pub(super) fn wait(&self, entry: Entry, weight: f64, executors: usize, now: Instant) -> Duration {
        // What is overdue will take as long again: a stuck pass frees nobody.
        let left =
            |until: &Instant| until.saturating_duration_since(now) + now.saturating_duration_since(*until);
        let mut left: SmallVec<[Duration; 8]> = self.running.iter().map(|(_, until)| left(until)).collect();
        left.sort_unstable();
        let executors = executors.max(1);
        let idle = executors.saturating_sub(left.len());
        let free = std::iter::repeat_n(Duration::ZERO, idle).chain(left).take(executors);
        let mut ahead = Duration::from_nanos(self.ahead_of(entry, weight));
        // All executors that are free by then work on it side by side; the level rises to where it is done.
        let (mut level, mut taking) = (Duration::ZERO, 0);
        for next in free {
            let rise = (next - level) * taking;
            if taking > 0 && rise >= ahead {
                break;
            }
            ahead -= rise;
            (level, taking) = (next, taking + 1);
        }
        level + ahead / taking.max(1)
    }

    /// What estimates for that model in that lane are multiplied by.
    pub(super) fn margin(&self, slot: SlotId, lane: Lane) -> f64 {
        self.margins.get(&(slot, lane)).copied().unwrap_or(1.0)
    }

    /// Forgets what was learned of all other slots.
    pub(super) fn keep_only(&mut self, slots: &HashSet<SlotId>) {
        self.margins.retain(|(slot, _), _| slots.contains(slot));
    }

    /// What came of a call that was let in and that a greater margin might have kept out.
    pub(super) fn learn(&mut self, slot: SlotId, lane: Lane, estimate: Duration, late: bool) {
        // Robbins and Monro: comes to rest where that part of the calls is late.
        self.step(slot, lane, estimate, if late { 1.0 - MAY_BE_LATE } else { -MAY_BE_LATE });
    }

    /// A call that should have been refused by its estimate was in time.
    pub(super) fn was_too_careful(&mut self, slot: SlotId, lane: Lane, estimate: Duration) {
        self.step(slot, lane, estimate, -TOO_CAREFUL);
    }

    fn step(&mut self, slot: SlotId, lane: Lane, estimate: Duration, step: f64) {
        if estimate >= TELLING {
            let margin = self.margins.entry((slot, lane)).or_insert(1.0);
            *margin = (*margin * (1.0 + STEP * step)).clamp(*MARGINS.start(), *MARGINS.end());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::ModelSlot;

    const MS: u64 = 1_000_000;

    fn entry(lane: Lane, tenant: u32, due: u64, ms: u64) -> Entry {
        Entry { lane, tenant: TenantId(tenant), due, work: ms * MS }
    }

    #[test]
    fn what_is_ahead_is_what_runs_before() {
        let mut backlog = Backlog::default();
        for e in [
            entry(Lane::Critical, 0, 500, 10),
            entry(Lane::Normal, 0, 100, 20),
            entry(Lane::Normal, 0, 300, 40),
            entry(Lane::Low, 0, 1, 1000),
        ] {
            backlog.add(e, 1.0);
        }
        let ahead = |lane, due| backlog.ahead_of(entry(lane, 0, due, 1), 1.0) / MS;
        assert_eq!(ahead(Lane::Critical, 400), 0);
        assert_eq!(ahead(Lane::High, 1), 10);
        assert_eq!(ahead(Lane::Normal, 200), 30);
        assert_eq!(ahead(Lane::Normal, u64::MAX), 70);
        assert_eq!(ahead(Lane::Low, u64::MAX), 1070);
    }

    #[test]
    fn other_tenants_are_ahead_by_their_shares() {
        let mut backlog = Backlog::default();
        for due in 0..100 {
            backlog.add(entry(Lane::Normal, 1, due, 10), 1.0);
        }
        backlog.add(entry(Lane::Normal, 2, 0, 10), 1.0);
        let ahead = |weight| backlog.ahead_of(entry(Lane::Normal, 2, 500, 10), weight) / MS;
        assert_eq!(ahead(1.0), 10 + 20, "as much as its own two");
        assert_eq!(ahead(4.0), 10 + 5);
        assert_eq!(backlog.ahead_of(entry(Lane::Normal, 3, 500, 10), 1.0) / MS, 10 + 10);
    }

    #[test]
    fn executors_take_work_as_they_become_free() {
        let (mut backlog, now) = (Backlog::default(), Instant::now());
        let after = |ms| now + Duration::from_millis(ms);
        let wait = |backlog: &Backlog, executors| {
            let due = entry(Lane::Normal, 0, 900, 1);
            backlog.wait(due, 1.0, executors, now).as_micros()
        };
        assert_eq!(wait(&backlog, 1), 0);
        let first = backlog.begin(after(10));
        assert_eq!((wait(&backlog, 1), wait(&backlog, 2)), (10_000, 0));
        backlog.begin(after(30));
        assert_eq!(wait(&backlog, 2), 10_000, "the first that is free");
        backlog.add(entry(Lane::Normal, 0, 0, 15), 1.0);
        assert_eq!(wait(&backlog, 2), 25_000);
        backlog.add(entry(Lane::Normal, 0, 0, 15), 1.0);
        assert_eq!(wait(&backlog, 2), 35_000, "20 on the first alone, 5 on each");
        assert_eq!(wait(&backlog, 3), 20_000);
        backlog.end(first);
        assert_eq!(wait(&backlog, 2), 30_000);
        let urgent = entry(Lane::High, 0, 0, 1);
        assert_eq!(backlog.wait(urgent, 1.0, 1, after(45)), Duration::from_millis(15), "overdue by as much");
    }

    #[test]
    fn what_ended_leaves_nothing_behind() {
        let mut backlog = Backlog::default();
        let entries: Vec<_> = (0..1000).map(|i| entry(Lane::High, 7, i % 13, i)).collect();
        entries.iter().for_each(|e| backlog.add(*e, 1.0));
        entries.iter().for_each(|e| backlog.remove(*e));
        assert!(backlog.lanes.iter().all(|lane| lane.total == 0 && lane.tenants.is_empty()));
    }

    #[test]
    fn the_margin_comes_to_rest_where_few_are_late() {
        let mut backlog = Backlog::default();
        let slot = |name: &str| ModelSlot::new(name.parse().unwrap()).id();
        let (slot, other) = (slot("m"), slot("other"));
        let estimate = Duration::from_millis(10);
        let (mut seed, mut wrong) = (1_u64, 0);
        for call in 0..20_000 {
            // What it takes is anything up to three times the estimate.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let took = Duration::from_micros(100 + (seed >> 33) % 29_900);
            let margin = backlog.margin(slot, Lane::Normal);
            // Its deadline is as near as may be.
            let late = took > estimate.mul_f64(margin);
            wrong += u32::from(call >= 10_000 && late);
            backlog.learn(slot, Lane::Normal, estimate, late);
        }
        assert!((200..=400).contains(&wrong), "{wrong} of 10000");
        assert_eq!((backlog.margin(slot, Lane::Low), backlog.margin(other, Lane::Normal)), (1.0, 1.0));
        // One that refuses all finds out by those that it lets in all the same.
        let before = backlog.margin(slot, Lane::Normal);
        (0..20).for_each(|_| backlog.was_too_careful(slot, Lane::Normal, estimate));
        assert!(backlog.margin(slot, Lane::Normal) < 0.62 * before);
    }
}
