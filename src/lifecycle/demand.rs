//! Loads models because requests ask for them: each model once, however many wait for it, the most urgent first.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{
    Asker, Manager,
    entry::{Arrival, Demand, Demanded, Entry},
};
use crate::{
    admission::{Residents, Wanted, not_ready},
    error::{Error, Reason, Result},
    model::{LoadMode, ModelName},
    registry::Awaiting,
    residency::ResidencyMetrics,
    residency::{LaneGate, ReloadPolicy},
};

/// When models are loaded, and how requests wait for that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResidencyConfig {
    /// Of models that do not say.
    pub load: LoadMode,
    /// What a reload does that does not fit beside the old version.
    pub reload: ReloadPolicy,
    /// Longest that a request without a deadline waits.
    pub max_wait: Duration,
    /// Requests that may wait for loads, in all.
    pub max_waiting: usize,
    /// Requests that may wait for the load of one model.
    pub max_waiting_per_model: usize,
    /// Loads for requests at once.
    pub at_once: usize,
}

impl Default for ResidencyConfig {
    fn default() -> Self {
        Self {
            load: LoadMode::default(),
            reload: ReloadPolicy::default(),
            max_wait: Duration::from_secs(30),
            max_waiting: 1024,
            max_waiting_per_model: 256,
            at_once: 1,
        }
    }
}

/// What brings models into memory for requests.
pub struct OnDemand {
    manager: Arc<Manager>,
    gate: Arc<LaneGate>,
    /// Loads run there, not on the thread that reads the request.
    runtime: Handle,
    waiting: Arc<AtomicUsize>,
    metrics: ResidencyMetrics,
}

impl fmt::Debug for OnDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OnDemand").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl OnDemand {
    /// Loads through `manager`, in tasks of `runtime`.
    pub fn new(manager: Arc<Manager>, runtime: Handle, metrics: ResidencyMetrics) -> Arc<Self> {
        let gate = LaneGate::new(manager.config.residency.at_once);
        Arc::new(Self { manager, gate, runtime, waiting: Arc::default(), metrics })
    }

    /// Begins the load, or joins those who wait for it.
    fn join(&self, wanted: &Wanted, now: Instant) -> Result<Joined> {
        let Some(entry) = self.manager.entries.lock().get(wanted.model.name()).cloned() else {
            return Err(not_ready(wanted.model.name()));
        };
        let place = Place::take(self, wanted)?;
        let mut begun = None;
        let demand = entry.demand(now, || {
            let turn = begun.insert(self.gate.enter(wanted.lane));
            Demanded::new(&self.gate, turn.place(), wanted.lane)
        });
        let demanded = match demand {
            Demand::Loaded => None,
            Demand::UnderWay(demanded) => {
                demanded.raise(wanted.lane);
                Some(demanded)
            }
            Demand::Begun(demanded) => {
                if let Some(turn) = begun {
                    let load = load(self.manager.clone(), entry.clone(), demanded.clone(), turn);
                    self.manager.tasks.spawn_on(load, &self.runtime);
                }
                Some(demanded)
            }
            Demand::Failed(error, wait) => return Err(failed(entry.name(), &error, wait)),
            Demand::No => return Err(not_ready(entry.name())),
        };
        let Some(demanded) = demanded else { return Ok(Joined::There(place)) };
        let rest = rest(&entry, &demanded, now);
        if let (Some(rest), Some(deadline)) = (rest, wanted.deadline)
            && now + rest > deadline
        {
            // The load goes on: whoever comes again finds it done.
            let message =
                format!("model '{}' is being loaded, and the deadline is before its end", entry.name());
            return Err(Error::new(Reason::ModelNotReady, message).with_retry_after(rest));
        }
        Ok(Joined::Waits { arrival: demanded.arrival.subscribe(), demanded, entry, place })
    }
}

/// One that waits, or need not.
enum Joined {
    There(Place),
    Waits { arrival: watch::Receiver<Arrival>, demanded: Arc<Demanded>, entry: Arc<Entry>, place: Place },
}

