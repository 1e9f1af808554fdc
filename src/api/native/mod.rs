//! torchlane's own API: `torchlane.v1.ModelServer`.

mod convert;
mod models;
mod rollout;
mod service;
mod stream;

pub use service::ModelServerService;

#[cfg(feature = "fuzz")]
pub(super) use convert::infer_call as decode;
