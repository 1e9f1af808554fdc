//! Errors to gRPC statuses: the one place where that is decided.

use std::collections::HashMap;

use tonic::{Code as GrpcCode, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use torchlane_model::error::{Code, Error};

/// The status for `error`, with google.rpc ErrorInfo (always), RetryInfo and BadRequest (where they apply).
pub fn status(error: &Error) -> Status {
    let mut details = ErrorDetails::new();
    let metadata: HashMap<String, String> =
        error.detail().map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
    details.set_error_info(error.reason().as_str(), "torchlane", metadata);
    if let Some(after) = error.retry_after() {
        details.set_retry_info(Some(after));
    }
    if let Some(field) = error.field() {
        details.add_bad_request_violation(field, error.message());
    }
    let code = match error.reason().code() {
        Code::Cancelled => GrpcCode::Cancelled,
        Code::InvalidArgument => GrpcCode::InvalidArgument,
        Code::DeadlineExceeded => GrpcCode::DeadlineExceeded,
        Code::NotFound => GrpcCode::NotFound,
        Code::AlreadyExists => GrpcCode::AlreadyExists,
        Code::PermissionDenied => GrpcCode::PermissionDenied,
        Code::ResourceExhausted => GrpcCode::ResourceExhausted,
        Code::FailedPrecondition => GrpcCode::FailedPrecondition,
        Code::Aborted => GrpcCode::Aborted,
        Code::Unimplemented => GrpcCode::Unimplemented,
        Code::Internal => GrpcCode::Internal,
        Code::Unavailable => GrpcCode::Unavailable,
    };
    Status::with_error_details(code, error.message(), details)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use torchlane_model::error::Reason;

    use super::*;

    #[test]
    fn details_travel_with_the_status() {
        let error = Error::new(Reason::QueueFull, "full")
            .with_retry_after(Duration::from_millis(30))
            .with_field("model");
        let status = status(&error);
        assert_eq!(status.code(), GrpcCode::ResourceExhausted);
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "QUEUE_FULL");
        assert_eq!(details.retry_info().unwrap().retry_delay, Some(Duration::from_millis(30)));
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "model");
    }

    #[test]
    fn the_longest_message_still_fits_the_trailers() {
        let error = Error::new(Reason::BadTensor, "x".repeat(100_000)).with_field("inputs[0]");
        // Peers commonly allow 8 KiB of headers in all.
        assert!(status(&error).message().len() + status(&error).details().len() * 4 / 3 < 6 * 1024);
    }
}
