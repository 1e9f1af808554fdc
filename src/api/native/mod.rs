//! torchlane's own API: `torchlane.v1.ModelServer`.

mod convert;
mod models;
mod service;

pub use service::ModelServerService;
