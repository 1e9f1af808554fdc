//! `POST /v2/models/MODEL/infer`.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    http::HeaderMap,
    response::Response,
};
use bytes::Bytes;
use serde::Deserialize;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tower::Service;

use super::{
    Rest,
    answer::{self, JSON_LENGTH},
    coding,
    path::Path,
    refusal::refusal,
    request,
};
use crate::{
    admission::MessageBytes,
    api::{
        arrival::Arrival,
        oip::{
            OpenInference,
            incoming::{Data, Incoming, Input},
            parameters::Value,
        },
        stream::too_long,
    },
    call::{InferCall, InferReply},
    error::{Error, Reason, Result, shown},
    layers::{AnswerBytes, LONG, heavy, once, too_many},
    telemetry::Door,
    tensor::{DType, byte_len},
};

/// Which model a path means.
#[derive(Debug, Deserialize)]
pub(super) struct Which {
    pub(super) model: String,
    /// Empty: the server chooses.
    #[serde(default)]
    pub(super) version: String,
}

pub(super) async fn infer<S>(
    State(rest): State<Rest<S>>,
    Path(which): Path<Which>,
    request: Request,
) -> Response
where
    S: Service<InferCall, Response = InferReply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let answered = async {
        let read = async {
            if rest.limits.closing.is_cancelled() {
                let message = "the server is stopping: try another replica";
                return Err(Error::new(Reason::ShuttingDown, message));
            }
            if rest.limits.requests.is_full() {
                return Err(too_many());
            }
            let whole = read(&rest, which, request).await?;
            // Only now: one that never comes whole keeps nobody out.
            Ok((whole, rest.limits.requests.enter().ok_or_else(too_many)?))
        };
        let read = read.await.inspect_err(|error| rest.door.refused(Door::Http, error));
        let ((incoming, arrival, bytes), _counted) = read?;
        let mut response = answer::write(rest.door.infer(incoming, &arrival, Some(&*bytes)).await?)?;
        let length = usize::try_from(answer::length(&response)).unwrap_or(usize::MAX);
        if let Some(error) = too_long(length, rest.limits.longest) {
            return Err(error);
        }
        response.extensions_mut().insert(AnswerBytes::of_whole(&bytes, length)?);
        Ok(response)
    };
    answered.await.unwrap_or_else(|error| refusal(&error))
}

/// The request, what came with it, and its bytes, which count until they are dropped.
async fn read<S>(
    rest: &Rest<S>,
    which: Which,
    request: Request,
) -> Result<(Incoming, Arrival, Arc<MessageBytes>)> {
    let limits = &rest.limits;
    let (parts, body) = request.into_parts();
    let deadline = deadline(&parts.headers, limits.max_deadline)?;
    let json = json_length(&parts.headers)?;
    let account = limits.account(&parts.extensions);
    let bytes = Arc::new(MessageBytes::new(account.clone()));
    let until = deadline.unwrap_or_else(|| Instant::now() + limits.max_deadline);
    let body = coding::read(&parts.headers, body, limits.longest, Some(&bytes), until).await?;
    let headers = Arc::new(MetadataMap::from_headers(parts.headers));
    let arrival = Arrival::new(Door::Http, headers, deadline).of(&parts.extensions);
    let Which { model, version } = which;
    let incoming = match json {
        Some(0) => raw(&rest.door, model, version, body, deadline).await?,
        json if body.len() > LONG => {
            heavy(&account, Some(until), move |_| {
                request::read(model, version, &body, json).map(Incoming::settled)
            })
            .await?
        }
        json => request::read(model, version, &body, json)?,
    };
    Ok((incoming, arrival, bytes))
}

/// A body that is one tensor and nothing else, for a model with one input: its datatype and shape are the declared ones, as one
/// row, and one dimension at most is told by the number of bytes.
async fn raw<S>(
    door: &OpenInference<S>,
    model: String,
    version: String,
    body: Bytes,
    deadline: Option<Instant>,
) -> Result<Incoming> {
    door.bring(&model, deadline).await?;
    let lease = door.lease(&model, &version)?;
    let wrong = |why: &str| {
        let message = format!(
            "a body without JSON (inference-header-content-length: 0) cannot be read for model '{}': {why}",
            shown(&model, 64)
        );
        Error::new(Reason::BadRequest, message)
    };
    let needed: Vec<_> = lease.signature.tensors().filter(|spec| !spec.optional).collect();
    let [spec] = needed.as_slice() else {
        return Err(wrong("it has more or less than one input; send JSON"));
    };
    let (Some(dtype), Some(shape)) = (spec.dtype, spec.shape.clone()) else {
        return Err(wrong("datatype and shape of its input are not declared"));
    };
    let name = spec.name.to_string();
    let shape = one_row(dtype, shape, lease.max_batch() > 1, body.len()).ok_or_else(|| {
        wrong(&format!("{} bytes are no row of its declared shape and datatype", body.len()))
    })?;
    drop(lease);
    Ok(Incoming {
        model,
        version,
        parameters: vec![("binary_data_output".to_owned(), Value::Bool(true))],
        inputs: vec![Input { name, datatype: dtype.as_str().to_owned(), shape, data: Data::Raw(body) }],
        ..Incoming::default()
    })
}

