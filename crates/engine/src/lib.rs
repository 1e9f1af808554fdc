//! What torchlane exists for: requests are admitted, ordered, batched and run on the version that is live. Nothing here knows
//! the APIs, repositories or libtorch.
//!
//! A request is a [`call::InferCall`]. [`rollout`] chooses a version, [`ensemble`] takes models apart that are made of others,
//! [`admission`] decides whether and when it may be in flight, [`response_cache`] may have its answer, [`sched`] forms batches and runs
//! them with the version that [`registry`] has live, on a [`backend`].

#![deny(unsafe_code)]

pub mod admission;
pub mod backend;
pub mod call;
pub mod ensemble;
pub mod registry;
pub mod residency;
pub mod response_cache;
pub mod rollout;
pub mod sched;
pub mod threads;
pub mod trace;
