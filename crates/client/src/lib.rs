//! A client for torchlane's own API: typed requests and answers, connections to several servers, and tries that are
//! repeated where that helps and harms nobody.
//!
//! ```text
//! let client = Client::builder().endpoint("dns:///torchlane.default.svc:50051").tenant("radiology").build()?;
//! let answer = client.infer("digits").input("image", Tensor::new(&[1, 1, 8, 8], &pixels)?)
//!     .priority(Priority::High).deadline(Duration::from_millis(200)).send().await?;
//! let probabilities = answer.output("probabilities")?.as_f32()?;
//! ```
//!
//! From the outside in: [`Client`] and [`Infer`] make messages, `call` tries them by the rules of `retry` within one
//! deadline, `pool` keeps a connection to each server, `ring` says whose turn it is. `retry` and `ring` are pure.
//!
//! A client is for one service, whose servers all have the same models. What changes models (`reload`) goes to one of its
//! servers: for a fleet, change what is in the repository instead.

mod address;
mod builder;
mod call;
mod error;
mod infer;
mod network;
mod pool;
mod retry;
mod ring;
mod tensor;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, stream::BoxStream};
use tonic::{Request, Status, transport::Channel};

/// The messages that some calls take and give.
pub use torchlane_proto as proto;
pub use torchlane_proto::Priority;
use torchlane_proto::{infer_stream_response::Result as Outcome, model_server_client::ModelServerClient};

pub use self::address::endpoint;
use self::call::{Caller, Terms};
pub use self::{
    builder::ClientBuilder,
    error::{ClientError, ErrorKind},
    infer::{Answer, Infer, Timing},
    retry::{Backoff, RetryPolicy},
    tensor::{Scalar, Tensor},
};

/// Messages may be as large as gRPC allows: what is too large is the server's to say.
pub const LONGEST_MESSAGE: usize = i32::MAX as usize;

/// The generated client.
pub type Stub = ModelServerClient<Channel>;

/// The generated client over a connection.
pub fn stub(channel: Channel) -> Stub {
    ModelServerClient::new(channel)
        .max_decoding_message_size(LONGEST_MESSAGE)
        .max_encoding_message_size(LONGEST_MESSAGE)
}

/// Connections to the servers of one service. Cloning shares them; they end with the last clone.
#[derive(Clone)]
pub struct Client {
    caller: Arc<Caller>,
    defaults: Defaults,
}

/// Of inferences that do not say.
#[derive(Debug, Clone, Copy)]
struct Defaults {
    deadline: Option<Duration>,
    priority: Priority,
}

/// Answers of a stream, as they are ready: match them by request id.
pub type Answers = BoxStream<'static, Result<StreamAnswer, ClientError>>;

/// What became of the models, as it happens.
pub type Events = BoxStream<'static, Result<proto::ModelEvent, ClientError>>;

/// What became of one request of a stream. One that fails does not end the stream.
#[derive(Debug)]
pub struct StreamAnswer {
    /// That of the request.
    pub request_id: String,
    /// Its answer.
    pub outcome: Result<Answer, ClientError>,
}

impl Client {
    /// Begins with the settings.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::new()
    }

    /// Begins a request to a model.
    pub fn infer(&self, model: impl Into<String>) -> Infer {
        Infer::new(self.clone(), model.into())
    }

    /// Sends many requests over one call; [`Infer::into_message`] makes them. They run side by side, and all on one server.
    /// Nothing is tried again: what has no answer when the stream ends is the caller's to send on a new one.
    ///
    /// # Errors
    /// No server can be reached, or it refuses the stream.
    pub async fn infer_stream<S>(&self, requests: S) -> Result<Answers, ClientError>
    where
        S: Stream<Item = proto::InferRequest> + Send + 'static,
    {
        let connection = self.caller.connection().await?;
        let request = self.caller.dress(requests, None);
        let answers = stub(connection.channel.clone()).infer_stream(request).await.map_err(|status| {
            let error = ClientError::from(status);
            self.caller.judge(&connection, &error);
            error.after(1)
        })?;
        // The connection lives as long as the stream.
        let answer = move |item: Result<proto::InferStreamResponse, Status>| {
            let _held = &connection;
            stream_answer(item?)
        };
        Ok(answers.into_inner().map(answer).boxed())
    }

    /// Loads a version beside the live one and swaps it in, on the server whose turn it is, however long that takes. It is not
    /// sent again where it may have begun, and it goes on if the future is dropped.
    ///
    /// # Errors
    /// As the server says; what was live before is then live still.
    pub async fn reload(
        &self,
        request: proto::ReloadModelRequest,
    ) -> Result<proto::ReloadModelResponse, ClientError> {
        let send = |mut stub: Stub, request: Request<proto::ReloadModelRequest>| async move {
            stub.reload_model(request).await
        };
        self.caller.call(Terms::within(None, false), request, send).await
    }

    /// Every model that the server has, loaded or not.
    ///
    /// # Errors
    /// None can be reached.
    pub async fn models(&self) -> Result<Vec<proto::Model>, ClientError> {
        let send = |mut stub: Stub, request: Request<proto::ListModelsRequest>| async move {
            stub.list_models(request).await
        };
        let answer = self.caller.call(self.looking(), proto::ListModelsRequest {}, send).await?;
        Ok(answer.models)
    }

    /// One model: its state, its signature, what is known of it.
    ///
    /// # Errors
    /// There is no such model, or no server can be reached.
    pub async fn model(&self, name: impl Into<String>) -> Result<proto::Model, ClientError> {
        let send = |mut stub: Stub, request: Request<proto::GetModelRequest>| async move {
            stub.get_model(request).await
        };
        self.caller.call(self.looking(), proto::GetModelRequest { model: name.into() }, send).await
    }

    /// Each model as it stands, or the one of that name, and then each change as it happens, on the server whose turn it is.
    ///
    /// # Errors
    /// There is no such model, or no server can be reached. The stream ends with an error when its connection does.
    pub async fn watch(&self, model: Option<&str>) -> Result<Events, ClientError> {
        let request = proto::WatchModelsRequest { model: model.unwrap_or_default().to_owned() };
        let connection = self.caller.connection().await?;
        let request = self.caller.dress(request, None);
        let events = stub(connection.channel.clone()).watch_models(request).await.map_err(|status| {
            let error = ClientError::from(status);
            self.caller.judge(&connection, &error);
            error.after(1)
        })?;
        let event = move |item: Result<proto::ModelEvent, Status>| {
            let _held = &connection;
            item.map_err(ClientError::from)
        };
        Ok(events.into_inner().map(event).boxed())
    }

    /// Of calls that only look, which harms nobody, however often.
    fn looking(&self) -> Terms {
        Terms::within(self.defaults.deadline, true)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("defaults", &self.defaults).finish_non_exhaustive()
    }
}

fn stream_answer(item: proto::InferStreamResponse) -> Result<StreamAnswer, ClientError> {
    let outcome = match item.result {
        Some(Outcome::Response(answer)) => Answer::from_message(answer),
        Some(Outcome::Error(status)) => Err(ClientError::from(status)),
        None => Err(ClientError::new(ErrorKind::BadAnswer, "an item of the stream is empty")),
    };
    Ok(StreamAnswer { request_id: item.request_id, outcome })
}
