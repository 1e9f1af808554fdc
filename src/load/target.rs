//! The server under load, by either protocol.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use thiserror::Error;
use tonic::{Request, Status, transport::Channel};

use super::LoadSpec;
use crate::{
    client::{self, ClientError, LONGEST_MESSAGE, Stub},
    proto::{
        self,
        inference::{
            self as oip, grpc_inference_service_client::GrpcInferenceServiceClient,
            infer_parameter::ParameterChoice, model_infer_request::InferInputTensor,
        },
    },
    tensor::{DType, byte_len},
};

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Protocol {
    /// torchlane's own.
    #[default]
    Native,
    /// The Open Inference Protocol, which other servers speak too.
    Oip,
}

/// Why no load could be sent.
#[derive(Debug, Error)]
pub enum TargetError {
    /// Nobody there.
    #[error("cannot reach a server at {0}")]
    Unreachable(String),
    /// Somebody there, who says nothing.
    #[error(
        "{0} took the connection and did not answer within 10 s: does it speak this protocol? (--protocol)"
    )]
    Silent(String),
    /// The model is not there, or not known well enough to make a request for it.
    #[error("model '{model}': {why}")]
    Model {
        /// Its name.
        model: String,
        /// What is missing.
        why: String,
    },
}

/// A connection.
#[derive(Debug, Clone)]
pub(super) enum Client {
    Native(Stub),
    Oip(GrpcInferenceServiceClient<Channel>),
}

/// A request, made once and sent often.
#[derive(Debug, Clone)]
pub(super) enum Prepared {
    Native(proto::InferRequest),
    Oip(oip::ModelInferRequest),
}

/// For a server to say what it has: one that speaks something else may say nothing at all.
const PATIENCE: Duration = Duration::from_secs(10);

impl Client {
    pub(super) async fn connect(addr: &str, protocol: Protocol) -> Result<Self, TargetError> {
        let unreachable = || TargetError::Unreachable(addr.to_owned());
        let endpoint = client::endpoint(addr).map_err(|_| unreachable())?;
        let channel = endpoint.connect().await.map_err(|_| unreachable())?;
        Ok(match protocol {
            Protocol::Native => Self::Native(client::stub(channel)),
            Protocol::Oip => Self::Oip(
                GrpcInferenceServiceClient::new(channel)
                    .max_decoding_message_size(LONGEST_MESSAGE)
                    .max_encoding_message_size(LONGEST_MESSAGE),
            ),
        })
    }

    /// Asks what the model takes and makes a request of it: random numbers from 0 to 1, whole numbers 0.
    pub(super) async fn prepare(
        &mut self,
        addr: &str,
        spec: &LoadSpec,
        seed: u64,
    ) -> Result<Prepared, TargetError> {
        let prepared = tokio::time::timeout(PATIENCE, self.ask(spec, seed)).await;
        prepared.unwrap_or_else(|_| Err(TargetError::Silent(addr.to_owned())))
    }

    async fn ask(&mut self, spec: &LoadSpec, seed: u64) -> Result<Prepared, TargetError> {
        let failed = |why: String| TargetError::Model { model: spec.model.clone(), why };
        let refused = |status: Status| failed(status.message().to_owned());
        // Name, datatype, shape; what the model leaves open is empty.
        let mut inputs: Vec<(String, String, Option<Vec<i64>>)> = Vec::new();
        match self {
            Self::Native(client) => {
                let request = proto::LoadModelRequest { model: spec.model.clone() };
                let model = client.load_model(request).await.map_err(refused)?.into_inner();
                let signature = model.signature.ok_or_else(|| failed("no version is live".to_owned()))?;
                for input in signature.inputs.into_iter().filter(|input| !input.optional) {
                    inputs.push((input.name, input.datatype, (!input.any_shape).then_some(input.shape)));
                }
            }
            Self::Oip(client) => {
                let request = oip::ModelMetadataRequest {
                    name: spec.model.clone(),
                    ..oip::ModelMetadataRequest::default()
                };
                let model = client.model_metadata(request).await.map_err(refused)?.into_inner();
                for input in model.inputs {
                    inputs.push((input.name, input.datatype, Some(input.shape)));
                }
            }
        }
        let mut random = fastrand::Rng::with_seed(seed);
        let mut tensors = Vec::new();
        for (name, datatype, shape) in inputs {
            let given = spec.inputs.iter().find(|(given, ..)| *given == name);
            let (datatype, mut shape) = match (given, shape) {
                (Some((_, datatype, shape)), _) => (datatype.clone(), shape.clone()),
                (None, Some(shape)) if !datatype.is_empty() => (datatype, shape),
                _ => {
                    let why = format!(
                        "the server does not say what '{name}' is like: say it with --load model={},input.{name}=FP32:1x64",
                        spec.model
                    );
                    return Err(failed(why));
                }
            };
            if given.is_none()
                && let Some(first) = shape.first_mut().filter(|first| **first == -1)
            {
                *first = i64::try_from(spec.rows).unwrap_or(1);
            }
            if shape.iter().any(|d| *d < 0) {
                let why = format!(
                    "'{name}' has open dimensions {shape:?}: say its shape with --load model={},input.{name}=FP32:1x64",
                    spec.model
                );
                return Err(failed(why));
            }
            let dtype: DType = datatype.parse().map_err(|error| failed(format!("'{name}': {error}")))?;
            let bytes = byte_len(dtype, &shape).ok().filter(|bytes| *bytes <= LONGEST_MESSAGE);
            let count =
                bytes.ok_or_else(|| failed(format!("'{name}' of {shape:?} is over 2 GiB")))? / dtype.size();
            tensors.push((name, datatype, shape, fill(dtype, count, &mut random)));
        }
        Ok(match self {
            Self::Native(_) => Prepared::Native(native(spec, tensors)),
            Self::Oip(_) => Prepared::Oip(open(spec, tensors)),
        })
    }

