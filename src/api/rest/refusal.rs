//! Errors as HTTP says them: a status, `{"error": MESSAGE}` as the protocol has it, and the reason for programs in a header. The body
//! has nothing else: strict clients, Triton's for Java among them, refuse a key that they do not know.

use std::any::Any;

use axum::{
    http::{HeaderValue, StatusCode, Uri, header},
    response::Response,
};
use serde_json::json;

use super::answer::with_type;
use crate::error::{Error, Reason, shown};

/// The stable name of what is wrong.
const REASON: &str = "torchlane-reason";

/// The answer that says what is wrong.
pub(in crate::api) fn refusal(error: &Error) -> Response {
    let body = json!({"error": error.message()}).to_string();
    let mut response = with_type("application/json", body.into());
    response.headers_mut().insert(REASON, HeaderValue::from_static(error.reason().as_str()));
    *response.status_mut() =
        StatusCode::from_u16(error.reason().http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if let Some(after) = error.retry_after() {
        // Whole seconds: never so few that the caller comes too early.
        let seconds = after.as_secs() + u64::from(after.subsec_nanos() > 0);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// The panic hook has logged where it happened.
pub(in crate::api) fn panicked(_: Box<dyn Any + Send>) -> Response {
    refusal(&Error::new(Reason::Internal, "a bug in torchlane: the server's log says where"))
}

/// No route of the protocol's.
pub(super) async fn no_route(uri: Uri) -> Response {
    let path = shown(uri.path(), 128);
    let message = format!("no route '{path}': /v2/docs has those that are, for programs /v2/openapi.json");
    misrouted(message, StatusCode::NOT_FOUND)
}

/// A route, but not with this method.
pub(in crate::api) async fn no_method(uri: Uri) -> Response {
    let path = shown(uri.path(), 128);
    let message = format!("'{path}' has another method: see /v2/docs, for programs /v2/openapi.json");
    misrouted(message, StatusCode::METHOD_NOT_ALLOWED)
}

/// As gRPC would say it, but by HTTP's own status.
fn misrouted(message: String, status: StatusCode) -> Response {
    let mut response = refusal(&Error::new(Reason::Unimplemented, message));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn an_error_has_its_status_its_words_and_when_to_come_again() {
        let error = Error::new(Reason::QueueFull, "full").with_retry_after(Duration::from_millis(1200));
        let response = refusal(&error);
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()["retry-after"], "2");
        assert_eq!(response.headers()[REASON], "QUEUE_FULL");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, r#"{"error":"full"}"#);
        assert_eq!(refusal(&Error::new(Reason::DeadlineExceeded, "late")).status(), 504);
        assert_eq!(refusal(&Error::new(Reason::MessageTooLarge, "long")).status(), 413);
    }
}
