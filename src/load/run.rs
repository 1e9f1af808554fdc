//! Sends several loads at once and times every request.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::{sync::mpsc, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Arrivals, Latency, LoadReport, LoadSpec, Pace, Protocol, Report, TargetError,
    target::{Client, Prepared},
};

/// How to run loads.
#[derive(Debug, Clone)]
pub struct RunConfig {
    /// Where the server is.
    pub addr: String,
    /// What it speaks.
    pub protocol: Protocol,
    /// Time before anything is counted.
    pub warm_up: Duration,
    /// Time that is counted.
    pub duration: Duration,
    /// Connections for each load.
    pub connections: usize,
    /// For arrivals and tensors.
    pub seed: u64,
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            addr: "127.0.0.1:50051".to_owned(),
            protocol: Protocol::default(),
            warm_up: Duration::from_secs(1),
            duration: Duration::from_secs(10),
            connections: 1,
            seed: 1,
        }
    }
}

/// Requests that are due within so long of each other go out together: at high rates a wake-up for each takes longer than
/// sending it.
const TOGETHER: Duration = Duration::from_micros(100);
/// Of a caller that was refused.
const PAUSE: Duration = Duration::from_millis(5);
/// After the last request: how long answers are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one load came to so far.
#[derive(Debug)]
struct Tally {
    latency: Histogram<u64>,
    lag: Histogram<u64>,
    sent: u64,
    unsent: u64,
    ok: u64,
    /// Answered well before the end, whenever they were due.
    answered: u64,
    errors: BTreeMap<String, u64>,
    /// By second: answered well, and the longest of them in µs.
    timeline: Vec<(u64, u64)>,
}

impl Tally {
    fn new() -> Self {
        Self {
            latency: histogram(),
            lag: histogram(),
            sent: 0,
            unsent: 0,
            ok: 0,
            answered: 0,
            errors: BTreeMap::new(),
            timeline: Vec::new(),
        }
    }
}

#[expect(clippy::expect_used, reason = "the bounds are constants")]
fn histogram() -> Histogram<u64> {
    // 1 µs to 5 minutes, three digits.
    Histogram::new_with_bounds(1, 300_000_000, 3).expect("valid bounds")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX).max(1)
}

struct Running {
    spec: LoadSpec,
    prepared: Prepared,
    clients: Vec<Client>,
    tally: Mutex<Tally>,
    /// From here on requests count.
    from: Instant,
    until: Instant,
}

impl Running {
    /// Sends one request that should have gone out at `due`.
    async fn one(&self, client: usize, due: Instant) -> bool {
        let Some(mut client) = self.clients.get(client % self.clients.len().max(1)).cloned() else {
            return false;
        };
        let began = Instant::now();
        let outcome = client.send(&self.prepared, &self.spec).await;
        let (ended, well) = (Instant::now(), outcome.is_ok());
        let mut tally = self.tally.lock();
        tally.answered += u64::from(well && (self.from..self.until).contains(&ended));
        if !(self.from..self.until).contains(&due) {
            return well;
        }
        tally.sent += 1;
        tally.lag.saturating_record(micros(began - due));
        match outcome {
            Ok(()) => {
                let took = micros(ended - due);
                tally.ok += 1;
                tally.latency.saturating_record(took);
                let second = usize::try_from((due - self.from).as_secs()).unwrap_or(0);
                if tally.timeline.len() <= second {
                    tally.timeline.resize(second + 1, (0, 0));
                }
                if let Some((count, longest)) = tally.timeline.get_mut(second) {
                    *count += 1;
                    *longest = (*longest).max(took);
                }
            }
            Err(reason) => *tally.errors.entry(reason).or_default() += 1,
        }
        well
    }
}

