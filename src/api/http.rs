//! What is asked by HTTP: probes and metrics.

use std::sync::Arc;

use axum::{
    Router,
    http::{StatusCode, header},
    routing::get,
};

use super::health::Health;
use crate::telemetry::Metrics;

/// `/livez`, `/readyz`, `/metrics`, and a line at `/` that says so.
pub fn router(health: Health, metrics: Arc<Metrics>) -> Router {
    let alive = health.clone();
    let ready = move || async move {
        if health.is_ready() {
            (StatusCode::OK, "ready\n")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: models are loading, or the server is stopping\n")
        }
    };
    let live = move || async move {
        if alive.is_broken() {
            (StatusCode::SERVICE_UNAVAILABLE, "every executor is held by a pass that does not end\n")
        } else {
            (StatusCode::OK, "alive\n")
        }
    };
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let scrape = move || async move { ([(header::CONTENT_TYPE, content_type)], metrics.encode()) };
    let here = concat!(
        "torchlane ",
        env!("CARGO_PKG_VERSION"),
        ": /livez /readyz /metrics; inference is on the gRPC port\n"
    );
    Router::new()
        .route("/", get(async move || here))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
}
