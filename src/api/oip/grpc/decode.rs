//! Messages to requests. Payload bytes are not copied.

use std::collections::HashMap;

use crate::{
    api::oip::{
        LoadParameter, LogValue,
        incoming::{Data, Incoming, Input},
        parameters::{Parameters, TensorParameters, Value},
    },
    error::{Error, Reason, Result, shown},
    proto::inference::{
        InferParameter, InferTensorContents, ModelInferRequest, ModelRepositoryParameter,
        infer_parameter::ParameterChoice,
        log_settings_request::{SettingValue, setting_value},
        model_infer_request::InferInputTensor,
        model_repository_parameter,
    },
    tensor::TypedData,
};

/// Reads a parameter of a load.
pub(super) fn load(parameter: ModelRepositoryParameter) -> LoadParameter {
    use model_repository_parameter::ParameterChoice;
    match parameter.parameter_choice {
        Some(ParameterChoice::StringParam(text)) => LoadParameter::Text(text),
        Some(ParameterChoice::BytesParam(bytes)) => LoadParameter::Bytes(bytes),
        Some(ParameterChoice::BoolParam(_) | ParameterChoice::Int64Param(_)) | None => LoadParameter::Other,
    }
}

/// Reads a setting of the log. One without a value is of no kind that there is.
pub(super) fn log(setting: SettingValue) -> LogValue {
    use setting_value::ParameterChoice;
    match setting.parameter_choice {
        Some(ParameterChoice::BoolParam(is)) => LogValue::Bool(is),
        Some(ParameterChoice::Uint32Param(number)) => LogValue::Number(number.into()),
        Some(ParameterChoice::StringParam(text)) => LogValue::Text(text),
        None => LogValue::None,
    }
}

/// Reads a message. Raw contents belong to the inputs that are not in shared memory, in their order; where there are any, no
/// input has contents of its own.
///
/// # Errors
/// Data that is given twice, not at all or too often, and parameters without a value.
pub(in crate::api) fn incoming(request: ModelInferRequest) -> Result<Incoming> {
    let has_raw = !request.raw_input_contents.is_empty();
    let (given, mut used) = (request.raw_input_contents.len(), 0);
    let mut raw = request.raw_input_contents.into_iter();
    let mut inputs = Vec::with_capacity(request.inputs.len());
    for (index, input) in request.inputs.into_iter().enumerate() {
        let InferInputTensor { name, datatype, shape, parameters, contents } = input;
        let wrong = |field: &str, why: String| {
            let message = format!("input '{}': {why}", shown(&name, 64));
            Error::new(Reason::BadTensor, message).with_field(format!("inputs[{index}].{field}"))
        };
        let parameters = read(parameters)?;
        let region = TensorParameters::read(&parameters)?.region;
        let data = match (region, contents) {
            (Some(_), Some(contents)) if !is_empty(&contents) => {
                return Err(wrong("contents", "it is in shared memory and has contents too".to_owned()));
            }
            (Some(part), _) => Data::Region(part),
            (None, Some(_)) if has_raw => {
                let why =
                    "it has contents, and the request has raw_input_contents: send all inputs in one way";
                return Err(wrong("contents", why.to_owned()));
            }
            (None, contents) if !has_raw => {
                Data::Typed(typed(contents.unwrap_or_default(), &datatype, wrong)?)
            }
            (None, _) => {
                used += 1;
                let missing = || {
                    let why = format!("no data for it: raw_input_contents has {given} entries");
                    wrong("contents", why)
                };
                Data::Raw(raw.next().ok_or_else(missing)?)
            }
        };
        inputs.push(Input { name, datatype, shape, data });
    }
    if raw.next().is_some() {
        let message =
            format!("raw_input_contents has {given} entries, {used} inputs take their data from there");
        return Err(Error::new(Reason::BadTensor, message).with_field("raw_input_contents"));
    }
    let outputs = request.outputs.into_iter();
    let outputs = outputs.map(|output| Ok((output.name, read(output.parameters)?))).collect::<Result<_>>()?;
    Ok(Incoming {
        model: request.model_name,
        version: request.model_version,
        id: request.id,
        parameters: read(request.parameters)?,
        inputs,
        outputs,
    })
}

fn read(parameters: HashMap<String, InferParameter>) -> Result<Parameters> {
    let read = parameters.into_iter().map(|(key, value)| {
        let value = match value.parameter_choice {
            Some(ParameterChoice::BoolParam(value)) => Value::Bool(value),
            Some(ParameterChoice::Int64Param(value)) => Value::Int(value),
            Some(ParameterChoice::Uint64Param(value)) => Value::Uint(value),
            Some(ParameterChoice::DoubleParam(value)) => Value::Double(value),
            Some(ParameterChoice::StringParam(value)) => Value::Text(value),
            None => {
                let message = format!("parameter '{}' has no value", shown(&key, 64));
                return Err(Error::new(Reason::BadRequest, message).with_field("parameters"));
            }
        };
        Ok((key, value))
    });
    read.collect()
}

