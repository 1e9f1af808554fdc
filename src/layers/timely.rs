//! A message must have arrived in time: who opens calls and sends nothing would fill the server for ever.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Status;

use crate::{
    api,
    error::{Error, Reason},
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
    }
}

impl<B> Timely<B> {
    pub(super) fn new(inner: B, until: Option<Instant>) -> Self {
        Self { inner, until, sleep: None }
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
            Some(Poll::Ready(())) => Poll::Ready(Some(Err(late().into()))),
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

fn late() -> Status {
    let message = "the deadline passed before the whole message had arrived";
    api::status(&Error::new(Reason::DeadlineExceeded, message))
}
