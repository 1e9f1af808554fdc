//! The stacks, outermost first.

use std::sync::Arc;

use tower::ServiceBuilder;

use crate::{
    admission::{Deadline, Resolve},
    admission::{
        DeadlineLayer, Forecast, ForecastLayer, Forecaster, Headroom, LimitConfig, Limiter, PriorityLimit,
        PriorityLimitLayer, ResolveLayer,
    },
    config::Admission,
    loader::Pace,
    rollout::{Route, RouteLayer},
    sched::{Dispatch, Scheduler},
    telemetry::{AccessLog, Metrics, Record, RecordLayer, SampleLayer, Sampled, Sampler},
};

/// What every inference call goes through.
pub(super) type InferStack = Record<Sampled<Route<Resolve<Deadline<Forecast<PriorityLimit<Dispatch>>>>>>>;

/// Who sees every request and its answer.
pub(super) struct Seen {
    pub(super) metrics: Arc<Metrics>,
    pub(super) access: Arc<AccessLog>,
    pub(super) pace: Arc<Pace>,
    pub(super) sampler: Option<Arc<Sampler>>,
}

/// Builds it.
pub(super) fn infer(
    route: RouteLayer,
    resolve: ResolveLayer,
    forecaster: Arc<Forecaster>,
    limiter: Arc<Limiter>,
    scheduler: Arc<Scheduler>,
    seen: Seen,
) -> InferStack {
    let Seen { metrics, access, pace, sampler } = seen;
    ServiceBuilder::new()
        // Sees every outcome, refusals included.
        .layer(RecordLayer::new(metrics, access, pace))
        // Keeps some requests with their answers, where the settings ask for it.
        .layer(SampleLayer::new(sampler))
        // Sends a request to a version that is rolled out, and to the live one where that fails.
        .layer(route)
        // Wrong requests and lanes that are shed are refused before they wait; from here on the lane is known.
        .layer(resolve)
        // Holds everything below to the deadline: waiting for a ticket, for an executor, for the result.
        .layer(DeadlineLayer)
        // Refuses at once what would be late.
        .layer(ForecastLayer::new(forecaster))
        // Waits for a ticket, in the order of lanes.
        .layer(PriorityLimitLayer::new(limiter))
        // Waits for an executor, in the same order, decided again at dispatch.
        .service(Dispatch::new(scheduler))
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
