//! Integration tests: one binary. Each server runs in this process, on ports that the system chooses.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    unreachable_pub,
    clippy::disallowed_methods
)]

mod batching;
mod check;
mod edges;
mod fake;
mod history;
mod integrity;
mod residency;
mod rollout;
mod server;
mod store;
mod tidy;
#[cfg(feature = "torch")]
mod torch;
mod trouble;
mod watching;
mod weights;
