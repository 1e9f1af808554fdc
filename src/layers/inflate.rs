//! Inflates compressed messages and bodies. Any bytes give a value or an error, and the reader of the pieces bounds them.

use std::{
    collections::VecDeque,
    io::{self, BufRead, Read},
};

use bytes::{Buf as _, Bytes, BytesMut};
use flate2::{Decompress, FlushDecompress, Status, bufread::GzDecoder};

use crate::error::{Error, Reason, Result, shown};

/// Bytes of what is inflated that are there at once before they count.
pub(crate) const PIECE: usize = 64 << 10;

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// RFC 1952.
    Gzip,
    /// With zlib's frame (RFC 1950).
    Deflate,
    /// RFC 8878.
    Zstd,
}

impl Coding {
    /// By its name in headers.
    pub(crate) fn named(name: &[u8]) -> Option<Self> {
        match name {
            b"gzip" => Some(Self::Gzip),
            b"deflate" => Some(Self::Deflate),
            b"zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Bytes as they came in. What has been read is freed.
#[derive(Debug, Default, Clone)]
pub(crate) struct Parts(VecDeque<Bytes>);

impl Parts {
    /// Adds some at the end.
    pub(crate) fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.0.push_back(part);
        }
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    /// The first of them.
    pub(crate) fn pop(&mut self) -> Option<Bytes> {
        self.0.pop_front()
    }
}

impl From<Bytes> for Parts {
    fn from(bytes: Bytes) -> Self {
        let mut parts = Self::default();
        parts.push(bytes);
        parts
    }
}

impl Read for Parts {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(into)?;
        self.consume(read);
        Ok(read)
    }
}

impl BufRead for Parts {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self.0.front().map_or(&[], |part| part))
    }

    fn consume(&mut self, read: usize) {
        let Some(part) = self.0.front_mut() else { return };
        part.advance(read);
        if part.is_empty() {
            self.0.pop_front();
        }
    }
}

/// Inflates all members of `parts`, of messages of at most `longest` bytes, and gives each piece to `take`. Anything else behind the
/// first member is an error, and so is an end that is missing.
///
/// # Errors
/// It cannot be inflated, or what `take` says.
pub(crate) fn inflate(
    coding: Coding,
    mut parts: Parts,
    longest: usize,
    mut take: impl FnMut(Bytes) -> Result<()>,
) -> Result<()> {
    match coding {
        Coding::Gzip => {
            while parts.len() > 0 {
                pieces(&mut GzDecoder::new(&mut parts), &mut take)?;
            }
        }
        Coding::Deflate => {
            while parts.len() > 0 {
                pieces(
                    &mut Zlib { parts: &mut parts, state: Decompress::new(true), ended: false },
                    &mut take,
                )?;
            }
        }
        Coding::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(&mut parts).map_err(|error| broken(&error))?;
            // Else a few bytes could ask for as much memory as they like.
            let window = usize::BITS - longest.leading_zeros();
            decoder.window_log_max(window.clamp(23, 27)).map_err(|error| broken(&error))?;
            pieces(&mut decoder, &mut take)?;
        }
    }
    Ok(())
}

fn pieces(inflated: &mut impl Read, take: &mut impl FnMut(Bytes) -> Result<()>) -> Result<()> {
    loop {
        let mut piece = BytesMut::zeroed(PIECE);
        let mut filled = 0;
        while let Some(room) = piece.get_mut(filled..).filter(|room| !room.is_empty()) {
            match inflated.read(room).map_err(|error| broken(&error))? {
                0 => break,
                read => filled += read,
            }
        }
        let last = filled < PIECE;
        piece.truncate(filled);
        // A short message shall not hold a long piece.
        let piece = if last { Bytes::copy_from_slice(&piece) } else { piece.freeze() };
        if !piece.is_empty() {
            take(piece)?;
        }
        if last {
            return Ok(());
        }
    }
}

fn broken(error: &io::Error) -> Error {
    let message =
        format!("the message cannot be read: it does not inflate: {}", shown(&error.to_string(), 128));
    Error::new(Reason::BadRequest, message)
}

/// flate2's own reader takes an end that is missing for the end.
struct Zlib<'a> {
    parts: &'a mut Parts,
    state: Decompress,
    ended: bool,
}

