//! The one order in which anything waits: lane, then the tenant that has had least, then deadline, then arrival; and the
//! share that keeps lower lanes from starving. Pure: used by the priority limiter and by the run queue.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use tokio::time::Instant;

use torchlane_model::{Lane, TenantId};

const LANES: usize = Lane::ALL.len();

/// Where something stands among what its tenant has in a lane: earliest deadline first, then arrival. No deadline comes
/// last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    deadline: Due,
    arrival: u64,
}

/// Variants in the order in which they sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    At(Instant),
    Never,
}

impl Place {
    /// `arrival` must be unique within a queue.
    pub fn new(deadline: Option<Instant>, arrival: u64) -> Self {
        Self { deadline: deadline.map_or(Due::Never, Due::At), arrival }
    }

    /// True once `now` is past the deadline.
    pub fn is_late(&self, now: Instant) -> bool {
        matches!(self.deadline, Due::At(deadline) if deadline <= now)
    }
}

/// What a tenant has been served in a lane, over its weight: start-time fair queueing's virtual time. Never NaN.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Served(pub(super) f64);

impl Eq for Served {}

impl PartialOrd for Served {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Served {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// What waits in one lane.
#[derive(Debug)]
struct Waiting<T> {
    tenants: HashMap<TenantId, BTreeMap<Place, T>>,
    /// Tenants with something waiting, who has been served least first.
    turn: BTreeSet<(Served, TenantId)>,
    /// What each has been served. Who has nothing waiting saves nothing: he comes back at `now`.
    served: HashMap<TenantId, Served>,
    now: Served,
    len: usize,
    /// Number of clocks at which those that say nothing are next thrown away.
    forget_at: usize,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self {
            tenants: HashMap::new(),
            turn: BTreeSet::new(),
            served: HashMap::new(),
            now: Served::default(),
            len: 0,
            forget_at: 0,
        }
    }
}

/// About this many clocks are kept for tenants that have nothing waiting.
const IDLE_CLOCKS: usize = 1024;

impl<T> Waiting<T> {
    fn push(&mut self, tenant: TenantId, place: Place, item: T) {
        let waiting = self.tenants.entry(tenant).or_default();
        if waiting.is_empty() {
            let served = self.served.entry(tenant).or_default();
            *served = (*served).max(self.now);
            self.turn.insert((*served, tenant));
        }
        self.len += usize::from(waiting.insert(place, item).is_none());
    }

    fn remove(&mut self, tenant: TenantId, place: Place) -> Option<T> {
        let waiting = self.tenants.get_mut(&tenant)?;
        let item = waiting.remove(&place)?;
        self.len -= 1;
        if waiting.is_empty() {
            self.tenants.remove(&tenant);
            if let Some(served) = self.served.get(&tenant) {
                self.turn.remove(&(*served, tenant));
            }
            self.forget_clocks();
        }
        Some(item)
    }

    fn first(&self) -> Option<(TenantId, Place, &T)> {
        let (_, tenant) = self.turn.first()?;
        let (place, item) = self.tenants.get(tenant)?.first_key_value()?;
        Some((*tenant, *place, item))
    }

    fn charge(&mut self, tenant: TenantId, amount: f64) {
        let waits = self.tenants.contains_key(&tenant);
        let served = self.served.entry(tenant).or_default();
        if waits {
            self.turn.remove(&(*served, tenant));
        }
        // The lane has got to where the one who was just served began.
        self.now = self.now.max(*served);
        served.0 += amount.max(0.0);
        if self.len == 0 {
            // Nobody waits to catch up: all begin anew.
            self.now = self.now.max(*served);
        }
        if waits {
            self.turn.insert((*served, tenant));
        }
    }

    fn forget_clocks(&mut self) {
        if self.served.len() > self.forget_at.max(IDLE_CLOCKS) {
            let (now, tenants) = (self.now, &self.tenants);
            self.served.retain(|tenant, served| *served > now || tenants.contains_key(tenant));
            self.forget_at = 2 * self.served.len();
        }
    }
}

/// Things waiting in lanes, in order. Every operation costs the logarithm of what waits.
#[derive(Debug)]
pub struct LaneQueue<T> {
    lanes: [Waiting<T>; LANES],
}

impl<T> Default for LaneQueue<T> {
    fn default() -> Self {
        Self { lanes: std::array::from_fn(|_| Waiting::default()) }
    }
}

impl<T> LaneQueue<T> {
    /// Adds something of that tenant.
    pub fn push(&mut self, lane: Lane, tenant: TenantId, place: Place, item: T) {
        self.lane_mut(lane).push(tenant, place, item);
    }

