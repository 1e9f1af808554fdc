//! Everything that may run, over all models, in one order. Pure: a function of what was pushed and of `now`.
//!
//! Jobs that may share a batch stand in one group; the heads of all groups stand in one [`LaneQueue`]. So the next
//! job is found, and its batch filled, in the logarithm of the queue's length, however many models wait.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap, HashMap},
    time::Duration,
};

use tokio::time::Instant;

mod delay;

use torchlane_model::{BatchKey, Batching, Lane, TenantId, VersionSelector};

use super::{LaneQueue, Place, PlanInput, Profile, RowClass, Shares, rows_to_take};
use crate::registry::SlotId;

/// What the queue must know of a job.
pub trait Schedulable {
    /// Its lane.
    fn lane(&self) -> Lane;
    /// Whose it is, and what share of a lane that tenant gets beside others.
    fn tenant(&self) -> (TenantId, f64);
    /// When it is of no use any more.
    fn deadline(&self) -> Option<Instant>;
    /// Rows that it adds to a batch.
    fn rows(&self) -> usize;
    /// What it may share a batch with.
    fn group(&self) -> GroupKey;
    /// Most rows in one batch of its model.
    fn max_batch(&self) -> usize;
    /// Batches of its model that may run at once; 0 is any number.
    fn max_concurrency(&self) -> usize;
    /// What its model asks for beyond that; `None` where that is nothing.
    fn batching(&self) -> Option<&Batching>;
    /// When it came.
    fn submitted(&self) -> Instant;
    /// What passes of its model take, and the class of its rows.
    fn profile(&self) -> Option<(&Profile, RowClass)>;
}

/// How the queue shares the executors out.
#[derive(Debug, Clone, Copy)]
pub struct QueueConfig {
    /// As for [`Shares`].
    pub min_share: f64,
    /// Longest pass that is planned: whoever comes after it began waits that long. A single job may take longer.
    pub max_block: Duration,
    /// Choose sizes of batches by the profile; otherwise all that waits is taken.
    pub learned: bool,
    /// Executors that may run batches led by LOW at once.
    pub low_executors: usize,
}

/// Jobs with equal keys may share a batch. `batch` is `None` for jobs that run alone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GroupKey {
    /// The model.
    pub slot: SlotId,
    /// The version wanted.
    pub version: VersionSelector,
    /// Datatypes and trailing shapes.
    pub batch: Option<BatchKey>,
}

/// Where a job stands, to take it out again.
#[derive(Debug, Clone, Copy)]
pub struct Handle {
    group: u64,
    lane: Lane,
    tenant: TenantId,
    place: Place,
}

/// What a tenant's part of a batch cost.
#[derive(Debug, Clone, Copy)]
pub struct Charge {
    /// In that lane.
    pub lane: Lane,
    /// Whose.
    pub tenant: TenantId,
    /// That tenant's share beside others.
    pub weight: f64,
    /// Time of an executor.
    pub cost: Duration,
}

/// One batch, and what was found too late on the way to it.
#[derive(Debug)]
pub struct Popped<J> {
    /// Most urgent first; empty when nothing can run.
    pub jobs: Vec<J>,
    /// Jobs whose deadline has passed or is too near for a pass: to be answered, not run.
    pub late: Vec<J>,
    /// More can run now.
    pub more: bool,
    /// When to look again: until then some jobs are kept waiting for others to share their batch.
    pub wait_until: Option<Instant>,
}

#[derive(Debug)]
struct Group<J> {
    key: GroupKey,
    jobs: LaneQueue<J>,
    rows: usize,
    held: Option<delay::Held>,
}

impl<J> Group<J> {
    /// The first job of each lane and tenant.
    fn heads(&self) -> impl Iterator<Item = (Lane, TenantId, Place)> + '_ {
        Lane::ALL.into_iter().flat_map(move |lane| {
            let first = move |(tenant, _)| Some((lane, tenant, self.jobs.first_of(lane, tenant)?.0));
            self.jobs.tenants(lane).filter_map(first)
        })
    }
}

#[derive(Debug, Default)]
struct SlotRun {
    running: usize,
    limit: usize,
    groups: Vec<u64>,
}

