//! The innermost service of the stack: hands admitted calls to the scheduler.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use torchlane_model::error::{Error, Result};
use tower::Service;

use super::{PendingReply, Scheduler};
use crate::call::{Admitted, BoundCall, InferReply};

/// Always ready: what may wait was bounded by the tickets.
#[derive(Debug, Clone)]
pub struct Dispatch {
    scheduler: Arc<Scheduler>,
}

impl Dispatch {
    /// Hands calls to `scheduler`.
    pub fn new(scheduler: Arc<Scheduler>) -> Self {
        Self { scheduler }
    }
}

impl Service<Admitted<BoundCall>> for Dispatch {
    type Response = InferReply;
    type Error = Error;
    type Future = PendingReply;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, admitted: Admitted<BoundCall>) -> PendingReply {
        self.scheduler.submit(admitted)
    }
}
