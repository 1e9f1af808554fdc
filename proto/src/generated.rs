#![allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated code")]

tonic::include_proto!("torchlane.v1");

/// The Open Inference Protocol with Triton's extensions.
pub mod inference {
    tonic::include_proto!("inference");
}