impl SlotRun {
    fn is_full(&self) -> bool {
        self.limit > 0 && self.running >= self.limit
    }
}

/// The run queue.
#[derive(Debug)]
pub struct RunQueue<J> {
    /// For each group, lane and tenant the first job, except for models that run as often as they may and for groups that are
    /// held.
    heads: LaneQueue<u64>,
    groups: HashMap<u64, Group<J>>,
    by_key: HashMap<GroupKey, u64>,
    slots: HashMap<SlotId, SlotRun>,
    shares: Shares,
    max_block: Duration,
    learned: bool,
    low_running: usize,
    low_executors: usize,
    arrivals: u64,
    next_group: u64,
    waiting: [usize; 4],
    /// Groups that are kept waiting for more jobs, and until when.
    held: BTreeSet<(Instant, u64)>,
    /// Some model has asked for that. Until then it costs nothing.
    delays: bool,
}

impl<J: Schedulable> RunQueue<J> {
    /// An empty queue.
    pub fn new(config: QueueConfig) -> Self {
        Self {
            heads: LaneQueue::default(),
            groups: HashMap::new(),
            by_key: HashMap::new(),
            slots: HashMap::new(),
            shares: Shares::new(config.min_share),
            max_block: config.max_block,
            learned: config.learned,
            low_running: 0,
            low_executors: config.low_executors.max(1),
            arrivals: 0,
            next_group: 0,
            waiting: [0; 4],
            held: BTreeSet::new(),
            delays: false,
        }
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting().iter().all(|count| *count == 0)
    }

    /// Jobs that wait, by lane.
    pub fn waiting(&self) -> [usize; 4] {
        self.waiting
    }

    /// Adds a job.
    pub fn push(&mut self, job: J) -> Handle {
        self.arrivals += 1;
        let (lane, (tenant, _)) = (job.lane(), job.tenant());
        let (place, key) = (Place::new(job.deadline(), self.arrivals), job.group());
        self.set_limit(key.slot, job.max_concurrency());
        let slot = self.slots.entry(key.slot).or_default();
        let id = *self.by_key.entry(key).or_insert_with_key(|key| {
            self.next_group += 1;
            self.groups.insert(
                self.next_group,
                Group { key: key.clone(), jobs: LaneQueue::default(), rows: 0, held: None },
            );
            slot.groups.push(self.next_group);
            self.next_group
        });
        let full = slot.is_full();
        self.delays |= job.batching().is_some_and(|batching| !batching.max_delay.is_zero());
        self.release_for(id, &job);
        if let Some(group) = self.groups.get_mut(&id) {
            let head = group.jobs.first_of(lane, tenant).map(|(place, _)| place);
            if head.is_none_or(|head| place < head) && !full && group.held.is_none() {
                // The new head first: a tenant with nothing in between would lose its place among the others.
                self.heads.push(lane, tenant, place, id);
                if let Some(head) = head {
                    self.heads.remove(lane, tenant, head);
                }
            }
            group.rows += job.rows();
            group.jobs.push(lane, tenant, place, job);
            self.count(lane, 1);
        }
        Handle { group: id, lane, tenant, place }
    }

    /// A reload may raise or lower how often a model may run at once. Heads are indexed exactly where it is not full.
    fn set_limit(&mut self, id: SlotId, limit: usize) {
        let slot = self.slots.entry(id).or_default();
        let was_full = slot.is_full();
        slot.limit = limit;
        match (was_full, slot.is_full()) {
            (true, false) => {
                for group in slot.groups.clone() {
                    self.index(group);
                }
            }
            (false, true) => self.hide_if_full(id),
            _ => {}
        }
    }

    /// Takes a job out, wherever it stands; `None` if it runs already or has ended.
    pub fn remove(&mut self, handle: Handle) -> Option<J> {
        let job = self.take(handle.group, handle.lane, handle.tenant, handle.place)?;
        self.forget_if_empty(handle.group);
        Some(job)
    }

