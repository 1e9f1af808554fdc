//! Counts the bytes of inference requests as they come in: over the limit, a message is refused in the middle.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::Request;
use hyper::body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tonic::Status;
use tower::Service;

use super::path;
use crate::{
    admission::{Account, Caller, Callers, MessageBytes},
    error::{Error, Reason},
    proto,
    telemetry::{Door, Refusals},
};

/// Longest message of a call that is neither inference nor an upload: names and numbers. They are not counted, so they must not be
/// long.
pub(super) const ADMIN: usize = 64 << 10;
/// Most bytes of a reflection stream, which asks for one name after the other.
const REFLECTION: usize = 1 << 20;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Counts each body and leaves the count in the request's extensions, for whoever holds the message once it is there (see
/// [`Arrived`](super::Arrived)). Never waits. Only inference is counted, and loads that may bring files: admin calls must get through when
/// memory is short.
#[derive(Debug, Clone)]
pub struct CountBytes<S> {
    inner: S,
    unknown: Arc<Account>,
    refusals: Refusals,
    uploads: bool,
}

impl<S> CountBytes<S> {
    /// Counts in the account that a call's connection left in its extensions, else in that of an unknown one of `callers`; and
    /// inference that it refuses in `refusals`.
    pub fn new(inner: S, callers: &Arc<Callers>, refusals: Refusals) -> Self {
        Self { inner, unknown: callers.account(Caller::UNKNOWN), refusals, uploads: false }
    }

    /// With `uploads`, loads may bring files: they may be long, and are counted.
    #[must_use]
    pub fn with_uploads(self, uploads: bool) -> Self {
        Self { uploads, ..self }
    }
}

impl<S, B> Service<Request<B>> for CountBytes<S>
where
    S: Service<Request<CountedBody<B>>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        let called = request.uri().path();
        let is_inference = path::is_inference(called);
        let is_upload = self.uploads && path::is_upload(called);
        let is_counted = is_inference || is_upload;
        let account = || request.extensions().get::<Arc<Account>>().unwrap_or(&self.unknown).clone();
        let counted = is_counted.then(|| Arc::new(MessageBytes::new(account())));
        let refusals = is_inference.then(|| self.refusals.clone());
        let room = match is_counted {
            true => usize::MAX,
            false if path::is_unary(called) => ADMIN,
            false => REFLECTION,
        };
        if let Some(counted) = &counted {
            request.extensions_mut().insert(counted.clone());
        }
        self.inner.call(request.map(|inner| CountedBody { inner, counted, room, refusals }))
    }
}

pin_project! {
    /// A request's body that fails where its bytes are too many.
    pub struct CountedBody<B> {
        #[pin]
        inner: B,
        counted: Option<Arc<MessageBytes>>,
        room: usize,
        refusals: Option<Refusals>,
    }
}

impl<B> Body for CountedBody<B>
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
        let frame = ready!(this.inner.poll_frame(cx)).map(|frame| frame.map_err(Into::into));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            if this.counted.as_ref().is_some_and(|counted| !counted.add(data.len() as u64)) {
                let error = too_many_bytes();
                // Once, however often it is asked for more.
                if let Some(refusals) = this.refusals.take() {
                    refusals.count(Door::Grpc, &error);
                }
                return Poll::Ready(Some(Err(proto::status(&error).into())));
            }
            let Some(left) = this.room.checked_sub(data.len()) else {
                return Poll::Ready(Some(Err(too_long().into())));
            };
            *this.room = left;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn too_long() -> Status {
    let message = "the request is too long: this method takes names and numbers";
    proto::status(&Error::new(Reason::MessageTooLarge, message))
}

