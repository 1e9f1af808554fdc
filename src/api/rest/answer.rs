//! Answers in JSON, with tensors in it or as bytes behind it.

use std::time::Duration;

use axum::{
    body::{Body, HttpBody as _},
    http::{HeaderName, HeaderValue, header},
    response::Response,
};
use bytes::Bytes;
use serde::Serialize;

use super::numbers::Numbers;
use crate::{
    api::oip::outgoing::{Content, Outgoing, Output},
    call::Timing,
    error::{Error, Reason, Result, shown},
    tensor::DType,
};

/// How many bytes of a body are JSON, where tensors lie behind it.
pub(super) static JSON_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// Where the time went, as browsers and other tools read it (W3C Server Timing).
static SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(skip_serializing_if = "String::is_empty")]
    id: &'a String,
    model_name: &'a str,
    model_version: &'a str,
    outputs: Vec<Tensor<'a>>,
}

#[derive(Serialize)]
struct Tensor<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: &'a [i64],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Behind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Elements<'a>>,
}

/// Where the elements are, if they are behind the JSON.
///
/// Those in shared memory have no parameters, as from Triton: its C++ client takes an output that has any for one of bytes, and wants
/// their number.
#[derive(Serialize)]
struct Behind {
    binary_data_size: usize,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Elements<'a> {
    Numbers(Numbers<'a>),
    Texts(&'a [String]),
}

/// Writes an answer. Outputs that are wanted as bytes lie behind the JSON, in their order, and are not copied.
///
/// # Errors
/// An output whose datatype JSON does not have is wanted in JSON.
pub(super) fn write(outgoing: Outgoing) -> Result<Response> {
    let Outgoing { model, version, id, outputs, timing, .. } = outgoing;
    let mut tensors = Vec::with_capacity(outputs.len());
    let mut behind: Vec<Bytes> = Vec::new();
    for output in &outputs {
        let Output { name, datatype, shape, data, binary } = output;
        let (parameters, data) = match data {
            Content::Region(_) => (None, None),
            data if *binary => {
                let bytes = data.to_bytes().unwrap_or_default();
                let binary_data_size = bytes.len();
                behind.push(bytes);
                (Some(Behind { binary_data_size }), None)
            }
            Content::Texts(texts) => (None, Some(Elements::Texts(texts))),
            Content::Raw(bytes) => (None, Some(Elements::Numbers(numbers(name, datatype, bytes)?))),
        };
        tensors.push(Tensor { name, datatype, shape, parameters, data });
    }
    let answer = Answer { id: &id, model_name: &model, model_version: &version, outputs: tensors };
    let json =
        serde_json::to_vec(&answer).map_err(|error| Error::new(Reason::Internal, error.to_string()))?;
    if behind.is_empty() {
        return Ok(timed(with_type("application/json", Body::from(json)), &timing));
    }
    let length = json.len();
    let parts = std::iter::once(Bytes::from(json)).chain(behind).map(Ok::<_, std::convert::Infallible>);
    let parts: Vec<_> = parts.collect();
    let total: usize = parts.iter().flatten().map(Bytes::len).sum();
    let mut response = with_type("application/octet-stream", Body::from_stream(futures::stream::iter(parts)));
    response.headers_mut().insert(&JSON_LENGTH, HeaderValue::from(length));
    response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(total));
    Ok(timed(response, &timing))
}

/// Bytes of an answer that was written here.
pub(super) fn length(response: &Response) -> u64 {
    let told =
        response.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    told.unwrap_or_else(|| response.body().size_hint().lower())
}

/// Says where the time went: in milliseconds, and with how many rows the pass ran.
fn timed(mut response: Response, timing: &Timing) -> Response {
    let Timing { queue, batch_wait, compute, batch_size, from_cache } = timing;
    let millis = |duration: &Duration| duration.as_secs_f64() * 1e3;
    let said = if *from_cache {
        r#"cache;desc="hit""#.to_owned()
    } else {
        format!(
            r#"queue;dur={:.3}, batch-wait;dur={:.3}, compute;dur={:.3}, batch;desc="{batch_size}""#,
            millis(queue),
            millis(batch_wait),
            millis(compute)
        )
    };
    if let Ok(said) = HeaderValue::try_from(said) {
        response.headers_mut().insert(&SERVER_TIMING, said);
    }
    response
}

fn numbers<'a>(name: &str, datatype: &str, bytes: &'a Bytes) -> Result<Numbers<'a>> {
    let dtype: DType =
        datatype.parse().map_err(|_| Error::new(Reason::Internal, "an output without datatype"))?;
    if matches!(dtype, DType::F16 | DType::BF16) {
        let message = format!(
            "output '{}' is {dtype}, which JSON cannot say: ask for its bytes (binary_data, or binary_data_output)",
            shown(name, 64)
        );
        return Err(Error::new(Reason::BadRequest, message).with_field("outputs"));
    }
    Ok(Numbers { dtype, bytes })
}

