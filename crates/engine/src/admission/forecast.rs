//! Refuses at once what could not be answered by its deadline, by the work that is ahead of it and what passes take.
//!
//! How far such estimates are off is learned: of the calls that are let in, a few in a hundred may be late; and of those that would be refused one in [`TRIAL`] is let in all the same, to see whether it was in time.

use std::{
    collections::HashSet,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use torchlane_model::{
    Lane,
    error::{Error, Reason},
};
use tower::{Layer, Service};

use super::backlog::{Backlog, Entry};
use crate::{call::BoundCall, registry::SlotId};

/// One in so many calls that would be refused is let in.
const TRIAL: u64 = 32;

/// What calls with a deadline came to, by lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Deadlines {
    /// Refused at once.
    pub refused: [u64; 4],
    /// Let in and answered in time.
    pub in_time: [u64; 4],
    /// Let in and not answered in time.
    pub late: [u64; 4],
    /// Let in against the estimate, and answered in time all the same.
    pub trial_in_time: [u64; 4],
    /// Let in against the estimate, and not answered in time.
    pub trial_late: [u64; 4],
}

/// What is known of calls, shared by every clone of the service.
#[derive(Debug)]
pub struct Forecaster {
    state: Mutex<State>,
    executors: usize,
    max_block: Duration,
    start: Instant,
}

#[derive(Debug, Default)]
struct State {
    backlog: Backlog,
    deadlines: Deadlines,
    /// Calls that were late by their estimate.
    hopeless: [u64; 4],
}

/// What was thought of a call when it came.
#[derive(Debug, Clone, Copy)]
struct Estimate {
    slot: SlotId,
    /// From then to the answer, margin not included.
    takes: Duration,
    /// That was much of the time that it had: what becomes of it says something of the estimate.
    near: bool,
    /// It would be late by this, and was let in to see.
    trial: bool,
}

impl Forecaster {
    /// Forgets what was learned of all other slots.
    pub fn keep_only(&self, slots: &HashSet<SlotId>) {
        self.state.lock().backlog.keep_only(slots);
    }

    /// For that many executors and batches of at most `max_block`.
    pub fn new(executors: usize, max_block: Duration) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), executors, max_block, start: Instant::now() })
    }

    /// What calls with a deadline came to so far.
    pub fn deadlines(&self) -> Deadlines {
        self.state.lock().deadlines
    }

    /// Counts the call among what is ahead of others, or refuses it. `None`: its model has not run.
    fn enter(self: &Arc<Self>, call: &BoundCall) -> Result<Option<(Ahead, Estimate)>, Error> {
        let rows = call.binding.rows.max(1);
        let max_batch = call.slot.lease().map_or(1, |lease| lease.max_batch());
        let Some(cost) = call.slot.profile().cost(call.class, rows, max_batch, self.max_block) else {
            return Ok(None);
        };
        let due = call.call.deadline.map_or(u64::MAX, |deadline| {
            u64::try_from(deadline.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
        });
        let work = (cost.share * 1e9) as u64;
        let (slot, lane, tenant) = (call.slot.id(), call.lane, call.tenant.as_ref());
        let entry = Entry { lane, tenant: tenant.id(), due, work };
        let now = Instant::now();
        let mut state = self.state.lock();
        let wait = state.backlog.wait(entry, tenant.weight(), self.executors, now);
        // Behind others it will be in a batch with them.
        let pass = if wait.as_secs_f64() > cost.alone { cost.pass.max(cost.alone) } else { cost.alone };
        let takes = wait + Duration::from_secs_f64(pass);
        let (mut near, mut trial) = (false, false);
        if let Some(deadline) = call.call.deadline {
            let left = deadline.saturating_duration_since(now);
            let likely = takes.mul_f64(state.backlog.margin(slot, lane));
            near = 2 * likely > left;
            if likely > left {
                trial = count(&mut state.hopeless, lane).is_multiple_of(TRIAL);
                if !trial {
                    count(&mut state.deadlines.refused, lane);
                    return Err(too_late(likely, left));
                }
            }
        }
        state.backlog.add(entry, tenant.weight());
        drop(state);
        Ok(Some((Ahead { forecaster: self.clone(), entry }, Estimate { slot, takes, near, trial })))
    }

    fn ended(&self, lane: Lane, estimate: Option<Estimate>, in_time: Option<bool>) {
        let mut state = self.state.lock();
        let State { backlog, deadlines, .. } = &mut *state;
        let trial = estimate.is_some_and(|estimate| estimate.trial);
        match (trial, in_time) {
            (false, Some(true)) => count(&mut deadlines.in_time, lane),
            (false, Some(false)) => count(&mut deadlines.late, lane),
            (true, Some(true)) => count(&mut deadlines.trial_in_time, lane),
            (true, Some(false)) => count(&mut deadlines.trial_late, lane),
            (_, None) => 0,
        };
        match (estimate, in_time) {
            (Some(Estimate { slot, takes, trial: true, .. }), Some(true)) => {
                backlog.was_too_careful(slot, lane, takes);
            }
            (Some(Estimate { slot, takes, near: true, trial: false }), Some(in_time)) => {
                backlog.learn(slot, lane, takes, !in_time);
            }
            _ => {}
        }
    }
}

