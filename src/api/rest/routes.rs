//! Every route but inference.

use std::{net::SocketAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{Method, StatusCode},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::time::Instant;
use tonic::{metadata::MetadataMap, transport::server::TcpConnectInfo};

use super::{
    Rest,
    answer::with_type,
    coding,
    infer::{Which, deadline},
    json::{self, Object},
    path::Path,
    refusal::refusal,
};
use crate::{
    admission::MessageBytes,
    api::{
        arrival::Arrival,
        oip::{FILE, LoadParameter, LogValue, no_cuda, no_cuda_region},
        origin,
    },
    error::{Error, Reason, Result, shown},
    telemetry::Door,
};

/// Longest body of most of these: names and numbers.
const LONGEST: usize = 64 << 10;

/// The answer in JSON, or the refusal.
fn as_json<T: Serialize>(answer: Result<T>) -> Response {
    let written = answer.and_then(|answer| {
        serde_json::to_vec(&answer).map_err(|error| Error::new(Reason::Internal, error.to_string()))
    });
    match written {
        Ok(json) => with_type("application/json", json.into()),
        Err(error) => refusal(&error),
    }
}

/// An empty object, or the refusal.
fn done(changed: Result<()>) -> Response {
    as_json(changed.map(|()| json!({})))
}

/// A body of names and numbers, with what came with it. No body is an empty object. Whoever may call may change things, but no
/// page of another origin may make somebody's browser do so.
async fn admin<S, T: for<'de> Deserialize<'de>>(
    rest: &Rest<S>,
    request: Request,
) -> Result<(T, Arrival, Option<SocketAddr>)> {
    long_admin(rest, request, LONGEST, None).await
}

/// The same with a body of at most `longest` bytes, counted in `counted`.
async fn long_admin<S, T: for<'de> Deserialize<'de>>(
    rest: &Rest<S>,
    request: Request,
    longest: usize,
    counted: Option<&Arc<MessageBytes>>,
) -> Result<(T, Arrival, Option<SocketAddr>)> {
    let from = request.extensions().get::<TcpConnectInfo>().and_then(|info| info.remote_addr);
    let (parts, body) = request.into_parts();
    origin::own(&parts)?;
    let latest = rest.limits.max_deadline;
    let deadline = deadline(&parts.headers, latest)?;
    let until = deadline.unwrap_or_else(|| Instant::now() + latest);
    let body = coding::read(&parts.headers, body, longest, counted, until).await?;
    let text = if body.trim_ascii().is_empty() { b"{}" } else { body.as_ref() };
    let message = json::read(text)?;
    let headers = Arc::new(MetadataMap::from_headers(parts.headers));
    Ok((message, Arrival::new(Door::Http, headers, deadline), from))
}

pub(super) async fn server<S>(State(rest): State<Rest<S>>) -> Response {
    as_json(Ok(rest.door.server_metadata()))
}

/// The description of these routes for programs.
pub(super) async fn openapi() -> Response {
    with_type("application/json", include_str!("openapi.json").into())
}

/// With 200 or 503, as probes want it.
fn health(name: &str, is: bool) -> Response {
    let mut response = as_json(Ok(json!({ name: is })));
    if !is {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

pub(super) async fn live<S>(State(rest): State<Rest<S>>) -> Response {
    health("live", !rest.door.health().is_broken())
}

pub(super) async fn ready<S>(State(rest): State<Rest<S>>) -> Response {
    health("ready", rest.door.health().is_ready())
}

pub(super) async fn model_ready<S>(State(rest): State<Rest<S>>, Path(which): Path<Which>) -> Response {
    let is = rest.door.model_ready(&which.model, &which.version);
    let not_ready = is == Ok(false);
    let mut response = as_json(is.map(|is| json!({"name": which.model, "ready": is})));
    if not_ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

pub(super) async fn metadata<S>(
    State(rest): State<Rest<S>>,
    Path(which): Path<Which>,
    request: Request,
) -> Response {
    let deadline = deadline(request.headers(), rest.limits.max_deadline);
    let metadata = async { rest.door.model_metadata(&which.model, &which.version, deadline?).await };
    as_json(metadata.await)
}

pub(super) async fn config<S>(
    State(rest): State<Rest<S>>,
    Path(which): Path<Which>,
    request: Request,
) -> Response {
    let deadline = deadline(request.headers(), rest.limits.max_deadline);
    let config = async {
        let config = rest.door.model_config(&which.model, &which.version, deadline?).await?;
        crate::triton::to_json(&config).map_err(|error| Error::new(Reason::Internal, error.to_string()))
    };
    as_json(config.await)
}

/// Of one model, of one version of it, or of all.
#[derive(Debug, Deserialize)]
pub(super) struct Of {
    #[serde(default)]
    model: String,
    #[serde(default)]
    version: String,
}

pub(super) async fn statistics<S>(State(rest): State<Rest<S>>, Path(of): Path<Of>) -> Response {
    as_json(rest.door.statistics(&of.model, &of.version))
}

/// Of one repository, or of all.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Repository {
    #[serde(default)]
    repository: String,
    #[serde(default)]
    model: String,
}

#[derive(Debug, Default, Deserialize)]
struct IndexRequest {
    #[serde(default)]
    ready: bool,
}

pub(super) async fn index<S>(
    State(rest): State<Rest<S>>,
    Path(of): Path<Repository>,
    request: Request,
) -> Response {
    let index = async {
        let (IndexRequest { ready }, _, _) = admin(&rest, request).await?;
        rest.door.index(&of.repository, ready).await.map(|index| index.models)
    };
    as_json(index.await)
}

#[derive(Debug, Default, Deserialize)]
struct ChangeRequest {
    parameters: Option<Object<Map<String, Value>>>,
}

pub(super) async fn load<S>(
    State(rest): State<Rest<S>>,
    Path(of): Path<Repository>,
    request: Request,
) -> Response {
    let loaded = async {
        // Files come in the same message: it is as long, and counts, as one with tensors.
        let account = rest.limits.account(request.extensions());
        let counted = rest.door.takes_uploads().then(|| Arc::new(MessageBytes::new(account)));
        let longest = if counted.is_some() { rest.limits.longest } else { LONGEST };
        let (ChangeRequest { parameters }, arrival, from) =
            long_admin(&rest, request, longest, counted.as_ref()).await?;
        let parameters = parameters.map(|Object(parameters)| parameters).unwrap_or_default();
        let parameters = parameters.into_iter().map(|(key, value)| {
            let value = load_parameter(&key, value)?;
            Ok((key, value))
        });
        let parameters = parameters.collect::<Result<_>>()?;
        let counted = counted.map(|counted| counted.take());
        rest.door.load(&of.repository, of.model, parameters, counted, (&arrival, from)).await
    };
    done(loaded.await)
}

/// Files are in base64, as JSON has no bytes.
fn load_parameter(key: &str, value: Value) -> Result<LoadParameter> {
    match value {
        Value::String(text) if key.starts_with(FILE) => {
            let bytes = STANDARD.decode(text).map_err(|error| {
                let message = format!("parameter '{}' is no base64: {error}", shown(key, 64));
                Error::new(Reason::BadRequest, message).with_field("parameters")
            })?;
            Ok(LoadParameter::Bytes(bytes.into()))
        }
        Value::String(text) => Ok(LoadParameter::Text(text)),
        _ => Ok(LoadParameter::Other),
    }
}

pub(super) async fn unload<S>(
    State(rest): State<Rest<S>>,
    Path(of): Path<Repository>,
    request: Request,
) -> Response {
    let unloaded = async {
        let (ChangeRequest { .. }, arrival, from) = admin(&rest, request).await?;
        rest.door.unload(&of.repository, of.model, (&arrival, from)).await
    };
    done(unloaded.await)
}

pub(super) async fn trace<S>(State(rest): State<Rest<S>>, Path(of): Path<Of>, request: Request) -> Response {
    let settings = async {
        let (changes, arrival, from) = changes(&rest, request).await?;
        let changes = changes.into_iter().map(|(key, value)| Ok((key, texts(value)?)));
        let changes = changes.collect::<Result<Vec<_>>>()?;
        let settings = rest.door.trace_settings(&of.model, &changes, (&arrival, from))?;
        let settings = settings.into_iter().map(|(key, value)| match key {
            // What may have several values is a list.
            "trace_level" => (key.to_owned(), json!([value])),
            _ => (key.to_owned(), json!(value)),
        });
        Ok(settings.collect::<Map<_, _>>())
    };
    as_json(settings.await)
}

/// Values of a trace setting: a text or a number, a list of such, or null for none.
fn texts(value: Value) -> Result<Vec<String>> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(text) => Ok(vec![text]),
        Value::Number(number) => Ok(vec![number.to_string()]),
        Value::Array(values) if !values.iter().any(|value| value.is_array() || value.is_null()) => {
            values.into_iter().map(texts).collect::<Result<Vec<_>>>().map(|values| values.concat())
        }
        _ => {
            let message = "a trace setting is a text, a number, a list of texts, or null";
            Err(Error::new(Reason::BadRequest, message).with_field("settings"))
        }
    }
}

pub(super) async fn logging<S>(State(rest): State<Rest<S>>, request: Request) -> Response {
    let settings = async {
        let (changes, arrival, from) = changes(&rest, request).await?;
        let changes = changes.into_iter().map(|(key, value)| {
            let value = match value {
                Value::Bool(is) => LogValue::Bool(is),
                Value::Number(number) => number.as_u64().map_or(LogValue::None, LogValue::Number),
                Value::String(text) => LogValue::Text(text),
                Value::Null | Value::Array(_) | Value::Object(_) => LogValue::None,
            };
            (key, value)
        });
        let changes: Vec<_> = changes.collect();
        let settings = rest.door.log_settings(&changes, (&arrival, from))?;
        let settings = settings.into_iter().map(|(key, value)| {
            let value = match value {
                LogValue::Bool(is) => json!(is),
                LogValue::Number(number) => json!(number),
                LogValue::Text(text) => json!(text),
                LogValue::None => Value::Null,
            };
            (key.to_owned(), value)
        });
        Ok(settings.collect::<Map<_, _>>())
    };
    as_json(settings.await)
}

/// What a caller wants otherwise: nothing, where it only asks.
async fn changes<S>(
    rest: &Rest<S>,
    request: Request,
) -> Result<(Map<String, Value>, Arrival, Option<SocketAddr>)> {
    if request.method() == Method::POST {
        return admin(rest, request).await;
    }
    let headers = MetadataMap::from_headers(request.into_parts().0.headers);
    Ok((Map::new(), Arrival::new(Door::Http, Arc::new(headers), None), None))
}

/// A region of shared memory, or all of them.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Region {
    #[serde(default)]
    region: String,
}

