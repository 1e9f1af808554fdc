//! A request whose message is there as a whole. From here on it counts as one of `server.max_requests`: calls that only begin
//! hold no place, so that they cannot shut others out.

use std::sync::Arc;

use http::Extensions;

use super::shed::{Counted, Places};
use crate::{admission::MessageBytes, error::Result};

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

    /// Counts `bytes` more: what was read has become longer.
    #[must_use]
    pub fn add(&self, bytes: usize) -> bool {
        self.bytes.as_ref().is_none_or(|counted| counted.add(bytes as u64))
    }

    /// The request is answered. Its place is free, and the `bytes` of the answer count instead of its own.
    pub fn answered(self, bytes: usize) -> AnswerBytes {
        let counted = self.bytes.map(|request| Arc::new(request.of_answer(bytes as u64)));
        AnswerBytes { counted, by_frame: false }
    }
}

/// The bytes of the message that has just been read, counted until this is dropped: keep it for as long as the message.
pub fn message_bytes(extensions: &Extensions) -> Option<MessageBytes> {
    extensions.get::<Arc<MessageBytes>>().map(|counted| counted.take())
}

/// The bytes of an answer; they count until the last clone is dropped. In a response's extensions they go with its body.
#[derive(Debug, Clone)]
pub struct AnswerBytes {
    counted: Option<Arc<MessageBytes>>,
    /// Of one that comes piece by piece, only the piece that is there counts.
    by_frame: bool,
}

impl AnswerBytes {
    /// None yet: a stream of answers begins, of a call with these extensions.
    pub fn of_stream(extensions: &Extensions) -> Self {
        let counted = extensions.get::<Arc<MessageBytes>>();
        Self { counted: counted.map(|counted| Arc::new(counted.of_answer(0))), by_frame: true }
    }

    /// Of a whole answer. A request's own bytes tell where to count.
    pub fn of_whole(request: &MessageBytes, bytes: usize) -> Self {
        Self { counted: Some(Arc::new(request.of_answer(bytes as u64))), by_frame: false }
    }

    /// So many are there now, of those that come piece by piece.
    pub fn frame(&mut self, bytes: usize) {
        if let Some(counted) = self.counted.as_mut().filter(|_| self.by_frame) {
            *counted = Arc::new(counted.of_answer(bytes as u64));
        }
    }
}
