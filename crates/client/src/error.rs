//! What a call can fail with, for programs and for people.

use std::{collections::HashMap, error::Error as StdError, fmt, time::Duration};

use prost::Message as _;
use tonic::{Code, ConnectError, Status};
use tonic_types::StatusExt as _;

use torchlane_model::tensor::TensorError;
use torchlane_proto as proto;

/// What sort of failure it is: what a program decides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No server could be reached: nothing was sent.
    Unreachable,
    /// The connection ended while the call was under way: it may have run.
    Broken,
    /// An answer that cannot be read, or does not have what was asked for.
    BadAnswer,
    /// The request is wrong, as found here or by the server (INVALID_ARGUMENT, OUT_OF_RANGE).
    InvalidArgument,
    /// No such model, version or the like.
    NotFound,
    /// Who calls is not known.
    Unauthenticated,
    /// Who calls may not do that.
    PermissionDenied,
    /// Full, or over a limit. Where [`ClientError::retry_after`] says when, trying again later helps.
    ResourceExhausted,
    /// Not possible as things stand (FAILED_PRECONDITION, ALREADY_EXISTS).
    FailedPrecondition,
    /// Something newer came in between.
    Aborted,
    /// The deadline passed, or the server knows that it will.
    DeadlineExceeded,
    /// The server ended the call.
    Cancelled,
    /// The server, or the model, is not ready for it now.
    Unavailable,
    /// The server does not offer that call.
    Unimplemented,
    /// The server failed (INTERNAL, UNKNOWN, DATA_LOSS).
    Internal,
}

impl ErrorKind {
    /// The name: gRPC's, where it has one.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "UNREACHABLE",
            Self::Broken => "BROKEN",
            Self::BadAnswer => "BAD_ANSWER",
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::NotFound => "NOT_FOUND",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Aborted => "ABORTED",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Self::Cancelled => "CANCELLED",
            Self::Unavailable => "UNAVAILABLE",
            Self::Unimplemented => "UNIMPLEMENTED",
            Self::Internal => "INTERNAL",
        }
    }

    const fn of(code: Code) -> Self {
        match code {
            Code::InvalidArgument | Code::OutOfRange => Self::InvalidArgument,
            Code::NotFound => Self::NotFound,
            Code::Unauthenticated => Self::Unauthenticated,
            Code::PermissionDenied => Self::PermissionDenied,
            Code::ResourceExhausted => Self::ResourceExhausted,
            Code::FailedPrecondition | Code::AlreadyExists => Self::FailedPrecondition,
            Code::Aborted => Self::Aborted,
            Code::DeadlineExceeded => Self::DeadlineExceeded,
            Code::Cancelled => Self::Cancelled,
            Code::Unavailable => Self::Unavailable,
            Code::Unimplemented => Self::Unimplemented,
            // OK is no error; a server that says so and sends no answer has failed.
            Code::Ok | Code::Unknown | Code::DataLoss | Code::Internal => Self::Internal,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a call failed. It prints as one line; what programs need is in the methods.
#[derive(Debug, Clone)]
pub struct ClientError(Box<Detail>);

#[derive(Debug, Clone)]
struct Detail {
    kind: ErrorKind,
    message: String,
    reason: Option<String>,
    retry_after: Option<Duration>,
    field: Option<String>,
    facts: HashMap<String, String>,
    tries: u32,
}

impl ClientError {
    /// What sort of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// One line: what is wrong and what to do.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The server's stable name for it (google.rpc.ErrorInfo), such as `QUEUE_FULL`.
    pub fn reason(&self) -> Option<&str> {
        self.0.reason.as_deref()
    }

    /// The reason, or the kind's name where no server gave one: what to count failures by.
    pub fn name(&self) -> &str {
        self.reason().unwrap_or(self.kind().as_str())
    }

    /// When trying again may help, as the server says (google.rpc.RetryInfo).
    pub fn retry_after(&self) -> Option<Duration> {
        self.0.retry_after
    }

    /// The field of the request that is at fault (google.rpc.BadRequest), such as `inputs[0].shape`.
    pub fn field(&self) -> Option<&str> {
        self.0.field.as_deref()
    }

    /// A fact that the server gives with it (the metadata of google.rpc.ErrorInfo), such as `estimate_ms`.
    pub fn fact(&self, key: &str) -> Option<&str> {
        self.0.facts.get(key).map(String::as_str)
    }

    /// How often the call was tried. 0: it did not come to that.
    pub fn tries(&self) -> u32 {
        self.0.tries
    }

    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Detail {
            kind,
            message: message.into(),
            reason: None,
            retry_after: None,
            field: None,
            facts: HashMap::new(),
            tries: 0,
        }))
    }

    /// What was asked for cannot be.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::InvalidArgument, message)
    }

    /// The deadline passed here.
    pub(super) fn late() -> Self {
        Self::new(ErrorKind::DeadlineExceeded, "no answer came before the deadline")
    }

    pub(super) fn unreachable(why: impl fmt::Display) -> Self {
        Self::new(ErrorKind::Unreachable, format!("cannot reach a server: {why}"))
    }

    pub(super) fn after(mut self, tries: u32) -> Self {
        self.0.tries = tries;
        self
    }

    fn refused(status: &Status) -> Self {
        let kind = ErrorKind::of(status.code());
        let message = if status.message().is_empty() { kind.as_str() } else { status.message() };
        let mut error = Self::new(kind, message);
        let details = status.get_error_details();
        if let Some(info) = details.error_info() {
            error.0.reason = Some(info.reason.clone());
            error.0.facts = info.metadata.clone();
        }
        error.0.retry_after = details.retry_info().and_then(|info| info.retry_delay);
        let violation = details.bad_request().and_then(|bad| bad.field_violations.first());
        error.0.field = violation.map(|violation| violation.field.clone());
        error
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if let Some(reason) = &self.0.reason {
            write!(f, " [{reason}]")?;
        }
        if let Some(after) = self.0.retry_after {
            write!(f, " (try again in {after:?})")?;
        }
        if self.0.tries > 1 {
            write!(f, " (tried {} times)", self.0.tries)?;
        }
        Ok(())
    }
}

