//! `inference.GRPCInferenceService`.

mod decode;
mod encode;
mod service;
mod stream;

pub use service::GrpcInference;

#[cfg(feature = "fuzz")]
pub(in crate::api) use decode::incoming as decode;