impl Read for Zlib<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !self.ended {
            let from = self.parts.fill_buf()?;
            let is_end = from.is_empty();
            let (read, wrote) = (self.state.total_in(), self.state.total_out());
            let status = self.state.decompress(from, into, FlushDecompress::None);
            let status = status.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let read = usize::try_from(self.state.total_in() - read).unwrap_or(usize::MAX);
            let wrote = usize::try_from(self.state.total_out() - wrote).unwrap_or(usize::MAX);
            self.parts.consume(read);
            self.ended = status == Status::StreamEnd;
            if wrote > 0 {
                return Ok(wrote);
            }
            if read == 0 && is_end && !self.ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// `text` as that coding has it.
    pub(crate) fn deflated(coding: Coding, text: &[u8]) -> Vec<u8> {
        match coding {
            Coding::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            Coding::Deflate => {
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(text).unwrap();
                encoder.finish().unwrap()
            }
            Coding::Zstd => zstd::encode_all(text, 1).unwrap(),
        }
    }

    /// What comes out of `sent`, which comes in pieces of `piece` bytes.
    fn read(coding: Coding, sent: &[u8], piece: usize) -> Result<Vec<u8>> {
        let mut parts = Parts::default();
        sent.chunks(piece).for_each(|piece| parts.push(Bytes::copy_from_slice(piece)));
        let mut all = Vec::new();
        inflate(coding, parts, 1 << 20, |piece| {
            all.extend_from_slice(&piece);
            Ok(())
        })?;
        Ok(all)
    }

    const ALL: [Coding; 3] = [Coding::Gzip, Coding::Deflate, Coding::Zstd];

    #[test]
    fn all_members_are_read_and_nothing_else_may_come() {
        let text = b"what is sent ".repeat(50);
        for coding in ALL {
            let one = deflated(coding, &text);
            let two = [one.clone(), deflated(coding, b"and more")].concat();
            // Wherever the pieces end.
            for piece in [1, 7, one.len(), usize::MAX] {
                assert_eq!(read(coding, &one, piece).unwrap(), text, "{coding:?} {piece}");
                let both = read(coding, &two, piece).unwrap();
                assert_eq!(both, [&text[..], b"and more"].concat(), "{coding:?} {piece}");
                for bad in [
                    [&one[..], b"x"].concat(),
                    [&one[..], &[0; 20]].concat(),
                    [&one[..], b"{\"model\": \"something else\"}"].concat(),
                    one[..one.len() - 1].to_vec(),
                    two[..two.len() - 1].to_vec(),
                    text.clone(),
                ] {
                    let error = read(coding, &bad, piece).unwrap_err();
                    assert_eq!(error.reason(), Reason::BadRequest, "{coding:?} {piece} {error}");
                }
            }
        }
    }

    #[test]
    fn who_takes_the_pieces_ends_it() {
        for coding in ALL {
            let bomb = deflated(coding, &vec![0; 64 << 20]);
            assert!(bomb.len() < 1 << 20, "{coding:?}");
            let mut taken = 0;
            let result = inflate(coding, Bytes::from(bomb).into(), 1 << 20, |piece| {
                taken += piece.len();
                if taken > 1 << 20 { Err(Error::new(Reason::MessageTooLarge, "enough")) } else { Ok(()) }
            });
            assert_eq!(result.unwrap_err().reason(), Reason::MessageTooLarge);
            assert!(taken <= (1 << 20) + PIECE);
        }
    }

    #[test]
    fn a_window_is_no_larger_than_a_message() {
        // A frame with a window of 2 GiB: magic number, a descriptor without a size, exponent 21.
        let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00];
        let error = read(Coding::Zstd, &frame, usize::MAX).unwrap_err();
        assert_eq!(error.reason(), Reason::BadRequest, "{error}");
    }

    proptest! {
        #[test]
        fn any_bytes_give_a_value_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1_usize..50) {
            for coding in ALL {
                let _either = read(coding, &bytes, cut);
                let mut changed = deflated(coding, &bytes);
                let at = cut % changed.len();
                changed[at] ^= 0x55;
                let _either = read(coding, &changed, cut);
                prop_assert_eq!(read(coding, &deflated(coding, &bytes), cut).unwrap(), bytes.clone());
            }
        }
    }
}
