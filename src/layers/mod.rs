//! What stands around every gRPC call, before its message is read.
//!
//! Outermost first: [`Guard`] (a panic becomes a status, an over-long message is refused in our words), [`Shed`] (a cap
//! on requests in the process), [`ReadDeadline`].

mod deadline;
mod guard;
mod shed;

pub use deadline::{Deadline, ReadDeadline};
pub use guard::Guard;
pub use shed::{RequestCap, Shed};
