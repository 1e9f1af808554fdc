//! Streams that do not end by themselves (a watch of health, reflection) are ended when the server stops: only then can
//! their connections close.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, body::Body};
use tower::Service;

use super::path;
use crate::{
    error::{Error, Reason},
    proto,
};

/// Ends the answers of all calls but inference once `stop` comes.
#[derive(Debug, Clone)]
pub struct End<S> {
    inner: S,
    stop: CancellationToken,
}

impl<S> End<S> {
    /// Around `inner`.
    pub fn new(inner: S, stop: CancellationToken) -> Self {
        Self { inner, stop }
    }
}

impl<S, B> Service<Request<B>> for End<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = EndFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let stop = (!path::is_inference(request.uri().path())).then(|| self.stop.clone());
        EndFuture { inner: self.inner.call(request), stop }
    }
}

pin_project! {
    /// The call; its answer's body is watched.
    pub struct EndFuture<F> {
        #[pin]
        inner: F,
        stop: Option<CancellationToken>,
    }
}

impl<F, E> Future for EndFuture<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = std::task::ready!(this.inner.poll(cx));
        Poll::Ready(match this.stop.take() {
            None => response,
            Some(stop) => response.map(|response| {
                response.map(|inner| {
                    Body::new(Ending { inner, stop: Box::pin(stop.cancelled_owned()), ended: false })
                })
            }),
        })
    }
}

/// A body that ends with UNAVAILABLE where it has nothing more to say when the server stops.
struct Ending {
    inner: Body,
    stop: Pin<Box<WaitForCancellationFutureOwned>>,
    ended: bool,
}

impl hyper::body::Body for Ending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        std::task::ready!(self.stop.as_mut().poll(cx));
        self.ended = true;
        let status = proto::status(&Error::new(Reason::ShuttingDown, "the server is stopping"));
        let trailers = status.into_http::<()>().into_parts().0.headers;
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Never;

    impl hyper::body::Body for Never {
        type Data = Bytes;
        type Error = Status;
        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn an_open_watch_ends_with_the_server() {
        let stop = CancellationToken::new();
        let watch = tower::service_fn(async |_: Request<()>| Ok::<_, ()>(Response::new(Body::new(Never))));
        let mut service = End::new(watch, stop.clone());
        let body =
            service.call(Request::builder().uri("/x/Watch").body(()).unwrap()).await.unwrap().into_body();
        let mut body = std::pin::pin!(body);
        let mut next = Box::pin(std::future::poll_fn(|cx| hyper::body::Body::poll_frame(body.as_mut(), cx)));
        assert!(futures::poll!(&mut next).is_pending());
        stop.cancel();
        let trailers = next.await.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "14");
    }
}
