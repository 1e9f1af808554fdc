//! What goes on by itself while the server runs. Each task has a name and is started again if it panics.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, Notify, broadcast::error::RecvError, watch},
    task::JoinHandle,
};

use super::{
    health, idle, resources, rollouts,
    signals::{Others, Wish},
    watchdog,
};
use crate::{
    admission::{Forecaster, Pressure},
    api::health::Health,
    lifecycle::{Manager, ModelStatus, Started, WatchConfig, Watched, watch as watch_repository},
    registry::Registry,
    repository::Found,
    sched::Scheduler,
    tasks::{Need, Pulse, Tasks},
};

/// What the tasks look after.
#[derive(Clone)]
pub(super) struct Looked {
    pub(super) manager: Arc<Manager>,
    pub(super) health: Health,
    pub(super) scheduler: Arc<Scheduler>,
    pub(super) registry: Arc<Registry>,
    pub(super) forecaster: Arc<Forecaster>,
    pub(super) pressure: Arc<Pressure>,
}

/// The settings of the tasks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Config {
    pub(super) watch: WatchConfig,
    pub(super) allow_empty: bool,
    pub(super) stuck_after: Duration,
    /// Where the console listens, if there is one.
    pub(super) console: Option<SocketAddr>,
}

/// Those that are under way.
pub(super) struct Background {
    /// They change models: they end before requests do.
    changing: Vec<JoinHandle<()>>,
    /// They look after the server until no request is left.
    looking: Vec<JoinHandle<()>>,
}

/// What each repository held when its models of the start were loaded, by its place among all.
type Begun = BTreeMap<usize, Vec<Found>>;

/// Whether the process ends because of what the start came to.
pub(super) type Judge = Arc<dyn Fn(&Started) -> bool + Send + Sync>;

/// Between two looks for what is remembered of models that are gone.
const TIDY: Duration = Duration::from_secs(60);

impl Background {
    /// Starts them all.
    pub(super) fn start(
        tasks: &Tasks,
        looked: Looked,
        config: Config,
        judge: Judge,
        signals: Option<Others>,
    ) -> Self {
        let Looked { manager, health, scheduler, registry, forecaster, pressure } = looked;
        let (begun, begins) = watch::channel(Begun::new());
        let begun = Arc::new(begun);
        let of = (manager.clone(), health.clone());
        let load = tasks.keep("start", Need::Essential, move |_| {
            load_all(of.clone(), config, judge.clone(), begun.clone())
        });
        let mut changing = vec![load];
        let mut hints = Vec::new();
        for at in 0..manager.repositories() {
            let (of, hint) = (manager.clone(), Arc::new(Notify::new()));
            let (watched, begins, wakes) = (Arc::new(Mutex::new(None)), begins.clone(), hint.clone());
            changing.push(tasks.keep("watch", Need::Essential, move |pulse| {
                let begins = (watched.clone(), begins.clone());
                watch_from_start((of.clone(), at), config.watch, begins, wakes.clone(), pulse)
            }));
            hints.push(hint);
        }
        let of = manager.clone();
        let rollouts =
            tasks.keep("rollouts", Need::Essential, move |pulse| rollouts::look_after(of.clone(), pulse));
        changing.push(rollouts);
        if let Some(signals) = signals {
            let signals = Arc::new(Mutex::new(signals));
            let listen = move |_| listen(signals.clone(), hints.clone());
            changing.push(tasks.keep("signals", Need::Useful, listen));
        }
        let of = (scheduler.clone(), manager.clone(), pressure.callers().clone());
        let give_back = tasks.keep("idle", Need::Useful, move |pulse| {
            idle::give_back(of.0.clone(), of.1.clone(), of.2.clone(), pulse)
        });
        let of = (scheduler, registry.clone());
        let watchdog = tasks.keep("watchdog", Need::Essential, move |pulse| {
            watchdog::watch(of.0.clone(), of.1.clone(), config.stuck_after, pulse)
        });
        changing.extend([give_back, watchdog]);
        let reporting = tasks.keep("health", Need::Essential, move |pulse| {
            health::report(manager.clone(), health.clone(), pulse)
        });
        let sampling =
            tasks.keep("pressure", Need::Essential, move |pulse| resources::sample(pressure.clone(), pulse));
        let tidying =
            tasks.keep("tidy", Need::Useful, move |pulse| tidy(registry.clone(), forecaster.clone(), pulse));
        Self { changing, looking: vec![reporting, sampling, tidying] }
    }

