//! `InferStream`: answers come as they are there, and each says which request it is of.

use tonic::Status;

use crate::{
    api::stream::too_long,
    error::Result,
    proto::{self, infer_stream_response::Result as Answer},
};

/// The item for an answer, which comes with its length. One that is too long is an error of its own.
pub(super) fn item(
    request_id: String,
    answer: Result<(proto::InferResponse, usize)>,
    longest: usize,
) -> proto::InferStreamResponse {
    // The item is the answer, the id again, and a few bytes of framing.
    let answer =
        answer.and_then(|(response, length)| match too_long(length + request_id.len() + 32, longest) {
            None => Ok(response),
            Some(error) => Err(error),
        });
    let result = answer.map_or_else(
        |error| {
            let status = proto::status(&error);
            Answer::Error(proto::Status {
                code: status.code().into(),
                message: status.message().to_owned(),
                details: details(&status),
            })
        },
        Answer::Response,
    );
    proto::InferStreamResponse { request_id, result: Some(result) }
}

/// The google.rpc details that a status carries, for answers inside a stream.
fn details(status: &Status) -> Vec<prost_types::Any> {
    #[derive(Clone, PartialEq, prost::Message)]
    struct RpcStatus {
        #[prost(message, repeated, tag = "3")]
        details: Vec<prost_types::Any>,
    }
    <RpcStatus as prost::Message>::decode(status.details()).map(|status| status.details).unwrap_or_default()
}