    /// Takes something out again, wherever it stands.
    pub fn remove(&mut self, lane: Lane, tenant: TenantId, place: Place) -> Option<T> {
        self.lane_mut(lane).remove(tenant, place)
    }

    /// The first of that lane.
    pub fn first(&self, lane: Lane) -> Option<(TenantId, Place, &T)> {
        self.lane(lane).first()
    }

    /// The first of that tenant in that lane.
    pub fn first_of(&self, lane: Lane, tenant: TenantId) -> Option<(Place, &T)> {
        self.lane(lane).tenants.get(&tenant)?.first_key_value().map(|(place, item)| (*place, item))
    }

    /// Takes the first of that lane.
    pub fn pop(&mut self, lane: Lane) -> Option<(TenantId, Place, T)> {
        let (tenant, place, _) = self.first(lane)?;
        self.remove(lane, tenant, place).map(|item| (tenant, place, item))
    }

    /// Takes the last of that tenant in that lane.
    pub fn pop_last_of(&mut self, lane: Lane, tenant: TenantId) -> Option<T> {
        let place = *self.lane(lane).tenants.get(&tenant)?.last_key_value()?.0;
        self.remove(lane, tenant, place)
    }

    /// Says that `tenant` has been served: `amount` is seconds over its weight. Its next turn in that lane comes later.
    pub fn charge(&mut self, lane: Lane, tenant: TenantId, amount: f64) {
        self.lane_mut(lane).charge(tenant, amount);
    }

    /// What that tenant has been served in that lane, as charged.
    pub(super) fn served(&self, lane: Lane, tenant: TenantId) -> Served {
        self.lane(lane).served.get(&tenant).copied().unwrap_or_default()
    }

    /// Length of that lane.
    pub fn len(&self, lane: Lane) -> usize {
        self.lane(lane).len
    }

    /// Tenants with something in that lane, who has been served least first, and how much they have in it.
    pub fn tenants(&self, lane: Lane) -> impl Iterator<Item = (TenantId, usize)> + '_ {
        let lane = self.lane(lane);
        lane.turn.iter().map(|(_, tenant)| (*tenant, lane.tenants.get(tenant).map_or(0, BTreeMap::len)))
    }

    /// Nothing waits in any lane.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(|lane| lane.len == 0)
    }

    /// Lanes in which something waits, as the flags that [`Shares`] takes.
    pub fn waiting(&self) -> [bool; LANES] {
        std::array::from_fn(|i| self.lanes.get(i).is_some_and(|lane| lane.len > 0))
    }

    /// Everything, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.lanes.iter().flat_map(|lane| lane.tenants.values().flat_map(BTreeMap::values))
    }

    /// Everything, lane by lane.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.lanes
            .iter_mut()
            .flat_map(|lane| std::mem::take(lane).tenants.into_values().flat_map(BTreeMap::into_values))
    }

    #[expect(clippy::indexing_slicing, reason = "a lane's index is below LANES by construction")]
    fn lane(&self, lane: Lane) -> &Waiting<T> {
        &self.lanes[lane.index()]
    }

    #[expect(clippy::indexing_slicing, reason = "a lane's index is below LANES by construction")]
    fn lane_mut(&mut self, lane: Lane) -> &mut Waiting<T> {
        &mut self.lanes[lane.index()]
    }
}

/// Decides which lane goes next: the most urgent that has work, except that a lower lane which has been owed a
/// whole turn by its minimum share takes it.
///
/// Each time `t` spent on one lane puts `min_share * t` into the account of every other lane that waits; a turn is
/// paid from its own lane's account. A lane is owed a turn when its account covers what its turns have cost on
/// average. Over time a lane that always waits gets `min_share / (1 + min_share)` of the whole at least, and a lane
/// without work saves nothing.
#[derive(Debug, Clone)]
pub struct Shares {
    min_share: f64,
    accounts: [Account; LANES],
}

#[derive(Debug, Clone, Copy)]
struct Account {
    balance_s: f64,
    mean_turn_s: f64,
}

/// Until a lane's first turn has been seen, one is taken to cost this much.
const FIRST_TURN_S: f64 = 1e-3;

