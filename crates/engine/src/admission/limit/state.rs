//! Tickets and the lanes that wait for them.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::{sync::oneshot, time::Instant};
use torchlane_model::{
    Lane, TenantId,
    error::{Error, Reason},
};

use super::super::Tenant;
use crate::sched::{LaneQueue, Place, Shares};

/// Share of the tickets that each lane leaves to the lanes above it, together with the lanes below it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Headroom {
    /// HIGH and below leave this to CRITICAL.
    pub high: f64,
    /// NORMAL and below leave this to HIGH and CRITICAL.
    pub normal: f64,
    /// LOW leaves this to all others.
    pub low: f64,
}

/// How much may be in flight, and how much may wait.
#[derive(Debug, Clone, Copy)]
pub struct LimitConfig {
    /// Tickets.
    pub max_in_flight: usize,
    /// Calls that may wait in each lane.
    pub queue_depth: usize,
    /// What is kept back from lower lanes.
    pub headroom: Headroom,
    /// Fraction of the tickets that a waiting lower lane gets at least.
    pub min_share: f64,
}

/// The limiter's state, shared by every clone of the service.
#[derive(Debug)]
pub struct Limiter {
    caps: [usize; 4],
    queue_depth: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    in_flight: [usize; 4],
    waiting: LaneQueue<Waiter>,
    shares: Shares,
    arrivals: u64,
    rate: ReleaseRate,
}

/// A call that waits.
#[derive(Debug)]
struct Waiter {
    tenant: Arc<Tenant>,
    granted: oneshot::Sender<Result<Ticket, Error>>,
}

/// What the limiter holds at one moment, by lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimitSnapshot {
    /// Tickets out.
    pub in_flight: [usize; 4],
    /// Calls waiting.
    pub waiting: [usize; 4],
}

/// The right to be in flight; freed when dropped.
#[derive(Debug)]
pub struct Ticket {
    limiter: Arc<Limiter>,
    lane: Lane,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.limiter.clone().release(self.lane);
    }
}

/// A place in a lane's queue; given up when dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    limiter: Arc<Limiter>,
    lane: Lane,
    tenant: TenantId,
    place: Place,
    pub(super) granted: oneshot::Receiver<Result<Ticket, Error>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Granted in the meantime? Then the ticket lies in the channel, and dropping the receiver frees it.
        let abandoned = self.limiter.state.lock().waiting.remove(self.lane, self.tenant, self.place);
        drop(abandoned);
    }
}

/// What [`Limiter::enter`] decides at once.
#[derive(Debug)]
pub(super) enum Entry {
    Granted(Ticket),
    Queued(Waiting),
}

impl Limiter {
    /// A limiter with nothing in flight. At least one ticket is always there for each lane.
    pub fn new(config: LimitConfig) -> Arc<Self> {
        let max = config.max_in_flight.max(1);
        let leave = |share: f64| max.saturating_sub((max as f64 * share).round() as usize).max(1);
        let Headroom { high, normal, low } = config.headroom;
        let (high, normal, low) = (leave(high), leave(normal), leave(low));
        Arc::new(Self {
            caps: [max, high, normal.min(high), low.min(normal).min(high)],
            queue_depth: config.queue_depth,
            state: Mutex::new(State {
                in_flight: [0; 4],
                waiting: LaneQueue::default(),
                shares: Shares::new(config.min_share),
                arrivals: 0,
                rate: ReleaseRate::default(),
            }),
        })
    }

    /// A ticket now, a place in the queue, or a refusal. In a full lane a tenant with few calls takes the place of the last
    /// call of the one with the most, by weight.
    pub(super) fn enter(
        self: &Arc<Self>,
        lane: Lane,
        tenant: &Arc<Tenant>,
        deadline: Option<Instant>,
    ) -> Result<Entry, Error> {
        let mut state = self.state.lock();
        // Whoever waits in this lane or above was first; those below wait for headroom that this lane may use.
        let overtakes = Lane::ALL.into_iter().take_while(|l| *l <= lane).any(|l| state.waiting.len(l) > 0);
        if !overtakes && self.fits(&state, lane) {
            state.take(lane);
            return Ok(Entry::Granted(Ticket { limiter: self.clone(), lane }));
        }
        let depth = state.waiting.len(lane);
        let mut evicted = None;
        if depth >= self.queue_depth {
            let error = full(lane, depth, state.rate.time_for(depth));
            match state.evict_for(lane, tenant) {
                Some(waiter) => evicted = Some((waiter, error)),
                None => return Err(error),
            }
        }
        state.arrivals += 1;
        let place = Place::new(deadline, state.arrivals);
        let (sender, granted) = oneshot::channel();
        state.waiting.push(lane, tenant.id(), place, Waiter { tenant: tenant.clone(), granted: sender });
        drop(state);
        if let Some((waiter, error)) = evicted {
            let _caller_left = waiter.granted.send(Err(error));
        }
        Ok(Entry::Queued(Waiting { limiter: self.clone(), lane, tenant: tenant.id(), place, granted }))
    }

