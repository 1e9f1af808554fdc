//! The Open Inference Protocol over HTTP, with Triton's extensions: the routes below `/v2`.
//!
//! Bodies may be compressed (gzip, deflate, zstd), and so are answers to callers that say they read that. Headers:
//! `x-timeout-ms`, `x-priority`, `x-tenant`.

pub(super) mod answer;
pub(super) mod body;
mod coding;
mod docs;
mod infer;
pub(super) mod json;
mod numbers;
pub(super) mod path;
pub(super) mod refusal;
mod request;
mod routes;

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::{Extensions, HeaderMap, StatusCode, Version},
    routing::{MethodRouter, get, post},
};
use tokio_util::sync::CancellationToken;
use tower::Service;
use tower_http::{
    catch_panic::CatchPanicLayer,
    compression::{
        CompressionLayer,
        predicate::{DefaultPredicate, Predicate as _},
    },
};

use super::oip::OpenInference;
use crate::{
    admission::{Account, Caller, Callers},
    call::{InferCall, InferReply},
    error::Error,
    layers::RequestCap,
};

/// For fuzz targets.
#[cfg(feature = "fuzz")]
pub(super) fn decode(
    body: &bytes::Bytes,
    json: Option<usize>,
) -> crate::error::Result<super::oip::incoming::Incoming> {
    request::read("m".to_owned(), String::new(), body, json)
}

/// Limits of this door.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Requests in the process, those by gRPC included.
    pub requests: Arc<RequestCap>,
    /// What callers hold, bytes of requests among it.
    pub callers: Arc<Callers>,
    /// Most bytes of one body, after it was inflated.
    pub longest: usize,
    /// Deadlines further away are brought forward to this.
    pub max_deadline: Duration,
    /// From here on requests are refused: the server is about to stop.
    pub closing: CancellationToken,
}

impl Limits {
    /// Where bytes of a request with these extensions count.
    fn account(&self, extensions: &Extensions) -> Arc<Account> {
        extensions.get().cloned().unwrap_or_else(|| self.callers.account(Caller::UNKNOWN))
    }
}

/// The door.
#[derive(Debug, Clone)]
struct Rest<S> {
    door: OpenInference<S>,
    limits: Limits,
}

/// All routes below `/v2`.
pub fn router<S>(door: OpenInference<S>, limits: Limits) -> Router
where
    S: Service<InferCall, Response = InferReply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let routes = table().into_iter().fold(Router::new(), |router, (path, route)| router.route(&path, route));
    routes
        .fallback(refusal::no_route)
        .method_not_allowed_fallback(refusal::no_method)
        .with_state(Rest { door, limits })
        .layer(CatchPanicLayer::custom(refusal::panicked))
}

/// Path and methods of each. `openapi.json` describes the same, and tests hold the two together.
fn table<S>() -> Vec<(String, MethodRouter<Rest<S>>)>
where
    S: Service<InferCall, Response = InferReply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let mut table = Vec::new();
    let mut add = |path: &str, route| table.push((path.to_owned(), route));
    add("/v2", get(routes::server::<S>));
    add("/v2/", get(routes::server::<S>));
    add("/v2/openapi.json", get(routes::openapi));
    add("/v2/docs", get(docs::page).layer(CompressionLayer::new().no_br()));
    add("/v2/health/live", get(routes::live::<S>));
    add("/v2/health/ready", get(routes::ready::<S>));
    add("/v2/models/stats", get(routes::statistics::<S>));
    for of in ["/v2/models/{model}", "/v2/models/{model}/versions/{version}"] {
        // Only these are worth it, and only what went well: not every client that asks for compressed answers inflates others.
        let well = DefaultPredicate::new()
            .and(|status: StatusCode, _: Version, _: &HeaderMap, _: &Extensions| status.is_success());
        let compressed = CompressionLayer::new().no_br().compress_when(well);
        add(of, get(routes::metadata::<S>));
        add(&format!("{of}/infer"), post(infer::infer::<S>).layer(compressed));
        add(&format!("{of}/ready"), get(routes::model_ready::<S>));
        add(&format!("{of}/config"), get(routes::config::<S>));
        add(&format!("{of}/stats"), get(routes::statistics::<S>));
    }
    for of in ["/v2/repository", "/v2/repository/{repository}"] {
        add(&format!("{of}/index"), post(routes::index::<S>));
        add(&format!("{of}/models/{{model}}/load"), post(routes::load::<S>));
        add(&format!("{of}/models/{{model}}/unload"), post(routes::unload::<S>));
    }
    for path in ["/v2/trace/setting", "/v2/models/{model}/trace/setting"] {
        add(path, get(routes::trace::<S>).post(routes::trace::<S>));
    }
    add("/v2/logging", get(routes::logging::<S>).post(routes::logging::<S>));
    let (system, cuda) = ("/v2/systemsharedmemory", "/v2/cudasharedmemory");
    for of in ["", "/region/{region}"] {
        add(&format!("{system}{of}/status"), get(routes::regions::<S>));
        add(&format!("{system}{of}/unregister"), post(routes::unregister::<S>));
        add(&format!("{cuda}{of}/status"), get(routes::cuda_regions));
        add(&format!("{cuda}{of}/unregister"), post(routes::unregister_cuda));
    }
    add(&format!("{system}/region/{{region}}/register"), post(routes::register::<S>));
    add(&format!("{cuda}/region/{{region}}/register"), post(routes::register_cuda));
    table
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, future::Ready};

    use super::*;
    use crate::model::ModelName;

    type Nobody = tower::util::ServiceFn<fn(InferCall) -> Ready<Result<InferReply, Error>>>;

    #[test]
    fn what_is_routed_is_described_and_nothing_else() {
        let described: serde_json::Value = serde_json::from_str(include_str!("openapi.json")).unwrap();
        let described: BTreeSet<String> = described["paths"].as_object().unwrap().keys().cloned().collect();
        let routed = table::<Nobody>().into_iter().map(|(path, _)| path.trim_end_matches('/').to_owned());
        assert_eq!(described, routed.collect());
    }

    #[test]
    fn a_model_is_told_of_a_route_that_has_its_name() {
        let paths = table::<Nobody>().into_iter().map(|(path, _)| path);
        let names: BTreeSet<String> = paths
            .filter_map(|path| path.strip_prefix("/v2/models/")?.split('/').next().map(str::to_owned))
            .filter(|name| !name.starts_with('{'))
            .collect();
        assert!(!names.is_empty());
        for name in names {
            let name: ModelName = name.parse().unwrap();
            assert!(name.hidden_by_route().is_some(), "{name}");
        }
    }
}
