//! What stands around every gRPC call, before its message is read.
//!
//! Outermost first: [`Guard`] (a panic becomes a status, tonic's own refusals get our words), [`Shed`] (a cap on requests
//! in the process), [`CountBytes`] (and on their bytes), [`End`] (streams end with the server), [`ReadDeadline`] (which also holds the message itself to the deadline).

mod bytes;
mod deadline;
mod ending;
mod guard;
mod shed;
mod timely;
mod words;

pub use bytes::{CountBytes, message_bytes};
pub use deadline::{Deadline, ReadDeadline};
pub use ending::End;
pub use guard::Guard;
pub use shed::{RequestCap, Shed};

/// All calls of torchlane's own API start with this.
const API: &str = "/torchlane.v1.ModelServer/";
/// Calls to inference, streams among them, start with this.
const INFERENCE: &str = "/torchlane.v1.ModelServer/Infer";
/// Messages come for as long as the caller likes.
const INFER_STREAM: &str = "/torchlane.v1.ModelServer/InferStream";
/// Here too.
const REFLECTION: &str = "/grpc.reflection.";
