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
mod client;
mod conform;
mod console;
#[cfg(feature = "torch")]
mod crash;
mod docs;
mod edges;
mod ending;
mod ensemble;
mod fake;
mod history;
mod integrity;
mod oip;
mod pages;
#[cfg(feature = "torch")]
mod read_digits;
mod refusals;
mod residency;
mod response_cache;
mod rollout;
mod runtime;
mod server;
mod settings;
mod state;
mod store;
mod tidy;
#[cfg(feature = "torch")]
mod torch;
mod traces;
mod triton;
mod trouble;
mod uploads;
mod watching;
mod weights;
mod wire;