/// The count with this one.
fn count(by_lane: &mut [u64; 4], lane: Lane) -> u64 {
    by_lane.get_mut(lane.index()).map_or(0, |count| {
        *count += 1;
        *count
    })
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

/// A call's work while it waits.
#[derive(Debug)]
pub struct Ahead {
    forecaster: Arc<Forecaster>,
    entry: Entry,
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.forecaster.state.lock().backlog.remove(self.entry);
    }
}

/// A pass that holds an executor, until it is dropped.
#[derive(Debug)]
pub struct Underway {
    forecaster: Arc<Forecaster>,
    pass: u64,
}

impl Underway {
    /// The calls do not wait any more: they run, and will have run after `takes`. `None` where nothing is known of them.
    pub fn begin(calls: impl IntoIterator<Item = Ahead>, takes: Duration) -> Option<Self> {
        let mut calls = calls.into_iter().peekable();
        let forecaster = calls.peek()?.forecaster.clone();
        calls.for_each(drop);
        let pass = forecaster.state.lock().backlog.begin(Instant::now() + takes);
        Some(Self { forecaster, pass })
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        self.forecaster.state.lock().backlog.end(self.pass);
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
            Ok(known) => {
                let (ahead, estimate) = known.unzip();
                call.ahead = ahead;
                let forecaster = self.forecaster.clone();
                let watch = Some(Watch { forecaster, lane, deadline, estimate, ending: Ending::Left });
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
    estimate: Option<Estimate>,
    ending: Ending,
}

/// How a call ended.
#[derive(Debug, Clone, Copy)]
enum Ending {
    /// Its future was dropped: the deadline came, or the caller left, which says nothing.
    Left,
    Answered,
    /// The scheduler saw that it would be late.
    Late,
    /// For a reason that says nothing about time.
    Refused,
}

impl Drop for Watch {
    fn drop(&mut self) {
        let passed = self.deadline.map(|deadline| Instant::now() >= deadline);
        let in_time = match self.ending {
            Ending::Answered => passed.map(|passed| !passed),
            Ending::Late => Some(false),
            Ending::Left if passed == Some(true) => Some(false),
            Ending::Left | Ending::Refused => return,
        };
        self.forecaster.ended(self.lane, self.estimate, in_time);
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
            watch.ending = match &result {
                Ok(_) => Ending::Answered,
                Err(error) if error.reason() == Reason::DeadlineExceeded => Ending::Late,
                Err(_) => Ending::Refused,
            };
        }
        Poll::Ready(result)
    }
}
