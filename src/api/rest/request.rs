//! Requests in JSON, with tensors in it or as bytes behind it.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, de::Visitor};
use serde_json::value::RawValue;

use super::{json, json::Object, numbers};
use crate::{
    api::oip::{
        incoming::{Data, Incoming, Input},
        parameters::{Parameters, TensorParameters, Value},
    },
    error::{Error, Reason, Result, shown},
    tensor::DType,
};

/// The body of an inference request. What is not known is left out of account.
#[derive(Deserialize)]
struct Body<'a> {
    id: Option<String>,
    #[serde(default)]
    parameters: Named,
    #[serde(borrow)]
    inputs: Vec<Object<Tensor<'a>>>,
    outputs: Option<Vec<Object<Output>>>,
}

#[derive(Deserialize)]
struct Tensor<'a> {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default)]
    parameters: Named,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Output {
    name: String,
    #[serde(default)]
    parameters: Named,
}

/// Parameters by name; `null` is none.
#[derive(Default)]
struct Named(Parameters);

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let named = Option::<Object<BTreeMap<String, Value>>>::deserialize(deserializer)?;
        Ok(Self(named.map(|Object(named)| named.into_iter().collect()).unwrap_or_default()))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOf;

        impl Visitor<'_> for OneOf {
            type Value = Value;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a parameter: true, false, a number or a text")
            }

            fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
                Ok(Value::Bool(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
                Ok(Value::Int(value))
            }

            // Numbers have no sign in JSON unless it is a minus: what fits is signed, as by gRPC.
            fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
                Ok(i64::try_from(value).map_or(Value::Uint(value), Value::Int))
            }

            fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
                Ok(Value::Double(value))
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
                if value.len() > LONGEST {
                    return Err(E::custom(format_args!("a parameter has at most {LONGEST} bytes")));
                }
                Ok(Value::Text(value.to_owned()))
            }
        }

        deserializer.deserialize_any(OneOf)
    }
}

/// No parameter needs more.
const LONGEST: usize = 64 << 10;

/// Reads a body whose JSON ends after `ends` bytes; behind them lie the tensors that have a `binary_data_size`, in their order.
/// Without `ends` all of it is JSON.
///
/// # Errors
/// It is not what it should be: one line, with a position in the JSON where there is one.
pub(super) fn read(model: String, version: String, body: &Bytes, ends: Option<usize>) -> Result<Incoming> {
    let length = ends.unwrap_or(body.len());
    if length > body.len() {
        let message = format!(
            "inference-header-content-length says {length} bytes of JSON, the body has {}",
            body.len()
        );
        return Err(Error::new(Reason::BadRequest, message).with_field("inference-header-content-length"));
    }
    let text = body.slice(..length);
    let mut tail = body.slice(length..);
    let Body { id, parameters, inputs, outputs } = json::read(&text)?;
    let inputs = inputs.into_iter().enumerate();
    let inputs =
        inputs.map(|(index, Object(tensor))| input(index, tensor, &mut tail)).collect::<Result<Vec<_>>>()?;
    if !tail.is_empty() {
        let message = format!("{} bytes behind the JSON are of no input (binary_data_size)", tail.len());
        return Err(Error::new(Reason::BadTensor, message));
    }
    Ok(Incoming {
        model,
        version,
        id: id.unwrap_or_default(),
        parameters: parameters.0,
        inputs,
        outputs: outputs
            .unwrap_or_default()
            .into_iter()
            .map(|Object(output)| (output.name, output.parameters.0))
            .collect(),
    })
}

