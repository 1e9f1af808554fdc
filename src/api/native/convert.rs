//! Messages of inference to domain types and back. Payload bytes are not copied: `raw` stays where HTTP/2 put it.

use crate::{
    api::arrival::{Arrival, fresh_id, span, version},
    call::{DecidedLane, Headers, InferCall, InferReply, Purpose},
    error::{Error, Reason, Result, shown},
    model::{Lane, NamedTensor},
    proto,
    tensor::{DType, HostTensor, TensorError, TypedData, encode_typed},
};

/// How the answer is to be written.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::api) struct AnswerForm {
    /// Typed lists instead of raw bytes.
    pub(super) typed: bool,
}

/// Decodes a request. Its headers give what the message leaves open.
pub(in crate::api) fn infer_call(
    request: proto::InferRequest,
    arrival: &Arrival,
) -> Result<(InferCall, AnswerForm)> {
    let lane = lane(request.priority, arrival)?;
    let version = version(&request.version)?;
    let mut form = AnswerForm::default();
    for (key, value) in &request.parameters {
        match (key.as_str(), value.as_str()) {
            ("typed", "true") => form.typed = true,
            ("typed", "false") => form.typed = false,
            _ => {
                let (key, value) = (shown(key, 32), shown(value, 32));
                let message =
                    format!("parameter '{key}' = '{value}' is not known: 'typed' = 'true' or 'false' is");
                return Err(Error::new(Reason::BadRequest, message).with_field("parameters"));
            }
        }
    }
    let tenant = arrival.tenant()?;
    let inputs =
        request.inputs.into_iter().enumerate().map(|(i, t)| tensor(i, t)).collect::<Result<Vec<_>>>()?;
    let own_id = !request.request_id.is_empty();
    let request_id = if own_id { request.request_id } else { fresh_id() };
    let span = span(&request_id, &request.model);
    let call = InferCall {
        request_id,
        own_id,
        model: request.model,
        version,
        lane,
        decided: DecidedLane::default(),
        tenant,
        account: arrival.account.clone(),
        headers: Headers::new(arrival.headers.clone()),
        purpose: Purpose::Answer,
        deadline: arrival.deadline,
        inputs,
        outputs: request.outputs,
        received: arrival.received,
        span,
        trace: None,
    };
    Ok((call, form))
}

fn lane(field: i32, arrival: &Arrival) -> Result<Option<Lane>> {
    if !(0..=4).contains(&field) {
        let message = format!("priority {field} is not one of CRITICAL, HIGH, NORMAL, LOW");
        return Err(Error::new(Reason::BadRequest, message).with_field("priority"));
    }
    match Lane::from_number(u64::try_from(field).unwrap_or(0)) {
        Some(lane) => Ok(Some(lane)),
        None => arrival.lane(),
    }
}

fn tensor(index: usize, message: proto::Tensor) -> Result<NamedTensor> {
    let proto::Tensor {
        name,
        datatype,
        shape,
        raw,
        bool_data,
        int_data,
        int64_data,
        uint_data,
        float_data,
        double_data,
    } = message;
    let typed = TypedData {
        bools: bool_data,
        ints: int_data,
        int64s: int64_data,
        uints: uint_data,
        floats: float_data,
        doubles: double_data,
    };
    let shape = shape.into();
    let decode = || -> Result<HostTensor, (TensorError, &'static str)> {
        let dtype: DType = datatype.parse().map_err(|e| (e, "datatype"))?;
        let data = match (raw.is_empty(), typed.used().map_err(|e| (e, "raw"))?) {
            (false, Some((list, _))) => return Err((TensorError::GivenTwice("raw", list), "raw")),
            (true, Some(_)) => encode_typed(&typed, dtype, &shape).map_err(|e| (e, "shape"))?,
            (_, None) => raw,
        };
        HostTensor::new(dtype, shape, data).map_err(|e| (e, "shape"))
    };
    match decode() {
        Ok(tensor) => Ok(NamedTensor { name, tensor }),
        Err((error, field)) => {
            let shown = shown(&name, 64);
            let reason = match error {
                TensorError::UnknownDatatype(_) => Reason::WrongDatatype,
                _ => Reason::BadTensor,
            };
            Err(Error::new(reason, format!("input '{shown}': {error}"))
                .with_field(format!("inputs[{index}].{field}")))
        }
    }
}

/// Encodes an answer.
pub(super) fn infer_response(
    request_id: String,
    model: String,
    reply: InferReply,
    form: AnswerForm,
    total: std::time::Duration,
) -> proto::InferResponse {
    let duration = |d: std::time::Duration| d.try_into().ok();
    proto::InferResponse {
        request_id,
        model,
        version: reply.version.to_string(),
        outputs: reply.outputs.into_iter().map(|output| message(output, form)).collect(),
        timing: Some(proto::Timing {
            queue: duration(reply.timing.queue),
            batch_wait: duration(reply.timing.batch_wait),
            compute: duration(reply.timing.compute),
            total: duration(total),
            batch_size: u32::try_from(reply.timing.batch_size).unwrap_or(u32::MAX),
        }),
    }
}

