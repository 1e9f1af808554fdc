//! tonic's own refusals in our words: with a stable reason, and with what to do.

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::BodyExt as _;
use hyper::body::Frame;
use tonic::{Code, Status, body::Body};

use crate::{
    error::{Error, Reason},
    proto,
    telemetry::{Door, Refusals},
};

/// Encodings of messages that a server reads.
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// The answer, with what tonic alone says in it replaced: a message too long, cut off, or not one; no such method. Messages that
/// it could not read are counted in `refusals`.
pub(super) fn translate(response: Response<Body>, refusals: Option<Refusals>) -> Response<Body> {
    let ours = move |said: &HeaderMap| {
        let (error, of) = in_our_words(said)?;
        if let Some(refusals) = refusals.as_ref().filter(|_| of == Of::Request) {
            refusals.count(Door::Grpc, &error);
        }
        Some(proto::status(&error))
    };
    if response.headers().contains_key(Status::GRPC_STATUS) {
        return match ours(response.headers()) {
            Some(status) => {
                let mut translated = status.into_http();
                // A client that is refused for its encoding reads here which it may use.
                if let Some(encodings) = response.headers().get(ACCEPT_ENCODING) {
                    translated.headers_mut().insert(ACCEPT_ENCODING, encodings.clone());
                }
                translated
            }
            None => response,
        };
    }
    let in_trailers = move |frame: Frame<Bytes>| match frame.trailers_ref().and_then(&ours) {
        None => frame,
        Some(status) => Frame::trailers(status.into_http::<()>().into_parts().0.headers),
    };
    response.map(|body| Body::new(body.map_frame(in_trailers)))
}

/// What tonic refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    /// A message, which never became a request.
    Request,
    /// An answer: its request was one, and has been counted.
    Answer,
}

fn in_our_words(said: &HeaderMap) -> Option<(Error, Of)> {
    let status = Status::from_header_map(said)?;
    if !status.details().is_empty() {
        return None;
    }
    let said = status.message();
    match status.code() {
        Code::OutOfRange => {
            let mut numbers =
                said.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse::<u64>().ok());
            let (found, limit) = (numbers.next()?, numbers.next()?);
            let (what, less, of) = if said.contains("encoded") {
                ("answer", "ask for fewer rows or outputs", Of::Answer)
            } else {
                ("message", "send less at once", Of::Request)
            };
            let message = format!(
                "the {what} has {found} bytes, over the limit of {limit}: {less}, or raise server.max_message_bytes"
            );
            Some((Error::new(Reason::MessageTooLarge, message), of))
        }
        Code::Unimplemented if said.is_empty() => {
            let message = "no such method here: `grpcurl -plaintext ADDR list` shows those that are";
            Some((Error::new(Reason::Unimplemented, message), Of::Request))
        }
        Code::Unimplemented => {
            let message =
                format!("{}: use one that grpc-accept-encoding names, or none", said.trim_end_matches('.'));
            Some((Error::new(Reason::Unimplemented, message), Of::Request))
        }
        Code::Internal if said.starts_with("Missing request message") => {
            let message = "the call takes exactly one message, and none came";
            Some((Error::new(Reason::Unimplemented, message), Of::Request))
        }
        Code::Internal if !said.starts_with("Error") => {
            let message = format!("the message cannot be read: {}", said.trim_end_matches('.'));
            Some((Error::new(Reason::BadRequest, message), Of::Request))
        }
        Code::Internal => Some((Error::new(Reason::Internal, said.to_owned()), Of::Answer)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(status: &Status) -> Option<Error> {
        in_our_words(status.clone().into_http::<()>().headers()).map(|(error, _)| error)
    }

    #[test]
    fn what_tonic_says_gets_a_reason_and_what_to_do() {
        let long =
            "Error, decoded message length too large: found 70000000 bytes, the limit is: 67108864 bytes";
        let error = said(&Status::out_of_range(long)).unwrap();
        assert_eq!(error.reason(), Reason::MessageTooLarge);
        assert!(error.message().contains("70000000") && error.message().contains("server.max_message_bytes"));
        let long =
            "Error, encoded message length too large: found 70000000 bytes, the limit is: 67108864 bytes";
        assert!(said(&Status::out_of_range(long)).unwrap().message().starts_with("the answer"));
        assert_eq!(said(&Status::unimplemented("")).unwrap().reason(), Reason::Unimplemented);
        let none = said(&Status::internal("Missing request message.")).unwrap();
        assert_eq!(
            (none.reason(), none.message()),
            (Reason::Unimplemented, "the call takes exactly one message, and none came")
        );
        let cut = said(&Status::internal("Unexpected EOF decoding stream.")).unwrap();
        assert_eq!(
            (cut.reason(), cut.message()),
            (Reason::BadRequest, "the message cannot be read: Unexpected EOF decoding stream")
        );
        assert_eq!(said(&Status::resource_exhausted("the queue is full")), None);
        let mut encoding = Status::unimplemented("Content is compressed with `br` which isn't supported");
        encoding.metadata_mut().insert(ACCEPT_ENCODING, "gzip,identity".parse().unwrap());
        let translated = translate(encoding.into_http(), None);
        assert_eq!(translated.headers()[ACCEPT_ENCODING], "gzip,identity");
        assert!(translated.headers()["grpc-message"].to_str().unwrap().contains("grpc-accept-encoding"));
        let own = proto::status(&Error::new(Reason::ForwardFailed, "the model failed"));
        assert_eq!(said(&own), None, "ours stay as they are");
        assert_eq!(said(&Status::not_found("unknown service")), None);
    }
}