fn input(index: usize, tensor: Tensor<'_>, tail: &mut Bytes) -> Result<Input> {
    let Tensor { name, shape, datatype, parameters, data } = tensor;
    let wrong = |reason, field: &str, why: String| {
        let message = format!("input '{}': {why}", shown(&name, 64));
        Error::new(reason, message).with_field(format!("inputs[{index}].{field}"))
    };
    let parameters = TensorParameters::read(&parameters.0)?;
    let data = match (data, parameters.binary_size, parameters.region) {
        (None, None, Some(part)) => Data::Region(part),
        (None, Some(size), _) if size > tail.len() => {
            let why =
                format!("binary_data_size is {size}, behind the JSON there are {} more bytes", tail.len());
            return Err(wrong(Reason::BadTensor, "parameters", why));
        }
        (None, Some(size), _) => Data::Raw(tail.split_to(size)),
        (None, None, None) => {
            let why = "no data for it: neither data, nor binary_data_size, nor shared_memory_region";
            return Err(wrong(Reason::BadTensor, "data", why.to_owned()));
        }
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            let why = "its data is given twice: in the JSON, and elsewhere by its parameters";
            return Err(wrong(Reason::BadTensor, "data", why.to_owned()));
        }
        (Some(elements), None, None) => {
            let dtype: DType = datatype
                .parse()
                .map_err(|error| wrong(Reason::WrongDatatype, "datatype", format!("{error}")))?;
            if matches!(dtype, DType::F16 | DType::BF16) {
                let why =
                    format!("{dtype} cannot be sent in JSON: send its bytes behind it (binary_data_size)");
                return Err(wrong(Reason::BadTensor, "data", why));
            }
            let (bytes, nesting) = numbers::read(elements, dtype)
                .map_err(|error| wrong(Reason::BadTensor, "data", format!("data: {error}")))?;
            let elements = bytes.len() / dtype.size();
            let fits = |wanted: usize| wanted / dtype.size();
            let wanted = crate::tensor::byte_len(dtype, &shape).map(fits);
            let wanted = wanted.map_err(|error| wrong(Reason::BadTensor, "shape", error.to_string()))?;
            if wanted != elements {
                let why = format!("shape {shape:?} needs {wanted} elements, data has {elements}");
                return Err(wrong(Reason::BadTensor, "data", why));
            }
            if elements > 0 && !is_nested_as(&nesting, &shape) {
                let why = format!(
                    "data is nested as {nesting:?}, its shape is {shape:?}: nest it so, or not at all"
                );
                return Err(wrong(Reason::BadTensor, "data", why));
            }
            Data::Raw(bytes)
        }
    };
    Ok(Input { name, datatype, shape, data })
}