impl Residents for OnDemand {
    fn bring(&self, wanted: Wanted) -> BoxFuture<'static, Result<Awaiting>> {
        let now = Instant::now();
        let joined = match self.join(&wanted, now) {
            Ok(joined) => joined,
            Err(error) => {
                self.metrics.refused();
                return Box::pin(std::future::ready(Err(error)));
            }
        };
        let (metrics, until) =
            (self.metrics.clone(), wanted.deadline.unwrap_or(now + self.manager.config.residency.max_wait));
        Box::pin(async move {
            let (mut arrival, demanded, entry, place) = match joined {
                Joined::There(place) => return Ok(place.keep()),
                Joined::Waits { arrival, demanded, entry, place } => (arrival, demanded, entry, place),
            };
            // What is loaded beside the live version comes after it.
            let serves = |arrival: &Arrival| match arrival {
                Arrival::Coming => false,
                Arrival::Live => {
                    let (slot, version) = wanted.model.find(&wanted.version);
                    slot.lease().is_some_and(|lease| version.admits(lease.version))
                }
                Arrival::Done | Arrival::Failed(..) => true,
            };
            let come = timeout_at(until, arrival.wait_for(serves)).await;
            let outcome = match come {
                Ok(Ok(arrival)) => match &*arrival {
                    Arrival::Failed(error, _) if error.reason() == Reason::ShuttingDown => Err(error.clone()),
                    // One that is there can serve, whatever became of others beside it.
                    Arrival::Failed(error, wait) if wanted.model.lease().is_none() => {
                        Err(failed(entry.name(), error, *wait))
                    }
                    _ => Ok(()),
                },
                Ok(Err(_)) => Err(not_ready(entry.name())),
                Err(_late) => {
                    let message = format!("model '{}' is still being loaded: try again", entry.name());
                    let rest = rest(&entry, &demanded, Instant::now()).unwrap_or(RETRY_AFTER);
                    let rest = rest.max(Duration::from_millis(100));
                    Err(Error::new(Reason::ModelNotReady, message).with_retry_after(rest))
                }
            };
            match outcome {
                Ok(()) => {
                    metrics.waited(now.elapsed());
                    Ok(place.keep())
                }
                Err(error) => {
                    metrics.refused();
                    Err(error)
                }
            }
        })
    }
}

/// When it is not known how long a load takes.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is left of the load, as far as that is known.
fn rest(entry: &Entry, demanded: &Demanded, now: Instant) -> Option<Duration> {
    let takes = entry.load_takes()?;
    let ran = demanded.began.get().map(|began| now.saturating_duration_since(*began)).unwrap_or_default();
    Some(takes.saturating_sub(ran))
}

fn failed(model: &ModelName, error: &Error, wait: Duration) -> Error {
    let message = format!("model '{model}' could not be loaded: {error}");
    Error::new(Reason::ModelNotReady, message).with_retry_after(wait)
}

/// A place among those who wait.
struct Place {
    awaiting: Awaiting,
    _counted: Counted,
}

/// One of those who wait, in all.
struct Counted(Arc<AtomicUsize>);

impl Place {
    fn take(of: &OnDemand, wanted: &Wanted) -> Result<Self> {
        let config = &of.manager.config.residency;
        // Counted before it is asked how many there are, so that two cannot both be the last.
        let all = of.waiting.fetch_add(1, Ordering::Relaxed) + 1;
        let place = Self { awaiting: wanted.model.await_load(), _counted: Counted(of.waiting.clone()) };
        let (setting, most) = if all > config.max_waiting {
            ("memory.max_waiting", config.max_waiting)
        } else if wanted.model.awaiting() > config.max_waiting_per_model as u64 {
            ("memory.max_waiting_per_model", config.max_waiting_per_model)
        } else {
            return Ok(place);
        };
        let message = format!(
            "{most} requests wait for model '{}' or others to be loaded ({setting})",
            wanted.model.name()
        );
        Err(Error::new(Reason::QueueFull, message).with_retry_after(RETRY_AFTER))
    }

    /// It need not be counted any more, but what came must not go before it has been looked at.
    fn keep(self) -> Awaiting {
        self.awaiting
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sees one load through.
async fn load(
    manager: Arc<Manager>,
    entry: Arc<Entry>,
    demanded: Arc<Demanded>,
    turn: crate::residency::GateWait,
) {
    let mut ending = Ending { entry: &entry, demanded: &demanded, outcome: None };
    // Not with the pass in hand: others would wait too.
    manager.after_uploads(entry.name().as_str()).await;
    demanded.turn(turn.pass().await);
    let _once = demanded.began.set(Instant::now());
    let outcome = manager.load_wanted(&entry).await;
    demanded.step_out();
    if entry.live().is_some() {
        manager.config.memory.asked_back(entry.name());
    }
    ending.outcome = Some(outcome);
}

/// A load that requests wait for ends for them whatever becomes of it: also if it panics or is dropped.
struct Ending<'a> {
    entry: &'a Entry,
    demanded: &'a Demanded,
    outcome: Option<Result<()>>,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.demanded.step_out();
        let broken_off = || {
            let message = "the load was broken off: the server's log says why";
            Err(Error::new(Reason::Internal, message))
        };
        self.entry.demand_ended(self.outcome.take().unwrap_or_else(broken_off), Instant::now());
    }
}

impl Manager {
    /// Loads what should be loaded of a model that is left to requests, as it was seen on disk last.
    async fn load_wanted(&self, entry: &Entry) -> Result<()> {
        let _alone = entry.sync_in_turn().await;
        let found = match entry.last_found() {
            Some(found) => found,
            None => self.find(entry.name().as_str()).await?,
        };
        loop {
            // What is on trial may be taken back, and what was proven is live.
            self.after_uploads(entry.name().as_str()).await;
            if entry.live().is_some() {
                return Ok(());
            }
            let outcome = self.bring_in_line(entry, &found, &Asker::Request).await;
            match outcome {
                // Somebody changes it: what comes of that counts, and only if it is nothing this is tried again.
                Err(error) if error.reason() == Reason::Superseded => {
                    entry.changed().await;
                    if entry.live().is_some() || !entry.is_on_demand() {
                        return Ok(());
                    }
                }
                Ok(()) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}
