//! The tonic service.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use tokio::{sync::broadcast, time::Instant};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tower::{Service, ServiceExt as _};

use super::{
    convert::{infer_call, infer_response},
    models,
};
use crate::{
    admission::ControlLane,
    api::status,
    call::{InferCall, InferReply},
    error::{Error, Reason, Result},
    layers::Deadline,
    lifecycle::{Manager, ReloadRequest},
    model::Version,
    proto::{self, model_server_server::ModelServer},
};

/// Requests of one `InferStream` that run at once; beyond, reading waits.
const STREAM_CONCURRENCY: usize = 64;

type Events = Pin<Box<dyn Stream<Item = Result<proto::ModelEvent, Status>> + Send>>;
type Answers = Pin<Box<dyn Stream<Item = Result<proto::InferStreamResponse, Status>> + Send>>;

/// `torchlane.v1.ModelServer` over a stack that infers and a manager that changes models.
#[derive(Debug, Clone)]
pub struct ModelServerService<S> {
    infer: S,
    manager: Arc<Manager>,
    control: ControlLane,
    shutdown: CancellationToken,
}

impl<S> ModelServerService<S> {
    /// `shutdown` ends watches, which would otherwise never end.
    pub fn new(infer: S, manager: Arc<Manager>, control: ControlLane, shutdown: CancellationToken) -> Self {
        Self { infer, manager, control, shutdown }
    }
}

fn deadline<T>(request: &Request<T>) -> Option<Instant> {
    request.extensions().get::<Deadline>().and_then(|deadline| deadline.0)
}

impl<S> ModelServerService<S>
where
    S: Service<InferCall, Response = InferReply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    async fn answer(
        infer: S,
        request: proto::InferRequest,
        metadata: &tonic::metadata::MetadataMap,
        deadline: Option<Instant>,
    ) -> Result<proto::InferResponse> {
        let (call, form) = infer_call(request, metadata, deadline)?;
        let (request_id, model, received) = (call.request_id.clone(), call.model.clone(), call.received);
        let reply = infer.oneshot(call).await?;
        Ok(infer_response(request_id, model, reply, form, received.elapsed()))
    }

    /// Runs an admin call in its own lane and within its deadline. The work itself goes on past it.
    async fn controlled<T>(
        &self,
        deadline: Option<Instant>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T, Status> {
        let within = async {
            let _place = self.control.enter().await?;
            work.await
        };
        let outcome = match deadline {
            None => within.await,
            Some(deadline) => tokio::time::timeout_at(deadline, within).await.unwrap_or_else(|_| {
                let message = "the deadline passed; the change goes on: see GetModel or WatchModels";
                Err(Error::new(Reason::DeadlineExceeded, message))
            }),
        };
        outcome.map_err(|error| status(&error))
    }
}

fn reload_request(request: proto::ReloadModelRequest) -> Result<ReloadRequest> {
    let version = match request.version.as_str() {
        "" => None,
        text => Some(Version(text.parse().map_err(|_| {
            let shown: String = text.chars().take(32).collect();
            Error::new(Reason::UnknownVersion, format!("version '{shown}' is not a number"))
                .with_field("version")
        })?)),
    };
    let expected = Some(request.expected_sha256).filter(|digest| !digest.is_empty());
    if expected.as_ref().is_some_and(|d| d.len() != 64 || !d.bytes().all(|b| b.is_ascii_hexdigit())) {
        let message = "expected_sha256 is not 64 hexadecimal digits";
        return Err(Error::new(Reason::BadRequest, message).with_field("expected_sha256"));
    }
    Ok(ReloadRequest {
        model: request.model,
        version,
        expected_sha256: expected,
        validate_only: request.validate_only,
    })
}

