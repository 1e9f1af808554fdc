//! What stands around every gRPC call, before its message is read.
//!
//! Outermost first: [`Guard`] (a panic becomes a status, tonic's own refusals get our words), [`Shed`] (a cap on requests
//! in the process), [`CountBytes`] (and on their bytes), [`End`] (streams end with the server), [`ReadDeadline`] (which also holds the message itself to the deadline).
//!
//! Inference that one of them refuses is counted there ([`Refusals`](crate::telemetry::Refusals)): it never becomes a request that
//! others could count.

mod bytes;
mod deadline;
mod ending;
mod guard;
mod path;
mod shed;
mod timely;
mod words;

pub(crate) use bytes::too_many_bytes;
pub use bytes::{CountBytes, message_bytes};
pub use deadline::{Deadline, ReadDeadline};
pub use ending::End;
pub use guard::Guard;
pub(crate) use shed::too_many;
pub use shed::{Counted, RequestCap, Shed};