/// Bytes of memory of lists.
pub(super) fn listed(contents: &InferTensorContents) -> usize {
    contents.bool_contents.len()
        + 4 * (contents.int_contents.len() + contents.uint_contents.len() + contents.fp32_contents.len())
        + 8 * (contents.int64_contents.len() + contents.uint64_contents.len() + contents.fp64_contents.len())
        + size_of::<bytes::Bytes>() * contents.bytes_contents.len()
}

fn is_empty(contents: &InferTensorContents) -> bool {
    *contents == InferTensorContents::default()
}

/// The lists in the order of torchlane's own. The two that no datatype of TorchScript has must be empty.
fn typed(
    contents: InferTensorContents,
    datatype: &str,
    wrong: impl Fn(&str, String) -> Error,
) -> Result<TypedData> {
    let InferTensorContents {
        bool_contents,
        int_contents,
        int64_contents,
        uint_contents,
        uint64_contents,
        fp32_contents,
        fp64_contents,
        bytes_contents,
    } = contents;
    let others =
        [("uint64_contents", uint64_contents.is_empty()), ("bytes_contents", bytes_contents.is_empty())];
    if let Some((list, _)) = others.into_iter().find(|(_, is_empty)| !is_empty) {
        let why = format!("{list} holds no elements of datatype {}", shown(datatype, 32));
        return Err(wrong("contents", why));
    }
    Ok(TypedData {
        bools: bool_contents,
        ints: int_contents,
        int64s: int64_contents,
        uints: uint_contents,
        floats: fp32_contents,
        doubles: fp64_contents,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        api::{arrival::Arrival, oip::regions::Regions},
        call::InferCall,
        model::Lane,
    };

    fn input(datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
        InferInputTensor {
            name: "x".into(),
            datatype: datatype.into(),
            shape: shape.to_vec(),
            contents,
            ..InferInputTensor::default()
        }
    }

    fn request(inputs: Vec<InferInputTensor>, raw: &[&'static [u8]]) -> ModelInferRequest {
        ModelInferRequest {
            model_name: "m".into(),
            inputs,
            raw_input_contents: raw.iter().map(|bytes| (*bytes).into()).collect(),
            ..ModelInferRequest::default()
        }
    }

    fn decode(request: ModelInferRequest) -> Result<InferCall> {
        let regions = Regions::new(false, 1 << 20, 8, 1.0);
        incoming(request)?
            .into_call(&Arrival::new(crate::telemetry::Door::Grpc, Arc::default(), None), &regions, None)
            .map(|(call, _)| call)
    }

    fn parameter(choice: ParameterChoice) -> InferParameter {
        InferParameter { parameter_choice: Some(choice) }
    }

    #[test]
    fn each_datatype_has_its_list_and_the_same_bytes_raw() {
        let contents = InferTensorContents::default;
        let cases: [(&str, InferTensorContents, &[u8]); 9] = [
            ("BOOL", InferTensorContents { bool_contents: vec![true, false], ..contents() }, &[1, 0]),
            ("INT8", InferTensorContents { int_contents: vec![-1, 2], ..contents() }, &[0xFF, 2]),
            ("INT16", InferTensorContents { int_contents: vec![-1, 2], ..contents() }, &[0xFF, 0xFF, 2, 0]),
            (
                "INT32",
                InferTensorContents { int_contents: vec![-1, 2], ..contents() },
                &[0xFF, 0xFF, 0xFF, 0xFF, 2, 0, 0, 0],
            ),
            (
                "INT64",
                InferTensorContents { int64_contents: vec![1, 2], ..contents() },
                &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0],
            ),
            ("UINT8", InferTensorContents { uint_contents: vec![255, 0], ..contents() }, &[255, 0]),
            (
                "FP32",
                InferTensorContents { fp32_contents: vec![1.0, 2.0], ..contents() },
                &[0, 0, 0x80, 0x3F, 0, 0, 0, 0x40],
            ),
            (
                "FP64",
                InferTensorContents { fp64_contents: vec![1.0, 2.0], ..contents() },
                &[0, 0, 0, 0, 0, 0, 0xF0, 0x3F, 0, 0, 0, 0, 0, 0, 0, 0x40],
            ),
            ("FP32", InferTensorContents { fp32_contents: vec![0.0, 0.0], ..contents() }, &[0; 8]),
        ];
        for (datatype, contents, bytes) in cases {
            let typed = decode(request(vec![input(datatype, &[2], Some(contents))], &[])).unwrap();
            let raw = decode(request(vec![input(datatype, &[2], None)], &[bytes])).unwrap();
            assert_eq!(typed.inputs, raw.inputs, "{datatype}");
            assert_eq!(raw.inputs[0].tensor.data(), bytes, "{datatype}");
        }
    }

    #[test]
    fn data_is_given_once() {
        let some = || Some(InferTensorContents { fp32_contents: vec![1.0], ..Default::default() });
        let of =
            |inputs, raw: &[&'static [u8]]| decode(request(inputs, raw)).unwrap_err().message().to_owned();
        let both = of(vec![input("FP32", &[1], some())], &[b"1234"]);
        assert!(both.contains("send all inputs in one way"), "{both}");
        let empty = of(vec![input("FP32", &[1], Some(InferTensorContents::default()))], &[b"1234"]);
        assert!(empty.contains("send all inputs in one way"), "{empty}");
        let few = of(vec![input("FP32", &[1], None), input("FP32", &[1], None)], &[b"1234"]);
        assert!(few.contains("raw_input_contents has 1 entries"), "{few}");
        let many = of(vec![input("FP32", &[1], None)], &[b"1234", b"1234"]);
        assert!(many.contains("has 2 entries, 1 inputs"), "{many}");
        let none = of(vec![input("FP32", &[1], None)], &[]);
        assert!(none.contains("needs 1 elements, fp32_contents has 0"), "{none}");
        let two = Some(InferTensorContents { int_contents: vec![1], ..some().unwrap() });
        assert!(of(vec![input("FP32", &[1], two)], &[]).contains("given twice"));
        let bytes = Some(InferTensorContents { bytes_contents: vec!["a".into()], ..Default::default() });
        assert!(of(vec![input("FP32", &[1], bytes)], &[]).contains("bytes_contents holds no elements"));
    }

    #[test]
    fn half_precision_has_no_typed_contents() {
        for datatype in ["FP16", "BF16"] {
            let floats = Some(InferTensorContents { fp32_contents: vec![1.0], ..Default::default() });
            let error = decode(request(vec![input(datatype, &[1], floats)], &[])).unwrap_err();
            assert!(error.message().contains("send its bytes"), "{error}");
            assert!(decode(request(vec![input(datatype, &[1], None)], &[b"12"])).is_ok());
        }
    }

    #[test]
    fn datatypes_that_no_model_takes_are_named() {
        for datatype in ["BYTES", "UINT16", "UINT32", "UINT64", "FLOAT"] {
            let error = decode(request(vec![input(datatype, &[1], None)], &[b"12345678"])).unwrap_err();
            assert_eq!(error.reason(), Reason::WrongDatatype, "{error}");
        }
    }

    #[test]
    fn parameters_are_of_the_request_and_may_be_of_five_kinds() {
        let mut with = request(vec![input("FP32", &[1], None)], &[b"1234"]);
        with.parameters = [
            ("priority".to_owned(), parameter(ParameterChoice::Uint64Param(1))),
            ("timeout".to_owned(), parameter(ParameterChoice::Int64Param(1000))),
            ("temperature".to_owned(), parameter(ParameterChoice::DoubleParam(0.5))),
            ("mode".to_owned(), parameter(ParameterChoice::StringParam("x".into()))),
            ("flag".to_owned(), parameter(ParameterChoice::BoolParam(true))),
        ]
        .into();
        let call = decode(with.clone()).unwrap();
        assert_eq!(call.lane, Some(Lane::Critical));
        assert!(call.deadline.is_some());
        with.parameters.insert("none".into(), InferParameter::default());
        assert!(decode(with).unwrap_err().message().contains("'none' has no value"));
    }

    proptest! {
        #[test]
        fn no_message_makes_the_decoder_panic(
            datatype in prop::sample::select(vec!["FP32", "INT8", "BOOL", "BF16", "INT64", "BYTES", ""]),
            shape in prop::collection::vec(prop_oneof![any::<i64>(), -1_i64..5], 0..5),
            raw in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..3),
            ints in prop::collection::vec(any::<i32>(), 0..4),
            has_contents in any::<bool>(),
        ) {
            let contents = has_contents.then(|| InferTensorContents { int_contents: ints, ..Default::default() });
            let mut with = request(vec![input(datatype, &shape, contents)], &[]);
            with.raw_input_contents = raw.into_iter().map(Into::into).collect();
            let _ = decode(with);
        }
    }
}
