//! The front doors: wire to domain and back. No policy.

/// A service that reads compressed messages. Every service does, so that a client can use one setting for all.
macro_rules! inflating {
    ($service:expr) => {
        $service
            .accept_compressed(::tonic::codec::CompressionEncoding::Gzip)
            .accept_compressed(::tonic::codec::CompressionEncoding::Deflate)
            .accept_compressed(::tonic::codec::CompressionEncoding::Zstd)
    };
}
pub(crate) use inflating;

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
mod statuses;
mod stream;
mod unread;
