//! A request whose message is there as a whole. From here on it counts as one of `server.max_requests`: calls that only begin
//! hold no place, so that they cannot shut others out.

use std::{sync::Arc, time::Duration};

use http::Extensions;

use super::shed::{Counted, Places};
use crate::{
    admission::{HeldAnswer, MessageBytes},
    error::{Error, Reason, Result},
};

/// Holds a request's place and counts its bytes, until it is answered.
#[derive(Debug)]
pub struct Arrived {
    bytes: Option<MessageBytes>,
    _place: Option<Counted>,
}

impl Arrived {
    /// The message that has just been read of a call with these extensions.
    ///
    /// The last frame of a message in a stream may hold the beginning of the next one, whose bytes are then freed with this one's:
    /// less than a frame (16 KiB) for each stream.
    ///
    /// # Errors
    /// There are as many requests as there may be.
    pub fn new(extensions: &Extensions) -> Result<Self> {
        let bytes = message_bytes(extensions);
        let place = extensions.get::<Places>().map(Places::enter).transpose()?;
        Ok(Self { bytes, _place: place })
    }

    /// Where the request's bytes count, for what is read of it elsewhere.
    pub fn bytes(&self) -> Option<&MessageBytes> {
        self.bytes.as_ref()
    }

    /// The request is answered. Its place is free, and the `bytes` of the answer count instead of its own.
    ///
    /// # Errors
    /// There is no room for it: too many are there that their callers do not take.
    pub fn answered(self, bytes: usize) -> Result<AnswerBytes> {
        self.bytes.as_ref().map_or(Ok(AnswerBytes(None)), |request| AnswerBytes::of_whole(request, bytes))
    }
}

/// The bytes of the message that has just been read, counted until this is dropped: keep it for as long as the message.
pub fn message_bytes(extensions: &Extensions) -> Option<MessageBytes> {
    extensions.get::<Arc<MessageBytes>>().map(|counted| counted.take())
}

/// The bytes of an answer; they count until the last clone is dropped. In a response's extensions they go with its body.
#[derive(Debug, Clone)]
pub struct AnswerBytes(Option<Arc<HeldAnswer>>);

impl AnswerBytes {
    /// How many they are.
    pub fn count(&self) -> usize {
        self.0.as_ref().map_or(0, |held| usize::try_from(held.bytes()).unwrap_or(usize::MAX))
    }

    /// Of a whole answer to `request`.
    ///
    /// # Errors
    /// There is no room for it.
    pub fn of_whole(request: &MessageBytes, bytes: usize) -> Result<Self> {
        let held = request.answer(bytes as u64).ok_or_else(too_many_answers)?;
        Ok(Self(Some(Arc::new(held))))
    }

    /// The answer of a call, with which they go.
    pub fn on<T>(self, answer: T) -> tonic::Response<T> {
        let mut response = tonic::Response::new(answer);
        response.extensions_mut().insert(self);
        response
    }
}

/// The refusal of an answer for which there is no room.
fn too_many_answers() -> Error {
    let message = "this address has as many bytes of answers on their way as it may: its share (server.caller_share) of what \
                   others leave of server.max_in_flight_bytes. Take answers sooner, or ask for less at once";
    Error::new(Reason::Overloaded, message).with_retry_after(Duration::from_secs(1))
}
