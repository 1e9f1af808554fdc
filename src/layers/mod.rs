//! What stands around every gRPC call, before its message is read.
//!
//! Outermost first: [`Guard`] (a panic becomes a status, tonic's own refusals get our words), [`Conform`] (what is no gRPC call,
//! or comes from a foreign page, is refused), [`Shed`] (a cap on requests
//! in the process), [`CountBytes`] (and on their bytes), [`End`] (streams end with the server), [`ReadDeadline`] (which also holds the
//! message itself to the deadline, and to a pace). The services behind them count a request once its message is there
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
mod hosts;
mod pace;
mod path;
mod shed;
mod timely;
mod words;

pub(crate) use arrived::inflated;
pub use arrived::{AnswerBytes, Arrived, message_bytes};
pub use bytes::CountBytes;
pub(crate) use bytes::too_many_bytes;
pub use conform::Conform;
pub use deadline::{Deadline, ReadDeadline};
pub use ending::End;
pub use guard::Guard;
pub use hosts::{Hosts, problem as hosts_problem};
pub(crate) use pace::{Alarm, Pace, given_up};
pub(crate) use shed::too_many;
pub use shed::{Counted, RequestCap, Shed};
pub(crate) use timely::{PATIENCE, late, too_slow};
