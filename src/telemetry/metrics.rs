//! The catalogue of metrics. `docs/metrics.md` lists the same, and a test holds the two together.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::{Mutex, RwLock};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{ResidencyMetrics, RolloutMetrics, StoreMetrics};
use crate::{
    admission::{Forecaster, Limiter, Pressure, Tenants},
    lifecycle::{Change, ModelEvent, Phases},
    model::{Lane, Version},
    residency::Memory,
    sched::Scheduler,
};

/// Every metric: name as scraped, type, labels.
pub const CATALOGUE: &[(&str, &str, &str)] = &[
    ("torchlane_requests_total", "counter", "model, version, lane, outcome"),
    ("torchlane_request_duration_seconds", "histogram", "model, version, lane, outcome"),
    ("torchlane_queue_duration_seconds", "histogram", "model, version, lane, outcome"),
    ("torchlane_batch_wait_duration_seconds", "histogram", "model, version, lane, outcome"),
    ("torchlane_compute_duration_seconds", "histogram", "model, version, lane, outcome"),
    ("torchlane_batch_size", "histogram", "model"),
    ("torchlane_queue_depth", "gauge", "stage, lane"),
    ("torchlane_in_flight", "gauge", "lane"),
    ("torchlane_reloads_total", "counter", "model, result"),
    ("torchlane_reload_phase_duration_seconds", "gauge", "model, phase"),
    ("torchlane_model_info", "gauge", "model, version, sha256"),
    ("torchlane_executor_busy_seconds_total", "counter", "executor"),
    ("torchlane_breaker_open", "gauge", "model"),
    ("torchlane_executors_healthy", "gauge", ""),
    ("torchlane_loader_threads_stuck", "gauge", ""),
    ("torchlane_deadlines_total", "counter", "lane, result"),
    ("torchlane_tenant_compute_seconds_total", "counter", "tenant"),
    ("torchlane_pressure_level", "gauge", ""),
    ("torchlane_pressure_ratio", "gauge", "resource"),
    ("torchlane_in_flight_bytes", "gauge", ""),
    ("torchlane_profile_pass_seconds", "gauge", "model, row_bytes, rows"),
    ("torchlane_store_downloaded_bytes_total", "counter", "store"),
    ("torchlane_store_fetches_total", "counter", "store, result"),
    ("torchlane_store_fetch_duration_seconds", "histogram", "store"),
    ("torchlane_store_cache_bytes", "gauge", ""),
    ("torchlane_rollout_requests_total", "counter", "model, side, outcome"),
    ("torchlane_rollout_fallbacks_total", "counter", "model"),
    ("torchlane_rollout_copies_total", "counter", "model, result"),
    ("torchlane_rollout_state", "gauge", "model, version, state"),
    ("torchlane_memory_budget_bytes", "gauge", ""),
    ("torchlane_memory_resident_bytes", "gauge", ""),
    ("torchlane_models_resident", "gauge", ""),
    ("torchlane_residency_loads_total", "counter", "cause"),
    ("torchlane_residency_evictions_total", "counter", ""),
    ("torchlane_residency_misses_total", "counter", "result"),
    ("torchlane_residency_wait_seconds", "histogram", ""),
    ("torchlane_residency_thrash", "gauge", ""),
    ("torchlane_build_info", "gauge", "version"),
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    model: String,
    version: String,
    lane: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

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

/// One finished request.
#[derive(Debug, Clone)]
pub struct Sample<'a> {
    /// Empty where no such model exists: names that callers make up must not become series.
    pub model: &'a str,
    /// The one that ran.
    pub version: Option<Version>,
    /// Its lane.
    pub lane: Lane,
    /// `ok`, or the reason of the error.
    pub outcome: &'static str,
    /// From decoded to answered.
    pub total: Duration,
    /// Queue, batch wait, compute and batch size, where it ran.
    pub ran: Option<crate::call::Timing>,
}

/// Where the requests of one kind are counted: found once, not five times a request.
#[derive(Debug)]
struct Series {
    requests: Counter,
    total: Histogram,
    /// Kinds that never run (refusals) have none.
    ran: Option<Ran>,
}

#[derive(Debug)]
struct Ran {
    queue: Histogram,
    batch_wait: Histogram,
    compute: Histogram,
    batch_size: Histogram,
}

