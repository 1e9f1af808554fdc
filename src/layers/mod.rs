//! What stands around every gRPC call, before its message is read.
//!
//! Outermost first: [`Guard`] (a panic becomes a status, tonic's own refusals get our words), [`Conform`] (what is no gRPC call,
//! or comes from a foreign page, is refused), [`Shed`] (caps on open calls and on requests in the process), [`CountBytes`] (and on
//! their bytes), [`End`] (streams end with the server), [`ReadDeadline`] (which also holds the message itself to the deadline, and to a
//! pace), [`Inflate`] (messages that come compressed). The services behind them count a request once its message is there
//! ([`Arrived`]).
//!
//! Inference that one of them refuses is counted there ([`Refusals`](crate::telemetry::Refusals)): it never becomes a request that
//! others could count.

mod arrived;
mod bytes;
mod conform;
mod deadline;
mod ending;
mod framing;
mod guard;
mod headers;
mod heavy;
mod hosts;
mod inflate;
mod inflating;
mod pace;
mod path;
mod shed;
mod timely;
mod words;

pub use arrived::{AnswerBytes, Arrived, message_bytes};
pub use bytes::CountBytes;
pub(crate) use bytes::too_many_bytes;
pub use conform::Conform;
pub use deadline::{Deadline, ReadDeadline};
pub use ending::End;
pub use guard::Guard;
pub(crate) use headers::once;
pub(crate) use heavy::{LONG, heavy};
pub use hosts::Hosts;
#[cfg(test)]
pub(crate) use inflate::tests::deflated;
pub(crate) use inflate::{Coding, inflate};
pub use inflating::Inflate;
pub(crate) use pace::{Alarm, Pace, given_up};
pub(crate) use path::{INFER, INFER_STREAM};
pub(crate) use shed::too_many;
pub use shed::{Counted, RequestCap, Shed};
pub(crate) use timely::{PATIENCE, late, too_slow};