/// An answer of that kind.
pub(in crate::api) fn with_type(content_type: &'static str, body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use serde_json::json;

    use super::*;
    use crate::api::oip::parameters::RegionPart;

    fn output(name: &str, datatype: &'static str, data: Content, binary: bool) -> Output {
        Output { name: name.to_owned(), datatype, shape: vec![1, 2], data, binary }
    }

    async fn written(outputs: Vec<Output>) -> (Option<usize>, Bytes) {
        let (model, version, id) = ("m".to_owned(), "3".to_owned(), String::new());
        let timing = Timing { compute: Duration::from_micros(1500), batch_size: 8, ..Timing::default() };
        let outgoing = Outgoing { model, version, id, outputs, marks_final: false, timing };
        let response = write(outgoing).unwrap();
        let timing = r#"queue;dur=0.000, batch-wait;dur=0.000, compute;dur=1.500, batch;desc="8""#;
        assert_eq!(response.headers()["server-timing"], timing);
        let length = response.headers().get(&JSON_LENGTH).map(|v| v.to_str().unwrap().parse().unwrap());
        (length, response.into_body().collect().await.unwrap().to_bytes())
    }

    #[tokio::test]
    async fn numbers_are_flat_and_what_json_cannot_say_is_null() {
        let floats: Vec<u8> = [0.1_f32, f32::NAN].iter().flat_map(|value| value.to_le_bytes()).collect();
        let (length, body) = written(vec![
            output("y", "FP32", Content::Raw(floats.into()), false),
            output("z", "BYTES", Content::Texts(vec!["1:0".into(), "0:1".into()]), false),
        ])
        .await;
        assert_eq!(length, None);
        let expected = json!({"model_name": "m", "model_version": "3", "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [0.1, null]},
            {"name": "z", "datatype": "BYTES", "shape": [1, 2], "data": ["1:0", "0:1"]},
        ]});
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap(), expected);
    }

    #[tokio::test]
    async fn bytes_lie_behind_the_json_in_the_order_of_outputs() {
        let part = RegionPart { region: "r".into(), offset: 0, size: 2 };
        let (length, body) = written(vec![
            output("a", "INT8", Content::Raw(Bytes::from_static(&[1, 2])), true),
            output("b", "INT8", Content::Raw(Bytes::from_static(&[3, 4])), false),
            output("c", "BYTES", Content::Texts(vec!["x".into()]), true),
            output("d", "INT8", Content::Region(part), true),
        ])
        .await;
        let (json, tail) = body.split_at(length.unwrap());
        assert_eq!(tail, [1, 2, 1, 0, 0, 0, b'x']);
        let json: serde_json::Value = serde_json::from_slice(json).unwrap();
        let of = |index: usize| &json["outputs"][index];
        assert_eq!(of(0)["parameters"], json!({"binary_data_size": 2}));
        assert_eq!((of(0).get("data"), &of(1)["data"]), (None, &json!([3, 4])));
        assert_eq!(*of(3), json!({"name": "d", "datatype": "INT8", "shape": [1, 2]}), "in shared memory");
    }

    #[test]
    fn half_precision_is_not_for_json() {
        let outputs = vec![output("y", "FP16", Content::Raw(Bytes::from_static(&[0; 4])), false)];
        let (model, version, id, timing) = Default::default();
        let error = write(Outgoing { model, version, id, outputs, marks_final: false, timing }).unwrap_err();
        assert!(error.message().contains("binary_data"), "{error}");
    }
}
