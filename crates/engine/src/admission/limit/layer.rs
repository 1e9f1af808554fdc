//! The tower side: layer, service and future.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use torchlane_model::error::{Error, Reason};
use tower::{Layer, Service};

use super::state::{Entry, Limiter, Waiting};
use crate::call::{Admitted, Prioritized};

/// Puts a [`PriorityLimit`] around a service. Every service it makes shares one [`Limiter`].
#[derive(Debug, Clone)]
pub struct PriorityLimitLayer {
    limiter: Arc<Limiter>,
}

impl PriorityLimitLayer {
    /// A layer whose services take their tickets from `limiter`.
    pub fn new(limiter: Arc<Limiter>) -> Self {
        Self { limiter }
    }
}

impl<S> Layer<S> for PriorityLimitLayer {
    type Service = PriorityLimit<S>;

    fn layer(&self, inner: S) -> PriorityLimit<S> {
        PriorityLimit { inner, limiter: self.limiter.clone() }
    }
}

/// Gives each call a [`Ticket`] before it reaches the inner service, in the order of lane, deadline, arrival.
///
/// The inner service must be ready without a reservation (as one that queues for itself is): it is cloned for each
/// call and its `poll_ready` is asked when the ticket is there.
#[derive(Debug, Clone)]
pub struct PriorityLimit<S> {
    inner: S,
    limiter: Arc<Limiter>,
}

impl<S, R> Service<R> for PriorityLimit<S>
where
    S: Service<Admitted<R>, Error = Error> + Clone,
    R: Prioritized,
{
    type Response = S::Response;
    type Error = Error;
    type Future = ResponseFuture<S, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: R) -> Self::Future {
        let state = match self.limiter.enter(call.lane(), call.tenant(), call.deadline()) {
            Err(error) => State::Refused { error: Some(error) },
            Ok(Entry::Granted(ticket)) => {
                let queued = Duration::ZERO;
                State::Calling { future: self.inner.call(Admitted { call, ticket, queued }) }
            }
            Ok(Entry::Queued(waiting)) => {
                State::Waiting { waiting, since: Instant::now(), call: Some(call), inner: self.inner.clone() }
            }
        };
        ResponseFuture { state }
    }
}

pin_project! {
    /// Waits for a ticket, then for the inner service. Dropping it frees the place in the queue; a call that is
    /// already running keeps its ticket until the work is done.
    pub struct ResponseFuture<S: Service<Admitted<R>>, R> {
        #[pin]
        state: State<S, R>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S: Service<Admitted<R>>, R> {
        Refused { error: Option<Error> },
        Waiting { waiting: Waiting, since: Instant, call: Option<R>, inner: S },
        Calling { #[pin] future: S::Future },
    }
}

impl<S, R> Future for ResponseFuture<S, R>
where
    S: Service<Admitted<R>, Error = Error>,
{
    type Output = Result<S::Response, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Refused { error } => {
                    return Poll::Ready(Err(error.take().unwrap_or_else(polled_again)));
                }
                StateProj::Calling { future } => return future.poll(cx),
                StateProj::Waiting { waiting, since, call, inner } => {
                    let granted = ready!(Pin::new(&mut waiting.granted).poll(cx));
                    let (Ok(granted), Some(call)) = (granted, call.take()) else {
                        return Poll::Ready(Err(polled_again()));
                    };
                    let ticket = match granted {
                        Ok(ticket) => ticket,
                        // Its place went to a tenant that has fewer.
                        Err(full) => return Poll::Ready(Err(full)),
                    };
                    let queued = since.elapsed();
                    State::Calling { future: inner.call(Admitted { call, ticket, queued }) }
                }
            };
            this.state.set(next);
        }
    }
}

fn polled_again() -> Error {
    Error::new(Reason::Internal, "the limiter's future was polled after it had ended")
}