/// The refusal of bytes that would be too many.
pub(crate) fn too_many_bytes() -> Error {
    let message = "this address has as many bytes of requests in the server as it may: its share (server.caller_share) of what \
                   others leave of server.max_in_flight_bytes";
    Error::new(Reason::Overloaded, message).with_retry_after(Duration::from_millis(100))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures::StreamExt as _;
    use http_body_util::{BodyExt as _, StreamBody};
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::{
        admission::CallerLimits,
        layers::{
            message_bytes,
            path::{INFER, INFER_STREAM},
        },
    };

    /// Frames of so many bytes, then silence.
    fn frames<const N: usize>(lengths: [usize; N]) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let frames = lengths.map(|length| Ok(Frame::data(Bytes::from(vec![0; length]))));
        StreamBody::new(futures::stream::iter(frames).chain(futures::stream::pending()))
    }

    /// What the service inside gets for a call of `path`.
    fn counted<B>(bytes: &Arc<Account>, path: &str, body: B) -> Request<CountedBody<B>> {
        let inside = tower::service_fn(|request| std::future::ready(Ok::<_, Infallible>(request)));
        let request = Request::builder().uri(path).body(body).unwrap();
        CountBytes::new(inside, bytes.all(), Refusals::default()).call(request).into_inner().unwrap()
    }

    #[tokio::test]
    async fn a_message_counts_while_it_is_read_and_while_it_is_held() {
        let bytes = Account::alone(100);
        let (parts, mut body) = counted(&bytes, INFER_STREAM[0], frames([10, 20, 5])).into_parts();
        body.frame().await.unwrap().unwrap();
        body.frame().await.unwrap().unwrap();
        assert_eq!(bytes.now(), 30);
        let first = message_bytes(&parts.extensions).unwrap();
        body.frame().await.unwrap().unwrap();
        let second = message_bytes(&parts.extensions).unwrap();
        drop(first);
        assert_eq!(bytes.now(), 5, "the stream goes on, its first message does not");
        drop(second);
        assert_eq!(bytes.now(), 0);
    }

    #[tokio::test]
    async fn who_hangs_up_in_the_middle_of_a_message_frees_it() {
        let bytes = Account::alone(100);
        let mut request = counted(&bytes, INFER[1], frames([10]));
        request.body_mut().frame().await.unwrap().unwrap();
        assert!(futures::poll!(request.body_mut().frame()).is_pending());
        assert_eq!(bytes.now(), 10);
        drop(request);
        assert_eq!(bytes.now(), 0);
    }

    #[tokio::test]
    async fn it_counts_for_who_sent_it() {
        let limits = CallerLimits { bytes: 100, calls: 10, grpc: 10, http: 10, heavy: 1, share: 0.5 };
        let callers = Callers::new(limits);
        let [one, other] =
            ["10.0.0.1", "10.0.0.2"].map(|at| callers.account(Caller::at(at.parse().unwrap())));
        let inside = tower::service_fn(|request| std::future::ready(Ok::<_, Infallible>(request)));
        let mut service = CountBytes::new(inside, &callers, Refusals::default());
        let mut sent = |by: &Arc<Account>| {
            let mut request = Request::builder().uri(INFER[0]).body(frames([40, 40])).unwrap();
            request.extensions_mut().insert(by.clone());
            service.call(request).into_inner().unwrap()
        };
        let (mut first, mut second) = (sent(&one), sent(&other));
        first.body_mut().frame().await.unwrap().unwrap();
        assert!(first.body_mut().frame().await.unwrap().is_err(), "half of what there is");
        second.body_mut().frame().await.unwrap().unwrap_err();
        assert_eq!((one.now(), other.now()), (40, 0), "half of what is left");
        drop(first);
        sent(&other).body_mut().frame().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_message_that_is_too_much_is_refused_and_others_go_on() {
        let bytes = Account::alone(100);
        let mut small = counted(&bytes, INFER[1], frames([10, 10]));
        let mut large = counted(&bytes, INFER[1], frames([50, 50]));
        small.body_mut().frame().await.unwrap().unwrap();
        large.body_mut().frame().await.unwrap().unwrap();
        let error = large.body_mut().frame().await.unwrap().unwrap_err();
        let details = Status::from_error(error).get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "OVERLOADED");
        assert!(details.retry_info().is_some());
        small.body_mut().frame().await.unwrap().unwrap();
        drop(large);
        assert_eq!(bytes.now(), 20);
        let mut admin = counted(&bytes, "/torchlane.v1.ModelServer/ReloadModel", frames([1000]));
        admin.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(bytes.now(), 20, "admin calls are not counted");
        let load = "/inference.GRPCInferenceService/RepositoryModelLoad";
        let mut refused = counted(&bytes, load, frames([ADMIN, 1]));
        refused.body_mut().frame().await.unwrap().unwrap();
        assert!(refused.body_mut().frame().await.unwrap().is_err(), "no files unless they are allowed");
        let inside = tower::service_fn(|request| std::future::ready(Ok::<_, Infallible>(request)));
        let bytes = Account::alone(1 << 20);
        let request = Request::builder().uri(load).body(frames([ADMIN, 1])).unwrap();
        let service = CountBytes::new(inside, bytes.all(), Refusals::default());
        let mut upload = service.with_uploads(true).call(request).into_inner().unwrap();
        for _ in 0..2 {
            upload.body_mut().frame().await.unwrap().unwrap();
        }
        assert_eq!(bytes.now(), ADMIN as u64 + 1);
    }
}