    /// Sends one request, once. The error is a stable name: the reason where the server gives one, else what sort it is.
    pub(super) async fn send(&mut self, prepared: &Prepared, spec: &LoadSpec) -> Result<(), String> {
        fn dress<T>(message: T, spec: &LoadSpec) -> Request<T> {
            let mut request = Request::new(message);
            if let Some(timeout) = spec.timeout {
                request.set_timeout(timeout);
            }
            if let Some(tenant) = spec.tenant.as_ref().and_then(|tenant| tenant.parse().ok()) {
                request.metadata_mut().insert("x-tenant", tenant);
            }
            request
        }
        let outcome = match (self, prepared) {
            (Self::Native(client), Prepared::Native(request)) => {
                client.infer(dress(request.clone(), spec)).await.map(drop)
            }
            (Self::Oip(client), Prepared::Oip(request)) => {
                client.model_infer(dress(request.clone(), spec)).await.map(drop)
            }
            _ => Err(Status::internal("a request of the other protocol")),
        };
        outcome.map_err(|status| ClientError::from(status).name().to_owned())
    }
}

type Tensors = Vec<(String, String, Vec<i64>, Bytes)>;

fn native(spec: &LoadSpec, tensors: Tensors) -> proto::InferRequest {
    let inputs = tensors.into_iter().map(|(name, datatype, shape, raw)| proto::Tensor {
        name,
        datatype,
        shape,
        raw,
        ..proto::Tensor::default()
    });
    proto::InferRequest {
        model: spec.model.clone(),
        priority: spec.priority.map_or(0, |lane| i32::try_from(lane.index() + 1).unwrap_or(0)),
        inputs: inputs.collect(),
        ..proto::InferRequest::default()
    }
}

fn open(spec: &LoadSpec, tensors: Tensors) -> oip::ModelInferRequest {
    let mut request =
        oip::ModelInferRequest { model_name: spec.model.clone(), ..oip::ModelInferRequest::default() };
    for (name, datatype, shape, raw) in tensors {
        request.inputs.push(InferInputTensor { name, datatype, shape, ..InferInputTensor::default() });
        request.raw_input_contents.push(raw);
    }
    let mut parameters = HashMap::new();
    let mut number = |key: &str, value: u128| {
        let choice = ParameterChoice::Int64Param(i64::try_from(value).unwrap_or(i64::MAX));
        parameters.insert(key.to_owned(), oip::InferParameter { parameter_choice: Some(choice) });
    };
    if let Some(lane) = spec.priority {
        number("priority", lane.index() as u128 + 1);
    }
    if let Some(timeout) = spec.timeout {
        number("timeout", timeout.as_micros());
    }
    request.parameters = parameters;
    request
}

fn fill(dtype: DType, count: usize, random: &mut fastrand::Rng) -> Bytes {
    let mut bytes = Vec::with_capacity(count * dtype.size());
    for _ in 0..count {
        match dtype {
            DType::F16 => bytes.extend(half::f16::from_f32(random.f32()).to_le_bytes()),
            DType::BF16 => bytes.extend(half::bf16::from_f32(random.f32()).to_le_bytes()),
            DType::F32 => bytes.extend(random.f32().to_le_bytes()),
            DType::F64 => bytes.extend(random.f64().to_le_bytes()),
            other => bytes.resize(bytes.len() + other.size(), 0),
        }
    }
    bytes.into()
}
