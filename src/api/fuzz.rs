//! The decoders of the doors, for fuzz targets: bytes in, nothing out. They may refuse anything and must not do anything else.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use super::{
    arrival::Arrival,
    native,
    oip::{Regions, grpc, incoming::Incoming},
    rest,
};
use crate::proto::{InferRequest, inference::ModelInferRequest};

fn arrival() -> Arrival {
    Arrival::new(crate::telemetry::Door::Grpc, Arc::default(), None)
}

fn call(incoming: crate::error::Result<Incoming>) {
    let _refused = incoming
        .and_then(|incoming| incoming.into_call(&arrival(), &Regions::new(true, 1 << 20, 8, 1.0), None));
}

/// A message of torchlane's own API.
pub fn native(data: &[u8]) {
    if let Ok(request) = InferRequest::decode(Bytes::copy_from_slice(data)) {
        let _refused = native::decode(request, &arrival());
    }
}

/// A message of the Open Inference Protocol.
pub fn open_inference(data: &[u8]) {
    if let Ok(request) = ModelInferRequest::decode(Bytes::copy_from_slice(data)) {
        call(grpc::decode(request));
    }
}

/// A body that is JSON.
pub fn rest_json(data: &[u8]) {
    call(rest::decode(&Bytes::copy_from_slice(data), None));
}

/// A body with tensors behind the JSON: its first two bytes say how much of it is JSON.
pub fn rest_binary(data: &[u8]) {
    if let Some((length, body)) = data.split_first_chunk::<2>() {
        call(rest::decode(&Bytes::copy_from_slice(body), Some(usize::from(u16::from_le_bytes(*length)))));
    }
}

/// A `config.pbtxt` of a Triton repository.
pub fn config_pbtxt(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _refused = crate::triton::parse(text);
    }
}
