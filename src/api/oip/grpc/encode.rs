//! Answers to messages.

use std::collections::HashMap;

use crate::{
    api::oip::outgoing::{Content, Outgoing, Output},
    proto::inference::{
        InferParameter, ModelInferResponse, infer_parameter::ParameterChoice,
        model_infer_response::InferOutputTensor,
    },
};

/// Writes an answer. Outputs are raw, whatever form the inputs had: one entry for each, an empty one for an output that went
/// to shared memory.
pub(super) fn response(outgoing: Outgoing) -> ModelInferResponse {
    let Outgoing { model, version, id, outputs, marks_final, timing: _ } = outgoing;
    let mut response = ModelInferResponse {
        model_name: model,
        model_version: version,
        id,
        outputs: Vec::with_capacity(outputs.len()),
        raw_output_contents: Vec::with_capacity(outputs.len()),
        ..ModelInferResponse::default()
    };
    if marks_final {
        mark_final(&mut response);
    }
    for Output { name, datatype, shape, data, .. } in outputs {
        let parameters = placed(&data);
        let datatype = datatype.to_owned();
        response.outputs.push(InferOutputTensor { name, datatype, shape, parameters, contents: None });
        response.raw_output_contents.push(data.to_bytes().unwrap_or_default());
    }
    response
}

/// Says that no more answers to the same request come. On a stream all answers say so: Triton's clients look for it there.
pub(super) fn mark_final(response: &mut ModelInferResponse) {
    let is_last = parameter(ParameterChoice::BoolParam(true));
    response.parameters.insert("triton_final_response".to_owned(), is_last);
}

/// Where in shared memory it was written.
fn placed(data: &Content) -> HashMap<String, InferParameter> {
    let Content::Region(part) = data else { return HashMap::new() };
    let number = |value: u64| parameter(ParameterChoice::Int64Param(value.try_into().unwrap_or(i64::MAX)));
    let mut parameters = HashMap::from([
        ("shared_memory_region".to_owned(), parameter(ParameterChoice::StringParam(part.region.clone()))),
        ("shared_memory_byte_size".to_owned(), number(part.size)),
    ]);
    if part.offset > 0 {
        parameters.insert("shared_memory_offset".to_owned(), number(part.offset));
    }
    parameters
}

fn parameter(choice: ParameterChoice) -> InferParameter {
    InferParameter { parameter_choice: Some(choice) }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{api::oip::parameters::RegionPart, call::Timing};

    fn output(name: &str, data: Content) -> Output {
        Output { name: name.to_owned(), datatype: "FP32", shape: vec![1], data, binary: false }
    }

    #[test]
    fn every_output_has_a_raw_entry() {
        let part = RegionPart { region: "r".into(), offset: 8, size: 4 };
        let outputs = vec![
            output("a", Content::Raw(Bytes::from_static(b"1234"))),
            output("b", Content::Region(part)),
            output("c", Content::Texts(vec!["1:0".into(), "é".into()])),
        ];
        let (model, version, id) = ("m".to_owned(), "3".to_owned(), "own".to_owned());
        let timing = Timing::default();
        let response = response(Outgoing { model, version, id, outputs, marks_final: false, timing });
        assert_eq!((response.model_version.as_str(), response.id.as_str()), ("3", "own"));
        let raw: Vec<&[u8]> = response.raw_output_contents.iter().map(AsRef::as_ref).collect();
        assert_eq!(raw, [&b"1234"[..], b"", b"\x03\0\0\x001:0\x02\0\0\0\xC3\xA9"]);
        assert_eq!(response.outputs[1].parameters.len(), 3);
        assert!(response.outputs[0].parameters.is_empty() && response.parameters.is_empty());
    }
}