impl Series {
    fn count(&self, sample: &Sample<'_>) {
        self.requests.inc();
        self.total.observe(sample.total.as_secs_f64());
        if let (Some(series), Some(timing)) = (&self.ran, sample.ran) {
            series.queue.observe(timing.queue.as_secs_f64());
            series.batch_wait.observe(timing.batch_wait.as_secs_f64());
            series.compute.observe(timing.compute.as_secs_f64());
            series.batch_size.observe(timing.batch_size as f64);
        }
    }
}

/// By version, lane and outcome.
type Kinds = HashMap<(Option<Version>, Lane, &'static str), Series>;

/// All metrics of a server.
#[derive(Debug)]
pub struct Metrics {
    /// Of rollouts.
    pub rollouts: RolloutMetrics,
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    total: Family<RequestLabels, Histogram>,
    queue: Family<RequestLabels, Histogram>,
    batch_wait: Family<RequestLabels, Histogram>,
    compute: Family<RequestLabels, Histogram>,
    batch_size: Family<ModelLabel, Histogram>,
    depth: Family<StageLabels, Gauge>,
    in_flight: Family<LaneLabel, Gauge>,
    reloads: Family<ReloadLabels, Counter>,
    phases: Family<PhaseLabels, Gauge<f64, std::sync::atomic::AtomicU64>>,
    info: Family<InfoLabels, Gauge>,
    busy: Family<ExecutorLabel, Counter<f64, std::sync::atomic::AtomicU64>>,
    /// By model.
    series: RwLock<HashMap<String, Kinds>>,
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
    /// What is in memory, and who waits for what is not.
    pub residency: ResidencyMetrics,
    sources: Mutex<Option<Sources>>,
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
    /// Loader threads that are held by loads that do not end.
    pub stuck_loads: Arc<std::sync::atomic::AtomicUsize>,
}

/// Sizes of passes that are shown for a model: those that ran most.
const PROFILE_SERIES: usize = 24;

/// 100 µs to 60 s, about three to a decade.
fn durations() -> Histogram {
    Histogram::new([
        0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
        10.0, 30.0, 60.0,
    ])
}

fn sizes() -> Histogram {
    Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            rollouts: RolloutMetrics::default(),
            registry: Registry::with_prefix("torchlane"),
            requests: Family::default(),
            total: Family::new_with_constructor(durations),
            queue: Family::new_with_constructor(durations),
            batch_wait: Family::new_with_constructor(durations),
            compute: Family::new_with_constructor(durations),
            batch_size: Family::new_with_constructor(sizes),
            depth: Family::default(),
            in_flight: Family::default(),
            reloads: Family::default(),
            phases: Family::default(),
            info: Family::default(),
            busy: Family::default(),
            series: RwLock::default(),
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
            residency: ResidencyMetrics::default(),
            sources: Mutex::default(),
        };
        let r = &mut metrics.registry;
        r.register("requests", "Requests answered or refused", metrics.requests.clone());
        let seconds = Unit::Seconds;
        r.register_with_unit(
            "request_duration",
            "From decoded request to answer",
            seconds,
            metrics.total.clone(),
        );
        r.register_with_unit("queue_duration", "Waiting to be let in", Unit::Seconds, metrics.queue.clone());
        r.register_with_unit(
            "batch_wait_duration",
            "Waiting for an executor",
            Unit::Seconds,
            metrics.batch_wait.clone(),
        );
        r.register_with_unit(
            "compute_duration",
            "Executor time of the batch",
            Unit::Seconds,
            metrics.compute.clone(),
        );
        r.register("batch_size", "Items in the batch of a request", metrics.batch_size.clone());
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
        metrics.residency.register(r);
        let build = Family::<BuildLabels, Gauge>::default();
        build.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
        metrics.rollouts.register(r);
        r.register("build_info", "1 for the version of torchlane", build);
        metrics
    }
}

impl Metrics {
    /// Where queue depths, busy times and profiles are read at each scrape.
    pub fn attach(&self, sources: Sources) {
        *self.sources.lock() = Some(sources);
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
        let kind = (sample.version, sample.lane, sample.outcome);
        if let Some(series) = self.series.read().get(sample.model).and_then(|kinds| kinds.get(&kind)) {
            series.count(&sample);
            return;
        }
        let series = self.make_series(&sample);
        series.count(&sample);
        self.series.write().entry(sample.model.to_owned()).or_default().insert(kind, series);
    }

