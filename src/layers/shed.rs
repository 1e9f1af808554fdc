//! A cap on requests in the whole process: over it, calls are refused before their message is read.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt as _;
use pin_project_lite::pin_project;
use tonic::body::Body;
use tower::Service;

use super::path;
use crate::{
    api,
    error::{Error, Reason},
    telemetry::{Door, Refusals},
};

/// The count, shared by all connections and I/O threads.
#[derive(Debug)]
pub struct RequestCap {
    now: AtomicUsize,
    most: usize,
}

impl RequestCap {
    /// At most `most` requests at once.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { now: AtomicUsize::new(0), most })
    }

    /// Counts a request until the result is dropped. `None`: it would be one too many.
    pub fn enter(self: &Arc<Self>) -> Option<Counted> {
        let counted = Counted(self.clone());
        let before = self.now.fetch_add(1, Ordering::Relaxed);
        (before < self.most).then_some(counted)
    }

    /// No request is there now.
    pub fn is_idle(&self) -> bool {
        self.now.load(Ordering::Relaxed) == 0
    }
}

/// The refusal of a request that would be one too many.
pub(crate) fn too_many() -> Error {
    let message = "the server has as many requests as it may hold (server.max_requests)";
    Error::new(Reason::Overloaded, message).with_retry_after(Duration::from_millis(100))
}

/// A request that counts.
#[derive(Debug)]
pub struct Counted(Arc<RequestCap>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Refuses at once, never waits. Only inference is counted: health and admin calls are never shed here.
#[derive(Debug, Clone)]
pub struct Shed<S> {
    inner: S,
    cap: Arc<RequestCap>,
    refusals: Refusals,
}

impl<S> Shed<S> {
    /// Counts in `cap`, and what it refuses in `refusals`.
    pub fn new(inner: S, cap: Arc<RequestCap>, refusals: Refusals) -> Self {
        Self { inner, cap, refusals }
    }
}

impl<S, B> Service<Request<B>> for Shed<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ShedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let called = request.uri().path();
        if !path::is_inference(called) {
            return ShedFuture { inner: Some(self.inner.call(request)), counted: None, streams: false };
        }
        let streams = path::is_infer_stream(called);
        match self.cap.enter() {
            Some(counted) => {
                ShedFuture { inner: Some(self.inner.call(request)), counted: Some(counted), streams }
            }
            None => {
                self.refusals.count(Door::Grpc, &too_many());
                ShedFuture { inner: None, counted: None, streams }
            }
        }
    }
}

pin_project! {
    /// The call, counted until it ends or is dropped; or a refusal. A stream ends with its body.
    pub struct ShedFuture<F> {
        #[pin]
        inner: Option<F>,
        counted: Option<Counted>,
        streams: bool,
    }
}

impl<F, E> Future for ShedFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match this.inner.as_pin_mut() {
            Some(inner) => {
                let response = ready!(inner.poll(cx));
                let counted = this.counted.take().filter(|_| *this.streams);
                Poll::Ready(response.map(|response| match counted {
                    None => response,
                    Some(counted) => response.map(|body| {
                        Body::new(body.map_frame(move |frame| {
                            // Held by the body, and freed with it.
                            let _counted = &counted;
                            frame
                        }))
                    }),
                }))
            }
            None => Poll::Ready(Ok(api::status(&too_many()).into_http())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn over_the_cap_is_refused_and_leaving_makes_room() {
        let cap = RequestCap::new(1);
        let never = tower::service_fn(|_: Request<()>| std::future::pending::<Result<Response<Body>, ()>>());
        let refusals = Refusals::default();
        let mut shed = Shed::new(never, cap, refusals.clone());
        let infer = || Request::builder().uri("/torchlane.v1.ModelServer/Infer").body(()).unwrap();
        let first = shed.call(infer());
        let refused = shed.call(infer()).await.unwrap();
        assert_eq!(refused.headers()["grpc-status"], "8");
        assert_eq!(refusals.get(Door::Grpc, Reason::Overloaded), 1);
        let admin = Request::builder().uri("/torchlane.v1.ModelServer/ReloadModel").body(()).unwrap();
        assert!(futures::poll!(Box::pin(shed.call(admin))).is_pending(), "admin calls are not counted");
        drop(first);
        assert!(futures::poll!(Box::pin(shed.call(infer()))).is_pending());
    }

    #[tokio::test]
    async fn a_stream_is_counted_until_its_body_is_gone() {
        let cap = RequestCap::new(1);
        let answer = tower::service_fn(async |_: Request<()>| {
            Ok::<_, ()>(Response::new(Body::new("answers".to_owned())))
        });
        let mut shed = Shed::new(answer, cap.clone(), Refusals::default());
        let open = shed.call(Request::builder().uri(path::INFER_STREAM[1]).body(()).unwrap()).await.unwrap();
        assert!(!cap.is_idle());
        drop(open);
        assert!(cap.is_idle());
        let _unary = shed.call(Request::builder().uri(path::INFER[1]).body(()).unwrap()).await.unwrap();
        assert!(cap.is_idle());
    }
}
