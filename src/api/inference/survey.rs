//! What a message of inference holds, looked at before it is decoded. A field of two bytes becomes a struct of some hundred, so a
//! message that inflates from a few kilobytes could take gigabytes; and lists of numbers take a while, on the thread that others wait for.

use bytes::Buf as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::{
    error::{Error, Reason, Result},
    layers::LONG,
};

/// Inputs, outputs and parameters of a request, together. No model has as many.
const MOST_FIELDS: usize = 4096;
/// Strings, and fields of inputs that have a length, together.
const MOST_PARTS: usize = 1 << 20;
/// What a glance looks at.
const GLANCE: usize = 1 << 16;
/// The field of a request that holds its inputs, in both APIs.
const INPUTS: u32 = 5;

/// Where the bytes are that decoding leaves as they lie.
#[derive(Debug, Clone, Copy)]
pub(in crate::api) enum Raw {
    /// In this field of each input.
    OfInputs(u32),
    /// In this field of the request.
    OfRequest(u32),
}

/// How long decoding takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decodes {
    AtOnce,
    /// So long that others would notice. What it holds is not known yet: see [`check`].
    Long,
}

/// Looks at the beginning.
///
/// # Errors
/// There are too many fields.
pub(super) fn glance(message: &[u8], raw: Raw) -> Result<Decodes> {
    let mut seen = Seen { raw, steps: GLANCE, fields: 0, parts: 0, as_they_lie: 0 };
    let is_all = seen.request(message)?;
    let is_long = message.len() - seen.as_they_lie > LONG;
    Ok(if is_all && !is_long { Decodes::AtOnce } else { Decodes::Long })
}

/// Looks at all of it.
///
/// # Errors
/// There are too many fields.
pub(super) fn check(message: &[u8], raw: Raw) -> Result<()> {
    let mut seen = Seen { raw, steps: usize::MAX, fields: 0, parts: 0, as_they_lie: 0 };
    seen.request(message).map(|_| ())
}

struct Seen {
    raw: Raw,
    /// Fields that may still be looked at.
    steps: usize,
    fields: usize,
    parts: usize,
    /// Bytes.
    as_they_lie: usize,
}

impl Seen {
    /// Whether all of it was looked at. What is no message is for the decoder to refuse.
    fn request(&mut self, mut message: &[u8]) -> Result<bool> {
        while let Some((tag, field)) = self.next(&mut message) {
            self.fields += 1;
            if self.fields > MOST_FIELDS {
                return Err(too_many(MOST_FIELDS, "inputs, outputs and parameters"));
            }
            match (tag, field) {
                (INPUTS, Some(input)) => self.input(input)?,
                (tag, Some(field)) if matches!(self.raw, Raw::OfRequest(raw) if raw == tag) => {
                    self.as_they_lie += field.len();
                }
                _ => {}
            }
        }
        Ok(message.is_empty() && self.steps > 0)
    }

    fn input(&mut self, mut input: &[u8]) -> Result<()> {
        while let Some((tag, field)) = self.next(&mut input) {
            let Some(mut field) = field else { continue };
            self.part()?;
            if matches!(self.raw, Raw::OfInputs(raw) if raw == tag) {
                self.as_they_lie += field.len();
                continue;
            }
            // A parameter, or lists. In torchlane's own API the lists are fields of the input.
            let nests = matches!(self.raw, Raw::OfRequest(_)) && matches!(tag, 4 | 5);
            while nests && let Some((_, inner)) = self.next(&mut field) {
                if inner.is_some() {
                    self.part()?;
                }
            }
        }
        Ok(())
    }

    fn part(&mut self) -> Result<()> {
        self.parts += 1;
        if self.parts > MOST_PARTS { Err(too_many(MOST_PARTS, "strings")) } else { Ok(()) }
    }

    /// The tag of the field that begins `left`, and its bytes if it has a length. `None`: nothing more can be read, or may.
    fn next<'a>(&mut self, left: &mut &'a [u8]) -> Option<(u32, Option<&'a [u8]>)> {
        if left.is_empty() {
            return None;
        }
        self.steps = self.steps.checked_sub(1)?;
        let (tag, wire_type) = decode_key(left).ok()?;
        // What a group holds counts like what stands beside it.
        if matches!(wire_type, WireType::StartGroup | WireType::EndGroup) {
            return Some((tag, None));
        }
        if wire_type != WireType::LengthDelimited {
            skip_field(wire_type, tag, left, DecodeContext::default()).ok()?;
            return Some((tag, None));
        }
        let length = usize::try_from(decode_varint(left).ok()?).ok()?;
        let field = left.get(..length)?;
        left.advance(length);
        Some((tag, Some(field)))
    }
}