    /// The next batch. Its model counts as running until [`RunQueue::finished`].
    pub fn pop(&mut self, now: Instant, idle_executors: usize) -> Popped<J> {
        let mut popped = Popped { jobs: Vec::new(), late: Vec::new(), more: false, wait_until: None };
        self.release_due(now);
        while let Some(lane) = self.shares.pick(self.eligible()) {
            let Some((tenant, place, &id)) = self.heads.first(lane) else { break };
            if self.delays && self.hold(id, now) {
                continue;
            }
            let Some(job) = self.take(id, lane, tenant, place) else { break };
            if place.is_late(now) || !can_be_in_time(&job, now) {
                popped.late.push(job);
                self.forget_if_empty(id);
                continue;
            }
            self.low_running += usize::from(lane == Lane::Low);
            self.fill(id, job, now, idle_executors, &mut popped);
            if let Some(slot) = self.groups.get(&id).map(|group| group.key.slot) {
                if let Some(run) = self.slots.get_mut(&slot) {
                    run.running += 1;
                }
                self.hide_if_full(slot);
            }
            self.forget_if_empty(id);
            break;
        }
        popped.more = self.eligible().contains(&true);
        popped.wait_until = self.held.first().map(|(until, _)| *until);
        popped
    }

    /// Lanes with work that may run now.
    fn eligible(&self) -> [bool; 4] {
        let mut waiting = self.heads.waiting();
        if let Some(low) = waiting.get_mut(Lane::Low.index()) {
            *low &= self.low_running < self.low_executors;
        }
        waiting
    }

    fn fill(&mut self, id: u64, first: J, now: Instant, idle_executors: usize, popped: &mut Popped<J>) {
        let mut rows = first.rows();
        let Some(group) = self.groups.get(&id) else { return };
        let limit = match group.key.batch {
            None => 0,
            Some(_) => rows_to_take(&PlanInput {
                max_batch: first.max_batch(),
                waiting_rows: group.rows + rows,
                // What was waited for is not split again.
                idle_executors: if delay::of(&first).is_zero() { idle_executors } else { 0 },
                buckets: first.batching().map_or(&[], |batching| &batching.buckets),
                profile: first.profile().filter(|_| self.learned),
                within: first.deadline().map_or(self.max_block, |deadline| {
                    self.max_block.min(deadline.saturating_duration_since(now))
                }),
            }),
        };
        if rows >= limit {
            popped.jobs.push(first);
            return;
        }
        let row_cost = first.profile().and_then(|(profile, class)| profile.time(class, 1));
        let row_cost = row_cost.map_or(1e-3, |time| time.mean.as_secs_f64());
        let (own_lane, (own_tenant, own_weight)) = (first.lane(), first.tenant());
        let own_turn = rows as f64 * row_cost / own_weight;
        popped.jobs.push(first);
        for lane in Lane::ALL {
            // Tenants take turns within the batch as they do between batches.
            let Some(group) = self.groups.get(&id).filter(|group| group.jobs.len(lane) > 0) else { continue };
            let mut turns: BinaryHeap<_> = group
                .jobs
                .tenants(lane)
                .map(|(tenant, _)| {
                    let mut served = self.heads.served(lane, tenant);
                    if (lane, tenant) == (own_lane, own_tenant) {
                        served.0 += own_turn;
                    }
                    Reverse((served, tenant))
                })
                .collect();
            while let Some(Reverse((served, tenant))) = turns.pop().filter(|_| rows < limit) {
                let Some(group) = self.groups.get(&id) else { return };
                let Some((place, next)) = group.jobs.first_of(lane, tenant) else { continue };
                let (late, more, weight) =
                    (place.is_late(now) || !can_be_in_time(next, now), next.rows(), next.tenant().1);
                if !late && rows + more > limit {
                    // Nothing behind it overtakes: a large request would starve.
                    return;
                }
                let Some(job) = self.take(id, lane, tenant, place) else { return };
                let mut served = served;
                if late {
                    popped.late.push(job);
                } else {
                    rows += more;
                    served.0 += more as f64 * row_cost / weight;
                    popped.jobs.push(job);
                }
                turns.push(Reverse((served, tenant)));
            }
        }
    }

