//! A message must have arrived in time: who opens calls and sends nothing would fill the server for ever.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    api,
    error::{Error, Reason},
    telemetry::{Door, Refusals},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

pin_project! {
    /// A request's body that fails once `until` has passed and there is still more to come.
    pub struct Timely<B> {
        #[pin]
        inner: B,
        until: Option<Instant>,
        // Set when the body first has to be waited for: most messages are there with their headers.
        #[pin]
        sleep: Option<Sleep>,
        refusals: Option<Refusals>,
    }
}

impl<B> Timely<B> {
    /// A message that is late is counted in `refusals`.
    pub(super) fn new(inner: B, until: Option<Instant>, refusals: Option<Refusals>) -> Self {
        Self { inner, until, sleep: None, refusals }
    }
}

impl<B> Body for Timely<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        if let Poll::Ready(frame) = this.inner.poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let Some(until) = *this.until else { return Poll::Pending };
        if this.sleep.is_none() {
            this.sleep.set(Some(sleep_until(until)));
        }
        match this.sleep.as_pin_mut().map(|sleep| sleep.poll(cx)) {
            Some(Poll::Ready(())) => {
                let error = late();
                // Once, however often it is asked for more.
                if let Some(refusals) = this.refusals.take() {
                    refusals.count(Door::Grpc, &error);
                }
                Poll::Ready(Some(Err(api::status(&error).into())))
            }
            _ => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn late() -> Error {
    Error::new(Reason::DeadlineExceeded, "the deadline passed before the whole message had arrived")
}