fn too_many(most: usize, of_what: &str) -> Error {
    Error::new(Reason::BadRequest, format!("the message has more than {most} {of_what}"))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::proto::{
        self,
        inference::{InferTensorContents, ModelInferRequest, model_infer_request::InferInputTensor},
    };

    const NATIVE: Raw = Raw::OfInputs(4);
    const OPEN: Raw = Raw::OfRequest(7);

    fn native(input: proto::Tensor) -> Vec<u8> {
        proto::InferRequest { model: "m".into(), inputs: vec![input], ..Default::default() }.encode_to_vec()
    }

    fn open(contents: InferTensorContents, raw: usize) -> Vec<u8> {
        let input = InferInputTensor { contents: Some(contents), ..Default::default() };
        ModelInferRequest {
            inputs: vec![input],
            raw_input_contents: vec![vec![0; raw].into()],
            ..Default::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn raw_bytes_are_quick_however_many_and_lists_are_not() {
        let raw = native(proto::Tensor { raw: vec![8; 2 << 20].into(), ..Default::default() });
        assert_eq!(glance(&raw, NATIVE), Ok(Decodes::AtOnce));
        let floats = |count| native(proto::Tensor { float_data: vec![1.0; count], ..Default::default() });
        assert_eq!(glance(&floats(60_000), NATIVE), Ok(Decodes::AtOnce));
        assert_eq!(glance(&floats(70_000), NATIVE), Ok(Decodes::Long));
        assert_eq!(check(&floats(70_000), NATIVE), Ok(()));
        let none = InferTensorContents::default();
        assert_eq!(glance(&open(none, 2 << 20), OPEN), Ok(Decodes::AtOnce));
        let floats = InferTensorContents { fp32_contents: vec![1.0; 70_000], ..Default::default() };
        assert_eq!(glance(&open(floats, 0), OPEN), Ok(Decodes::Long));
        assert_eq!(glance(b"", OPEN), Ok(Decodes::AtOnce));
    }

    #[test]
    fn what_would_take_much_more_memory_than_it_has_bytes_is_refused() {
        for raw in [NATIVE, OPEN] {
            let group = [&b"\x63"[..], &b"\x08\0".repeat(5000), b"\x64"].concat();
            assert!(glance(&group, raw).is_err());
            let within = native(proto::Tensor::default());
            let within = [&within[..], b"\x2a\xf8\xff\x7f", &b"\x63".repeat(0x1f_fff8)].concat();
            assert_eq!(glance(&within, raw), Ok(Decodes::Long));
            for field in [b"\x2a\0", b"\x32\0", b"\x3a\0", b"\x7a\0", b"\x08\0"] {
                let told = glance(&field.repeat(4097), raw).unwrap_err();
                assert_eq!(told.message(), "the message has more than 4096 inputs, outputs and parameters");
                assert_eq!(check(&field.repeat(4096), raw), Ok(()));
            }
        }
        let strings = |count| {
            let contents =
                InferTensorContents { bytes_contents: vec![Vec::new().into(); count], ..Default::default() };
            open(contents, 0)
        };
        assert_eq!(glance(&strings(60_000), OPEN), Ok(Decodes::AtOnce));
        assert_eq!(glance(&strings(1 << 20), OPEN), Ok(Decodes::Long));
        assert_eq!(
            check(&strings(1 << 20), OPEN).unwrap_err().message(),
            "the message has more than 1048576 strings"
        );
        // Numbers that look like strings are none.
        let numbers = [66, 0].repeat(2 << 20);
        let numbers = native(proto::Tensor { int64_data: numbers, ..Default::default() });
        assert_eq!(check(&numbers, NATIVE), Ok(()));
    }

    #[test]
    fn what_is_no_message_is_left_to_the_decoder() {
        let whole = native(proto::Tensor { name: "x".into(), raw: vec![1; 40].into(), ..Default::default() });
        for cut in 0..whole.len() {
            assert!(check(whole.get(..cut).unwrap(), NATIVE).is_ok());
        }
        assert_eq!(check(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", NATIVE), Ok(()));
        assert_eq!(check(b"\x2a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", NATIVE), Ok(()));
    }
}
