//! `ModelStreamInfer` in Triton's form: answers in the order of requests, and errors within them. A caller that says
//! `triton_grpc_error: true` gets a status instead, which ends the stream.

use prost::Message as _;
use tonic::{Status, metadata::MetadataMap};

use super::encode::mark_final;
use crate::{
    api::stream::too_long,
    error::Result,
    proto::{
        self,
        inference::{ModelInferResponse, ModelStreamInferResponse},
    },
};

/// Where a caller wants its errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Errors {
    Within,
    AsStatus,
}

impl Errors {
    pub(super) fn wanted(metadata: &MetadataMap) -> Self {
        match metadata.get("triton_grpc_error").map(|value| value.as_bytes()) {
            Some(b"true") => Self::AsStatus,
            _ => Self::Within,
        }
    }
}

/// The item for an answer. One that is too long is an error of its own.
pub(super) fn item(
    (id, model): (String, String),
    answer: Result<ModelInferResponse>,
    longest: usize,
    errors: Errors,
) -> Result<ModelStreamInferResponse, Status> {
    // A few bytes of framing, and the mark of the last answer.
    let bytes = |response: &ModelInferResponse| response.encoded_len() + 48;
    let answer = answer.and_then(|response| match too_long(bytes(&response), longest) {
        None => Ok(response),
        Some(error) => Err(error),
    });
    let (error_message, mut response) = match (answer, errors) {
        (Ok(response), _) => (String::new(), response),
        (Err(error), Errors::AsStatus) => return Err(proto::status(&error)),
        (Err(error), Errors::Within) => {
            // So that the caller knows which request it is of.
            let of = ModelInferResponse { model_name: model, id, ..Default::default() };
            (error.message().to_owned(), of)
        }
    };
    mark_final(&mut response);
    Ok(ModelStreamInferResponse { error_message, infer_response: Some(response) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Reason};

    fn asked(value: &str) -> Errors {
        let mut metadata = MetadataMap::new();
        metadata.insert("triton_grpc_error", value.parse().unwrap());
        Errors::wanted(&metadata)
    }

    fn is_final(item: &ModelStreamInferResponse) -> bool {
        item.infer_response.as_ref().unwrap().parameters.contains_key("triton_final_response")
    }

    #[test]
    fn errors_are_within_the_answers_unless_a_status_is_asked_for() {
        assert_eq!((asked("true"), asked("false")), (Errors::AsStatus, Errors::Within));
        assert_eq!(Errors::wanted(&MetadataMap::new()), Errors::Within);
        let of = || ("own".to_owned(), "m".to_owned());
        let full = || Err(Error::new(Reason::QueueFull, "full"));
        let within = item(of(), full(), 100, Errors::Within).unwrap();
        assert!(is_final(&within));
        let answered = item(of(), Ok(ModelInferResponse::default()), 100, Errors::Within).unwrap();
        assert!(is_final(&answered), "unasked: Triton's clients look for it");
        assert_eq!(
            (within.error_message.as_str(), within.infer_response.unwrap().id.as_str()),
            ("full", "own")
        );
        let status = item(of(), full(), 100, Errors::AsStatus).unwrap_err();
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
    }

    #[test]
    fn a_long_answer_is_an_error_of_its_own() {
        let long =
            ModelInferResponse { raw_output_contents: vec![vec![0; 200].into()], ..Default::default() };
        let item = item(Default::default(), Ok(long), 100, Errors::Within).unwrap();
        assert!(item.error_message.contains("server.max_message_bytes"), "{}", item.error_message);
        assert!(item.infer_response.unwrap().raw_output_contents.is_empty());
    }
}