/// Runs all loads side by side and says what came of them. `progress` is called about ten times a second with the part
/// that is done, from 0 to 1.
///
/// # Errors
/// No server, or a model that it does not have.
pub async fn run(
    config: &RunConfig,
    specs: &[LoadSpec],
    mut progress: impl FnMut(f64),
) -> Result<Report, TargetError> {
    let mut ready = Vec::new();
    for (spec, seed) in specs.iter().zip(config.seed..) {
        let mut clients = Vec::new();
        for _ in 0..config.connections.max(1) {
            clients.push(Client::connect(&config.addr, config.protocol).await?);
        }
        let Some(first) = clients.first_mut() else { continue };
        let prepared = first.prepare(&config.addr, spec, seed).await?;
        ready.push((spec.clone(), prepared, clients));
    }
    let start = Instant::now() + Duration::from_millis(50);
    let (from, until) = (start + config.warm_up, start + config.warm_up + config.duration);
    let loads: Vec<Arc<Running>> = ready
        .into_iter()
        .map(|(spec, prepared, clients)| {
            Arc::new(Running { spec, prepared, clients, tally: Mutex::new(Tally::new()), from, until })
        })
        .collect();
    let calls = TaskTracker::new();
    let (due, mut dues) = mpsc::unbounded_channel();
    let gone = CancellationToken::new();
    let _stops_pacing = gone.clone().drop_guard();
    let paces: Vec<Pace> = loads.iter().map(|load| load.spec.pace).collect();
    let seed = config.seed;
    // The timers of the runtime are too coarse: a thread sleeps until each request is due.
    let pacing = std::thread::spawn(move || pace(&paces, start, until, seed, &gone, &due));
    for load in &loads {
        let Pace::Closed { callers } = load.spec.pace else { continue };
        for caller in 0..callers {
            let load = load.clone();
            calls.spawn(async move {
                tokio::time::sleep_until(start).await;
                while Instant::now() < load.until {
                    if !load.one(caller, Instant::now()).await {
                        // A server that refuses at once, or is gone, is not asked without pause.
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            });
        }
    }
    let mut open: Vec<(Arc<tokio::sync::Semaphore>, usize)> =
        loads.iter().map(|load| (Arc::new(tokio::sync::Semaphore::new(load.spec.outstanding)), 0)).collect();
    let mut tick = tokio::time::interval(Duration::from_millis(100));
    let whole = (until - start).as_secs_f64().max(1e-9);
    loop {
        tokio::select! {
            due = dues.recv() => {
                let Some((index, due)) = due else { break };
                let (Some(load), Some((places, turn))) = (loads.get(index), open.get_mut(index)) else { continue };
                *turn += 1;
                match places.clone().try_acquire_owned() {
                    Ok(place) => {
                        let (load, turn) = (load.clone(), *turn);
                        calls.spawn(async move {
                            load.one(turn, due).await;
                            drop(place);
                        });
                    }
                    Err(_) => load.tally.lock().unsent += u64::from(due >= from),
                }
            }
            now = tick.tick() => progress((now.saturating_duration_since(start).as_secs_f64() / whole).min(1.0)),
        }
    }
    tokio::time::sleep_until(until).await;
    progress(1.0);
    calls.close();
    let _unanswered = tokio::time::timeout(PATIENCE, calls.wait()).await;
    let _ended = pacing.join();
    let loads = loads.iter().map(|load| report(load, config.duration)).collect();
    Ok(Report {
        addr: config.addr.clone(),
        protocol: format!("{:?}", config.protocol).to_lowercase(),
        seconds: config.duration.as_secs_f64(),
        loads,
    })
}

/// Says when each request of the open loops is due, in order, until the end.
fn pace(
    paces: &[Pace],
    start: Instant,
    until: Instant,
    seed: u64,
    gone: &CancellationToken,
    due: &mpsc::UnboundedSender<(usize, Instant)>,
) {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut gap = |pace: &Pace| match pace {
        Pace::Closed { .. } => None,
        Pace::Open { rate, arrivals: Arrivals::Constant } => Some(1.0 / rate),
        // The times between independent events are exponential.
        Pace::Open { rate, arrivals: Arrivals::Poisson } => Some(-(1.0 - random.f64()).ln() / rate),
    };
    let mut next: Vec<Option<Instant>> =
        paces.iter().map(|pace| gap(pace).map(|gap| start + Duration::from_secs_f64(gap))).collect();
    while !gone.is_cancelled() {
        let first = next.iter().enumerate().filter_map(|(i, at)| Some((i, (*at)?))).min_by_key(|(_, at)| *at);
        let Some((index, at)) = first.filter(|(_, at)| *at < until) else { return };
        let wait = at.saturating_duration_since(Instant::now());
        if !wait.is_zero() {
            std::thread::sleep(wait.max(TOGETHER));
        }
        if due.send((index, at)).is_err() {
            return;
        }
        if let (Some(slot), Some(gap)) = (next.get_mut(index), paces.get(index).and_then(&mut gap)) {
            *slot = Some(at + Duration::from_secs_f64(gap));
        }
    }
}

fn report(load: &Running, duration: Duration) -> LoadReport {
    let tally = load.tally.lock();
    let answered: u64 = tally.ok + tally.errors.values().sum::<u64>();
    LoadReport {
        name: load.spec.name.clone(),
        model: load.spec.model.clone(),
        pace: match load.spec.pace {
            Pace::Open { rate, arrivals } => format!("{rate}/s {arrivals:?}").to_lowercase(),
            Pace::Closed { callers } => format!("{callers} callers"),
        },
        sent: tally.sent,
        unsent: tally.unsent,
        ok: tally.ok,
        refused: answered - tally.ok,
        errors: tally.errors.clone(),
        rate: tally.answered as f64 / duration.as_secs_f64(),
        rows_per_second: tally.answered as f64 * load.spec.rows as f64 / duration.as_secs_f64(),
        latency: Latency::of(&tally.latency),
        generator_lag_p99_ms: tally.lag.value_at_quantile(0.99) as f64 / 1e3,
        timeline: tally.timeline.iter().map(|(count, longest)| (*count, *longest as f64 / 1e3)).collect(),
    }
}
