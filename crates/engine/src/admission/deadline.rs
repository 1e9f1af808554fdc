//! Holds a call to its deadline: whatever it waits for, the answer comes by then.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use torchlane_model::error::{Error, Reason};
use tower::{Layer, Service};

use crate::call::Prioritized;

/// Puts a [`Deadline`] around a service.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;

    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner }
    }
}

/// Refuses calls whose deadline has passed and drops those whose deadline passes while they wait or run. Dropping a
/// waiting call frees its place; one that runs ends by itself and nobody reads its result.
#[derive(Debug, Clone)]
pub struct Deadline<S> {
    inner: S,
}

impl<S, R> Service<R> for Deadline<S>
where
    S: Service<R, Error = Error>,
    R: Prioritized,
{
    type Response = S::Response;
    type Error = Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: R) -> Self::Future {
        match call.deadline() {
            Some(deadline) if deadline <= Instant::now() => ResponseFuture { inner: None, sleep: None },
            deadline => {
                ResponseFuture { inner: Some(self.inner.call(call)), sleep: deadline.map(sleep_until) }
            }
        }
    }
}

pin_project! {
    /// The inner future, or the deadline.
    pub struct ResponseFuture<F> {
        #[pin]
        inner: Option<F>,
        #[pin]
        sleep: Option<Sleep>,
    }
}

impl<F, T> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, Error>>,
{
    type Output = Result<T, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else {
            return Poll::Ready(Err(Error::new(
                Reason::DeadlineExceeded,
                "the deadline had passed when the request was read",
            )));
        };
        if let Poll::Ready(done) = inner.poll(cx) {
            return Poll::Ready(done);
        }
        match this.sleep.as_pin_mut().map(|sleep| sleep.poll(cx)) {
            Some(Poll::Ready(())) => {
                this.inner.set(None);
                let message = "the deadline passed before an answer was there";
                Poll::Ready(Err(Error::new(Reason::DeadlineExceeded, message)))
            }
            _ => Poll::Pending,
        }
    }
}