#[tonic::async_trait]
impl<S> ModelServer for ModelServerService<S>
where
    S: Service<InferCall, Response = InferReply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    async fn infer(
        &self,
        request: Request<proto::InferRequest>,
    ) -> Result<Response<proto::InferResponse>, Status> {
        let deadline = deadline(&request);
        let (metadata, _, message) = request.into_parts();
        Self::answer(self.infer.clone(), message, &metadata, deadline)
            .await
            .map(Response::new)
            .map_err(|error| status(&error))
    }

    type InferStreamStream = Answers;

    async fn infer_stream(
        &self,
        request: Request<Streaming<proto::InferRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let deadline = deadline(&request);
        let (metadata, _, requests) = request.into_parts();
        let (infer, metadata) = (self.infer.clone(), Arc::new(metadata));
        let answers = requests
            .map(move |message| {
                let (infer, metadata) = (infer.clone(), metadata.clone());
                async move {
                    let message = message?;
                    let request_id = message.request_id.clone();
                    let result = match Self::answer(infer, message, &metadata, deadline).await {
                        Ok(response) => proto::infer_stream_response::Result::Response(response),
                        Err(error) => {
                            let status = status(&error);
                            proto::infer_stream_response::Result::Error(proto::Status {
                                code: status.code().into(),
                                message: status.message().to_owned(),
                                details: details(&status),
                            })
                        }
                    };
                    Ok(proto::InferStreamResponse { request_id, result: Some(result) })
                }
            })
            .buffer_unordered(STREAM_CONCURRENCY);
        Ok(Response::new(Box::pin(answers)))
    }

    async fn reload_model(
        &self,
        request: Request<proto::ReloadModelRequest>,
    ) -> Result<Response<proto::ReloadModelResponse>, Status> {
        let deadline = deadline(&request);
        let request = reload_request(request.into_inner()).map_err(|error| status(&error))?;
        let report = self.controlled(deadline, self.manager.reload(request)).await?;
        Ok(Response::new(models::reload_response(report)))
    }

    async fn list_models(
        &self,
        _: Request<proto::ListModelsRequest>,
    ) -> Result<Response<proto::ListModelsResponse>, Status> {
        let models = self.manager.list().into_iter().map(models::model).collect();
        Ok(Response::new(proto::ListModelsResponse { models }))
    }

    async fn get_model(
        &self,
        request: Request<proto::GetModelRequest>,
    ) -> Result<Response<proto::Model>, Status> {
        let model = self.manager.get(&request.into_inner().model).map_err(|error| status(&error))?;
        Ok(Response::new(models::model(model)))
    }

    async fn unload_model(
        &self,
        request: Request<proto::UnloadModelRequest>,
    ) -> Result<Response<proto::UnloadModelResponse>, Status> {
        let (deadline, request) = (deadline(&request), request.into_inner());
        let (version, generation) = self.controlled(deadline, self.manager.unload(&request.model)).await?;
        Ok(Response::new(proto::UnloadModelResponse {
            model: request.model,
            unloaded_version: version.to_string(),
            generation: generation.0,
        }))
    }

    async fn rollback_model(
        &self,
        request: Request<proto::RollbackModelRequest>,
    ) -> Result<Response<proto::ReloadModelResponse>, Status> {
        let (deadline, request) = (deadline(&request), request.into_inner());
        let report = self.controlled(deadline, self.manager.rollback(&request.model)).await?;
        Ok(Response::new(models::reload_response(report)))
    }

    type WatchModelsStream = Events;

    async fn watch_models(
        &self,
        request: Request<proto::WatchModelsRequest>,
    ) -> Result<Response<Events>, Status> {
        let only = request.into_inner().model;
        if !only.is_empty() {
            self.manager.get(&only).map_err(|error| status(&error))?;
        }
        let wanted = move |event: &proto::ModelEvent| {
            only.is_empty() || event.model.as_ref().is_some_and(|model| model.name == only)
        };
        let (now, changes) = self.manager.watch();
        let manager = self.manager.clone();
        let later = stream::unfold(changes, move |mut changes| {
            let manager = manager.clone();
            async move {
                let events = match changes.recv().await {
                    Ok(event) => vec![models::event(event)],
                    // A watcher that fell behind gets how things stand instead of what it missed.
                    Err(broadcast::error::RecvError::Lagged(_)) => {
                        manager.list().into_iter().map(models::snapshot).collect()
                    }
                    Err(broadcast::error::RecvError::Closed) => return None,
                };
                Some((stream::iter(events), changes))
            }
        });
        let events = stream::iter(now.into_iter().map(models::snapshot))
            .chain(later.flatten())
            .filter(move |event| std::future::ready(wanted(event)))
            .map(Ok)
            .take_until(self.shutdown.clone().cancelled_owned());
        Ok(Response::new(Box::pin(events)))
    }
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