    fn make_series(&self, sample: &Sample<'_>) -> Series {
        let model = sample.model.to_owned();
        let labels = RequestLabels {
            model: model.clone(),
            version: sample.version.map(|version| version.to_string()).unwrap_or_default(),
            lane: sample.lane.as_str(),
            outcome: sample.outcome,
        };
        let ran = sample.ran.is_some().then(|| Ran {
            queue: self.queue.get_or_create(&labels).clone(),
            batch_wait: self.batch_wait.get_or_create(&labels).clone(),
            compute: self.compute.get_or_create(&labels).clone(),
            batch_size: self.batch_size.get_or_create(&ModelLabel { model }).clone(),
        });
        Series {
            requests: self.requests.get_or_create(&labels).clone(),
            total: self.total.get_or_create(&labels).clone(),
            ran,
        }
    }

    /// Notes a change of a model.
    pub fn model_event(&self, event: &ModelEvent) {
        self.residency.event(event);
        let model = event.model.name.to_string();
        let result = match event.change {
            Change::Ready | Change::Reloaded => Some("ok"),
            Change::Failed => Some("failed"),
            _ => None,
        };
        if let Some(result) = result {
            self.reloads.get_or_create(&ReloadLabels { model: model.clone(), result }).inc();
        }
        if let Some(phases) = event.model.last_phases {
            self.phases(&model, phases);
        }
        self.rollouts.model_event(event);
        let mut live = self.live.lock();
        if let Some(old) = live.remove(&model) {
            self.info.remove(&old);
        }
        if let Some(now) = &event.model.live {
            let labels = InfoLabels {
                model: model.clone(),
                version: now.version.to_string(),
                sha256: now.sha256.clone(),
            };
            self.info.get_or_create(&labels).set(1);
            live.insert(model, labels);
        }
    }

    fn phases(&self, model: &str, phases: Phases) {
        for (phase, took) in phases.named().into_iter().filter(|(phase, _)| *phase != "total") {
            self.phases
                .get_or_create(&PhaseLabels { model: model.to_owned(), phase })
                .set(took.as_secs_f64());
        }
    }

    /// Everything, as OpenMetrics text.
    pub fn encode(&self) -> String {
        self.refresh();
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _infallible = encode(&mut text, &self.registry);
        text
    }

    fn refresh(&self) {
        let sources = self.sources.lock();
        let Some(Sources { limiter, scheduler, models, tenants, forecaster, pressure, memory, stuck_loads }) =
            sources.as_ref()
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
        self.pressure_level.set(count(Some(&pressure.level())));
        for (resource, ratio) in pressure.ratios() {
            self.pressure.get_or_create(&ResourceLabel { resource: resource.as_str() }).set(ratio);
        }
        self.in_flight_bytes.set(i64::try_from(pressure.in_flight_bytes()).unwrap_or(i64::MAX));
        self.stuck_loads.set(count(Some(&stuck_loads.load(std::sync::atomic::Ordering::Relaxed))));
        self.healthy.set(i64::try_from(scheduler.healthy()).unwrap_or(i64::MAX));
        self.profile.clear();
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
    use super::*;

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
        metrics.store.fetched("s3", "ok", Duration::ZERO);
        metrics.rollouts.fill();
        let text = metrics.encode();
        let registered: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        let documented = include_str!("../../docs/metrics.md");
        assert_eq!(registered.len(), CATALOGUE.len(), "{registered:?}");
        for (name, kind, labels) in CATALOGUE {
            let family = format!(
                "{} {kind}",
                name.strip_suffix("_total").filter(|_| *kind == "counter").unwrap_or(name)
            );
            assert!(registered.contains(&family.as_str()), "{family} is not registered");
            assert!(
                documented.contains(&format!("| `{name}` | {kind} | {labels} |")),
                "{name} is not in docs/metrics.md"
            );
        }
        let rows = documented.lines().filter(|line| line.starts_with("| `torchlane_")).count();
        assert_eq!(rows, CATALOGUE.len(), "docs/metrics.md lists something else");
    }
}
