//! A limit on calls in flight that knows priority.
//!
//! `poll_ready` is not asked: it runs before there is a request, so it cannot know a lane, and hyper clones the
//! service for each request anyway. The layer delegates it and queues inside `call`, with a bounded queue for each
//! lane and its state behind an `Arc`.

mod layer;
mod state;

pub use layer::{PriorityLimit, PriorityLimitLayer};
pub use state::{Headroom, LimitConfig, LimitSnapshot, Limiter, Ticket};