    /// What is in flight and waiting now.
    pub fn snapshot(&self) -> LimitSnapshot {
        let state = self.state.lock();
        LimitSnapshot { in_flight: state.in_flight, waiting: Lane::ALL.map(|lane| state.waiting.len(lane)) }
    }

    fn release(self: Arc<Self>, lane: Lane) {
        let mut granted: SmallVec<[_; 4]> = SmallVec::new();
        {
            let mut state = self.state.lock();
            if let Some(count) = state.in_flight.get_mut(lane.index()) {
                *count = count.saturating_sub(1);
            }
            state.rate.note(Instant::now());
            while let Some((lane, sender)) = self.next(&mut state) {
                state.take(lane);
                granted.push((sender, Ticket { limiter: self.clone(), lane }));
            }
        }
        // Outside the lock: a receiver that has gone hands its ticket back, which comes here again.
        for (sender, ticket) in granted {
            let _returned = sender.send(Ok(ticket));
        }
    }

    fn next(&self, state: &mut State) -> Option<(Lane, oneshot::Sender<Result<Ticket, Error>>)> {
        let waiting = state.waiting.waiting();
        let eligible = std::array::from_fn(|i| {
            waiting.get(i).copied().unwrap_or(false)
                && Lane::ALL.get(i).is_some_and(|lane| self.fits(state, *lane))
        });
        let lane = state.shares.pick(eligible)?;
        // A ticket counts as one unit of time: the scheduler charges what the work really cost.
        state.shares.charge(lane, Duration::from_millis(1), waiting);
        let (tenant, _, waiter) = state.waiting.pop(lane)?;
        state.waiting.charge(lane, tenant, waiter.tenant.turn());
        Some((lane, waiter.granted))
    }

    /// A lane and the lanes below it may hold `caps[lane]` tickets together; all lanes may hold `caps[0]`.
    fn fits(&self, state: &State, lane: Lane) -> bool {
        let held = |from: usize| state.in_flight.iter().skip(from).sum::<usize>();
        (0..=lane.index()).all(|from| self.caps.get(from).is_some_and(|cap| held(from) < *cap))
    }
}

fn full(lane: Lane, depth: usize, retry: Duration) -> Error {
    let message = format!("lane {lane} is full: {depth} requests wait in it already (admission.queue_depth)");
    Error::new(Reason::QueueFull, message).with_retry_after(retry)
}

impl State {
    /// Takes out the last call of the tenant that has the most in the lane for its weight, if that is more than `tenant`
    /// would have.
    fn evict_for(&mut self, lane: Lane, tenant: &Tenant) -> Option<Waiter> {
        let mut mine = 1.0 / tenant.weight();
        let mut most: Option<(f64, TenantId)> = None;
        for (other, count) in self.waiting.tenants(lane) {
            if other == tenant.id() {
                mine = (count + 1) as f64 / tenant.weight();
                continue;
            }
            let weight = self.waiting.first_of(lane, other).map_or(1.0, |(_, first)| first.tenant.weight());
            let has = count as f64 / weight;
            if most.is_none_or(|(most, _)| has > most) {
                most = Some((has, other));
            }
        }
        let (_, heaviest) = most.filter(|(has, _)| *has > mine)?;
        self.waiting.pop_last_of(lane, heaviest)
    }

    fn take(&mut self, lane: Lane) {
        if let Some(count) = self.in_flight.get_mut(lane.index()) {
            *count += 1;
        }
    }
}

/// How fast tickets come back, over the last few hundred of them.
#[derive(Debug, Default)]
struct ReleaseRate {
    recent: VecDeque<Instant>,
}

impl ReleaseRate {
    const WINDOW: usize = 256;

    fn note(&mut self, now: Instant) {
        if self.recent.len() == Self::WINDOW {
            self.recent.pop_front();
        }
        self.recent.push_back(now);
    }

