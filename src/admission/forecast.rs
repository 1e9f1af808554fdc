//! Refuses at once what could not be answered by its deadline, by the work that is ahead of it and what passes take.
//!
//! Work is counted in the order in which it will run: all of the lanes above; of the same lane the tenant's own with an
//! earlier deadline, and of other tenants what their shares let them have meanwhile. How far such estimates are off is
//! learned: of the calls that are let in, a few in a hundred may take longer than was thought.

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::{
    call::BoundCall,
    error::{Error, Reason},
    model::{Lane, TenantId},
};

/// Part of the calls let in that may take longer than estimated.
const MAY_BE_WRONG: f64 = 0.03;
/// How fast the margin follows.
const STEP: f64 = 0.05;
/// Bounds of what estimates are multiplied by.
const MARGINS: std::ops::RangeInclusive<f64> = 0.3..=8.0;
/// Shorter estimates say more about the machine's moods than about the queue.
const TELLING: Duration = Duration::from_millis(2);

/// What calls with a deadline came to, by lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deadlines {
    /// Refused at once.
    pub refused: [u64; 4],
    /// Let in and answered in time.
    pub in_time: [u64; 4],
    /// Let in and not answered in time.
    pub late: [u64; 4],
}

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

/// The work that is in the server. Pure.
#[derive(Debug)]
struct Backlog {
    lanes: [LaneWork; 4],
    /// What estimates are multiplied by.
    margins: [f64; 4],
    deadlines: Deadlines,
}

/// A call's place in the backlog.
#[derive(Debug, Clone, Copy)]
struct Entry {
    lane: Lane,
    tenant: TenantId,
    due: u64,
    work: u64,
}

impl Backlog {
    fn new() -> Self {
        Self {
            lanes: std::array::from_fn(|_| LaneWork::default()),
            margins: [1.0; 4],
            deadlines: Deadlines::default(),
        }
    }

    fn add(&mut self, entry: Entry, weight: f64) {
        let Some(lane) = self.lanes.get_mut(entry.lane.index()) else { return };
        lane.total += entry.work;
        let tenant = lane.tenants.entry(entry.tenant).or_default();
        tenant.weight = weight;
        tenant.total += entry.work;
        tenant.calls += 1;
        *tenant.due.entry(entry.due).or_default() += entry.work;
    }

    fn remove(&mut self, entry: Entry) {
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

    /// Work that runs before such an entry has run, itself not included, in ns.
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

    /// A call whose estimate was `estimate`, margin not included, took `took`; `None`: longer than it had.
    fn learn(&mut self, lane: Lane, estimate: Duration, took: Option<Duration>) {
        let Some(margin) = self.margins.get_mut(lane.index()) else { return };
        if estimate < TELLING {
            return;
        }
        // Robbins and Monro: comes to rest where that part of the calls takes longer.
        let wrong = took.is_none_or(|took| took > estimate.mul_f64(*margin));
        let step = if wrong { 1.0 - MAY_BE_WRONG } else { -MAY_BE_WRONG };
        *margin = (*margin * (1.0 + STEP * step)).clamp(*MARGINS.start(), *MARGINS.end());
    }
}

/// The backlog, shared by every clone of the service.
#[derive(Debug)]
pub struct Forecaster {
    backlog: Mutex<Backlog>,
    executors: f64,
    max_block: Duration,
    start: Instant,
}

impl Forecaster {
    /// For that many executors and batches of at most `max_block`.
    pub fn new(executors: usize, max_block: Duration) -> Arc<Self> {
        let backlog = Mutex::new(Backlog::new());
        Arc::new(Self { backlog, executors: executors.max(1) as f64, max_block, start: Instant::now() })
    }

    /// What calls with a deadline came to so far.
    pub fn deadlines(&self) -> Deadlines {
        self.backlog.lock().deadlines
    }

