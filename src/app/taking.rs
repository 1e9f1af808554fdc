//! Answers are sent in pieces, as their peers take them, and count until then. By HTTP/2, one that its peer does not take is given
//! up and its stream reset; others on the connection go on.

use std::{
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures::future::{MapOk, TryFutureExt as _};
use http::Response;
use hyper::{
    body::{Body, Frame, SizeHint},
    rt::Executor,
};
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tower::Service;

use crate::{
    admission::Account,
    layers::{Alarm, AnswerBytes, Pace, given_up},
    telemetry::{Door, Untaken},
};

/// Bytes that are handed to the wire at once: more is held there than the peer has room for.
const PIECE: usize = 64 << 10;

/// Time that a peer may let pass while its answer is there to be taken.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

tokio::task_local! {
    static TAKING: Arc<Taking>;
}

/// How the peer of a stream takes its answer.
#[derive(Debug)]
struct Taking(Mutex<State>);

#[derive(Debug)]
struct State {
    pace: Pace,
    /// Bytes of the last piece. `None`: there is nothing to take.
    piece: Option<usize>,
}

impl Taking {
    fn new() -> Self {
        Self(Mutex::new(State { pace: Pace::new(PATIENCE), piece: None }))
    }

    /// The peer has got `bytes` to take.
    fn gave(&self, bytes: usize) {
        let mut state = self.0.lock();
        state.piece = Some(bytes);
        state.pace.wait();
    }

    /// It has taken them.
    fn took(&self) {
        let mut state = self.0.lock();
        if let Some(bytes) = state.piece.take() {
            state.pace.moved(bytes);
        }
    }

    /// Ready once it is not waited for any more.
    fn given_up(&self, alarm: &mut Alarm, room: &Account, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.lock();
        if state.piece.is_none() {
            return Poll::Pending;
        }
        given_up(&mut state.pace, alarm, room, cx)
    }
}

/// What is to be known of answers on their way.
#[derive(Debug, Clone)]
pub(super) struct Outward {
    /// Counts those that are given up.
    pub(super) untaken: Untaken,
    /// What their caller holds, and how much room there is for more.
    pub(super) room: Arc<Account>,
}

/// Runs what answers one call, pieces included. `None`: the peer did not take the answer.
async fn watched<F: Future>(answering: F, room: &Account) -> Option<F::Output> {
    let taking = Arc::new(Taking::new());
    let mut answering = pin!(TAKING.scope(taking.clone(), answering));
    let mut alarm = Alarm::default();
    std::future::poll_fn(|cx| {
        if let Poll::Ready(output) = answering.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        taking.given_up(&mut alarm, room, cx).map(|()| None)
    })
    .await
}

/// Runs the calls of HTTP/2 connections.
#[derive(Debug, Clone)]
pub(super) struct Streams(pub(super) Outward);

impl<F> Executor<F> for Streams
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, answering: F) {
        let Outward { untaken, room } = self.0.clone();
        // hyper has asked the service for its answer already, which refuses one call too many.
        let open = room.open_call();
        TokioExecutor::new().execute(async move {
            let _open = open;
            if watched(answering, &room).await.is_none() {
                untaken.count(Door::Grpc);
            }
        });
    }
}

/// Sends the answers of a service in pieces.
#[derive(Debug, Clone)]
pub(super) struct InPieces<S>(pub(super) S);

impl<S, R, B> Service<R> for InPieces<S>
where
    S: Service<R, Response = Response<B>>,
{
    type Response = Response<Pieces<B>>;
    type Error = S::Error;
    type Future = MapOk<S::Future, fn(Response<B>) -> Response<Pieces<B>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.0.call(request).map_ok(Pieces::of as _)
    }
}

pin_project! {
    /// The body of an answer.
    pub(super) struct Pieces<B> {
        #[pin]
        inner: B,
        // Of the frame that was last read.
        rest: Bytes,
        // They count as long as this lives.
        _bytes: Option<AnswerBytes>,
        taking: Option<Arc<Taking>>,
    }

    impl<B> PinnedDrop for Pieces<B> {
        fn drop(this: Pin<&mut Self>) {
            if let Some(taking) = this.project().taking {
                taking.took();
            }
        }
    }
}

