//! How the server is at one moment: what the page asks for each second.
//!
//! Numbers are read where they are kept anyway: nothing is computed for the console alone but the percentiles of the last hour.
//! What only ever grows (busy times, compute, requests) is told as it stands; the page makes rates of the differences, by
//! `uptime_seconds`. Times are in seconds, sizes in bytes.

use std::time::Duration;

use serde::Serialize;

use super::{
    Console,
    models::{self, ModelView},
    past::{self, ChangeView},
    troubles::{self, Trouble},
};
use crate::{
    admission::{LimitSnapshot, Pressure, Tenants},
    api::health::{Condition, Health},
    model::Lane,
    residency::MemorySnapshot,
    sched::{Scheduler, SchedulerSnapshot},
    telemetry::{Curve, Metrics, Moment, Sources},
};

#[derive(Debug, Serialize)]
pub(super) struct Overview {
    server: ServerView,
    /// `None`: the server has stopped all but this door.
    load: Option<LoadView>,
    /// What wants a look, the worst first.
    troubles: Vec<Trouble>,
    models: Vec<ModelView>,
    /// The last of all models: failures that are open first, then the newest.
    changes: Vec<ChangeView>,
}

#[derive(Debug, Serialize)]
struct ServerView {
    name: &'static str,
    version: &'static str,
    /// `console.title`.
    title: String,
    /// Its name in the network: the pod's in Kubernetes.
    host: String,
    grpc_addr: String,
    http_addr: String,
    /// `ready`, `not_ready`, `draining` or `broken`.
    status: &'static str,
    uptime_seconds: f64,
    /// Models can be changed here.
    admin: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct LoadView {
    lanes: Vec<LaneView>,
    pub(super) executors: ExecutorsView,
    /// By name.
    tenants: Vec<TenantView>,
    pub(super) pressure: PressureView,
    pub(super) memory: MemoryView,
}

#[derive(Debug, Serialize)]
struct LaneView {
    lane: &'static str,
    /// For a ticket.
    waiting_admission: usize,
    /// For an executor.
    waiting_scheduler: usize,
    in_flight: usize,
    /// By seconds.
    minute: CurveView,
    /// By minutes.
    hour: CurveView,
}

/// Of each list the last element is of the last whole second or minute.
#[derive(Debug, Serialize)]
struct CurveView {
    answered: Vec<u64>,
    failed: Vec<u64>,
    p50_seconds: Vec<Option<f64>>,
    p99_seconds: Vec<Option<f64>>,
    whole: MomentView,
    reasons: Vec<ReasonView>,
}

/// Failures of one kind.
#[derive(Debug, Serialize)]
pub(super) struct ReasonView {
    reason: &'static str,
    count: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct MomentView {
    answered: u64,
    failed: u64,
    p50_seconds: Option<f64>,
    p99_seconds: Option<f64>,
}

#[derive(Debug, Serialize)]
pub(super) struct ExecutorsView {
    /// Not held by a stuck pass.
    pub(super) healthy: usize,
    /// Each one's, since the start.
    pub(super) busy_seconds: Vec<f64>,
    /// Quick passes on the threads of the wire, since the start.
    wire_seconds: f64,
    /// Since the start.
    batches: u64,
}

#[derive(Debug, Serialize)]
struct TenantView {
    tenant: String,
    /// Since the start.
    compute_seconds: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct PressureView {
    /// Lanes that are refused, from the lowest.
    pub(super) level: usize,
    in_flight_bytes: u64,
    pub(super) ratios: Vec<RatioView>,
}

#[derive(Debug, Serialize)]
pub(super) struct RatioView {
    pub(super) resource: &'static str,
    /// Used part of its limit.
    pub(super) ratio: f64,
}

#[derive(Debug, Serialize)]
pub(super) struct MemoryView {
    /// 0: there is none.
    budget_bytes: u64,
    used_bytes: u64,
    /// Models with a version in memory.
    models: usize,
    pub(super) thrashing: bool,
}

/// Changes that are told of.
const CHANGES: usize = 8;
/// Changes, and failures, among which these are looked for.
const LOOKED_AT: usize = 64;

/// As it is now.
pub(super) fn read(console: &Console) -> Overview {
    let Console { with, identity, rights, began, .. } = console;
    let models = with.manager.list();
    let sources = with.metrics.sources();
    let load = sources.as_ref().map(|sources| LoadView::read(sources, &with.metrics));
    let failures = with.history.last_where(past::is_failure, LOOKED_AT);
    Overview {
        server: ServerView {
            name: env!("CARGO_PKG_NAME"),
            version: env!("CARGO_PKG_VERSION"),
            title: identity.title.clone(),
            host: identity.host.clone(),
            grpc_addr: identity.grpc.to_string(),
            http_addr: identity.http.to_string(),
            status: status(&with.health),
            uptime_seconds: began.elapsed().as_secs_f64(),
            admin: rights.admin,
        },
        troubles: troubles::all(with.health.trouble(), &models, load.as_ref()),
        load,
        changes: past::latest(&models, with.history.last(None, LOOKED_AT), failures, CHANGES),
        models: models::list(console, &models, sources.as_ref().map(|sources| sources.models.as_ref())),
    }
}

fn status(health: &Health) -> &'static str {
    match health.condition() {
        Condition::Draining => "draining",
        Condition::Broken => "broken",
        Condition::Ready => "ready",
        Condition::Loading => "not_ready",
    }
}

impl LoadView {
    fn read(sources: &Sources, metrics: &Metrics) -> Self {
        let (admission, ran) = (sources.limiter.snapshot(), sources.scheduler.snapshot());
        let lane = |lane| {
            let recent = metrics.recent();
            let minute = recent.map(|recent| recent.minute(lane)).unwrap_or_default();
            let hour = recent.map(|recent| recent.hour(lane)).unwrap_or_default();
            LaneView::new(lane, &admission, &ran, [minute, hour])
        };
        Self {
            lanes: Lane::ALL.into_iter().map(lane).collect(),
            executors: ExecutorsView::new(&sources.scheduler, &ran),
            tenants: tenants(&sources.tenants),
            pressure: PressureView::new(&sources.pressure),
            memory: MemoryView::new(sources.memory.snapshot()),
        }
    }
}

impl LaneView {
    fn new(
        lane: Lane,
        admission: &LimitSnapshot,
        ran: &SchedulerSnapshot,
        [minute, hour]: [Curve; 2],
    ) -> Self {
        let of = |by_lane: &[usize; 4]| by_lane.get(lane.index()).copied().unwrap_or_default();
        Self {
            lane: lane.as_str(),
            waiting_admission: of(&admission.waiting),
            waiting_scheduler: of(&ran.waiting),
            in_flight: of(&admission.in_flight),
            minute: CurveView::new(minute),
            hour: CurveView::new(hour),
        }
    }
}

fn seconds(time: Option<Duration>) -> Option<f64> {
    time.map(|time| time.as_secs_f64())
}

impl CurveView {
    fn new(Curve { moments: each, whole, reasons: failed }: Curve) -> Self {
        Self {
            answered: each.iter().map(|moment| moment.answered).collect(),
            failed: each.iter().map(|moment| moment.failed).collect(),
            p50_seconds: each.iter().map(|moment| seconds(moment.p50)).collect(),
            p99_seconds: each.iter().map(|moment| seconds(moment.p99)).collect(),
            whole: MomentView::new(whole),
            reasons: reasons(failed),
        }
    }
}

impl MomentView {
    pub(super) fn new(Moment { answered, failed, p50, p99 }: Moment) -> Self {
        Self { answered, failed, p50_seconds: seconds(p50), p99_seconds: seconds(p99) }
    }
}

pub(super) fn reasons(failed: Vec<(&'static str, u64)>) -> Vec<ReasonView> {
    failed.into_iter().map(|(reason, count)| ReasonView { reason, count }).collect()
}

impl ExecutorsView {
    fn new(scheduler: &Scheduler, ran: &SchedulerSnapshot) -> Self {
        Self {
            healthy: scheduler.healthy(),
            busy_seconds: ran.busy.iter().map(Duration::as_secs_f64).collect(),
            wire_seconds: ran.on_wire.as_secs_f64(),
            batches: ran.batches,
        }
    }
}

fn tenants(tenants: &Tenants) -> Vec<TenantView> {
    let view = |(tenant, compute): (std::sync::Arc<str>, Duration)| TenantView {
        tenant: tenant.to_string(),
        compute_seconds: compute.as_secs_f64(),
    };
    let mut all: Vec<_> = tenants.compute().into_iter().map(view).collect();
    all.sort_by(|a, b| a.tenant.cmp(&b.tenant));
    all
}

impl PressureView {
    fn new(pressure: &Pressure) -> Self {
        let ratios = pressure.ratios().into_iter();
        Self {
            level: pressure.level(),
            in_flight_bytes: pressure.in_flight_bytes(),
            ratios: ratios.map(|(of, ratio)| RatioView { resource: of.as_str(), ratio }).collect(),
        }
    }
}

impl MemoryView {
    fn new(memory: MemorySnapshot) -> Self {
        let MemorySnapshot { budget, used, models, thrashing } = memory;
        Self { budget_bytes: budget, used_bytes: used, models, thrashing }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::{
            Arc,
            atomic::{AtomicBool, Ordering},
        },
    };

    use serde_json::json;

    use super::*;
    use crate::admission::{Account, PressureSettings, Resource, TenantSettings};

    #[test]
    fn a_lane_has_its_own_numbers() {
        let admission = LimitSnapshot { in_flight: [1, 2, 3, 4], waiting: [5, 6, 7, 8] };
        let ran = SchedulerSnapshot {
            waiting: [9, 10, 11, 12],
            busy: Vec::new(),
            on_wire: Duration::ZERO,
            batches: 0,
        };
        let second = Moment {
            answered: 2,
            failed: 1,
            p50: Some(Duration::from_millis(4)),
            p99: Some(Duration::from_millis(250)),
        };
        let minute =
            Curve { moments: vec![Moment::default(), second], whole: second, reasons: vec![("LATE", 1)] };
        let both = [minute, Curve::default()];
        let told = serde_json::to_value(LaneView::new(Lane::Normal, &admission, &ran, both)).unwrap();
        let nothing = json!({
            "answered": [], "failed": [], "p50_seconds": [], "p99_seconds": [], "reasons": [],
            "whole": {"answered": 0, "failed": 0, "p50_seconds": null, "p99_seconds": null},
        });
        let expected = json!({
            "lane": "NORMAL", "waiting_admission": 7, "waiting_scheduler": 11, "in_flight": 3,
            "minute": {
                "answered": [0, 2], "failed": [0, 1], "p50_seconds": [null, 0.004], "p99_seconds": [null, 0.25],
                "whole": {"answered": 2, "failed": 1, "p50_seconds": 0.004, "p99_seconds": 0.25},
                "reasons": [{"reason": "LATE", "count": 1}],
            },
            "hour": nothing,
        });
        assert_eq!(told, expected);
    }

    #[tokio::test]
    async fn a_server_that_drains_says_so_whatever_else_it_is() {
        let broken = Arc::new(AtomicBool::new(false));
        let is_broken = broken.clone();
        let trouble = move || is_broken.load(Ordering::Relaxed).then(|| "stuck".to_owned());
        let (health, _service) = Health::new(trouble).await;
        assert_eq!(status(&health), "not_ready");
        health.set_ready().await;
        assert_eq!(status(&health), "ready");
        broken.store(true, Ordering::Relaxed);
        assert_eq!(status(&health), "broken");
        health.set_draining().await;
        assert_eq!(status(&health), "draining");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_short_and_who_used_what() {
        let bytes = Account::alone(1000).all().clone();
        let pressure = Pressure::new(PressureSettings::default(), bytes);
        pressure.read(Resource::Memory, 0.97, tokio::time::Instant::now());
        let told = serde_json::to_value(PressureView::new(&pressure)).unwrap();
        assert_eq!((&told["level"], &told["in_flight_bytes"]), (&json!(2), &json!(0)));
        assert_eq!(told["ratios"][0], json!({"resource": "memory", "ratio": 0.97}));
        let settings = ["zebra", "ant"].map(|name| (name.to_owned(), TenantSettings::default()));
        let told = tenants(&Tenants::new(&BTreeMap::from(settings)));
        let names: Vec<_> = told.iter().map(|tenant| tenant.tenant.as_str()).collect();
        assert_eq!(names, ["ant", "default", "zebra"]);
    }
}
