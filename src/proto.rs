//! Generated from `proto/torchlane/v1/model_server.proto`.

#![allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated code")]

tonic::include_proto!("torchlane.v1");

/// The Open Inference Protocol, the client's side.
pub mod inference {
    tonic::include_proto!("inference");
}

/// The descriptors of the API, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
