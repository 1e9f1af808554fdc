//! A request for one forward pass, and its answer.

use std::{fmt, time::Duration};

use tonic::Request;
use torchlane_proto as proto;

use super::{Client, ClientError, Defaults, ErrorKind, Priority, Stub, Tensor, call::Terms};

/// A request under construction: [`Client::infer`] begins one, [`Infer::send`] sends it.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before `send`"]
pub struct Infer {
    client: Client,
    message: proto::InferRequest,
    deadline: Option<Duration>,
}

impl Infer {
    pub(super) fn new(client: Client, model: String) -> Self {
        let Defaults { deadline, priority } = client.defaults;
        let message =
            proto::InferRequest { model, priority: priority.into(), ..proto::InferRequest::default() };
        Self { client, message, deadline }
    }

    /// Adds an input. A model of a single input takes it under the empty name too.
    pub fn input(mut self, name: impl Into<String>, tensor: impl Into<Tensor>) -> Self {
        self.message.inputs.push(tensor.into().into_message(name.into()));
        self
    }

    /// The outputs wanted, in this order. Default: all of them.
    pub fn outputs<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.message.outputs = names.into_iter().map(Into::into).collect();
        self
    }

    /// A number, or a label such as `stable`. Default: the live version, or the one that a rollout chooses.
    pub fn version(mut self, version: impl fmt::Display) -> Self {
        self.message.version = version.to_string();
        self
    }

    /// Who goes first. Default: the client's, else the model's.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.message.priority = priority.into();
        self
    }

    /// Time from [`Infer::send`] to the answer, every try included. The server hears of it and runs nothing after it.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Echoed in the answer and written in the server's log. Default: the server makes one up.
    pub fn request_id(mut self, id: impl Into<String>) -> Self {
        self.message.request_id = id.into();
        self
    }

    /// The message, for [`Client::infer_stream`]. It has no deadline: a stream has one for all.
    pub fn into_message(self) -> proto::InferRequest {
        self.message
    }

    /// Sends it, again if that is safe and useful ([`super::RetryPolicy`]), and waits for the answer. If the future is
    /// dropped, the server drops the request.
    ///
    /// # Errors
    /// The server refused or failed it, or none could be reached, in time.
    pub async fn send(self) -> Result<Answer, ClientError> {
        let caller = &self.client.caller;
        let terms = Terms::within(self.deadline, caller.policy.replay);
        let send =
            |mut stub: Stub, request: Request<proto::InferRequest>| async move { stub.infer(request).await };
        Answer::from_message(caller.call(terms, self.message, send).await?)
    }
}

/// What a model answered.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// That of the request, or the one that the server made up.
    pub request_id: String,
    /// The model.
    pub model: String,
    /// The version that computed all of it.
    pub version: String,
    /// Names and tensors, in the order of the request.
    pub outputs: Vec<(String, Tensor)>,
    /// Where the time went, as the server saw it.
    pub timing: Timing,
}

/// Where the time of one request went, as the server saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Timing {
    /// Waiting to be let in.
    pub queue: Duration,
    /// Waiting for an executor once let in, batching included.
    pub batch_wait: Duration,
    /// The executor's time for the batch that this request was part of.
    pub compute: Duration,
    /// From the decoded request to the finished answer.
    pub total: Duration,
    /// Rows in that batch.
    pub batch_size: u32,
}

impl Answer {
    /// The output of that name.
    ///
    /// # Errors
    /// The answer does not have it; the message says what it has.
    pub fn output(&self, name: &str) -> Result<&Tensor, ClientError> {
        let found = self.outputs.iter().find(|(output, _)| output == name);
        found.map(|(_, tensor)| tensor).ok_or_else(|| {
            let names = self.outputs.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
            let message = format!("the answer of '{}' has no output '{name}': it has {names}", self.model);
            ClientError::new(ErrorKind::BadAnswer, message)
        })
    }

    pub(super) fn from_message(message: proto::InferResponse) -> Result<Self, ClientError> {
        let proto::InferResponse { request_id, model, version, outputs, timing } = message;
        let outputs = outputs.into_iter().map(Tensor::from_message).collect::<Result<_, _>>()?;
        let timing = timing.map(Timing::from_message).unwrap_or_default();
        Ok(Self { request_id, model, version, outputs, timing })
    }
}

impl Timing {
    fn from_message(message: proto::Timing) -> Self {
        let time = |time: Option<prost_types::Duration>| -> Duration {
            time.and_then(|time| time.try_into().ok()).unwrap_or_default()
        };
        Self {
            queue: time(message.queue),
            batch_wait: time(message.batch_wait),
            compute: time(message.compute),
            total: time(message.total),
            batch_size: message.batch_size,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_is_found_by_name() {
        let output = |name: &str, value: f32| Tensor::from(vec![value]).into_message(name.to_owned());
        let millis = |nanos| Some(prost_types::Duration { seconds: 0, nanos });
        let message = proto::InferResponse {
            model: "m".to_owned(),
            outputs: vec![output("a", 1.0), output("b", 2.0)],
            timing: Some(proto::Timing { compute: millis(3_000_000), batch_size: 4, ..Default::default() }),
            ..Default::default()
        };
        let answer = Answer::from_message(message).unwrap();
        assert_eq!(answer.output("b").unwrap().as_f32().unwrap(), [2.0]);
        assert_eq!((answer.timing.compute, answer.timing.batch_size), (Duration::from_millis(3), 4));
        assert_eq!(answer.timing.queue, Duration::ZERO);
        let error = answer.output("c").unwrap_err();
        assert_eq!(error.message(), "the answer of 'm' has no output 'c': it has a, b");
    }
}