/// Whether lists so long are the dimensions of a shape, where neighbours may lie flat in one list: `[2, 64]` for
/// `[2, 1, 8, 8]`, but not `[3, 2]` for `[2, 3]`, whose elements would be others than the caller means.
fn is_nested_as(nesting: &[usize], shape: &[i64]) -> bool {
    let mut sizes = shape.iter();
    nesting.iter().all(|length| {
        let Ok(length) = i64::try_from(*length) else { return false };
        let mut size = 1_i64;
        while size < length {
            let Some(next) = sizes.next() else { return false };
            size = size.saturating_mul(*next);
        }
        size == length
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        api::{
            arrival::Arrival,
            oip::{Regions, incoming::Form},
        },
        call::InferCall,
        model::Lane,
    };

    fn decode(body: &[u8], json: Option<usize>) -> Result<(InferCall, Form)> {
        let body = Bytes::copy_from_slice(body);
        let incoming = read("m".into(), String::new(), &body, json)?;
        incoming.into_call(
            &Arrival::new(crate::telemetry::Door::Http, Arc::default(), None),
            &Regions::new(false, 1 << 20, 8, 1.0),
            None,
        )
    }

    fn message(body: &str) -> String {
        let error = decode(body.as_bytes(), None).unwrap_err();
        assert!(!error.message().contains('\n'), "{error}");
        error.message().to_owned()
    }

    #[test]
    fn json_and_bytes_behind_it_may_be_mixed() {
        let json = br#"{"id": "own", "parameters": {"priority": 1, "binary_data_output": true}, "inputs": [
            {"name": "a", "shape": [2], "datatype": "INT8", "parameters": {"binary_data_size": 2}},
            {"name": "b", "shape": [1, 2], "datatype": "FP32", "data": [[1, 2.5]]},
            {"name": "c", "shape": [1], "datatype": "FP16", "parameters": {"binary_data_size": 2}}
        ], "outputs": [{"name": "y", "parameters": {"classification": 3}}, {"name": "z"}]}"#;
        let body = [&json[..], &[1, 2, 0, 0x3C]].concat();
        let (call, form) = decode(&body, Some(json.len())).unwrap();
        assert_eq!((call.request_id.as_str(), call.lane), ("own", Some(Lane::Critical)));
        let data: Vec<&[u8]> = call.inputs.iter().map(|input| input.tensor.data().as_ref()).collect();
        assert_eq!(data, [&[1, 2][..], &[0, 0, 0x80, 0x3F, 0, 0, 0x20, 0x40], &[0, 0x3C]]);
        assert_eq!(call.outputs, ["y", "z"]);
        assert_eq!((form.outputs[0].parameters.classes, form.binary_data_output), (3, true));
    }

    #[test]
    fn lists_are_nested_as_the_shape_is_or_flat() {
        for (nesting, shape) in [
            (&[6][..], &[2, 3][..]),
            (&[2, 3], &[2, 3]),
            (&[2, 64], &[2, 1, 8, 8]),
            (&[1, 2, 1, 3], &[2, 3]),
            (&[1], &[]),
        ] {
            assert!(is_nested_as(nesting, shape), "{nesting:?} {shape:?}");
        }
        for (nesting, shape) in [(&[3, 2][..], &[2, 3][..]), (&[2, 2], &[4, 1]), (&[4, 16], &[8, 8])] {
            assert!(!is_nested_as(nesting, shape), "{nesting:?} {shape:?}");
        }
    }

    #[test]
    fn bytes_behind_the_json_belong_to_inputs() {
        let json = br#"{"inputs": [{"name": "a", "shape": [2], "datatype": "INT8", "parameters": {"binary_data_size": 2}}]}"#;
        let of = |tail: &[u8], length| {
            decode(&[&json[..], tail].concat(), Some(length)).map(drop).map_err(|e| e.message().to_owned())
        };
        assert_eq!(of(&[1, 2], json.len()), Ok(()));
        assert!(of(&[1], json.len()).unwrap_err().contains("there are 1 more bytes"));
        assert!(of(&[1, 2, 3], json.len()).unwrap_err().contains("1 bytes behind the JSON are of no input"));
        assert!(of(&[1, 2], json.len() + 3).unwrap_err().contains("inference-header-content-length"));
        assert!(of(&[1, 2], json.len() - 1).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let input = |rest: &str| format!(r#"{{"inputs": [{{"name": "x", "shape": [2], {rest}}}]}}"#);
        for (body, expected) in [
            ("", "cannot be read: EOF"),
            ("{", "line 1 column"),
            ("[]", "invalid type: list, expected an object"),
            (r#"["own", {}, [], []]"#, "invalid type: list, expected an object"),
            (r#"{"inputs": 3}"#, "expected a list"),
            (r#"{"inputs": [["x", [1], "INT8", {}, [1]]]}"#, "invalid type: list, expected an object"),
            (r#"{"inputs": [], "parameters": []}"#, "invalid type: list, expected an object"),
            (r#"{"inputs": [], "outputs": [["y"]]}"#, "invalid type: list, expected an object"),
            (r#"{"inputs": [{"name": "x", "shape": [1.5]}]}"#, "expected a whole number (int64)"),
            (&input(r#""datatype": "FP32", "data": [1]"#), "shape [2] needs 2 elements, data has 1"),
            (&input(r#""datatype": "FP32", "data": [1, "a"]"#), "data: invalid type: string"),
            (&input(r#""datatype": "FP32", "data": [[1], 2]"#), "an element where the others are lists"),
            (&input(r#""datatype": "FP16", "data": [1, 2]"#), "FP16 cannot be sent in JSON"),
            (&input(r#""datatype": "BYTES", "data": ["a", "b"]"#), "'BYTES' is not one of"),
            (&input(r#""datatype": "FP32""#), "no data for it"),
            (
                &input(r#""datatype": "INT8", "data": [1, 2], "parameters": {"binary_data_size": 2}"#),
                "given twice",
            ),
            (&input(r#""datatype": "INT8", "data": [1, 2], "parameters": {"x": []}"#), "a parameter: true"),
        ] {
            assert!(message(body).contains(expected), "{body}: {}", message(body));
        }
        assert!(decode(input(r#""datatype": "INT8", "data": [1, 2], "new": {}"#).as_bytes(), None).is_ok());
        for data in ["[1, 2, 3]", "[[1], [2], [3]]", "[]"] {
            let negative = format!(
                r#"{{"inputs": [{{"name": "x", "shape": [-3], "datatype": "FP32", "data": {data}}}]}}"#
            );
            assert_eq!(message(&negative), "input 'x': shape [-3] has a negative dimension");
        }
        let otherwise = r#"{"inputs": [{"name": "x", "shape": [2, 3], "datatype": "INT8", "data": [[1, 2], [3, 4], [5, 6]]}]}"#;
        assert!(message(otherwise).contains("data is nested as [3, 2], its shape is [2, 3]"));
        let nothing = br#"{"id": null, "parameters": null, "inputs": [], "outputs": null}"#;
        assert!(decode(nothing, None).unwrap().0.inputs.is_empty());
    }

    proptest! {
        #[test]
        fn no_body_makes_the_decoder_panic(
            datatype in prop::sample::select(vec!["FP32", "INT8", "BOOL", "BF16", "INT64", "BYTES", ""]),
            shape in prop::collection::vec(prop_oneof![any::<i64>(), -1_i64..5], 0..5),
            data in "[\\[\\]0-9.,eE\"a-]{0,24}",
            tail in prop::collection::vec(any::<u8>(), 0..16),
            size in any::<i64>(),
            header in prop::option::of(0_usize..200),
        ) {
            let body = format!(
                r#"{{"inputs": [{{"name": "x", "shape": {shape:?}, "datatype": "{datatype}", "data": {data}}},
                {{"name": "y", "shape": [], "datatype": "INT8", "parameters": {{"binary_data_size": {size}}}}}]}}"#
            );
            let whole = [body.as_bytes(), &tail].concat();
            let _ = decode(&whole, header.or(Some(body.len())));
        }
    }
}
