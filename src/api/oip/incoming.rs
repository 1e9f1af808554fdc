//! A request of the Open Inference Protocol, after its decoder (gRPC, JSON, binary) and before the stack: what all of
//! them have in common.

use bytes::Bytes;

use super::{
    parameters::{Parameters, RegionPart, RequestParameters, TensorParameters},
    regions::{Place, Reader, Regions},
};
use crate::{
    admission::MessageBytes,
    api::arrival::{Arrival, fresh_id, span, version},
    call::{DecidedLane, Headers, InferCall, Purpose},
    error::{Error, Reason, Result, shown},
    model::NamedTensor,
    tensor::{DType, HostTensor, Shape, TensorError, TypedData, encode_typed},
};

/// A decoded request.
#[derive(Debug, Default)]
pub(in crate::api) struct Incoming {
    pub(in crate::api) model: String,
    /// Empty: the server chooses.
    pub(in crate::api) version: String,
    /// The caller's own; may be empty.
    pub(in crate::api) id: String,
    pub(in crate::api) parameters: Parameters,
    pub(in crate::api) inputs: Vec<Input>,
    /// Empty: all that there are.
    pub(in crate::api) outputs: Vec<(String, Parameters)>,
}

/// One of its tensors.
#[derive(Debug)]
pub(in crate::api) struct Input {
    pub(in crate::api) name: String,
    pub(in crate::api) datatype: String,
    pub(in crate::api) shape: Vec<i64>,
    pub(in crate::api) data: Data,
}

/// Where its elements are.
#[derive(Debug)]
pub(in crate::api) enum Data {
    /// Little-endian, row-major.
    Raw(Bytes),
    /// In the list of the datatype.
    Typed(TypedData),
    /// In shared memory.
    Region(RegionPart),
}

/// An output as it is wanted.
#[derive(Debug, Clone)]
pub(in crate::api) struct Wanted {
    pub(in crate::api) name: String,
    pub(in crate::api) parameters: TensorParameters,
    /// Where in shared memory it goes. It is looked up when the request comes: names may be registered anew before the answer is
    /// there.
    pub(in crate::api) place: Option<Place>,
}

/// How the answer is to be written.
#[derive(Debug, Clone, Default)]
pub(in crate::api) struct Form {
    /// To be echoed; may be empty.
    pub(in crate::api) id: String,
    /// The model, as it was called.
    pub(in crate::api) model: String,
    /// Empty: all outputs, as they are.
    pub(in crate::api) outputs: Vec<Wanted>,
    pub(in crate::api) binary_data_output: bool,
    pub(in crate::api) marks_final: bool,
}

impl Incoming {
    /// Makes bytes of lists, which takes a while if they are long. What cannot be made is left to be refused by [`Self::into_call`].
    #[must_use]
    pub(in crate::api) fn settled(mut self) -> Self {
        for Input { datatype, shape, data, .. } in &mut self.inputs {
            if let Data::Typed(typed) = data
                && let Ok(dtype) = datatype.parse::<DType>()
                && !matches!(dtype, DType::F16 | DType::BF16)
                && let Ok(bytes) = encode_typed(typed, dtype, &Shape::from_vec(shape.clone()))
            {
                *data = Data::Raw(bytes);
            }
        }
        self
    }

