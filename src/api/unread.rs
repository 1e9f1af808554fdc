//! A request that is answered before its body was read.
//!
//! The next request on a connection begins behind that body. So the rest of a short one is read here; after a longer one the answer
//! says that the connection ends (`Connection: close`), and the client opens another.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderValue, header},
    middleware::Next,
    response::Response,
};
use bytes::Bytes;
use hyper::body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;

/// Bytes of a body that are read for nothing.
const MOST: u64 = 64 << 10;

/// Time for them to arrive.
const PATIENCE: Duration = Duration::from_secs(1);

/// Answers, and sees to what is left of the request.
pub(super) async fn finished(request: Request, next: Next) -> Response {
    // Who expects 100 has not sent the body and will not.
    let is_sent = !request.headers().contains_key(header::EXPECT);
    let (parts, body) = request.into_parts();
    if body.is_end_stream() {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let rest = Shared(Arc::new(Mutex::new(body)));
    let mut response = next.run(Request::from_parts(parts, Body::new(rest.clone()))).await;
    let is_done = rest.is_end_stream() || is_sent && rest.is_short() && rest.read().await;
    if !is_done {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// A body that is still there when its reader has dropped it.
#[derive(Clone)]
struct Shared(Arc<Mutex<Body>>);

impl Shared {
    fn is_short(&self) -> bool {
        self.0.lock().size_hint().lower() <= MOST
    }

    /// Whether the rest of it came, and was short.
    async fn read(mut self) -> bool {
        let mut left = MOST;
        let whole = std::future::poll_fn(move |cx| {
            loop {
                match ready!(Pin::new(&mut self).poll_frame(cx)) {
                    None => return Poll::Ready(true),
                    Some(Err(_)) => return Poll::Ready(false),
                    Some(Ok(frame)) => {
                        let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                        let Some(less) = left.checked_sub(length) else { return Poll::Ready(false) };
                        left = less;
                    }
                }
            }
        });
        tokio::time::timeout(PATIENCE, whole).await.unwrap_or(false)
    }
}

impl hyper::body::Body for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut *self.0.lock()).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.lock().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.lock().size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::{Router, middleware::from_fn, routing::any};
    use futures::StreamExt as _;
    use tower::ServiceExt as _;

    use super::*;

    /// What the answer says of its connection.
    async fn connection(pieces: usize, then_silent: bool, headers: &[(&str, &str)]) -> Option<String> {
        let piece = || Ok::<_, std::io::Error>(Bytes::from(vec![0; 16 << 10]));
        let pieces = futures::stream::iter((0..pieces).map(move |_| piece()));
        let rest = futures::stream::pending().take(usize::from(then_silent));
        let mut request = Request::post("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::from_stream(pieces.chain(rest))).unwrap();
        let router = Router::new().route("/", any(async || "early")).layer(from_fn(finished));
        let response = router.oneshot(request).await.unwrap();
        response.headers().get("connection").map(|value| value.to_str().unwrap().to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_goes_on_behind_a_short_body_and_ends_in_words_behind_others() {
        assert_eq!(connection(0, false, &[]).await, None);
        assert_eq!(connection(4, false, &[]).await, None);
        assert_eq!(connection(5, false, &[]).await.as_deref(), Some("close"), "too long");
        assert_eq!(connection(1, true, &[]).await.as_deref(), Some("close"), "it does not come");
        let expects = [("expect", "100-continue")];
        assert_eq!(connection(1, false, &expects).await.as_deref(), Some("close"), "it is not sent");
    }
}