    /// How long a queue of that depth takes to drain, between 10 ms and 10 s; a second where nothing is known.
    fn time_for(&self, depth: usize) -> Duration {
        let span = self.recent.front().zip(self.recent.back()).map(|(first, last)| *last - *first);
        match span {
            Some(span) if self.recent.len() > 1 && !span.is_zero() => {
                let each = span.as_secs_f64() / (self.recent.len() - 1) as f64;
                Duration::from_secs_f64((each * (depth + 1) as f64).clamp(0.01, 10.0))
            }
            _ => Duration::from_secs(1),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::admission::{TenantSettings, Tenants};

    fn limiter(max: usize, depth: usize) -> Arc<Limiter> {
        Limiter::new(LimitConfig {
            max_in_flight: max,
            queue_depth: depth,
            headroom: Headroom { high: 0.1, normal: 0.2, low: 0.4 },
            min_share: 0.05,
        })
    }

    fn ticket(limiter: &Arc<Limiter>, lane: Lane) -> Option<Ticket> {
        match limiter.enter(lane, &tenant(""), None).unwrap() {
            Entry::Granted(ticket) => Some(ticket),
            Entry::Queued(_) => None,
        }
    }

    fn queue(limiter: &Arc<Limiter>, lane: Lane) -> Waiting {
        queue_of(limiter, lane, &tenant(""))
    }

    fn tenant(name: &str) -> Arc<Tenant> {
        Tenants::new(&BTreeMap::from([("b".to_owned(), TenantSettings::default())])).get(name)
    }

    fn queue_of(limiter: &Arc<Limiter>, lane: Lane, tenant: &Arc<Tenant>) -> Waiting {
        match limiter.enter(lane, tenant, None).unwrap() {
            Entry::Queued(waiting) => waiting,
            Entry::Granted(_) => panic!("granted"),
        }
    }

    #[test]
    fn headroom_is_kept_for_upper_lanes() {
        let limiter = limiter(10, 8);
        let low: Vec<_> = std::iter::from_fn(|| ticket(&limiter, Lane::Low)).collect();
        let normal: Vec<_> = std::iter::from_fn(|| ticket(&limiter, Lane::Normal)).collect();
        let high: Vec<_> = std::iter::from_fn(|| ticket(&limiter, Lane::High)).collect();
        let critical: Vec<_> = std::iter::from_fn(|| ticket(&limiter, Lane::Critical)).collect();
        assert_eq!([low.len(), normal.len(), high.len(), critical.len()], [6, 2, 1, 1]);
    }

    #[test]
    fn a_freed_ticket_goes_to_the_most_urgent() {
        let limiter = limiter(1, 8);
        let held = ticket(&limiter, Lane::Low).unwrap();
        let mut low = queue(&limiter, Lane::Low);
        let mut critical = queue(&limiter, Lane::Critical);
        drop(held);
        assert!(low.granted.try_recv().is_err());
        let _ticket = critical.granted.try_recv().unwrap();
    }

    #[test]
    fn leaving_frees_the_place() {
        let limiter = limiter(1, 1);
        let held = ticket(&limiter, Lane::Normal).unwrap();
        let waiting = queue(&limiter, Lane::Normal);
        let error = limiter.enter(Lane::Normal, &tenant(""), None).unwrap_err();
        assert_eq!(error.reason(), Reason::QueueFull);
        assert!(error.retry_after().is_some());
        drop(waiting);
        let waiting = queue(&limiter, Lane::Normal);
        drop(held);
        // Granted, and then the caller leaves without having looked: the ticket must come back.
        drop(waiting);
        assert_eq!(limiter.snapshot(), LimitSnapshot::default());
    }

    #[test]
    fn a_tenant_with_few_calls_takes_the_place_of_one_with_many() {
        let limiter = limiter(1, 8);
        let (a, b) = (tenant(""), tenant("b"));
        let held = ticket(&limiter, Lane::Normal).unwrap();
        let mut of_a: Vec<_> = (0..8).map(|_| queue_of(&limiter, Lane::Normal, &a)).collect();
        assert!(limiter.enter(Lane::Normal, &a, None).is_err(), "its own queue is full");
        let mut of_b: Vec<_> = (0..4).map(|_| queue_of(&limiter, Lane::Normal, &b)).collect();
        assert!(limiter.enter(Lane::Normal, &b, None).is_err(), "half is its share");
        for (i, waiting) in of_a.iter_mut().enumerate() {
            let told = waiting.granted.try_recv().ok().map(|granted| granted.unwrap_err().reason());
            assert_eq!(told, (i >= 4).then_some(Reason::QueueFull), "the last four of A made room");
        }
        // And they take turns.
        drop(held);
        let mut order = String::new();
        for _ in 0..8 {
            let next = of_a.iter_mut().chain(&mut of_b).enumerate().find_map(|(i, waiting)| {
                let granted = waiting.granted.try_recv().ok()?;
                Some((i, granted.ok()?))
            });
            let (i, ticket) = next.unwrap();
            order.push(if i < 8 { 'a' } else { 'b' });
            drop(ticket);
        }
        assert_eq!(order.matches('a').count(), 4);
        assert!(order.starts_with("ab") || order.starts_with("ba"), "{order}");
    }

    #[test]
    fn one_lane_full_does_not_close_another() {
        let limiter = limiter(1, 1);
        let _held = ticket(&limiter, Lane::Low).unwrap();
        let _low = queue(&limiter, Lane::Low);
        assert!(limiter.enter(Lane::Low, &tenant(""), None).is_err());
        let _high = queue(&limiter, Lane::High);
    }

    #[test]
    fn a_low_caller_gets_through_a_critical_flood() {
        let limiter = limiter(1, 4096);
        let held = ticket(&limiter, Lane::Critical).unwrap();
        let mut low = queue(&limiter, Lane::Low);
        let mut flood: VecDeque<_> = (0..2000).map(|_| queue(&limiter, Lane::Critical)).collect();
        drop(held);
        let mut turns = 0;
        while low.granted.try_recv().is_err() {
            turns += 1;
            let mut front = flood.pop_front().expect("LOW starved behind 2000 critical calls");
            drop(front.granted.try_recv());
        }
        assert!((10..=60).contains(&turns), "{turns}");
    }
}
