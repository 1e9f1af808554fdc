//! Reads `grpc-timeout` as the request arrives and holds the message to it. Once that is there, holding the call to it is
//! the typed stack's business.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use futures::future::{Either, Ready, ready};
use http::{HeaderMap, Request, Response};
use tokio::time::Instant;
use tonic::body::Body;
use tower::Service;

use super::{path, timely::Timely};
use crate::{
    error::{Error, Reason},
    proto,
    telemetry::{Door, Refusals},
};

/// When the caller stops waiting; left in the request's extensions.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(pub Option<Instant>);

/// Puts a [`Deadline`] into each request.
#[derive(Debug, Clone)]
pub struct ReadDeadline<S> {
    inner: S,
    longest: Duration,
    refusals: Refusals,
}

impl<S> ReadDeadline<S> {
    /// Deadlines further away than `longest` are brought forward to it; calls without one stay without. Inference that is refused
    /// is counted in `refusals`.
    pub fn new(inner: S, longest: Duration, refusals: Refusals) -> Self {
        Self { inner, longest, refusals }
    }
}

impl<S, B> Service<Request<B>> for ReadDeadline<S>
where
    S: Service<Request<Timely<B>>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let refusals = path::is_inference(request.uri().path()).then(|| self.refusals.clone());
        match timeout(request.headers()) {
            Ok(timeout) => {
                let deadline = timeout.map(|timeout| Instant::now() + timeout.min(self.longest));
                request.extensions_mut().insert(Deadline(deadline));
                let one_message = path::is_unary(request.uri().path());
                // A call may wait for ever, but not for the rest of its own message.
                let until = deadline.or_else(|| one_message.then(|| Instant::now() + self.longest));
                Either::Left(
                    self.inner.call(request.map(|body| Timely::new(body, one_message, until, refusals))),
                )
            }
            Err(error) => {
                if let Some(refusals) = refusals {
                    refusals.count(Door::Grpc, &error);
                }
                Either::Right(ready(Ok(proto::status(&error).into_http())))
            }
        }
    }
}

/// `grpc-timeout` is one to eight digits and a unit.
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Error> {
    let Some(value) = super::once(headers, "grpc-timeout")? else { return Ok(None) };
    let bad = || {
        let message = format!("grpc-timeout {value:?} is not one to eight digits and one of H M S m u n");
        Error::new(Reason::BadRequest, message).with_field("grpc-timeout")
    };
    let text = value.to_str().map_err(|_| bad())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(bad)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let n: u64 = digits.parse().map_err(|_| bad())?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return Err(bad()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_message_that_does_not_come_is_not_waited_for() {
        struct Never;
        impl hyper::body::Body for Never {
            type Data = bytes::Bytes;
            type Error = std::convert::Infallible;
            fn poll_frame(
                self: std::pin::Pin<&mut Self>,
                _: &mut Context<'_>,
            ) -> Poll<Option<Result<hyper::body::Frame<bytes::Bytes>, Self::Error>>> {
                Poll::Pending
            }
        }
        let read = tower::service_fn(async |request: Request<Timely<Never>>| {
            let mut body = std::pin::pin!(request.into_body());
            let error = std::future::poll_fn(|cx| hyper::body::Body::poll_frame(body.as_mut(), cx)).await;
            let status = tonic::Status::from_error(error.unwrap().unwrap_err());
            Ok::<_, ()>(status.into_http::<Body>())
        });
        let refusals = Refusals::default();
        let mut service = ReadDeadline::new(read, Duration::from_secs(300), refusals.clone());
        for (timeout, path, waits) in [
            (Some("2S"), "/any/Method", 2),
            (Some("400S"), path::INFER_STREAM[0], 300),
            (None, "/any/Other", 10),
        ] {
            let mut request = Request::builder().uri(path);
            if let Some(timeout) = timeout {
                request = request.header("grpc-timeout", timeout);
            }
            let began = Instant::now();
            let response = service.call(request.body(Never).unwrap()).await.unwrap();
            assert_eq!(response.headers()["grpc-status"], "4", "{path}");
            assert_eq!(began.elapsed().as_secs(), waits, "{path}");
        }
        assert_eq!(refusals.get(Door::Grpc, Reason::DeadlineExceeded), 1, "other calls are no inference");
        let stream = service.call(Request::builder().uri(path::INFER_STREAM[1]).body(Never).unwrap());
        assert!(
            tokio::time::timeout(Duration::from_secs(100_000), stream).await.is_err(),
            "a stream may rest"
        );
    }

    #[test]
    fn reads_what_the_specification_allows_and_nothing_else() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            timeout(&headers)
        };
        assert_eq!(read("250m").unwrap(), Some(Duration::from_millis(250)));
        assert_eq!(read("99999999H").unwrap(), Some(Duration::from_secs(99_999_999 * 3600)));
        for bad in ["", "5", "m", "123456789m", "1.5S", "-1S", "1s"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(timeout(&HeaderMap::new()).unwrap(), None);
    }
}