    /// Counts the call among what is ahead of others, or refuses it. The estimate is `None` for a model that has not run.
    fn enter(self: &Arc<Self>, call: &BoundCall) -> Result<(Option<Ahead>, Option<Duration>), Error> {
        let rows = call.binding.rows.max(1);
        let max_batch = call.slot.lease().map_or(1, |lease| lease.max_batch);
        let Some(cost) = call.slot.profile().cost(call.class, rows, max_batch, self.max_block) else {
            return Ok((None, None));
        };
        let due = call.call.deadline.map_or(u64::MAX, |deadline| {
            u64::try_from(deadline.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
        });
        let work = (cost.share * 1e9) as u64;
        let (lane, tenant) = (call.lane, call.tenant.as_ref());
        let entry = Entry { lane, tenant: tenant.id(), due, work };
        let mut backlog = self.backlog.lock();
        let wait = backlog.ahead_of(entry, tenant.weight()) as f64 * 1e-9 / self.executors;
        // Behind others it will be in a batch with them.
        let pass = if wait > cost.alone { cost.pass.max(cost.alone) } else { cost.alone };
        let estimate = Duration::from_secs_f64(wait + pass);
        if let Some(deadline) = call.call.deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            let margin = backlog.margins.get(lane.index()).copied().unwrap_or(1.0);
            let likely = estimate.mul_f64(margin);
            if likely > left {
                count(&mut backlog.deadlines.refused, lane);
                return Err(too_late(likely, left));
            }
        }
        backlog.add(entry, tenant.weight());
        drop(backlog);
        Ok((Some(Ahead { forecaster: self.clone(), entry }), Some(estimate)))
    }

    fn ended(&self, lane: Lane, estimate: Option<Duration>, took: Duration, in_time: Option<bool>) {
        let mut backlog = self.backlog.lock();
        match in_time {
            Some(true) => count(&mut backlog.deadlines.in_time, lane),
            Some(false) => count(&mut backlog.deadlines.late, lane),
            None => {}
        }
        if let Some(estimate) = estimate {
            backlog.learn(lane, estimate, Some(took).filter(|_| in_time != Some(false)));
        }
    }
}

fn count(by_lane: &mut [u64; 4], lane: Lane) {
    if let Some(count) = by_lane.get_mut(lane.index()) {
        *count += 1;
    }
}

fn too_late(likely: Duration, left: Duration) -> Error {
    let ms = |duration: Duration| format!("{:.1}", duration.as_secs_f64() * 1e3);
    let message = format!(
        "it would take about {} ms with what is ahead of it, the deadline is in {} ms",
        ms(likely),
        ms(left)
    );
    Error::new(Reason::DeadlineExceeded, message)
        .with_detail("estimate_ms", ms(likely))
        .with_retry_after(likely.saturating_sub(left))
}

/// A call's work while it is in the server.
#[derive(Debug)]
pub struct Ahead {
    forecaster: Arc<Forecaster>,
    entry: Entry,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.forecaster.backlog.lock().remove(self.entry);
    }
}

/// Puts a [`Forecast`] around a service.
#[derive(Debug, Clone)]
pub struct ForecastLayer {
    forecaster: Arc<Forecaster>,
}

impl ForecastLayer {
    /// A layer whose services count in `forecaster`.
    pub fn new(forecaster: Arc<Forecaster>) -> Self {
        Self { forecaster }
    }
}

impl<S> Layer<S> for ForecastLayer {
    type Service = Forecast<S>;

    fn layer(&self, inner: S) -> Forecast<S> {
        Forecast { inner, forecaster: self.forecaster.clone() }
    }
}

/// Refuses calls that would be late, and learns from how long the others take.
#[derive(Debug, Clone)]
pub struct Forecast<S> {
    inner: S,
    forecaster: Arc<Forecaster>,
}

