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

use crate::{
    api,
    error::{Error, Reason},
};

/// Turns a panic into INTERNAL, and tonic's refusal of a long message into one that names the setting.
#[derive(Debug, Clone)]
pub struct Guard<S> {
    inner: S,
}

impl<S> Guard<S> {
    /// Around `inner`.
    pub fn new(inner: S) -> Self {
        Self { inner }
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
        let call = AssertUnwindSafe(self.inner.call(request)).catch_unwind();
        Box::pin(async move {
            match call.await {
                Ok(response) => response.map(name_the_limit),
                Err(_) => {
                    // The panic hook has logged where it happened.
                    let message = "a bug in torchlane: the server's log says where";
                    Ok(api::status(&Error::new(Reason::Internal, message)).into_http())
                }
            }
        })
    }
}

fn name_the_limit(response: Response<Body>) -> Response<Body> {
    let out_of_range = response.headers().get("grpc-status").is_some_and(|status| status == "11");
    if !out_of_range {
        return response;
    }
    let said = tonic::Status::from_header_map(response.headers());
    let numbers: Vec<u64> = said
        .iter()
        .flat_map(|status| status.message().split(|c: char| !c.is_ascii_digit()))
        .filter_map(|digits| digits.parse().ok())
        .collect();
    let [found, limit] = numbers.as_slice() else { return response };
    let message = format!(
        "the message has {found} bytes, over the limit of {limit}: send less at once, or raise server.max_message_bytes"
    );
    api::status(&Error::new(Reason::MessageTooLarge, message)).into_http()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_answer() {
        let broken =
            tower::service_fn(|_: Request<()>| async { panic!("bug") as Result<Response<Body>, ()> });
        let response = Guard::new(broken).call(Request::new(())).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "13");
    }

    #[test]
    fn the_setting_is_named() {
        let status = tonic::Status::out_of_range(
            "Error, decoded message length too large: found 70000000 bytes, the limit is: 67108864 bytes",
        );
        let status = tonic::Status::from_header_map(name_the_limit(status.into_http()).headers()).unwrap();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert!(status.message().contains("server.max_message_bytes"), "{}", status.message());
    }
}