fn message(output: NamedTensor, form: AnswerForm) -> proto::Tensor {
    let NamedTensor { name, tensor } = output;
    let mut message = proto::Tensor {
        name,
        datatype: tensor.dtype().as_str().to_owned(),
        shape: tensor.shape().to_vec(),
        ..proto::Tensor::default()
    };
    if form.typed {
        let TypedData { bools, ints, int64s, uints, floats, doubles } =
            TypedData::decode(tensor.dtype(), tensor.data());
        message.bool_data = bools;
        message.int_data = ints;
        message.int64_data = int64s;
        message.uint_data = uints;
        message.float_data = floats;
        message.double_data = doubles;
    } else {
        message.raw = tensor.data().clone();
    }
    message
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tonic::metadata::MetadataMap;

    use super::*;

    fn request(tensor: proto::Tensor) -> proto::InferRequest {
        proto::InferRequest { model: "m".into(), inputs: vec![tensor], ..proto::InferRequest::default() }
    }

    fn decode(request: proto::InferRequest) -> Result<InferCall> {
        infer_call(request, &Arrival::new(crate::telemetry::Door::Grpc, Arc::default(), None))
            .map(|(call, _)| call)
    }

    fn f32s(shape: &[i64], data: &[f32]) -> proto::Tensor {
        proto::Tensor {
            name: "x".into(),
            datatype: "FP32".into(),
            shape: shape.to_vec(),
            float_data: data.to_vec(),
            ..proto::Tensor::default()
        }
    }

    #[test]
    fn each_bad_tensor_has_its_own_error() {
        let raw =
            |shape: &[i64], bytes: &'static [u8]| proto::Tensor { raw: bytes.into(), ..f32s(shape, &[]) };
        let cases = [
            (raw(&[2], b"123"), Reason::BadTensor, "needs 8 bytes, the data has 3"),
            (raw(&[-1], b"1234"), Reason::BadTensor, "negative dimension"),
            (raw(&[i64::MAX, i64::MAX], b"1234"), Reason::BadTensor, "more elements than memory"),
            (
                proto::Tensor { raw: b"1234".as_slice().into(), ..f32s(&[1], &[1.0]) },
                Reason::BadTensor,
                "given twice, in raw and in float_data",
            ),
            (f32s(&[3], &[1.0]), Reason::BadTensor, "needs 3 elements, float_data has 1"),
            (f32s(&[3], &[]), Reason::BadTensor, "needs 12 bytes, the data has 0"),
            (
                proto::Tensor { datatype: "FLOAT".into(), ..f32s(&[1], &[1.0]) },
                Reason::WrongDatatype,
                "'FLOAT' is not one of",
            ),
        ];
        for (tensor, reason, text) in cases {
            let error = decode(request(tensor)).unwrap_err();
            assert_eq!(error.reason(), reason, "{error}");
            assert!(error.message().contains(text), "{error}");
            assert!(error.field().unwrap().starts_with("inputs[0]."), "{error:?}");
        }
        assert!(decode(request(f32s(&[0, 4], &[]))).is_ok(), "an empty tensor is valid");
    }

    #[test]
    fn priority_comes_from_the_field_then_the_metadata() {
        let arrival = |priority: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert("x-priority", priority.parse().unwrap());
            Arrival::new(crate::telemetry::Door::Grpc, Arc::new(metadata), None)
        };
        let lane = |priority| {
            let request = proto::InferRequest { priority, ..request(f32s(&[1], &[1.0])) };
            infer_call(request, &arrival("low")).ok().and_then(|(call, _)| call.lane)
        };
        assert_eq!(lane(0), Some(Lane::Low));
        assert_eq!(lane(1), Some(Lane::Critical));
        assert_eq!(lane(9), None, "refused");
        assert!(infer_call(request(f32s(&[1], &[1.0])), &arrival("urgent")).is_err());
    }

    #[test]
    fn unknown_parameters_and_versions_are_refused() {
        let parameters = [("tpyed".to_owned(), "true".to_owned())].into();
        let bad = proto::InferRequest { parameters, ..request(f32s(&[1], &[1.0])) };
        assert_eq!(decode(bad).unwrap_err().reason(), Reason::BadRequest);
        let bad = proto::InferRequest { version: "La test".into(), ..request(f32s(&[1], &[1.0])) };
        assert_eq!(decode(bad).unwrap_err().reason(), Reason::BadRequest);
    }

    proptest! {
        #[test]
        fn no_tensor_makes_the_decoder_panic(
            datatype in prop::sample::select(vec!["FP32", "INT8", "BOOL", "BF16", "INT64", "nope", ""]),
            shape in prop::collection::vec(prop_oneof![any::<i64>(), -1_i64..5], 0..5),
            raw in prop::collection::vec(any::<u8>(), 0..40),
            ints in prop::collection::vec(any::<i32>(), 0..4),
            floats in prop::collection::vec(any::<f32>(), 0..4),
        ) {
            let tensor = proto::Tensor {
                name: "x".into(), datatype: datatype.into(), shape, raw: raw.into(), int_data: ints, float_data: floats,
                ..proto::Tensor::default()
            };
            let _ = decode(request(tensor));
        }
    }
}
