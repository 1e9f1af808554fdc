//! The body of an answer to inference.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{StreamExt as _, stream::BoxStream};
use http::HeaderMap;
use hyper::body::{Body, Frame};
use parking_lot::Mutex;
use tonic::Status;

use super::super::stream::Held;

/// Answers that are still to come, in pieces.
type More = BoxStream<'static, (Result<Vec<Bytes>, Status>, Option<Held>)>;

/// Answers in pieces, and then the status. On its way to the wire it goes through a response's extensions, which want to clone it;
/// one of the clones is sent.
#[derive(Clone)]
pub(super) struct Answers {
    pieces: std::vec::IntoIter<Bytes>,
    more: Option<Arc<Mutex<More>>>,
    /// What the answer holds that is being sent.
    held: Option<Arc<Held>>,
    ended: bool,
}

impl Answers {
    /// A single one.
    pub(super) fn one(pieces: Vec<Bytes>) -> Self {
        Self { pieces: pieces.into_iter(), more: None, held: None, ended: false }
    }

    /// As many as there will be.
    pub(super) fn many(more: More) -> Self {
        Self { more: Some(Arc::new(Mutex::new(more))), ..Self::one(Vec::new()) }
    }

    /// The next answer, or the status that ends them.
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.held = None;
        let Some(more) = &self.more else { return Poll::Ready(Err(Status::ok(""))) };
        Poll::Ready(match ready!(more.lock().poll_next_unpin(cx)) {
            Some((Ok(pieces), held)) => {
                self.pieces = pieces.into_iter();
                self.held = held.map(Arc::new);
                Ok(())
            }
            Some((Err(status), _)) => Err(status),
            None => Err(Status::ok("")),
        })
    }
}

impl Body for Answers {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if self.ended {
                return Poll::Ready(None);
            }
            if let Some(piece) = self.pieces.next() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if let Err(status) = ready!(self.next(cx)) {
                self.ended = true;
                self.more = None;
                let mut trailers = HeaderMap::new();
                return Poll::Ready(Some(
                    status.add_header(&mut trailers).map(|()| Frame::trailers(trailers)),
                ));
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tonic::Code;

    use super::*;

    async fn sent(answers: Answers) -> (Vec<u8>, Option<Status>) {
        let collected = answers.collect().await.unwrap();
        let status = collected.trailers().and_then(Status::from_header_map);
        (collected.to_bytes().to_vec(), status)
    }

    #[tokio::test]
    async fn answers_come_in_order_and_a_status_at_the_end() {
        let pieces =
            |texts: &[&'static str]| texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect();
        let (all, status) = sent(Answers::one(pieces(&["ab", "c"]))).await;
        assert_eq!((all.as_slice(), status.unwrap().code()), (&b"abc"[..], Code::Ok));
        let stream = |answers: Vec<_>| {
            Answers::many(futures::stream::iter(answers.into_iter().map(|answer| (answer, None))).boxed())
        };
        let (all, status) = sent(stream(vec![Ok(pieces(&["a", "b"])), Ok(vec![]), Ok(pieces(&["c"]))])).await;
        assert_eq!((all.as_slice(), status.unwrap().code()), (&b"abc"[..], Code::Ok));
        let refused = Err(Status::resource_exhausted("full"));
        let (all, status) = sent(stream(vec![Ok(pieces(&["a"])), refused, Ok(pieces(&["never"]))])).await;
        assert_eq!((all.as_slice(), status.unwrap().message()), (&b"a"[..], "full"));
    }
}
