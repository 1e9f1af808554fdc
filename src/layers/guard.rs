//! The outermost layer: no call ends without a status that says what to do.

use std::{
    panic::AssertUnwindSafe,
    pin::Pin,
    task::{Context, Poll},
};

use futures::FutureExt as _;
use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use super::{path, words};
use crate::{
    error::{Error, Reason},
    proto,
    telemetry::Refusals,
};

/// Turns a panic into INTERNAL, and tonic's own refusals into ones with a reason.
#[derive(Debug, Clone)]
pub struct Guard<S> {
    inner: S,
    refusals: Refusals,
}

impl<S> Guard<S> {
    /// Around `inner`. Inference that tonic refuses is counted in `refusals`.
    pub fn new(inner: S, refusals: Refusals) -> Self {
        Self { inner, refusals }
    }
}

impl<S, B> Service<Request<B>> for Guard<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let refusals = path::is_inference(request.uri().path()).then(|| self.refusals.clone());
        let call = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            match call.await {
                Ok(response) => response.map(|response| words::translate(response, refusals)),
                Err(_) => {
                    // The panic hook has logged where it happened.
                    let message = "a bug in torchlane: the server's log says where";
                    Ok(proto::status(&Error::new(Reason::Internal, message)).into_http())
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let broken =
            tower::service_fn(|_: Request<()>| async { panic!("bug") as Result<Response<Body>, ()> });
        let response = Guard::new(broken, Refusals::default()).call(Request::new(())).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "13");
    }
}