pub(super) async fn regions<S>(State(rest): State<Rest<S>>, Path(of): Path<Region>) -> Response {
    let regions = rest.door.regions().status(&of.region).map(|regions| {
        let regions = regions.into_iter().map(|(name, region)| {
            json!({"name": name, "key": region.key, "offset": region.offset, "byte_size": region.size})
        });
        regions.collect::<Vec<_>>()
    });
    as_json(regions)
}

#[derive(Debug, Deserialize)]
struct RegisterRequest {
    key: String,
    #[serde(default)]
    offset: u64,
    byte_size: u64,
}

pub(super) async fn register<S>(
    State(rest): State<Rest<S>>,
    Path(of): Path<Region>,
    request: Request,
) -> Response {
    let registered = async {
        let (RegisterRequest { key, offset, byte_size }, _, from) = admin(&rest, request).await?;
        rest.door.regions().register(&of.region, &key, offset, byte_size, from)
    };
    done(registered.await)
}

pub(super) async fn unregister<S>(
    State(rest): State<Rest<S>>,
    Path(of): Path<Region>,
    request: Request,
) -> Response {
    done(origin::own(&request.into_parts().0).map(|()| rest.door.regions().unregister(&of.region)))
}

pub(super) async fn cuda_regions(Path(of): Path<Region>) -> Response {
    as_json(no_cuda_region(&of.region).map(|()| json!([])))
}

pub(super) async fn register_cuda() -> Response {
    refusal(&no_cuda())
}

pub(super) async fn unregister_cuda() -> Response {
    done(Ok(()))
}