    /// The call that the stack takes, and what its answer is to look like.
    ///
    /// # Errors
    /// Whatever does not agree with itself, or names shared memory that is not there.
    pub(in crate::api) fn into_call(
        self,
        arrival: &Arrival,
        regions: &Regions,
        counted: Option<&MessageBytes>,
    ) -> Result<(InferCall, Form)> {
        let parameters = RequestParameters::read(&self.parameters)?;
        let lane = match parameters.lane {
            Some(lane) => Some(lane),
            None => arrival.lane()?,
        };
        let outputs = self.outputs.into_iter().map(|(name, parameters)| {
            let parameters = TensorParameters::read(&parameters).map_err(|error| of_output(&name, &error))?;
            let place = parameters.region.as_ref().map(|part| regions.place(part)).transpose();
            let place = place.map_err(|error| of_output(&name, &error))?;
            Ok(Wanted { name, parameters, place })
        });
        let outputs = outputs.collect::<Result<Vec<_>>>()?;
        let mut regions = regions.reader(counted);
        let inputs = self.inputs.into_iter().enumerate();
        let inputs =
            inputs.map(|(index, input)| tensor(index, input, &mut regions)).collect::<Result<Vec<_>>>()?;
        let own_id = !self.id.is_empty();
        let request_id = if own_id { self.id.clone() } else { fresh_id() };
        let span = span(&request_id, &self.model);
        let form = Form {
            id: self.id,
            model: self.model.clone(),
            outputs,
            binary_data_output: parameters.binary_data_output,
            marks_final: parameters.marks_final,
        };
        let call = InferCall {
            request_id,
            own_id,
            model: self.model,
            version: version(&self.version)?,
            lane,
            decided: DecidedLane::default(),
            tenant: arrival.tenant()?,
            account: arrival.account.clone(),
            headers: Headers::new(arrival.headers.clone()),
            purpose: Purpose::Answer,
            deadline: arrival.deadline_within(parameters.timeout),
            inputs,
            outputs: form.outputs.iter().map(|wanted| wanted.name.clone()).collect(),
            received: arrival.received,
            span,
            trace: None,
        };
        Ok((call, form))
    }
}

fn of_output(name: &str, error: &Error) -> Error {
    let message = format!("output '{}': {}", shown(name, 64), error.message());
    Error::new(error.reason(), message).with_field("outputs")
}

fn tensor(index: usize, input: Input, regions: &mut Reader<'_>) -> Result<NamedTensor> {
    let Input { name, datatype, shape, data } = input;
    let at = |field: &str| format!("inputs[{index}].{field}");
    let wrong = |error: TensorError, field: &str| {
        let reason = match error {
            TensorError::UnknownDatatype(_) => Reason::WrongDatatype,
            _ => Reason::BadTensor,
        };
        let message = format!("input '{}': {}", shown(&name, 64), in_protocols_words(&error));
        Error::new(reason, message).with_field(at(field))
    };
    let dtype: DType = datatype.parse().map_err(|error| wrong(error, "datatype"))?;
    let shape = Shape::from_vec(shape);
    let data = match data {
        Data::Raw(bytes) => bytes,
        Data::Typed(_) if matches!(dtype, DType::F16 | DType::BF16) => {
            let message =
                format!("input '{}': {dtype} has no typed contents: send its bytes", shown(&name, 64));
            return Err(Error::new(Reason::BadTensor, message).with_field(at("contents")));
        }
        Data::Typed(typed) => {
            encode_typed(&typed, dtype, &shape).map_err(|error| wrong(error, "contents"))?
        }
        Data::Region(part) => regions.read(part).map_err(|error| {
            let message = format!("input '{}': {}", shown(&name, 64), error.message());
            Error::new(error.reason(), message).with_field(at("parameters"))
        })?,
    };
    let tensor = HostTensor::new(dtype, shape, data).map_err(|error| wrong(error, "shape"))?;
    Ok(NamedTensor { name, tensor })
}

/// Lists of elements have other names here than in torchlane's own API.
fn in_protocols_words(error: &TensorError) -> String {
    const NAMES: [(&str, &str); 6] = [
        ("bool_data", "bool_contents"),
        ("int_data", "int_contents"),
        ("int64_data", "int64_contents"),
        ("uint_data", "uint_contents"),
        ("float_data", "fp32_contents"),
        ("double_data", "fp64_contents"),
    ];
    let mut text = error.to_string();
    for (own, theirs) in NAMES {
        text = text.replace(own, theirs);
    }
    text
}