/// The declared shape with its open dimensions filled in: the first is 1 where the model is batched; one more follows from
/// `bytes`. `None`: there is no such shape.
fn one_row(dtype: DType, mut shape: Vec<i64>, batched: bool, bytes: usize) -> Option<Vec<i64>> {
    if let Some(first) = shape.first_mut().filter(|first| **first == -1 && batched) {
        *first = 1;
    }
    let open: Vec<usize> = (0..shape.len()).filter(|at| shape.get(*at) == Some(&-1)).collect();
    match open.as_slice() {
        [] => {}
        [at] => {
            let size = shape.get_mut(*at)?;
            *size = 1;
            let each = byte_len(dtype, &shape).ok().filter(|each| *each > 0)?;
            *shape.get_mut(*at)? = i64::try_from(bytes / each).ok()?;
        }
        _ => return None,
    }
    (byte_len(dtype, &shape).ok()? == bytes).then_some(shape)
}

/// `inference-header-content-length`. `None`: all of the body is JSON.
fn json_length(headers: &HeaderMap) -> Result<Option<usize>> {
    let Some(value) = once(headers, JSON_LENGTH.as_str())? else { return Ok(None) };
    let length = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match length.and_then(|text| text.parse().ok()) {
        Some(length) => Ok(Some(length)),
        None => {
            let message = "inference-header-content-length is not a number of bytes";
            Err(Error::new(Reason::BadRequest, message).with_field("inference-header-content-length"))
        }
    }
}

/// `x-timeout-ms`, no further away than `longest`.
pub(super) fn deadline(headers: &HeaderMap, longest: Duration) -> Result<Option<Instant>> {
    let Some(value) = once(headers, "x-timeout-ms")? else { return Ok(None) };
    let millis = value.to_str().ok().filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    match millis.and_then(|text| text.parse().ok()).filter(|millis| *millis > 0) {
        Some(millis) => Ok(Some(Instant::now() + Duration::from_millis(millis).min(longest))),
        None => {
            let message = "x-timeout-ms is not a number of milliseconds above 0";
            Err(Error::new(Reason::BadRequest, message).with_field("x-timeout-ms"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn a_raw_tensor_is_one_row_of_what_is_declared() {
        let row = |shape: &[i64], batched, bytes| one_row(DType::F32, shape.to_vec(), batched, bytes);
        assert_eq!(row(&[-1, 3], true, 12), Some(vec![1, 3]));
        assert_eq!(row(&[-1, 3], false, 24), Some(vec![2, 3]));
        assert_eq!(row(&[-1, -1], true, 20), Some(vec![1, 5]));
        assert_eq!(row(&[2, 3], true, 24), Some(vec![2, 3]));
        assert_eq!(row(&[-1, -1, 2], false, 24), None, "two are open");
        for (shape, bytes) in [(&[-1, 3][..], 10), (&[2, 3], 12), (&[0, -1], 0)] {
            assert_eq!(row(shape, false, bytes), None, "{shape:?}");
        }
    }

    #[test]
    fn numbers_in_headers_are_numbers() {
        assert_eq!(json_length(&headers("inference-header-content-length", "12")), Ok(Some(12)));
        assert_eq!(json_length(&HeaderMap::new()), Ok(None));
        for bad in ["", "-1", "+1", "1.5", "99999999999999999999"] {
            assert!(json_length(&headers("inference-header-content-length", bad)).is_err(), "{bad}");
        }
        let longest = Duration::from_secs(300);
        for bad in ["", "0", "-1", "1s", "1.5"] {
            assert!(deadline(&headers("x-timeout-ms", bad), longest).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_number_is_there_once() {
        for name in ["inference-header-content-length", "x-timeout-ms"] {
            let mut two = headers(name, "5");
            two.append(name, "6".parse().unwrap());
            let read = json_length(&two).map(drop).and(deadline(&two, Duration::from_secs(1)).map(drop));
            assert_eq!(read.unwrap_err().field(), Some(name));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_are_clamped() {
        let within = |ms| {
            let deadline = deadline(&headers("x-timeout-ms", ms), Duration::from_secs(300)).unwrap();
            (deadline.unwrap() - Instant::now()).as_millis()
        };
        assert_eq!((within("250"), within("99999999")), (250, 300_000));
    }
}
