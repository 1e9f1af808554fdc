//! The front doors: wire to domain and back. No policy.

mod arrival;
pub mod console;
mod file;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod health;
pub mod http;
pub mod inference;
pub mod native;
pub mod oip;
mod origin;
pub mod rest;
mod status;
mod statuses;
mod stream;
mod unread;

pub(crate) use arrival::once;
pub use status::status;
