//! The console: a page for people at `/`, and what it shows, as JSON below `/console`.
//!
//! The page is files of this folder, in the binary as they are ([`assets`]): no build step, nothing from elsewhere, and a policy
//! that lets it load nothing else. It asks for an [`overview`] each second, and for the [`details`] of a model that is opened;
//! requests that are tried out are ordinary ones, to `/v2`. It reads, unless `console.admin` lets it change models ([`changes`]).

mod assets;
mod changes;
mod details;
mod models;
mod overview;
mod past;
mod rollout;
mod troubles;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{HeaderValue, header},
    middleware::map_response,
    response::Response,
    routing::{get, post},
};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;
use tower_http::{catch_panic::CatchPanicLayer, compression::CompressionLayer};

use super::{
    health::Health,
    rest::{
        answer::with_type,
        path::Path,
        refusal::{no_method, panicked, refusal},
    },
};
use crate::{
    admission::ControlLane,
    error::{Error, Reason, Result},
    lifecycle::{History, Manager},
    telemetry::Metrics,
};

/// What the console shows and changes.
#[derive(Debug, Clone)]
pub struct Resources {
    /// Models, and what changes them.
    pub manager: Arc<Manager>,
    /// What became of earlier changes.
    pub history: Arc<History>,
    /// Where numbers are read. It keeps the last hour of requests from now on.
    pub metrics: Arc<Metrics>,
    /// How the server is.
    pub health: Health,
    /// Where changes wait for their turn.
    pub control: ControlLane,
}

/// Which server this is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// `console.title`.
    pub title: String,
    /// Its name in the network.
    pub host: String,
    /// Where gRPC listens.
    pub grpc: SocketAddr,
    /// Where HTTP listens.
    pub http: SocketAddr,
}

/// What it may do.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    /// Change models.
    pub admin: bool,
    /// Longest that it waits for a change. The change goes on.
    pub patience: Duration,
}

#[derive(Debug)]
struct Console {
    with: Resources,
    identity: Identity,
    rights: Rights,
    began: Instant,
    latest: Mutex<Option<(Instant, Bytes)>>,
}

/// An overview serves everybody who asks within this time, so that many open pages cost hardly more than one.
const FRESH: Duration = Duration::from_millis(250);

/// The routes of the console: `/` and those below `/console`.
pub fn router(with: Resources, identity: Identity, rights: Rights) -> Router {
    with.metrics.keep_recent();
    let console =
        Arc::new(Console { with, identity, rights, began: Instant::now(), latest: Mutex::default() });
    assets::routes()
        .route("/console/state", get(state))
        .route("/console/models/{model}", get(model))
        .route("/console/models/{model}/{change}", post(changes::change))
        .method_not_allowed_fallback(no_method)
        .with_state(console)
        .layer(map_response(guarded))
        .layer(CompressionLayer::new().no_br())
        .layer(CatchPanicLayer::custom(panicked))
}

async fn state(State(console): State<Arc<Console>>) -> Response {
    answer(console.overview())
}

async fn model(State(console): State<Arc<Console>>, Path(model): Path<String>) -> Response {
    answer(details::read(&console, &model).and_then(|details| json(&details)))
}

impl Console {
    fn overview(&self) -> Result<Bytes> {
        let mut latest = self.latest.lock();
        if let Some((at, json)) = &*latest
            && at.elapsed() < FRESH
        {
            return Ok(json.clone());
        }
        let now = json(&overview::read(self))?;
        *latest = Some((Instant::now(), now.clone()));
        Ok(now)
    }
}

fn json<T: Serialize>(value: &T) -> Result<Bytes> {
    let written = serde_json::to_vec(value).map(Bytes::from);
    written.map_err(|error| Error::new(Reason::Internal, error.to_string()))
}

fn answer(json: Result<Bytes>) -> Response {
    match json {
        Ok(json) => with_type("application/json", json.into()),
        Err(error) => refusal(&error),
    }
}

/// What the page may load and where it may be shown: its own files, and nowhere but in a window of its own.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Every answer says what browsers may do with it. What says nothing of being kept is not kept.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