impl Shares {
    /// `min_share` is a fraction of the time: 0 is strict priority.
    pub fn new(min_share: f64) -> Self {
        Self { min_share, accounts: [Account { balance_s: 0.0, mean_turn_s: FIRST_TURN_S }; LANES] }
    }

    /// The lane to serve next among those flagged in `waiting`.
    pub fn pick(&self, waiting: [bool; LANES]) -> Option<Lane> {
        let has_work = |lane: &Lane| waiting.get(lane.index()).copied().unwrap_or(false);
        let owed = |lane: &Lane| {
            self.accounts
                .get(lane.index())
                .is_some_and(|a| self.min_share > 0.0 && a.balance_s >= a.mean_turn_s)
        };
        let first = Lane::ALL.into_iter().find(has_work)?;
        // The lowest owed lane first: it is the one that nothing else helps.
        Lane::ALL
            .into_iter()
            .rev()
            .take_while(|lane| *lane > first)
            .find(|l| has_work(l) && owed(l))
            .or(Some(first))
    }

    /// Says that `lane` was served for `cost`, while the lanes flagged in `waiting` waited.
    pub fn charge(&mut self, lane: Lane, cost: Duration, waiting: [bool; LANES]) {
        let cost_s = cost.as_secs_f64();
        for (index, account) in self.accounts.iter_mut().enumerate() {
            if index == lane.index() {
                account.mean_turn_s += (cost_s - account.mean_turn_s) / 8.0;
                // Served beyond its share: no debt is kept, the lane was only using idle time.
                account.balance_s = (account.balance_s - cost_s).max(0.0);
            } else if waiting.get(index).copied().unwrap_or(false) {
                account.balance_s += self.min_share * cost_s;
            } else {
                account.balance_s = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flags(lanes: &[Lane]) -> [bool; LANES] {
        std::array::from_fn(|i| lanes.iter().any(|lane| lane.index() == i))
    }

    #[test]
    fn urgent_lanes_go_first() {
        let shares = Shares::new(0.05);
        assert_eq!(shares.pick(flags(&[Lane::Low, Lane::High])), Some(Lane::High));
        assert_eq!(shares.pick(flags(&[])), None);
    }

    #[test]
    fn a_lane_that_always_waits_gets_its_share_and_not_much_more() {
        for share in [0.01, 0.05, 0.2] {
            let mut shares = Shares::new(share);
            let waiting = flags(&[Lane::Critical, Lane::Normal, Lane::Low]);
            let mut time = [0.0; LANES];
            for _ in 0..200_000 {
                let lane = shares.pick(waiting).unwrap();
                let cost = Duration::from_micros(if lane == Lane::Low { 900 } else { 300 });
                time[lane.index()] += cost.as_secs_f64();
                shares.charge(lane, cost, waiting);
            }
            let total: f64 = time.iter().sum();
            for lane in [Lane::Normal, Lane::Low] {
                let got = time[lane.index()] / total;
                assert!(got > share * 0.7 && got < share * 1.2, "{lane} got {got} of {share}");
            }
        }
    }

    #[test]
    fn an_idle_lane_saves_nothing() {
        let mut shares = Shares::new(0.5);
        for _ in 0..100 {
            shares.charge(Lane::Critical, Duration::from_secs(1), flags(&[Lane::Critical]));
        }
        assert_eq!(shares.pick(flags(&[Lane::Critical, Lane::Low])), Some(Lane::Critical));
    }

    #[test]
    fn strict_without_a_share() {
        let mut shares = Shares::new(0.0);
        let waiting = flags(&[Lane::Critical, Lane::Low]);
        for _ in 0..1000 {
            assert_eq!(shares.pick(waiting), Some(Lane::Critical));
            shares.charge(Lane::Critical, Duration::from_secs(1), waiting);
        }
    }

    #[test]
    fn tenants_take_turns_by_what_they_have_had() {
        let mut queue = LaneQueue::default();
        let (a, b) = (TenantId(1), TenantId(2));
        let mut arrival = 0;
        let mut push = |queue: &mut LaneQueue<TenantId>, tenant| {
            arrival += 1;
            queue.push(Lane::Normal, tenant, Place::new(None, arrival), tenant);
        };
        // A sends ten times what B does; B's passes cost three times as much; B's weight is two.
        let mut time = HashMap::from([(a, 0.0), (b, 0.0)]);
        for round in 0..20_000 {
            while queue.tenants(Lane::Normal).all(|(tenant, waiting)| tenant != b || waiting < 5) {
                (0..10).for_each(|_| push(&mut queue, a));
                push(&mut queue, b);
            }
            let (tenant, _, item) = queue.pop(Lane::Normal).unwrap();
            assert_eq!(tenant, item);
            let cost = if tenant == b { 3e-3 } else { 1e-3 };
            let weight = if tenant == b { 2.0 } else { 1.0 };
            queue.charge(Lane::Normal, tenant, cost / weight);
            if round > 100 {
                *time.get_mut(&tenant).unwrap() += cost;
            }
        }
        let ratio = time[&b] / time[&a];
        assert!(ratio > 1.8 && ratio < 2.2, "{ratio}");
    }

    #[test]
    fn a_tenant_that_was_away_has_saved_nothing() {
        let mut queue = LaneQueue::default();
        let (a, b) = (TenantId(1), TenantId(2));
        for arrival in 0..100 {
            queue.push(Lane::Low, a, Place::new(None, arrival), a);
            queue.pop(Lane::Low).unwrap();
            queue.charge(Lane::Low, a, 1.0);
        }
        for arrival in 100..120 {
            queue.push(Lane::Low, a, Place::new(None, arrival), a);
            queue.push(Lane::Low, b, Place::new(None, 100 + arrival), b);
        }
        let mut turns = Vec::new();
        for _ in 0..10 {
            let (tenant, ..) = queue.pop(Lane::Low).unwrap();
            queue.charge(Lane::Low, tenant, 1.0);
            turns.push(tenant);
        }
        assert_eq!(turns.iter().filter(|tenant| **tenant == a).count(), 5, "{turns:?}");
        assert_eq!(queue.pop_last_of(Lane::Low, b), Some(b));
        assert_eq!(queue.tenants(Lane::Low).map(|(_, n)| n).sum::<usize>(), queue.len(Lane::Low));
    }

    #[test]
    fn clocks_of_those_who_left_are_forgotten() {
        let mut queue = LaneQueue::default();
        for i in 0..100_000_u32 {
            queue.push(Lane::High, TenantId(i), Place::new(None, i.into()), ());
            queue.pop(Lane::High).unwrap();
            queue.charge(Lane::High, TenantId(i), 1.0);
        }
        assert!(queue.lanes.iter().map(|lane| lane.served.len()).sum::<usize>() <= 2 * IDLE_CLOCKS);
    }

    proptest! {
        #[test]
        fn the_queue_keeps_the_order_of_a_sorted_list(
            items in prop::collection::vec((0_usize..4, 0_u32..3, prop::option::of(0_u64..20)), 0..100),
            remove in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            charges in prop::collection::vec((0_usize..4, 0_u32..3, 0_u32..5), 0..10),
        ) {
            let now = Instant::now();
            let mut queue = LaneQueue::default();
            let mut model = Vec::new();
            let mut served = HashMap::new();
            for (arrival, (lane, tenant, deadline)) in items.iter().enumerate() {
                let deadline = deadline.map(|d| now + Duration::from_secs(d));
                let place = Place::new(deadline, arrival as u64);
                queue.push(Lane::ALL[*lane], TenantId(*tenant), place, arrival);
                // The naive order: what the tenant was served; deadline where there is one, else infinitely late; arrival.
                model.push((*lane, *tenant, deadline.map_or(Duration::MAX, |d| d - now), arrival, place));
            }
            for (lane, tenant, amount) in charges {
                queue.charge(Lane::ALL[lane], TenantId(tenant), amount.into());
                *served.entry((lane, tenant)).or_insert(0) += amount;
            }
            for index in remove {
                if model.is_empty() { break; }
                let (lane, tenant, _, arrival, place) = model.remove(index.index(model.len()));
                prop_assert_eq!(queue.remove(Lane::ALL[lane], TenantId(tenant), place), Some(arrival));
            }
            let served = |lane: usize, tenant: u32| served.get(&(lane, tenant)).copied().unwrap_or(0);
            model.sort_by_key(|(lane, tenant, deadline, arrival, _)| {
                (*lane, served(*lane, *tenant), *tenant, *deadline, *arrival)
            });
            let mut popped = Vec::new();
            for lane in Lane::ALL {
                while let Some((_, _, item)) = queue.pop(lane) { popped.push(item); }
            }
            prop_assert_eq!(popped, model.iter().map(|m| m.3).collect::<Vec<_>>());
            prop_assert!(queue.is_empty());
        }
    }
}
