//! What is not a gRPC call is refused before anything runs, by every service alike.
//!
//! A browser sends a page's request without asking only if its content type is a form's or plain text. So a page can do nothing
//! here that its server has not allowed. The statuses are those of "gRPC over HTTP2"; each refusal has a gRPC status too, so that a
//! client that can read it shows the message.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::{Either, Ready, ready};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::body::Body;
use tower::Service;

use super::{hosts::Hosts, path};
use crate::{
    error::{Error, Reason, shown},
    proto,
    telemetry::{Door, Refusals},
};

/// Lets gRPC calls pass that no foreign page makes.
#[derive(Debug, Clone)]
pub struct Conform<S> {
    inner: S,
    hosts: Arc<Hosts>,
    refusals: Refusals,
}

impl<S> Conform<S> {
    /// By the rules of `hosts`. Inference that is refused is counted in `refusals`.
    pub fn new(inner: S, hosts: Hosts, refusals: Refusals) -> Self {
        Self { inner, hosts: Arc::new(hosts), refusals }
    }

    fn admit<B>(&self, request: &Request<B>) -> Result<(), (StatusCode, Error)> {
        if request.method() != Method::POST {
            let message =
                format!("a gRPC call is a POST, and this is a {}", shown(request.method().as_str(), 16));
            return Err((StatusCode::METHOD_NOT_ALLOWED, Error::new(Reason::BadRequest, message)));
        }
        if !is_grpc(request.headers()) {
            let message = "the content type of a gRPC call is application/grpc or application/grpc+proto";
            let error = Error::new(Reason::BadRequest, message).with_field("content-type");
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, error));
        }
        let forbidden = |error: Error| match error.reason() {
            Reason::Forbidden => (StatusCode::FORBIDDEN, error),
            _ => (StatusCode::BAD_REQUEST, error),
        };
        let host = request.uri().authority().map(http::uri::Authority::as_str);
        let host = host.or_else(|| request.headers().get(header::HOST)?.to_str().ok());
        self.hosts.admit(host.unwrap_or_default()).map_err(forbidden)?;
        self.hosts.admit_call(request.headers()).map_err(forbidden)
    }
}

impl<S, B> Service<Request<B>> for Conform<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (status, error) = match self.admit(&request) {
            Ok(()) => return Either::Left(self.inner.call(request)),
            Err(refused) => refused,
        };
        if path::is_inference(request.uri().path()) {
            self.refusals.count(Door::Grpc, &error);
        }
        let mut response = proto::status(&error).into_http();
        *response.status_mut() = status;
        if status == StatusCode::METHOD_NOT_ALLOWED {
            response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
        }
        Either::Right(ready(Ok(response)))
    }
}

/// One content type: gRPC's, with the encoding of messages that this server has.
fn is_grpc(headers: &HeaderMap) -> bool {
    let mut kinds = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(kind), None) = (kinds.next(), kinds.next()) else { return false };
    let kind = kind.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim();
    ["application/grpc", "application/grpc+proto"].iter().any(|ours| kind.eq_ignore_ascii_case(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_grpc_calls_that_no_page_makes_run() {
        let ran = tower::service_fn(async |_: Request<()>| Ok::<_, ()>(Response::new(Body::empty())));
        let local = Hosts::new(([127, 0, 0, 1], 1).into(), &[], &["https://console.example".to_owned()]);
        let refusals = Refusals::default();
        let mut conform = Conform::new(ran, local, refusals.clone());
        let ours = ("content-type", "application/grpc");
        for (method, uri, headers, status) in [
            ("POST", "http://localhost:1/a/B", &[ours][..], 200),
            (
                "POST",
                "http://localhost:1/a/B",
                &[("content-type", "Application/gRPC+proto; charset=utf-8")],
                200,
            ),
            ("POST", "/a/B", &[ours, ("host", "127.0.0.1:1")], 200),
            ("POST", "http://localhost:1/a/B", &[ours, ("origin", "https://console.example")], 200),
            ("POST", "http://localhost:1/a/B", &[], 415),
            ("POST", "http://localhost:1/a/B", &[("content-type", "text/plain")], 415),
            ("POST", "http://localhost:1/a/B", &[("content-type", "application/grpc-web")], 415),
            ("POST", "http://localhost:1/a/B", &[("content-type", "application/grpc+json")], 415),
            ("POST", "http://localhost:1/a/B", &[("content-type", "text/plain; application/grpc")], 415),
            ("POST", "http://localhost:1/a/B", &[ours, ours], 415),
            ("GET", "http://localhost:1/a/B", &[ours], 405),
            ("OPTIONS", "http://localhost:1/a/B", &[ours, ("origin", "http://localhost:1")], 405),
            ("POST", "http://localhost:1/a/B", &[ours, ("origin", "http://localhost:1")], 403),
            ("POST", "http://localhost:1/a/B", &[ours, ("origin", "null")], 403),
            ("POST", "http://evil.example/a/B", &[ours], 403),
            ("POST", "/a/B", &[ours], 403),
        ] {
            let mut request = Request::builder().method(method).uri(uri);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let response = conform.call(request.body(()).unwrap()).await.unwrap();
            assert_eq!(response.status(), status, "{method} {uri} {headers:?}");
            assert_eq!(response.headers().contains_key("grpc-status"), status != 200);
        }
        let infer = Request::builder().method("POST").uri(path::INFER[0]).body(()).unwrap();
        conform.call(infer).await.unwrap();
        assert_eq!(refusals.get(Door::Grpc, Reason::BadRequest), 1);
    }
}