    /// Nothing changes models by itself any more.
    pub(super) async fn stop_changes(&mut self) {
        stop(&mut self.changing).await;
    }

    /// The rest ends too.
    pub(super) async fn stop(&mut self) {
        stop(&mut self.looking).await;
    }
}

async fn stop(tasks: &mut Vec<JoinHandle<()>>) {
    tasks.iter().for_each(JoinHandle::abort);
    for task in tasks.drain(..) {
        let _aborted = task.await;
    }
}

/// Loads what should be loaded, and makes the server ready.
async fn load_all(
    (manager, health): (Arc<Manager>, Health),
    config: Config,
    judge: Judge,
    begun: Arc<watch::Sender<Begun>>,
) {
    let (_, mut events) = manager.watch();
    let loaded = |at, found| begun.send_modify(|begun| drop(begun.insert(at, found)));
    let started = manager.start(config.watch.settle, loaded).await;
    if judge(&started) {
        return;
    }
    if started.loaded == 0 && !config.allow_empty {
        tracing::error!("no model could be loaded: mend one and reload it");
        while !manager.list().iter().any(ModelStatus::serves) {
            if let Err(RecvError::Closed) = events.recv().await {
                return;
            }
        }
    }
    health.set_ready().await;
    let models = manager.list();
    let live = models.iter().filter(|model| model.live.is_some()).count();
    let on_demand = models.iter().filter(|model| model.on_demand).count();
    tracing::info!(models = live, on_demand, console = config.console.map(console_url), "ready");
}

/// Where a browser on this machine finds the console.
fn console_url(http: SocketAddr) -> String {
    let local = |any: bool, here: &str| if any { here.to_owned() } else { http.ip().to_string() };
    match http {
        SocketAddr::V4(v4) => {
            format!("http://{}:{}/", local(v4.ip().is_unspecified(), "127.0.0.1"), http.port())
        }
        SocketAddr::V6(v6) => format!("http://[{}]:{}/", local(v6.ip().is_unspecified(), "::1"), http.port()),
    }
}

/// Watches a repository once its models of the start are loaded.
async fn watch_from_start(
    (manager, at): (Arc<Manager>, usize),
    config: WatchConfig,
    (watched, mut begins): (Arc<Mutex<Option<Watched>>>, watch::Receiver<Begun>),
    hint: Arc<Notify>,
    pulse: Pulse,
) {
    let mut watched = watched.lock().await;
    let watched = match &mut *watched {
        // It was at it before it panicked.
        Some(watched) => watched,
        none => {
            let Ok(begun) = begins.wait_for(|begun| begun.contains_key(&at)).await else { return };
            none.insert(Watched::new(config, begun.get(&at).map(Vec::as_slice).unwrap_or_default()))
        }
    };
    watch_repository((manager, at), config, watched, hint, pulse).await;
}

/// Does what signals ask for that do not end the process.
async fn listen(signals: Arc<Mutex<Others>>, hints: Vec<Arc<Notify>>) {
    let mut signals = signals.lock().await;
    loop {
        match signals.next().await {
            Wish::Look => {
                tracing::info!("SIGHUP: looking at the repositories");
                hints.iter().for_each(|hint| hint.notify_one());
            }
            Wish::Nothing(signal) => {
                tracing::info!(signal, "this signal has no meaning here: nothing changes")
            }
        }
    }
}

/// Forgets what was learned of models that are gone.
async fn tidy(registry: Arc<Registry>, forecaster: Arc<Forecaster>, pulse: Pulse) {
    loop {
        tokio::time::sleep(TIDY).await;
        let there = registry.all().iter().flat_map(|slot| slot.all()).map(|slot| slot.id()).collect();
        forecaster.keep_only(&there);
        pulse.beat();
    }
}
