//! torchlane: a gRPC model server for TorchScript models.
//!
//! See `docs/architecture.md` for the map of this code. The straight line of a request: [`api`] decodes it into a
//! [`call::InferCall`]; in the engine (`crates/engine`), [`admission`] decides whether and when it may be in flight; [`sched`] forms batches and runs
//! them on the executors with the version that [`registry`] has live; [`backend`] calls libtorch. [`lifecycle`]
//! prepares versions and swaps them in; what their model is said to be is read from `model.toml` or, by [`triton`], from Triton's
//! `config.pbtxt`.
//!
//! Each room names only those after it, which a test holds:
//! cli, load, app, api, layers, telemetry, lifecycle, loader, tasks, config.

#![deny(unsafe_code)]

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod layers;
pub mod lifecycle;
pub mod load;
pub mod loader;
mod tasks;
pub mod telemetry;

pub use torchlane_client as client;
use torchlane_engine::threads;
pub use torchlane_engine::{
    admission, backend, call, ensemble, registry, residency, response_cache, rollout, sched,
};
use torchlane_model::plain;
pub use torchlane_model::{self as model, error, tensor};
pub use torchlane_proto as proto;
use torchlane_repository::files;
pub use torchlane_repository::{self as repository, triton};
