//! The metrics, and what a scrape reads of the server. `catalogue.rs` lists them.

mod changes;

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::{
    CacheMetrics, ConnectionMetrics, Recent, Refusals, RepositoryMetrics, ResidencyMetrics, RolloutMetrics,
    SpanMetrics, StoreMetrics, Untaken,
    requests::{ModelLabel, RequestMetrics, Sample},
    triton,
};
use crate::{
    admission::{Forecaster, Limiter, Pressure, Tenants},
    model::Lane,
    residency::Memory,
    response_cache::ResponseCache,
    sched::Scheduler,
    tasks::TaskMetrics,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StageLabels {
    stage: &'static str,
    lane: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LaneLabel {
    lane: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReloadLabels {
    model: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseLabels {
    model: String,
    phase: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InfoLabels {
    model: String,
    version: String,
    sha256: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExecutorLabel {
    executor: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeadlineLabels {
    lane: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TenantLabel {
    tenant: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResourceLabel {
    resource: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProfileLabels {
    model: String,
    row_bytes: u64,
    rows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    version: &'static str,
}

/// All metrics of a server.
#[derive(Debug)]
pub struct Metrics {
    /// Of rollouts.
    pub rollouts: Arc<RolloutMetrics>,
    /// Of spans.
    pub spans: SpanMetrics,
    /// Of what was refused before it was a request.
    pub refusals: Refusals,
    /// Answers that were not taken.
    pub untaken: Untaken,
    /// Connections.
    pub connections: ConnectionMetrics,
    /// Of background tasks.
    pub tasks: TaskMetrics,
    registry: Registry,
    requests: RequestMetrics,
    depth: Family<StageLabels, Gauge>,
    in_flight: Family<LaneLabel, Gauge>,
    reloads: Family<ReloadLabels, Counter>,
    phases: Family<PhaseLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    info: Family<InfoLabels, Gauge>,
    busy: Family<ExecutorLabel, Counter<f64, std::sync::atomic::AtomicU64>>,
    live: Mutex<HashMap<String, InfoLabels>>,
    breakers: Family<ModelLabel, Gauge>,
    healthy: Gauge,
    stuck_loads: Gauge,
    deadlines: Family<DeadlineLabels, Counter>,
    tenants: Family<TenantLabel, Counter<f64, std::sync::atomic::AtomicU64>>,
    pressure_level: Gauge,
    pressure: Family<ResourceLabel, Gauge<f64, std::sync::atomic::AtomicU64>>,
    in_flight_bytes: Gauge,
    profile: Family<ProfileLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    store: StoreMetrics,
    /// Which repositories can be read.
    pub repositories: RepositoryMetrics,
    /// What is in memory, and who waits for what is not.
    pub residency: ResidencyMetrics,
    /// Answers that are kept.
    pub cache: CacheMetrics,
    sources: Mutex<Option<Sources>>,
    recent: OnceLock<Recent>,
    triton_names: bool,
}

/// What is read at each scrape.
#[derive(Debug, Clone)]
pub struct Sources {
    /// Tickets.
    pub limiter: Arc<Limiter>,
    /// Executors.
    pub scheduler: Arc<Scheduler>,
    /// Models.
    pub models: Arc<crate::registry::Registry>,
    /// Callers.
    pub tenants: Arc<Tenants>,
    /// Deadlines.
    pub forecaster: Arc<Forecaster>,
    /// What is short.
    pub pressure: Arc<Pressure>,
    /// What is loaded.
    pub memory: Arc<Memory>,
    /// Answers that are kept, if any are.
    pub cache: Option<Arc<ResponseCache>>,
    /// Loader threads that are held by loads that do not end.
    pub stuck_loads: Arc<std::sync::atomic::AtomicUsize>,
}

/// What a reload may come to.
const RELOADS: [&str; 2] = ["ok", "failed"];

/// Sizes of passes that are shown for a model: those that ran most.
const PROFILE_SERIES: usize = 24;

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            rollouts: Arc::default(),
            spans: SpanMetrics::default(),
            refusals: Refusals::default(),
            untaken: Untaken::default(),
            connections: ConnectionMetrics::default(),
            tasks: TaskMetrics::default(),
            registry: Registry::with_prefix("torchlane"),
            requests: RequestMetrics::default(),
            depth: Family::default(),
            in_flight: Family::default(),
            reloads: Family::default(),
            phases: Family::default(),
            info: Family::default(),
            busy: Family::default(),
            live: Mutex::default(),
            breakers: Family::default(),
            healthy: Gauge::default(),
            stuck_loads: Gauge::default(),
            deadlines: Family::default(),
            tenants: Family::default(),
            pressure_level: Gauge::default(),
            pressure: Family::default(),
            in_flight_bytes: Gauge::default(),
            profile: Family::default(),
            store: StoreMetrics::default(),
            repositories: RepositoryMetrics::default(),
            residency: ResidencyMetrics::default(),
            cache: CacheMetrics::default(),
            sources: Mutex::default(),
            recent: OnceLock::new(),
            triton_names: false,
        };
        let r = &mut metrics.registry;
        metrics.requests.register(r);
        metrics.refusals.register(r);
        metrics.untaken.register(r);
        metrics.connections.register(r);
        metrics.tasks.register(r);
        r.register(
            "queue_depth",
            "Requests that wait, for a ticket (admission) or an executor (scheduler)",
            metrics.depth.clone(),
        );
        r.register("in_flight", "Requests that hold a ticket", metrics.in_flight.clone());
        r.register("reloads", "Loads and reloads by result", metrics.reloads.clone());
        r.register_with_unit(
            "reload_phase_duration",
            "Phases of the last reload",
            Unit::Seconds,
            metrics.phases.clone(),
        );
        r.register("model_info", "1 for the live version of each model", metrics.info.clone());
        r.register_with_unit(
            "executor_busy",
            "Time spent running batches",
            Unit::Seconds,
            metrics.busy.clone(),
        );
        r.register(
            "breaker_open",
            "1 while a live version only fails and is refused",
            metrics.breakers.clone(),
        );
        r.register(
            "executors_healthy",
            "Executors that are not held by a stuck pass",
            metrics.healthy.clone(),
        );
        r.register(
            "loader_threads_stuck",
            "Loader threads that are held by loads that do not end",
            metrics.stuck_loads.clone(),
        );
        r.register("deadlines", "Requests with a deadline by what became of them", metrics.deadlines.clone());
        r.register_with_unit(
            "tenant_compute",
            "Executor time of a tenant's requests",
            Unit::Seconds,
            metrics.tenants.clone(),
        );
        r.register(
            "pressure_level",
            "Lanes refused for want of resources, from the lowest",
            metrics.pressure_level.clone(),
        );
        r.register("pressure_ratio", "Used part of a resource's limit", metrics.pressure.clone());
        r.register(
            "in_flight_bytes",
            "Bytes of inference requests in the process",
            metrics.in_flight_bytes.clone(),
        );
        r.register_with_unit(
            "profile_pass",
            "Learned time of a forward pass",
            Unit::Seconds,
            metrics.profile.clone(),
        );
        metrics.store.register(r);
        metrics.repositories.register(r);
        metrics.residency.register(r);
        metrics.cache.register(r);
        let build = Family::<BuildLabels, Gauge>::default();
        build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        metrics.rollouts.register(r);
        metrics.spans.register(r);
        r.register("build_info", "1 for the version of torchlane", build);
        metrics
    }
}

impl Metrics {
    /// With what Triton has of it too, by Triton's names.
    #[must_use]
    pub fn with_triton_names(mut self, triton_names: bool) -> Self {
        self.triton_names = triton_names;
        self
    }

    /// Where queue depths, busy times and profiles are read at each scrape.
    pub fn attach(&self, sources: Sources) {
        *self.sources.lock() = Some(sources);
    }

    /// What [`Metrics::attach`] gave.
    pub fn sources(&self) -> Option<Sources> {
        self.sources.lock().clone()
    }

    /// From now on the last minute is kept second by second.
    pub fn keep_recent(&self) {
        let _begun = self.recent.get_or_init(Recent::default);
    }

    /// The last minute, if it is kept.
    pub fn recent(&self) -> Option<&Recent> {
        self.recent.get()
    }

    /// Downloads and their cache.
    pub fn store(&self) -> &StoreMetrics {
        &self.store
    }

    /// Lets go of what [`Metrics::attach`] gave.
    pub fn detach(&self) {
        *self.sources.lock() = None;
    }

    /// Counts a finished request.
    pub fn request(&self, sample: Sample<'_>) {
        if let Some(recent) = self.recent.get() {
            let ended = if sample.outcome == "ok" { Ok(sample.total) } else { Err(sample.outcome) };
            recent.note(sample.lane, sample.model, ended);
        }
        let is_there = |model: &str| {
            let sources = self.sources.lock();
            sources.as_ref().is_none_or(|sources| sources.models.get(model).is_some())
        };
        self.requests.count(&sample, is_there);
    }

    /// Everything, as OpenMetrics text.
    pub fn encode(&self) -> String {
        self.refresh();
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _infallible = encode_registry(&mut text, &self.registry);
        if let Some(sources) = self.sources.lock().as_ref().filter(|_| self.triton_names) {
            triton::encode(&mut text, &sources.models, &sources.scheduler);
        }
        let _infallible = encode_eof(&mut text);
        text
    }

    fn refresh(&self) {
        let sources = self.sources.lock();
        let Some(Sources {
            limiter,
            scheduler,
            models,
            tenants,
            forecaster,
            pressure,
            memory,
            cache,
            stuck_loads,
        }) = sources.as_ref()
        else {
            return;
        };
        let (admission, ran) = (limiter.snapshot(), scheduler.snapshot());
        let count = |n: Option<&usize>| n.map_or(0, |n| i64::try_from(*n).unwrap_or(i64::MAX));
        for lane in Lane::ALL {
            let (i, name) = (lane.index(), lane.as_str());
            self.in_flight.get_or_create(&LaneLabel { lane: name }).set(count(admission.in_flight.get(i)));
            for (stage, waiting) in [("admission", admission.waiting), ("scheduler", ran.waiting)] {
                self.depth.get_or_create(&StageLabels { stage, lane: name }).set(count(waiting.get(i)));
            }
        }
        let executors = ran.busy.iter().enumerate().map(|(i, busy)| (i.to_string(), busy));
        for (executor, busy) in executors.chain([("wire".to_owned(), &ran.on_wire)]) {
            let counter = self.busy.get_or_create(&ExecutorLabel { executor });
            counter.inc_by((busy.as_secs_f64() - counter.get()).max(0.0));
        }
        let deadlines = forecaster.deadlines();
        for (result, by_lane) in [
            ("refused", deadlines.refused),
            ("in_time", deadlines.in_time),
            ("late", deadlines.late),
            ("trial_in_time", deadlines.trial_in_time),
            ("trial_late", deadlines.trial_late),
        ] {
            for (lane, count) in Lane::ALL.into_iter().zip(by_lane) {
                let counter = self.deadlines.get_or_create(&DeadlineLabels { lane: lane.as_str(), result });
                counter.inc_by(count.saturating_sub(counter.get()));
            }
        }
        for (tenant, compute) in tenants.compute() {
            let counter = self.tenants.get_or_create(&TenantLabel { tenant: tenant.to_string() });
            counter.inc_by((compute.as_secs_f64() - counter.get()).max(0.0));
        }
        self.residency.read(memory.snapshot());
        self.cache.read(cache.as_deref());
        self.pressure_level.set(count(Some(&pressure.level())));
        for (resource, ratio) in pressure.ratios() {
            self.pressure.get_or_create(&ResourceLabel { resource: resource.as_str() }).set(ratio);
        }
        self.connections.read(pressure.callers());
        self.in_flight_bytes.set(i64::try_from(pressure.in_flight_bytes()).unwrap_or(i64::MAX));
        self.stuck_loads.set(count(Some(&stuck_loads.load(std::sync::atomic::Ordering::Relaxed))));
        self.healthy.set(i64::try_from(scheduler.healthy()).unwrap_or(i64::MAX));
        self.profile.clear();
        // A gauge of a model that is gone or has nothing live would keep its last value.
        self.breakers.clear();
        for model in models.all() {
            // Of thousands that are not in memory nothing is to be told.
            let Some(lease) = model.lease() else { continue };
            let label = ModelLabel { model: model.name().to_string() };
            self.breakers.get_or_create(&label).set(lease.breaker.is_open().into());
            let mut points = model.profile().points();
            points.sort_by_key(|point| std::cmp::Reverse(point.time.passes));
            for point in points.iter().take(PROFILE_SERIES) {
                let labels = ProfileLabels {
                    model: model.name().to_string(),
                    row_bytes: point.class.bytes(),
                    rows: point.rows as u64,
                };
                self.profile.get_or_create(&labels).set(point.time.mean.as_secs_f64());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{super::CATALOGUE, *};
    use crate::{lifecycle::Phases, model::Version};

    #[test]
    fn the_catalogue_is_what_is_registered_and_what_is_documented() {
        let metrics = Metrics::default();
        metrics.request(Sample {
            model: "m",
            version: Some(Version(1)),
            lane: Lane::Normal,
            outcome: "ok",
            total: Duration::from_millis(1),
            ran: Some(crate::call::Timing { batch_size: 1, ..Default::default() }),
            trace: None,
        });
        // A family without a member is not written.
        let model = || "m".to_owned();
        metrics.depth.get_or_create(&StageLabels { stage: "admission", lane: "LOW" }).set(0);
        metrics.in_flight.get_or_create(&LaneLabel { lane: "LOW" }).set(0);
        metrics.reloads.get_or_create(&ReloadLabels { model: model(), result: "ok" }).inc();
        metrics.phases(&model(), Phases::default());
        metrics.info.get_or_create(&InfoLabels { model: model(), version: model(), sha256: model() }).set(1);
        metrics.busy.get_or_create(&ExecutorLabel { executor: model() }).inc_by(1.0);
        metrics.breakers.get_or_create(&ModelLabel { model: model() }).set(0);
        metrics.deadlines.get_or_create(&DeadlineLabels { lane: "LOW", result: "late" }).inc();
        metrics.tenants.get_or_create(&TenantLabel { tenant: model() }).inc_by(1.0);
        metrics.pressure.get_or_create(&ResourceLabel { resource: "memory" }).set(0.5);
        metrics.profile.get_or_create(&ProfileLabels { model: model(), row_bytes: 1, rows: 1 }).set(1.0);
        metrics.store.received("s3", 1);
        metrics.repositories.readable("models", true);
        metrics.store.fetched("s3", "ok", Duration::ZERO);
        let _zeros = metrics.cache.of("m");
        metrics.rollouts.ended("m", crate::rollout::Side::Live, &crate::rollout::Ending::Late);
        metrics.rollouts.fell_back("m");
        metrics.rollouts.mirrored("m", "same");
        metrics.rollouts.is_at("m", Some((Version(1), "running")));
        metrics.tasks.restarted("watch");
        let text = metrics.encode();
        let registered: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let documented = include_str!("../../docs/reference/metrics.md");
        assert_eq!(registered.len(), CATALOGUE.len(), "{registered:?}");
        for (name, kind, labels) in CATALOGUE {
            let family = format!(
                "{} {kind}",
                name.strip_suffix("_total").filter(|_| *kind == "counter").unwrap_or(name)
            );
            assert!(registered.contains(&family.as_str()), "{family} is not registered");
            assert!(
                documented.contains(&format!("| `{name}` | {kind} | {labels} |")),
                "{name} is not in docs/reference/metrics.md"
            );
        }
        let rows = documented.lines().filter(|line| line.starts_with("| `torchlane_")).count();
        assert_eq!(rows, CATALOGUE.len(), "docs/reference/metrics.md lists something else");
    }
}
