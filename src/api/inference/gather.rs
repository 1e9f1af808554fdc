//! An answer on the wire, in pieces: its tensors stay where they lie. tonic would copy each answer into one piece, on the thread that
//! others wait for.

use bytes::{BufMut as _, Bytes, BytesMut};
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint},
};

use super::super::stream::too_long;
use crate::{
    error::Result,
    proto::{
        self,
        infer_stream_response::Result as Answer,
        inference::{ModelInferResponse, ModelStreamInferResponse},
    },
};

/// Flag and length before each message.
const PREFIX: usize = 5;
/// A shorter tensor is copied: a frame of its own would cost more.
const SHORT: usize = 16 << 10;

/// A message that knows which of its bytes are long.
pub(in crate::api) trait Gather: Message {
    /// Writes all of its fields.
    fn gather(self, into: &mut Pieces);

    /// Bytes of memory of its lists, which take a while to write.
    fn listed(&self) -> usize {
        0
    }
}

/// Bytes of memory of a tensor's lists.
pub(in crate::api) fn listed(tensor: &proto::Tensor) -> usize {
    tensor.bool_data.len()
        + 4 * (tensor.int_data.len() + tensor.uint_data.len() + tensor.float_data.len())
        + 8 * (tensor.int64_data.len() + tensor.double_data.len())
}

/// A message of at most `longest` bytes, with its prefix.
///
/// # Errors
/// It is longer.
pub(super) fn framed(message: impl Gather, longest: usize) -> Result<Vec<Bytes>> {
    let length = message.encoded_len();
    if let Some(error) = too_long(length, longest) {
        return Err(error);
    }
    let mut pieces = Pieces { closed: Vec::new(), open: BytesMut::with_capacity(PREFIX + length.min(SHORT)) };
    pieces.open.put_u8(0);
    pieces.open.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.gather(&mut pieces);
    pieces.close();
    Ok(pieces.closed)
}

/// What is written so far.
#[derive(Debug)]
pub(in crate::api) struct Pieces {
    closed: Vec<Bytes>,
    open: BytesMut,
}

impl Pieces {
    fn close(&mut self) {
        if !self.open.is_empty() {
            self.closed.push(self.open.split().freeze());
        }
    }

    /// All fields of a message.
    fn fields(&mut self, message: &impl Message) {
        // There is always room.
        let _written = message.encode(&mut self.open);
    }

    /// A field that holds a message of that length begins.
    fn begin(&mut self, tag: u32, length: usize) {
        encode_key(tag, WireType::LengthDelimited, &mut self.open);
        encode_varint(length as u64, &mut self.open);
    }

    /// A field of bytes.
    fn bytes(&mut self, tag: u32, bytes: Bytes) {
        self.begin(tag, bytes.len());
        if bytes.len() < SHORT {
            self.open.put_slice(&bytes);
        } else {
            self.close();
            self.closed.push(bytes);
        }
    }
}

impl Gather for proto::InferResponse {
    fn gather(mut self, into: &mut Pieces) {
        let outputs = std::mem::take(&mut self.outputs);
        into.fields(&self);
        for mut output in outputs {
            into.begin(4, output.encoded_len());
            let raw = std::mem::take(&mut output.raw);
            into.fields(&output);
            if !raw.is_empty() {
                into.bytes(4, raw);
            }
        }
    }

    fn listed(&self) -> usize {
        self.outputs.iter().map(listed).sum()
    }
}

impl Gather for proto::InferStreamResponse {
    fn gather(mut self, into: &mut Pieces) {
        match self.result.take() {
            Some(Answer::Response(response)) => {
                into.fields(&self);
                into.begin(2, response.encoded_len());
                response.gather(into);
            }
            error => into.fields(&Self { result: error, ..self }),
        }
    }

    fn listed(&self) -> usize {
        match &self.result {
            Some(Answer::Response(response)) => response.listed(),
            _ => 0,
        }
    }
}

impl Gather for ModelInferResponse {
    fn gather(mut self, into: &mut Pieces) {
        let contents = std::mem::take(&mut self.raw_output_contents);
        into.fields(&self);
        contents.into_iter().for_each(|raw| into.bytes(6, raw));
    }
}

impl Gather for ModelStreamInferResponse {
    fn gather(mut self, into: &mut Pieces) {
        let response = self.infer_response.take();
        into.fields(&self);
        if let Some(response) = response {
            into.begin(2, response.encoded_len());
            response.gather(into);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::inference::model_infer_response::InferOutputTensor;

    /// The message comes as it would from prost, and its long bytes where they lay.
    fn comes_whole<M: Gather + Default + Clone + PartialEq>(message: &M, long: &[&Bytes]) {
        let pieces = framed(message.clone(), usize::MAX).unwrap();
        for long in long {
            assert!(
                pieces.iter().any(|piece| piece.as_ptr() == long.as_ptr()),
                "{} bytes were copied",
                long.len()
            );
        }
        let whole = pieces.concat();
        assert_eq!(whole[..PREFIX], [&[0], &((whole.len() - PREFIX) as u32).to_be_bytes()[..]].concat());
        assert!(M::decode(&whole[PREFIX..]).unwrap() == *message);
        assert_eq!(whole.len() - PREFIX, message.encoded_len());
    }

    #[test]
    fn answers_come_whole_and_long_tensors_are_not_copied() {
        let long = Bytes::from(vec![7; 20_000]);
        let tensor = |raw: Bytes, floats: Vec<f32>| proto::Tensor {
            name: "y".into(),
            datatype: "FP32".into(),
            shape: vec![1, -1],
            raw,
            float_data: floats,
            ..Default::default()
        };
        let native = proto::InferResponse {
            request_id: "r".into(),
            version: "7".into(),
            outputs: vec![
                tensor(long.clone(), vec![]),
                tensor(Bytes::from_static(b"abcd"), vec![]),
                tensor(Bytes::new(), vec![0.5; 9000]),
            ],
            timing: Some(proto::Timing { batch_size: 3, ..Default::default() }),
            ..Default::default()
        };
        comes_whole(&native, &[&long]);
        comes_whole(&proto::InferResponse::default(), &[]);
        let of = |result| proto::InferStreamResponse { request_id: "r".into(), result };
        comes_whole(&of(Some(Answer::Response(native))), &[&long]);
        let error = proto::Status { code: 3, message: "wrong".into(), ..Default::default() };
        comes_whole(&of(Some(Answer::Error(error))), &[]);
        comes_whole(&of(None), &[]);
        let other = Bytes::from(vec![9; 16 << 10]);
        let open = ModelInferResponse {
            model_name: "m".into(),
            outputs: vec![InferOutputTensor::default(); 3],
            raw_output_contents: vec![long.clone(), Bytes::new(), other.clone()],
            ..Default::default()
        };
        comes_whole(&open, &[&long, &other]);
        comes_whole(
            &ModelStreamInferResponse { error_message: String::new(), infer_response: Some(open) },
            &[&long, &other],
        );
        comes_whole(&ModelStreamInferResponse { error_message: "wrong".into(), infer_response: None }, &[]);
    }
}
