//! From settings to a running server, and down again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use thiserror::Error;
use tokio::{runtime::Handle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use super::{
    activity::Activity,
    background::{Background, Config, Looked},
    cpu::{CpuPlan, cpu_quota},
    descriptors::Descriptors,
    drain::{Doors, LAST_WORDS},
    from_settings::{backend, callers, history, pace, residency, rules},
    io,
    peers::Peers,
    repositories,
    signals::{Beginning, Signals},
    stack,
    transport::Transport,
    web,
};
use crate::{
    admission::{ControlLane, Forecaster, LimitSnapshot, Pressure, ResolveLayer, Tenants},
    api::{
        console,
        health::Health,
        http,
        inference::Inference,
        inflating,
        native::ModelServerService,
        oip::{self, MOST_REGIONS, OpenInference, Regions, grpc::GrpcInference},
        rest,
    },
    backend::{Backend, ThreadRole},
    config::{self, Settings},
    layers::{Hosts, RequestCap},
    lifecycle::{Manager, ManagerConfig, OnDemand, Started, WatchConfig},
    loader::{LoaderPool, seal::KeyError},
    proto::{
        self, inference::grpc_inference_service_server::GrpcInferenceServiceServer,
        model_server_server::ModelServerServer,
    },
    registry::Registry,
    repository::{RepositoryError, Uploads},
    residency::Memory,
    response_cache::ResponseCache,
    rollout::{Mirror, RouteLayer},
    sched::{ExecutorConfig, QueueConfig, Scheduler},
    tasks::{Need, Tasks},
    telemetry::{AccessLog, LogFilter, Metrics, Sampler, Sources, TraceError, Traces},
};

/// Why the server did not start. One line that says what to do.
#[derive(Debug, Error)]
pub enum StartError {
    /// A repository that cannot be used.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// No repository can be read, and trying again would not help.
    #[error("{0}")]
    Unreadable(String),
    /// No model anywhere.
    #[error("no models in {0}: put an archive at MODEL/1/model.pt there, or start with --allow-empty")]
    Empty(String),
    /// An address that cannot be listened on.
    #[error("{0}")]
    Listen(String),
    /// The audit log cannot be opened.
    #[error("cannot write the audit log {path}: {source} (audit.file)")]
    AuditLog {
        /// Its path.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Built without the backend asked for.
    #[error(
        "this binary was built without libtorch: build it with the feature 'torch', or set backend = 'fake'"
    )]
    NoTorch,
    /// A key that cannot be trusted, because it is none.
    #[error("integrity.trusted_keys: {0}")]
    Key(#[from] KeyError),
    /// Spans that cannot be sent where they should.
    #[error(transparent)]
    Traces(#[from] TraceError),
    /// The system refused threads or the like.
    #[error("cannot start: {0}{hint}", hint = hint(.0))]
    System(#[from] std::io::Error),
}

/// What to do about the system's refusal.
fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        // What Linux says where threads are short.
        std::io::ErrorKind::WouldBlock => ": raise the limit on processes and threads (pids.max, ulimit -u)",
        _ => "",
    }
}

/// Serves until a signal ends it. Blocks.
///
/// # Errors
/// See [`StartError`].
pub fn serve(beginning: Beginning, settings: Settings) -> Result<(), StartError> {
    serve_from(beginning, settings, CancellationToken::new(), |_, _| {})
}

/// Serves until a signal or `stop`. `started` is told the gRPC and HTTP addresses once both listen.
///
/// # Errors
/// See [`StartError`].
pub fn serve_until(
    settings: Settings,
    stop: CancellationToken,
    started: impl FnOnce(SocketAddr, SocketAddr),
) -> Result<(), StartError> {
    serve_from(Beginning::now()?, settings, stop, started)
}

fn serve_from(
    Beginning { runtime, signals }: Beginning,
    settings: Settings,
    stop: CancellationToken,
    started: impl FnOnce(SocketAddr, SocketAddr),
) -> Result<(), StartError> {
    let backend = backend(settings.backend)?;
    let served = runtime.block_on(run(settings, backend, signals, stop, started));
    // Work on a file system that does not answer is not waited for.
    runtime.shutdown_background();
    served
}

async fn run(
    settings: Settings,
    backend: Arc<dyn Backend>,
    mut signals: Signals,
    stop: CancellationToken,
    started: impl FnOnce(SocketAddr, SocketAddr),
) -> Result<(), StartError> {
    let metrics = Arc::new(Metrics::default().with_triton_names(settings.metrics.triton_names));
    let traces = Traces::start(&settings.telemetry, &metrics.spans)?;
    let uploads = repositories::uploads(&settings).await?;
    let directory = uploads.as_deref().map(Uploads::directory);
    let repositories = repositories::open(&settings, directory, &metrics)?;
    let grpc = io::bind(settings.server.grpc_addr, "--grpc-addr").await.map_err(StartError::Listen)?;
    let web_listener =
        io::bind(settings.server.http_addr, "--http-addr").await.map_err(StartError::Listen)?;
    let (grpc_addr, http_addr) = (grpc.local_addr()?, web_listener.local_addr()?);

    let plan = CpuPlan::new(cpu_quota(), &settings.executors, settings.server.io_threads);
    let tasks = Tasks::new(metrics.tasks.clone(), Handle::current());
    let registry = Arc::new(Registry::default());
    let executors = ExecutorConfig {
        threads: plan.executors,
        intra_op: plan.intra_op,
        spare: settings.executors.spare,
        queue: QueueConfig {
            min_share: settings.admission.min_share,
            max_block: settings.executors.max_block,
            learned: settings.executors.learned_batches,
            low_executors: plan.executors.saturating_sub(settings.executors.kept_from_low),
        },
    };
    let scheduler = Arc::new(Scheduler::start(executors, &backend)?);
    let (health, health_service) = {
        let (scheduler, tasks) = (Arc::downgrade(&scheduler), tasks.clone());
        Health::new(move || trouble(&*scheduler.upgrade()?, &tasks)).await
    };
    let pace = pace(&settings.loader, &scheduler, plan.executors);
    let loader = LoaderPool::start(settings.loader.threads, settings.loader.spare, pace.clone(), &backend)?;
    let limiter = stack::limiter(&settings.admission);
    let forecaster = Forecaster::new(plan.executors, settings.executors.max_block);
    let tenants = Arc::new(Tenants::new(&settings.tenants));
    let regions = if settings.oip.shared_memory { MOST_REGIONS as u64 } else { 0 };
    let descriptors = Descriptors::new(settings.server.max_connections as u64, regions);
    let callers = callers(&settings.server, descriptors, plan.quota);
    let pressure = Pressure::new(settings.pressure, callers.clone());
    let memory = Memory::new(settings.memory.budget.as_u64());
    let cache = ResponseCache::new(settings.response_cache.max_bytes.as_u64(), metrics.cache.clone());
    metrics.attach(Sources {
        limiter: limiter.clone(),
        scheduler: scheduler.clone(),
        models: registry.clone(),
        tenants: tenants.clone(),
        forecaster: forecaster.clone(),
        pressure: pressure.clone(),
        memory: memory.clone(),
        cache: cache.clone(),
        stuck_loads: loader.stuck(),
    });
    let history = history(&settings, &tasks)?;
    let observer = {
        let (cache, registry) = (cache.clone(), registry.clone());
        let (metrics, history) = (metrics.clone(), history.clone());
        Box::new(move |event: &crate::lifecycle::ModelEvent| {
            metrics.model_event(event);
            history.record(event);
            if let Some(cache) = cache.as_ref().filter(|_| event.change.retires()) {
                cache.forget_old(&event.model.name, &registry);
            }
        })
    };
    let config = ManagerConfig {
        repositories,
        uploads,
        drain: settings.server.grace,
        load_limit: settings.loader.time_limit,
        rules: rules(&settings)?,
        memory,
        residency: residency(&settings),
        traces: traces.clone(),
    };
    let manager = Manager::new(config, registry.clone(), backend.clone(), loader, observer);

    // `closing` ends accepting and sends GOAWAY; `killed` is the end of patience.
    let (closing, killed) = (CancellationToken::new(), CancellationToken::new());
    let access = Arc::new(AccessLog::new(settings.log.access));
    let mirror =
        Mirror::new(TaskTracker::new(), Handle::current(), pressure.clone(), metrics.rollouts.clone());
    let residents = OnDemand::new(manager.clone(), Handle::current(), metrics.residency.clone());
    let sampler = Sampler::start(&settings.samples, &tenants)?;
    let infer = stack::infer(
        RouteLayer::new(registry.clone(), mirror, metrics.rollouts.clone()),
        ResolveLayer::new(registry.clone(), tenants.clone(), pressure.clone())
            .with_residents(residents.clone()),
        cache,
        forecaster.clone(),
        limiter.clone(),
        scheduler.clone(),
        stack::Seen {
            metrics: metrics.clone(),
            access,
            pace,
            sampler,
            registry: registry.clone(),
            tenants,
            traces: traces.clone(),
        },
    );
    let control = {
        let (at_once, queue) = (settings.admission.control_in_flight, settings.admission.control_queue);
        ControlLane::new(at_once, queue, Handle::current())
    };
    let limit = usize::try_from(settings.server.max_message_bytes.as_u64()).unwrap_or(usize::MAX);
    let door = OpenInference::new(
        infer.clone(),
        oip::Resources {
            registry: registry.clone(),
            manager: manager.clone(),
            control: control.clone(),
            residents: residents.clone(),
            health: health.clone(),
            regions: Regions::new(
                settings.oip.shared_memory,
                limit,
                usize::try_from(descriptors.regions).unwrap_or(usize::MAX),
                settings.server.caller_share,
            ),
            refusals: metrics.refusals.clone(),
            traces: traces.clone(),
            log: LogFilter::installed(),
        },
    );
    let front = front(
        settings.console.clone(),
        console::Resources {
            manager: manager.clone(),
            history: history.clone(),
            metrics: metrics.clone(),
            health: health.clone(),
            control: control.clone(),
        },
        [grpc_addr, http_addr],
        settings.admission.max_deadline,
    );
    let service = ModelServerService::new(
        infer,
        metrics.refusals.clone(),
        manager.clone(),
        history,
        control.clone(),
        limit,
        closing.clone(),
    );
    let service = service.with_residents(residents);
    let native = inflating!(ModelServerServer::new(service.clone()))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let open_inference = GrpcInference::new(door.clone(), limit, closing.clone());
    let others = inflating!(GrpcInferenceServiceServer::new(open_inference.clone()))
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let mut routes = Routes::new(native).add_service(others).add_service(inflating!(health_service));
    if settings.server.reflection {
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                // So that grpcurl shows the details of a refusal instead of their bytes.
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
                // Each version lists both: older tools look for the older one.
                .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        };
        let broken = |error| std::io::Error::other(format!("the API's own descriptors: {error}"));
        routes = routes
            .add_service(inflating!(reflection().build_v1().map_err(broken)?))
            .add_service(inflating!(reflection().build_v1alpha().map_err(broken)?));
    }
    let cap: io::SharedCap = RequestCap::new(settings.server.max_requests);
    let calls = Inference::new(service, open_inference, routes.prepare(), limit, metrics.refusals.clone());
    let hosts = |at| Hosts::new(at, &settings.server.hosts, &settings.server.origins);
    let transport = Transport {
        longest: limit,
        max_deadline: settings.admission.max_deadline,
        closing: closing.clone(),
        callers: callers.clone(),
        takes_uploads: manager.takes_uploads(),
        cap: cap.clone(),
        hosts: hosts(grpc_addr),
        refusals: metrics.refusals.clone(),
    };
    let service = transport.around(calls);
    let enter = move || backend.enter_thread(ThreadRole::Executor { intra_op: 1 });
    let peers = Peers {
        callers: callers.clone(),
        untaken: metrics.untaken.clone(),
        connections: metrics.connections.clone(),
    };
    let grpc_moves = Activity::new();
    let limits = io::Limits { threads: plan.io, streams: settings.server.max_streams };
    let io = io::IoThreads::start(service, enter, limits, &grpc_moves, &closing, &killed, &peers)?;
    let (io, grpc) = (Arc::new(io), Arc::new(grpc));
    let accepting = {
        let (io, closing) = (io.clone(), closing.clone());
        let accept = move |_| io.clone().accept(grpc.clone(), closing.clone());
        tasks.keep("accept-grpc", Need::Essential, accept)
    };
    let http_moves = Activity::new();
    let limits = rest::Limits {
        requests: cap.clone(),
        callers,
        longest: limit,
        max_deadline: settings.admission.max_deadline,
        closing: closing.clone(),
    };
    let notes = {
        let manager = manager.clone();
        move || manager.complaints()
    };
    let (probes, scrapes) = (http::probes(health.clone(), notes), http::metrics(metrics.clone()));
    let all = probes.clone().merge(scrapes.clone()).merge(front).merge(rest::router(door, limits));
    let routers = web::Routers {
        probes: http::admitted(probes, hosts(http_addr)),
        metrics: http::admitted(scrapes, hosts(http_addr)),
        all: http::admitted(all, hosts(http_addr)),
    };
    let cut = CancellationToken::new();
    let wire = web::Wire { peers, activity: http_moves.clone(), idle: settings.server.http_idle };
    let web = web::start(web_listener, routers, &killed, &cut, &wire, &tasks)?;
    let doors = Doors { accepting, io, cap: cap.clone(), killed, web, cut, grpc_moves, http_moves };
    tracing::info!(
        grpc = %grpc_addr, http = %http_addr, cpus = plan.quota, executors = plan.executors, intra_op = plan.intra_op,
        io_threads = plan.io, version = env!("CARGO_PKG_VERSION"), "listening"
    );
    started(grpc_addr, http_addr);

    let looked = Looked {
        manager: manager.clone(),
        health: health.clone(),
        scheduler: scheduler.clone(),
        registry,
        forecaster,
        pressure,
    };
    let server = settings.server.clone();
    let config = Config {
        watch: WatchConfig { interval: settings.watch.interval, settle: settings.watch.settle },
        allow_empty: settings.allow_empty,
        stuck_after: settings.executors.stuck_after,
        console: settings.console.enabled.then_some(http_addr),
    };
    let (ends, mut nothing_to_serve) = tokio::sync::mpsc::channel(1);
    let judge = move |started: &Started| {
        let error = repositories::nothing_to_serve(&settings.repositories, settings.allow_empty, started);
        error.is_some_and(|error| ends.try_send(error).is_ok())
    };
    let mut background = Background::start(&tasks, looked, config, Arc::new(judge), signals.take_others());
    let mut outcome = Ok(());
    let why = tokio::select! {
        signal = signals.next() => signal,
        () = stop.cancelled() => "asked to",
        Some(error) = nothing_to_serve.recv() => {
            outcome = Err(error);
            "there is nothing to serve"
        }
    };

    // Down: not ready first, then deaf, then done.
    health.set_draining().await;
    background.stop_changes().await;
    tracing::info!(why, drain_delay = ?server.drain_delay, grace = ?server.grace, "stopping: no longer ready");
    let delay = if outcome.is_ok() { server.drain_delay } else { Duration::ZERO };
    tokio::select! {
        () = tokio::time::sleep(delay) => {}
        again = signals.next() => tracing::warn!(again, "not waiting any longer for others to notice"),
    }
    closing.cancel();
    let grace_ends = Instant::now() + server.grace;
    let nothing_runs =
        || cap.is_idle() && control.is_idle() && limiter.snapshot() == LimitSnapshot::default();
    doors.close(nothing_runs, grace_ends, &mut signals).await;
    background.stop().await;
    metrics.detach();
    let patience = |most| grace_ends.saturating_duration_since(Instant::now()).clamp(LAST_WORDS, most);
    // Changes that callers asked for have the whole grace time to end, also those whose callers have left.
    tokio::select! {
        _abandoned = tokio::time::timeout(patience(Duration::MAX), control.finish()) => {}
        again = signals.next() => tracing::warn!(again, "changes of models were still under way: they are abandoned"),
    }
    // Others that were begun end in one state or the other; a load that takes longer is left behind.
    let _abandoned = tokio::time::timeout(patience(LAST_CHANGES), manager.stop()).await;
    drop(scheduler);
    if let Some(traces) = traces {
        traces.finish(patience(LAST_SPANS)).await;
    }
    tracing::info!("stopped");
    outcome
}

/// Time for changes of models once no request is left.
const LAST_CHANGES: Duration = Duration::from_secs(5);

/// Time for the last spans to be taken by the collector.
const LAST_SPANS: Duration = Duration::from_secs(5);

/// What keeps this process from serving for as long as it lives: it is to be replaced.
fn trouble(scheduler: &Scheduler, tasks: &Tasks) -> Option<String> {
    if scheduler.healthy() == 0 {
        return Some("every executor is held by a pass that does not end".to_owned());
    }
    tasks
        .lost()
        .map(|task| format!("the background task '{task}' panics again and again: the log says where"))
}

/// What is at `/` on the HTTP port.
fn front(
    settings: config::Console,
    with: console::Resources,
    [grpc, http]: [SocketAddr; 2],
    patience: Duration,
) -> Router {
    if settings.enabled {
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let identity = console::Identity { title: settings.title, host, grpc, http };
        console::router(with, identity, console::Rights { admin: settings.admin, patience })
    } else {
        http::hello()
    }
}
