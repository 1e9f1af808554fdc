//! The tonic service.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, stream};
use tokio::{
    sync::{broadcast, oneshot},
    time::Instant,
};
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
    error::{Error, Reason, Result, shown},
    layers::Deadline,
    lifecycle::{Manager, ReloadRequest},
    model::InvalidVersion,
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

    /// Runs an admin call in its own lane and within its deadline.
    async fn controlled<T, W>(
        &self,
        deadline: Option<Instant>,
        work: impl FnOnce(Arc<Manager>) -> W,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let work = work(self.manager.clone());
        self.control.run(deadline, work).await.map_err(|error| status(&error))
    }
}

fn reload_request(request: proto::ReloadModelRequest) -> Result<ReloadRequest> {
    let version = match request.version.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|error: InvalidVersion| {
            let message = format!("version '{}': {error}", shown(text, 32));
            Error::new(Reason::BadRequest, message).with_field("version")
        })?),
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
        let (fatal, end) = oneshot::channel();
        let answers = messages(requests, self.shutdown.clone(), fatal)
            .map(move |message| {
                let (infer, metadata) = (infer.clone(), metadata.clone());
                async move {
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
        // What ends the stream comes after the answers to what was read before it.
        let end = stream::once(end).filter_map(async |fatal| fatal.ok().map(Err));
        Ok(Response::new(Box::pin(answers.chain(end))))
    }

    async fn reload_model(
        &self,
        request: Request<proto::ReloadModelRequest>,
    ) -> Result<Response<proto::ReloadModelResponse>, Status> {
        let deadline = deadline(&request);
        let request = reload_request(request.into_inner()).map_err(|error| status(&error))?;
        let report = self.controlled(deadline, async move |manager| manager.reload(request).await).await?;
        Ok(Response::new(models::reload_response(report)))
    }

    async fn list_models(
        &self,
        _: Request<proto::ListModelsRequest>,
    ) -> Result<Response<proto::ListModelsResponse>, Status> {
        self.manager.refresh().await;
        let models = self.manager.list().into_iter().map(models::model).collect();
        Ok(Response::new(proto::ListModelsResponse { models }))
    }

    async fn get_model(
        &self,
        request: Request<proto::GetModelRequest>,
    ) -> Result<Response<proto::Model>, Status> {
        self.manager.refresh().await;
        let (model, profile) =
            self.manager.get(&request.into_inner().model).map_err(|error| status(&error))?;
        Ok(Response::new(proto::Model { profile: models::profile(&profile), ..models::model(model) }))
    }

    async fn unload_model(
        &self,
        request: Request<proto::UnloadModelRequest>,
    ) -> Result<Response<proto::UnloadModelResponse>, Status> {
        let (deadline, request) = (deadline(&request), request.into_inner());
        let model = request.model.clone();
        let unload = async move |manager: Arc<Manager>| manager.unload(&model).await;
        let (version, generation) = self.controlled(deadline, unload).await?;
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
        let rollback = async move |manager: Arc<Manager>| manager.rollback(&request.model).await;
        let report = self.controlled(deadline, rollback).await?;
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

/// The messages of a stream until it ends, cannot be read any further, or the server stops; in the latter cases `fatal` is
/// told why.
fn messages(
    requests: Streaming<proto::InferRequest>,
    shutdown: CancellationToken,
    fatal: oneshot::Sender<Status>,
) -> impl Stream<Item = proto::InferRequest> {
    stream::unfold((requests, shutdown, fatal), async |(mut requests, shutdown, fatal)| {
        let next = tokio::select! {
            biased;
            () = shutdown.cancelled() => {
                let message = "the server is stopping: send what has no answer on a new stream";
                Some(Err(status(&Error::new(Reason::ShuttingDown, message).with_retry_after(Duration::ZERO))))
            }
            next = requests.next() => next,
        };
        match next? {
            Ok(message) => Some((message, (requests, shutdown, fatal))),
            Err(status) => {
                let _caller_left = fatal.send(status);
                None
            }
        }
    })
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
