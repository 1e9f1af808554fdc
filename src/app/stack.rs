//! The stacks, outermost first.

use std::sync::Arc;

use tower::ServiceBuilder;

use crate::{
    admission::{Deadline, Resolve},
    admission::{
        DeadlineLayer, Forecast, ForecastLayer, Forecaster, Headroom, LimitConfig, Limiter, PriorityLimit,
        PriorityLimitLayer, ResolveLayer, Tenants,
    },
    config::Admission,
    ensemble::{Ensemble, EnsembleLayer},
    loader::Pace,
    registry::Registry,
    response_cache::{Cached, CachedLayer, ResponseCache},
    rollout::{Route, RouteLayer},
    sched::{Dispatch, Scheduler},
    telemetry::{AccessLog, Metrics, Record, RecordLayer, SampleLayer, Sampled, Sampler, Traces},
};

/// What runs a model.
type Core = Resolve<Cached<Deadline<Forecast<PriorityLimit<Dispatch>>>>>;

/// What every inference call goes through.
pub(super) type InferStack = Record<Sampled<Route<Ensemble<Core, Record<Route<Core>>>>>>;

/// Who sees every request and its answer.
pub(super) struct Seen {
    pub(super) metrics: Arc<Metrics>,
    pub(super) access: Arc<AccessLog>,
    pub(super) pace: Arc<Pace>,
    pub(super) sampler: Option<Arc<Sampler>>,
    pub(super) registry: Arc<Registry>,
    pub(super) tenants: Arc<Tenants>,
    pub(super) traces: Option<Arc<Traces>>,
}

/// Builds it.
pub(super) fn infer(
    route: RouteLayer,
    resolve: ResolveLayer,
    cache: Option<Arc<ResponseCache>>,
    forecaster: Arc<Forecaster>,
    limiter: Arc<Limiter>,
    scheduler: Arc<Scheduler>,
    seen: Seen,
) -> InferStack {
    let Seen { metrics, access, pace, sampler, registry, tenants, traces } = seen;
    // Sees every outcome, refusals included.
    let record = RecordLayer::new(metrics, access, pace, registry.clone(), traces);
    let core = ServiceBuilder::new()
        // Wrong requests and lanes that are shed are refused before they wait; from here on the lane is known.
        .layer(resolve)
        // Answers what was answered before, for models that ask for it.
        .layer(CachedLayer::new(cache))
        // Holds everything below to the deadline: waiting for a ticket, for an executor, for the result.
        .layer(DeadlineLayer)
        // Refuses at once what would be late.
        .layer(ForecastLayer::new(forecaster))
        // Waits for a ticket, in the order of lanes.
        .layer(PriorityLimitLayer::new(limiter))
        // Waits for an executor, in the same order, decided again at dispatch.
        .service(Dispatch::new(scheduler));
    // Steps of ensembles are requests too, but none that a caller sent: no samples are taken of them.
    let steps = ServiceBuilder::new().layer(record.clone()).layer(route.clone()).service(core.clone());
    ServiceBuilder::new()
        .layer(record)
        // Keeps some requests with their answers, where the settings ask for it.
        .layer(SampleLayer::new(sampler))
        // Sends a request to a version that is rolled out, and to the live one where that fails.
        .layer(route)
        // Runs the steps of a model that is made of others.
        .layer(EnsembleLayer::new(registry, tenants, steps))
        .service(core)
}

/// The limiter that the settings describe.
pub(super) fn limiter(settings: &Admission) -> Arc<Limiter> {
    Limiter::new(LimitConfig {
        max_in_flight: settings.max_in_flight,
        queue_depth: settings.queue_depth,
        headroom: Headroom {
            high: settings.headroom_high,
            normal: settings.headroom_normal,
            low: settings.headroom_low,
        },
        min_share: settings.min_share,
    })
}
