//! Messages, clients and services of torchlane's APIs, generated from the .proto files beside this crate, and the one form that
//! errors have in them.

#![deny(unsafe_code)]

mod generated;
mod status;

pub use generated::*;
pub use status::status;

/// The descriptors of both APIs, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