    /// What a batch has cost, at its end.
    pub fn charge(&mut self, costs: &[Charge]) {
        let waiting = self.waiting.map(|count| count > 0);
        for Charge { lane, tenant, weight, cost } in costs {
            self.shares.charge(*lane, *cost, waiting);
            self.heads.charge(*lane, *tenant, cost.as_secs_f64() / weight);
        }
    }

    /// A batch of that model, led by that lane, has ended or is given up: others may take its place.
    pub fn finished(&mut self, slot: SlotId, lead: Lane) {
        if lead == Lane::Low {
            self.low_running = self.low_running.saturating_sub(1);
        }
        let Some(run) = self.slots.get_mut(&slot) else { return };
        let was_full = run.is_full();
        run.running = run.running.saturating_sub(1);
        if was_full && !run.is_full() {
            for id in run.groups.clone() {
                self.index(id);
            }
        }
        if self.slots.get(&slot).is_some_and(|run| run.running == 0 && run.groups.is_empty()) {
            self.slots.remove(&slot);
        }
    }

    /// Takes everything out, most urgent first within each group.
    pub fn drain(&mut self) -> Vec<J> {
        self.heads = LaneQueue::default();
        self.held.clear();
        self.by_key.clear();
        self.waiting = [0; 4];
        for run in self.slots.values_mut() {
            run.groups.clear();
        }
        let mut groups = std::mem::take(&mut self.groups);
        groups.values_mut().flat_map(|group| group.jobs.drain()).collect()
    }

    /// Takes one job out of its group and mends the index.
    fn take(&mut self, id: u64, lane: Lane, tenant: TenantId, place: Place) -> Option<J> {
        let group = self.groups.get_mut(&id)?;
        let was_head = group.jobs.first_of(lane, tenant).is_some_and(|(head, _)| head == place);
        let job = group.jobs.remove(lane, tenant, place)?;
        group.rows -= job.rows().min(group.rows);
        let next = group.jobs.first_of(lane, tenant).map(|(next, _)| next);
        let hidden = group.held.is_some() || self.slots.get(&group.key.slot).is_some_and(SlotRun::is_full);
        self.count(lane, -1);
        if was_head && !hidden {
            if let Some(next) = next {
                self.heads.push(lane, tenant, next, id);
            }
            self.heads.remove(lane, tenant, place);
        }
        Some(job)
    }

    fn count(&mut self, lane: Lane, change: isize) {
        if let Some(count) = self.waiting.get_mut(lane.index()) {
            *count = count.saturating_add_signed(change);
        }
    }

    fn index(&mut self, id: u64) {
        let Some(group) = self.groups.get(&id).filter(|group| group.held.is_none()) else { return };
        for (lane, tenant, place) in group.heads() {
            self.heads.push(lane, tenant, place, id);
        }
    }

    fn hide_if_full(&mut self, slot: SlotId) {
        let Some(run) = self.slots.get(&slot).filter(|run| run.is_full()) else { return };
        for group in run.groups.iter().filter_map(|id| self.groups.get(id)) {
            for (lane, tenant, place) in group.heads() {
                self.heads.remove(lane, tenant, place);
            }
        }
    }

    /// Groups come and go with their jobs, so shapes seen once leave nothing behind.
    fn forget_if_empty(&mut self, id: u64) {
        if !self.groups.get(&id).is_some_and(|group| group.jobs.is_empty()) {
            return;
        }
        let Some(group) = self.groups.remove(&id) else { return };
        self.by_key.remove(&group.key);
        if let Some(held) = group.held {
            self.held.remove(&(held.until, id));
        }
        if let Some(run) = self.slots.get_mut(&group.key.slot) {
            run.groups.retain(|other| *other != id);
            if run.running == 0 && run.groups.is_empty() {
                self.slots.remove(&group.key.slot);
            }
        }
    }
}

/// False where the time that is left is clearly less than a pass takes: it would only keep others from being in time.
fn can_be_in_time(job: &impl Schedulable, now: Instant) -> bool {
    let (Some(deadline), Some((profile, class))) = (job.deadline(), job.profile()) else { return true };
    profile.time(class, job.rows()).is_none_or(|time| {
        time.mean.saturating_sub(time.deviation) <= deadline.saturating_duration_since(now)
    })
}

#[cfg(test)]
mod tests;
