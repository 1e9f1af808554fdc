//! A message must have arrived in time, and come at a pace: who opens calls and sends next to nothing would fill the server.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::{
    framing::Framing,
    pace::{Alarm, Pace},
};
use crate::{
    error::{Error, Reason},
    proto,
    telemetry::{Door, Refusals},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Time that a peer may let pass while its message is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// What of a call is still to come.
#[derive(Debug)]
enum Coming {
    /// One message, which ends with the call's body.
    One { framing: Framing, pace: Pace },
    /// Messages as long as the caller likes; one that has begun is waited for.
    Many { framing: Framing, begun: Option<Pace> },
}

impl Coming {
    fn moved(&mut self, data: &[u8]) {
        match self {
            Self::One { framing, pace } => {
                framing.advance(data);
                pace.moved(data.len());
            }
            Self::Many { framing, begun } => {
                let within = framing.advance(data);
                let mut pace = begun.take().unwrap_or(Pace::new(PATIENCE));
                pace.moved(data.len());
                *begun = within.then_some(pace);
            }
        }
    }

    /// Until when more is waited for.
    fn wait(&mut self) -> Option<Instant> {
        match self {
            Self::One { pace, .. } => Some(pace.wait()),
            Self::Many { begun, .. } => begun.as_mut().map(Pace::wait),
        }
    }

    /// More messages came than the call takes.
    fn is_too_many(&self) -> bool {
        matches!(self, Self::One { framing, .. } if framing.has_many())
    }
}

pin_project! {
    /// A request's body that fails once `until` has passed and there is still more to come, or when it comes too slowly.
    pub struct Timely<B> {
        #[pin]
        inner: B,
        until: Option<Instant>,
        coming: Coming,
        alarm: Alarm,
        refusals: Option<Refusals>,
    }
}

impl<B> Timely<B> {
    /// Of a call with `one_message`, or of many. A message that is late is counted in `refusals`.
    pub(super) fn new(
        inner: B,
        one_message: bool,
        until: Option<Instant>,
        refusals: Option<Refusals>,
    ) -> Self {
        let coming = if one_message {
            Coming::One { framing: Framing::default(), pace: Pace::new(PATIENCE) }
        } else {
            Coming::Many { framing: Framing::default(), begun: None }
        };
        Self { inner, until, coming, alarm: Alarm::default(), refusals }
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
        let this = self.project();
        if let Poll::Ready(frame) = this.inner.poll_frame(cx) {
            if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
                this.coming.moved(data);
            }
            if this.coming.is_too_many() {
                return refused(&too_many_messages(), this.refusals);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let enough = this.coming.wait();
        let Some(until) = enough.into_iter().chain(*this.until).min() else { return Poll::Pending };
        match this.alarm.poll(until, cx) {
            Poll::Ready(()) => {
                let error = if *this.until == Some(until) { late() } else { too_slow() };
                refused(&error, this.refusals)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Ends the body. Counted once, however often it is asked for more.
fn refused<T>(error: &Error, refusals: &mut Option<Refusals>) -> Poll<Option<Result<T, BoxError>>> {
    if let Some(refusals) = refusals.take() {
        refusals.count(Door::Grpc, error);
    }
    Poll::Ready(Some(Err(proto::status(error).into())))
}

/// The refusal of a second message. gRPC's list of status codes has UNIMPLEMENTED for it.
fn too_many_messages() -> Error {
    Error::new(Reason::Unimplemented, "the call takes exactly one message, and more came")
}

/// The refusal of a message that is not there by its deadline.
pub(crate) fn late() -> Error {
    Error::new(Reason::DeadlineExceeded, "the deadline passed before the whole message had arrived")
}

/// The refusal of a message that comes in drops.
pub(crate) fn too_slow() -> Error {
    let message = format!(
        "the message came too slowly: what takes longer than {} s must come at 16 KiB a second",
        PATIENCE.as_secs()
    );
    Error::new(Reason::DeadlineExceeded, message)
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::time::sleep;

    use super::*;

    /// One frame after so many seconds each.
    fn frames(
        frames: impl IntoIterator<Item = (u64, Vec<u8>)>,
    ) -> impl Body<Data = Bytes, Error = std::convert::Infallible> {
        StreamBody::new(futures::stream::iter(frames).then(async |(after, data)| {
            sleep(Duration::from_secs(after)).await;
            Ok(Frame::data(Bytes::from(data)))
        }))
    }

    /// When it failed and with what, if it did.
    async fn failure(
        body: impl Body<Data = Bytes, Error = std::convert::Infallible>,
        one: bool,
    ) -> Option<(u64, String)> {
        let began = Instant::now();
        let mut body = std::pin::pin!(Timely::new(body, one, None, None));
        while let Some(frame) = body.frame().await {
            if let Err(error) = frame {
                let message = tonic::Status::from_error(error).message().to_owned();
                return Some((began.elapsed().as_secs(), message));
            }
        }
        None
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_in_drops_is_given_up_and_a_slow_one_is_not() {
        let drops = failure(frames((0..1000).map(|_| (1, vec![1]))), true).await.unwrap();
        assert_eq!(drops.0, 10);
        assert!(drops.1.starts_with("the message came too slowly"), "{}", drops.1);
        let slow = frames((0..1000).map(|_| (1, vec![1; 16 << 10])));
        assert_eq!(failure(slow, true).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_of_one_message_has_no_second_one() {
        let message = [vec![0, 0, 0, 0, 3], vec![7; 3]].concat();
        assert_eq!(failure(frames([(0, message.clone())]), true).await, None);
        for second in [message.clone(), vec![0; 5], vec![0]] {
            let together = [message.clone(), second.clone()].concat();
            for sent in [vec![(0, together)], vec![(0, message.clone()), (1, second)]] {
                let (_, said) = failure(frames(sent.clone()), true).await.unwrap();
                assert_eq!(said, "the call takes exactly one message, and more came");
                assert_eq!(failure(frames(sent), false).await, None);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_rest_between_messages_but_not_within_one() {
        let message = [vec![0, 0, 0, 0, 3], vec![7; 3]].concat();
        let resting = frames((0..3).map(|_| (1000, message.clone())));
        assert_eq!(failure(resting, false).await, None);
        let half = frames([(1000, [message.clone(), vec![0, 0]].concat()), (11, vec![0])]);
        assert_eq!(failure(half, false).await.unwrap().0, 1010);
    }
}
