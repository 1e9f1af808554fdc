//! The front doors: wire to domain and back. No policy.

pub mod health;
pub mod http;
pub mod native;
mod status;

pub use status::status;
