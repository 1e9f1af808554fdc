//! The one order in which anything waits: lane, then deadline, then arrival; and the share that keeps lower lanes
//! from starving. Pure: used by the priority limiter and by the run queue.

use std::{collections::BTreeMap, time::Duration};

use tokio::time::Instant;

use crate::model::Lane;

const LANES: usize = Lane::ALL.len();

/// Where something stands within its lane: earliest deadline first, then arrival. No deadline comes last.
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

/// Things waiting in lanes, in order. Every operation costs the logarithm of the lane's length.
#[derive(Debug)]
pub struct LaneQueue<T> {
    lanes: [BTreeMap<Place, T>; LANES],
}

impl<T> Default for LaneQueue<T> {
    fn default() -> Self {
        Self { lanes: std::array::from_fn(|_| BTreeMap::new()) }
    }
}

impl<T> LaneQueue<T> {
    /// Adds something.
    pub fn push(&mut self, lane: Lane, place: Place, item: T) {
        self.lane_mut(lane).insert(place, item);
    }

    /// Takes something out again, wherever it stands.
    pub fn remove(&mut self, lane: Lane, place: Place) -> Option<T> {
        self.lane_mut(lane).remove(&place)
    }

    /// The first of that lane.
    pub fn first(&self, lane: Lane) -> Option<(Place, &T)> {
        self.lane(lane).first_key_value().map(|(place, item)| (*place, item))
    }

    /// Takes the first of that lane.
    pub fn pop(&mut self, lane: Lane) -> Option<(Place, T)> {
        self.lane_mut(lane).pop_first()
    }

    /// Length of that lane.
    pub fn len(&self, lane: Lane) -> usize {
        self.lane(lane).len()
    }

    /// Nothing waits in any lane.
    pub fn is_empty(&self) -> bool {
        self.lanes.iter().all(BTreeMap::is_empty)
    }

    /// Lanes in which something waits, as the flags that [`Shares`] takes.
    pub fn waiting(&self) -> [bool; LANES] {
        std::array::from_fn(|i| self.lanes.get(i).is_some_and(|lane| !lane.is_empty()))
    }

    /// Everything, most urgent first.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.lanes.iter_mut().flat_map(|lane| std::mem::take(lane).into_values())
    }

    #[expect(clippy::indexing_slicing, reason = "a lane's index is below LANES by construction")]
    fn lane(&self, lane: Lane) -> &BTreeMap<Place, T> {
        &self.lanes[lane.index()]
    }

    #[expect(clippy::indexing_slicing, reason = "a lane's index is below LANES by construction")]
    fn lane_mut(&mut self, lane: Lane) -> &mut BTreeMap<Place, T> {
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

    proptest! {
        #[test]
        fn the_queue_keeps_the_order_of_a_sorted_list(
            items in prop::collection::vec((0_usize..4, prop::option::of(0_u64..20)), 0..100),
            remove in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
        ) {
            let now = Instant::now();
            let mut queue = LaneQueue::default();
            let mut model = Vec::new();
            for (arrival, (lane, deadline)) in items.iter().enumerate() {
                let deadline = deadline.map(|d| now + Duration::from_secs(d));
                let place = Place::new(deadline, arrival as u64);
                queue.push(Lane::ALL[*lane], place, arrival);
                // The naive order: deadline where there is one, else infinitely late; then arrival.
                model.push((*lane, deadline.map_or(Duration::MAX, |d| d - now), arrival, place));
            }
            for index in remove {
                if model.is_empty() { break; }
                let (lane, _, arrival, place) = model.remove(index.index(model.len()));
                prop_assert_eq!(queue.remove(Lane::ALL[lane], place), Some(arrival));
            }
            model.sort_by_key(|(lane, deadline, arrival, _)| (*lane, *deadline, *arrival));
            let mut popped = Vec::new();
            for lane in Lane::ALL {
                while let Some((_, item)) = queue.pop(lane) { popped.push(item); }
            }
            prop_assert_eq!(popped, model.iter().map(|m| m.2).collect::<Vec<_>>());
        }
    }
}
