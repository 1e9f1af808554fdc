//! What is asked by HTTP beside the protocols: probes and metrics.

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    http::{StatusCode, Version, header},
    middleware::{Next, from_fn},
    response::Response,
    routing::get,
};

use super::{
    health::Health,
    rest::refusal::{no_method, refusal},
};
use crate::{
    error::{Error, Reason},
    telemetry::Metrics,
};

/// `/livez`, `/readyz` and `/metrics`. `notes` says what an operator should know of repositories and models.
pub fn router(
    health: Health,
    metrics: Arc<Metrics>,
    notes: impl Fn() -> Vec<String> + Clone + Send + Sync + 'static,
) -> Router {
    let alive = health.clone();
    let ready = move || async move {
        let (status, first) = if health.is_ready() {
            (StatusCode::OK, "ready")
        } else if health.is_draining() {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: the server is stopping")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "not ready: models are loading, or the server is stopping")
        };
        let notes = notes();
        let lines: Vec<&str> =
            std::iter::once(first).chain(notes.iter().map(String::as_str).take(NOTES)).collect();
        (status, lines.join("\n") + "\n")
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
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .method_not_allowed_fallback(no_method)
}

/// More notes than this are left out of `/readyz`.
const NOTES: usize = 20;

/// A line at `/` that says what there is, where there is no console.
pub fn hello() -> Router {
    let here = concat!(
        "torchlane ",
        env!("CARGO_PKG_VERSION"),
        ": /livez /readyz /metrics; /v2 (see /v2/docs, for programs /v2/openapi.json); gRPC is on its own port\n"
    );
    Router::new().route("/", get(async move || here)).method_not_allowed_fallback(no_method)
}

/// All routes of the port, for requests that name one host (RFC 9112, section 3.2): what stands in front may have gone by another
/// than this server would. That lengths are told once and in one way is hyper's to see.
pub fn for_one_host(router: Router) -> Router {
    router.layer(from_fn(async |request: Request, next: Next| -> Response {
        let hosts = request.headers().get_all(header::HOST).iter().count();
        let may_lack = request.version() < Version::HTTP_11;
        if hosts == 1 || hosts == 0 && may_lack {
            return next.run(request).await;
        }
        let why = if hosts == 0 { "the header Host is missing" } else { "Host is there more than once" };
        refusal(&Error::new(Reason::BadRequest, format!("{why}: HTTP/1.1 wants it once")).with_field("host"))
    }))
}