impl StdError for ClientError {}

impl From<Status> for ClientError {
    fn from(status: Status) -> Self {
        // What tonic says is general; the last of the chain is what happened.
        let root = || match causes(&status).last() {
            Some(cause) => cause.to_string(),
            None => status.message().to_owned(),
        };
        match Origin::of(&status) {
            Origin::Clock => Self::late(),
            Origin::NotSent => Self::unreachable(root()),
            Origin::Broken => {
                Self::new(ErrorKind::Broken, format!("the connection to the server ended: {}", root()))
            }
            Origin::Server => Self::refused(&status),
        }
    }
}

impl From<proto::Status> for ClientError {
    /// An error inside a stream: it is the server's, with the same details.
    fn from(status: proto::Status) -> Self {
        let proto::Status { code, message, details } = status;
        let bytes = tonic_types::Status { code, message: message.clone(), details }.encode_to_vec();
        Self::refused(&Status::with_details(Code::from_i32(code), message, bytes.into()))
    }
}

impl From<TensorError> for ClientError {
    fn from(error: TensorError) -> Self {
        Self::invalid(error.to_string())
    }
}

/// Who says that a call failed. tonic has one type for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// A server, in its answer.
    Server,
    /// This side, before anything went out.
    NotSent,
    /// This side, because the connection or the stream ended.
    Broken,
    /// tonic's clock, on either side; a server's own refusal would have said more.
    Clock,
}

impl Origin {
    fn of(status: &Status) -> Self {
        if status.code() == Code::Cancelled && status.message() == "Timeout expired" {
            return Self::Clock;
        }
        let unsent = |cause: &(dyn StdError + 'static)| {
            // hyper's word for a request that its connection did not take any more.
            cause.is::<ConnectError>()
                || cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
        };
        if causes(status).any(unsent) {
            Self::NotSent
        } else if status.source().is_some() {
            // What comes off the wire has no cause.
            Self::Broken
        } else {
            Self::Server
        }
    }
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(status.source(), |&cause| cause.source())
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use torchlane_model::error::{Error, Reason};

    use super::*;

    #[test]
    fn what_a_server_says_is_kept() {
        let refusal = Error::new(Reason::QueueFull, "the queue is full")
            .with_retry_after(Duration::from_millis(30))
            .with_field("priority")
            .with_detail("estimate_ms", "12");
        let error = ClientError::from(proto::status(&refusal));
        assert_eq!((error.kind(), error.reason()), (ErrorKind::ResourceExhausted, Some("QUEUE_FULL")));
        assert_eq!((error.retry_after(), error.field()), (Some(Duration::from_millis(30)), Some("priority")));
        assert_eq!((error.fact("estimate_ms"), error.fact("other")), (Some("12"), None));
        let line = "the queue is full [QUEUE_FULL] (try again in 30ms)";
        assert_eq!(error.to_string(), line);
        assert_eq!(error.after(3).to_string(), format!("{line} (tried 3 times)"));
    }

    #[test]
    fn an_error_inside_a_stream_has_the_same_details() {
        let refusal = Error::new(Reason::WrongShape, "no").with_field("inputs[0].shape");
        let status = proto::status(&refusal);
        let details = tonic_types::Status::decode(status.details()).unwrap().details;
        let (code, message) = (status.code().into(), status.message().to_owned());
        let error = ClientError::from(proto::Status { code, message, details });
        assert_eq!((error.kind(), error.name()), (ErrorKind::InvalidArgument, "WRONG_SHAPE"));
        assert_eq!(error.field(), Some("inputs[0].shape"));
    }

    #[test]
    fn what_this_side_finds_is_not_the_servers() {
        let with = |code, message: &str, cause: Arc<dyn StdError + Send + Sync>| {
            let mut status = Status::new(code, message);
            status.set_source(cause);
            ClientError::from(status)
        };
        let refused = ConnectError(Box::new(io::Error::from(io::ErrorKind::ConnectionRefused)));
        let unsent = with(Code::Unavailable, "tcp connect error", Arc::new(refused));
        assert_eq!((unsent.kind(), unsent.name()), (ErrorKind::Unreachable, "UNREACHABLE"));
        let reset = io::Error::from(io::ErrorKind::ConnectionReset);
        assert_eq!(with(Code::Unknown, "transport error", Arc::new(reset)).kind(), ErrorKind::Broken);
        let clock = ClientError::from(Status::cancelled("Timeout expired"));
        assert_eq!(clock.kind(), ErrorKind::DeadlineExceeded);
        assert_eq!(ClientError::from(Status::unavailable("busy")).kind(), ErrorKind::Unavailable);
        assert_eq!(ClientError::from(Status::unimplemented("")).message(), "UNIMPLEMENTED");
    }

    #[test]
    fn an_error_is_small_enough_to_return_by_value() {
        assert!(size_of::<ClientError>() <= 16);
    }
}