impl<B> Pieces<B> {
    fn of(mut response: Response<B>) -> Response<Self> {
        let bytes = response.extensions_mut().remove();
        let taking = TAKING.try_with(Arc::clone).ok();
        // Where the peer has no room the body is not even asked.
        if let Some(taking) = &taking {
            taking.gave(0);
        }
        response.map(|inner| Self { inner, rest: Bytes::new(), _bytes: bytes, taking })
    }
}

impl<B: Body<Data = Bytes>> Body for Pieces<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        if let Some(taking) = this.taking {
            taking.took();
        }
        if this.rest.is_empty() {
            let frame = match ready!(this.inner.poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                end => return Poll::Ready(end),
            };
            match frame.into_data() {
                Ok(data) => *this.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let piece = this.rest.copy_to_bytes(this.rest.len().min(PIECE));
        if let Some(taking) = this.taking {
            taking.gave(piece.len());
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.inner.size_hint(), self.rest.len() as u64);
        match hint.exact() {
            Some(exact) => hint.set_exact(exact + rest),
            None => hint.set_lower(hint.lower() + rest),
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::MessageBytes;
    use http_body_util::{BodyExt as _, Full};
    use tokio::time::Instant;

    fn answer(bytes: usize) -> Response<Full<Bytes>> {
        Response::new(Full::new(Bytes::from(vec![1; bytes])))
    }

    #[tokio::test]
    async fn a_long_answer_comes_in_pieces_and_its_length_is_known() {
        let mut body = Pieces::of(answer(2 * PIECE + 5)).into_body();
        let mut left = (2 * PIECE + 5) as u64;
        for piece in [PIECE, PIECE, 5] {
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(left), false));
            assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), piece);
            left -= piece as u64;
        }
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }

    /// What becomes of an answer whose pieces are taken so often.
    async fn taken(pieces: usize, every: Duration) -> Option<Duration> {
        let began = Instant::now();
        let room = Account::alone(1);
        let answering = async {
            let mut body = Pieces::of(answer(pieces * PIECE)).into_body();
            for _ in 0..pieces {
                tokio::time::sleep(every).await;
                body.frame().await.unwrap().unwrap();
            }
        };
        watched(answering, &room).await.map(|()| began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_is_given_up_and_who_takes_little_is_not() {
        let second = Duration::from_secs(1);
        assert_eq!(taken(1, 61 * second).await, None);
        assert_eq!(taken(100, 59 * second).await, None, "slower and slower");
        assert_eq!(taken(100, 4 * second).await, Some(400 * second));
        // Until there is an answer, or after it, nobody is waited for.
        let work = async {
            tokio::time::sleep(1000 * second).await;
            drop(Pieces::of(answer(10)));
            tokio::time::sleep(1000 * second).await;
        };
        assert!(watched(work, &Account::alone(1)).await.is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn where_room_is_short_nobody_is_waited_for_long() {
        let room = Account::alone(100);
        let request = MessageBytes::new(room.clone());
        let began = Instant::now();
        let answering = async {
            let mut body = Pieces::of(answer(2 * PIECE)).into_body();
            body.frame().await.unwrap().unwrap();
            tokio::time::sleep(Duration::from_secs(30)).await;
        };
        // It becomes short while one is not taken.
        let others = async {
            tokio::time::sleep(Duration::from_secs(18)).await;
            let _most = request.answer(60).unwrap();
            tokio::time::sleep(Duration::from_secs(100)).await;
        };
        let given_up = tokio::select! {
            biased;
            done = watched(answering, &room) => done.is_none(),
            () = others => false,
        };
        assert_eq!((given_up, began.elapsed().as_secs()), (true, 20));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_may_be_silent_for_long() {
        let frames = futures::stream::unfold(0, async |count| {
            tokio::time::sleep(Duration::from_secs(1000)).await;
            (count < 3).then(|| (Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"x"))), count + 1))
        });
        let body = http_body_util::StreamBody::new(Box::pin(frames));
        let all = async { Pieces::of(Response::new(body)).into_body().collect().await };
        assert_eq!(watched(all, &Account::alone(1)).await.unwrap().unwrap().to_bytes(), "xxx");
    }
}