impl<S> Service<BoundCall> for Forecast<S>
where
    S: Service<BoundCall, Error = Error>,
{
    type Response = S::Response;
    type Error = Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut call: BoundCall) -> Self::Future {
        let (lane, deadline) = (call.lane, call.call.deadline);
        match self.forecaster.enter(&call) {
            Err(error) => ResponseFuture { inner: None, error: Some(error), watch: None },
            Ok((ahead, estimate)) => {
                call.ahead = ahead;
                let since = Instant::now();
                let forecaster = self.forecaster.clone();
                let watch = Some(Watch { forecaster, lane, deadline, estimate, since, answered: None });
                ResponseFuture { inner: Some(self.inner.call(call)), error: None, watch }
            }
        }
    }
}

/// Sees how a call ends, also where its future is dropped at the deadline.
#[derive(Debug)]
struct Watch {
    forecaster: Arc<Forecaster>,
    lane: Lane,
    deadline: Option<Instant>,
    estimate: Option<Duration>,
    since: Instant,
    /// Whether there was an answer; refusals say nothing about time.
    answered: Option<bool>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let now = Instant::now();
        let passed = self.deadline.map(|deadline| now >= deadline);
        let in_time = match self.answered {
            Some(true) => passed.map(|passed| !passed),
            Some(false) => return,
            // Dropped: the deadline came, or the caller left, which says nothing.
            None if passed == Some(true) => Some(false),
            None => return,
        };
        self.forecaster.ended(self.lane, self.estimate, now - self.since, in_time);
    }
}

pin_project! {
    /// The inner future, watched; or a refusal.
    pub struct ResponseFuture<F> {
        #[pin]
        inner: Option<F>,
        error: Option<Error>,
        watch: Option<Watch>,
    }
}

impl<F, T> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, Error>>,
{
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(inner) = this.inner.as_pin_mut() else {
            let again = || Error::new(Reason::Internal, "a refused call was polled after it had ended");
            return Poll::Ready(Err(this.error.take().unwrap_or_else(again)));
        };
        let result = ready!(inner.poll(cx));
        if let Some(mut watch) = this.watch.take() {
            watch.answered = match &result {
                Ok(_) => Some(true),
                // The scheduler saw that it would be late.
                Err(error) if error.reason() == Reason::DeadlineExceeded => {
                    watch.deadline = Some(watch.since);
                    None
                }
                Err(_) => Some(false),
            };
        }
        Poll::Ready(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn entry(lane: Lane, tenant: u32, due: u64, ms: u64) -> Entry {
        Entry { lane, tenant: TenantId(tenant), due, work: ms * MS }
    }

    #[test]
    fn what_is_ahead_is_what_runs_before() {
        let mut backlog = Backlog::new();
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
        let mut backlog = Backlog::new();
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
    fn what_ended_leaves_nothing_behind() {
        let mut backlog = Backlog::new();
        let entries: Vec<_> = (0..1000).map(|i| entry(Lane::High, 7, i % 13, i)).collect();
        entries.iter().for_each(|e| backlog.add(*e, 1.0));
        entries.iter().for_each(|e| backlog.remove(*e));
        assert!(backlog.lanes.iter().all(|lane| lane.total == 0 && lane.tenants.is_empty()));
    }

    #[test]
    fn the_margin_comes_to_rest_where_few_are_wrong() {
        let mut backlog = Backlog::new();
        let (mut seed, mut wrong) = (1_u64, 0);
        for call in 0..20_000 {
            // What it takes is anything up to three times the estimate.
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let took = Duration::from_micros(100 + (seed >> 33) % 29_900);
            let margin = backlog.margins[Lane::Normal.index()];
            let estimate = Duration::from_millis(10);
            wrong += u32::from(call >= 10_000 && took > estimate.mul_f64(margin));
            backlog.learn(Lane::Normal, estimate, Some(took));
        }
        assert!((200..=400).contains(&wrong), "{wrong} of 10000");
        assert_eq!(backlog.margins[Lane::Low.index()], 1.0);
    }
}
