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
    health::{Condition, Health},
    rest::refusal::{no_method, refusal},
    unread,
};
use crate::{
    error::{Error, Reason},
    layers::Hosts,
    telemetry::Metrics,
};

/// Paths that a thread answers which does nothing else.
pub const PROBES: [&str; 2] = ["/livez", "/readyz"];

/// The path of [`metrics`].
pub const METRICS: &str = "/metrics";

/// More notes than this are left out of `/readyz`.
const NOTES: usize = 20;

/// `/livez` and `/readyz`. `notes` says what an operator should know of repositories and models.
pub fn probes(health: Health, notes: impl Fn() -> Vec<String> + Clone + Send + Sync + 'static) -> Router {
    let [livez, readyz] = PROBES;
    let alive = health.clone();
    let ready = move || async move {
        let notes: String = notes().into_iter().take(NOTES).map(|note| note + "\n").collect();
        let trouble = match health.condition() {
            Condition::Ready => return (StatusCode::OK, format!("ready\n{notes}")),
            Condition::Loading => "models are loading".to_owned(),
            Condition::Draining => "the server is stopping".to_owned(),
            Condition::Broken => health.trouble().unwrap_or_default(),
        };
        (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {trouble}\n{notes}"))
    };
    let live = move || async move {
        match alive.trouble() {
            Some(trouble) => (StatusCode::SERVICE_UNAVAILABLE, format!("{trouble}\n")),
            None => (StatusCode::OK, "alive\n".to_owned()),
        }
    };
    Router::new().route(livez, get(live)).route(readyz, get(ready)).method_not_allowed_fallback(no_method)
}

/// `/metrics`.
pub fn metrics(metrics: Arc<Metrics>) -> Router {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let scrape = move || async move { ([(header::CONTENT_TYPE, content_type)], metrics.encode()) };
    Router::new().route(METRICS, get(scrape)).method_not_allowed_fallback(no_method)
}

/// A line at `/` that says what there is, where there is no console.
pub fn hello() -> Router {
    let here = concat!(
        "torchlane ",
        env!("CARGO_PKG_VERSION"),
        ": /livez /readyz /metrics; /v2 (see /v2/docs, for programs /v2/openapi.json); gRPC is on its own port\n"
    );
    Router::new().route("/", get(async move || here)).method_not_allowed_fallback(no_method)
}

/// All routes of the port, for requests that name one host, which is this server's. What stands in front may have gone by another
/// than this server would (RFC 9112, section 3.2), and a page by one of its own ([`Hosts`]). That lengths are said once and in one
/// way is hyper's to see.
pub fn admitted(router: Router, hosts: Hosts) -> Router {
    let hosts = Arc::new(hosts);
    let for_own_host = move |request: Request, next: Next| for_own_host(hosts.clone(), request, next);
    router.layer(from_fn(for_own_host)).layer(from_fn(unread::finished))
}

async fn for_own_host(hosts: Arc<Hosts>, mut request: Request, next: Next) -> Response {
    let mut named = request.headers().get_all(header::HOST).iter();
    let admitted = match (named.next(), named.next()) {
        (Some(host), None) => {
            // A proxy is asked for `http://name/path`: that name counts for more than the header (RFC 9112, section 3.2.2).
            let target = request.uri().authority().map_or(Ok(()), |name| hosts.admit(name.as_str()));
            target.and_then(|()| hosts.admit(host.to_str().unwrap_or("(not ASCII)")))
        }
        (None, _) if request.version() < Version::HTTP_11 => Ok(()),
        (None, _) => Err(bad_host("the header Host is missing")),
        (Some(_), Some(_)) => Err(bad_host("Host is there more than once")),
    };
    if let Err(error) = admitted {
        return refusal(&error);
    }
    request.extensions_mut().insert(hosts);
    next.run(request).await
}

fn bad_host(why: &str) -> Error {
    Error::new(Reason::BadRequest, format!("{why}: HTTP/1.1 wants it once")).with_field("host")
}
