//! The tonic service.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt, stream::BoxStream};
use prost::Message as _;
use tokio::{sync::broadcast, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};
use tower::{Service, ServiceExt as _};

use super::{
    convert::{infer_call, infer_response},
    models, rollout,
    stream::item,
};
use crate::{
    admission::{ControlLane, ControlPlace, Errand, Residents, Wanted},
    api::{
        arrival::{Arrival, asker},
        inference::{Gather as _, Infers, Raw, listed},
        stream::{self, Items, Messages, Order},
    },
    call::{InferCall, InferReply},
    error::{Error, Reason, Result, shown},
    layers::{AnswerBytes, Arrived, Deadline, INFER, INFER_STREAM},
    lifecycle::{Asker, Expected, History, Manager, ReloadRequest},
    model::{InvalidVersion, Lane, VersionWish},
    proto::{self, model_server_server::ModelServer},
    telemetry::{Door, Refusals},
};

type Events = Pin<Box<dyn Stream<Item = Result<proto::ModelEvent, Status>> + Send>>;
type Answers = BoxStream<'static, Result<proto::InferStreamResponse, Status>>;

/// `torchlane.v1.ModelServer` over a stack that infers and a manager that changes models.
#[derive(Debug, Clone)]
pub struct ModelServerService<S> {
    infer: S,
    refusals: Refusals,
    manager: Arc<Manager>,
    history: Arc<History>,
    control: ControlLane,
    /// Most bytes of an answer.
    longest: usize,
    shutdown: CancellationToken,
    streams: TaskTracker,
    residents: Option<Arc<dyn Residents>>,
}

impl<S> ModelServerService<S> {
    /// Messages that cannot be read are counted in `refusals`; answers have at most `longest` bytes; `shutdown` ends streams, which
    /// would otherwise never end.
    pub fn new(
        infer: S,
        refusals: Refusals,
        manager: Arc<Manager>,
        history: Arc<History>,
        control: ControlLane,
        longest: usize,
        shutdown: CancellationToken,
    ) -> Self {
        let streams = TaskTracker::new();
        Self { infer, refusals, manager, history, control, longest, shutdown, streams, residents: None }
    }

    /// Models that are not in memory are asked of `residents`, where a caller wants them loaded.
    #[must_use]
    pub fn with_residents(mut self, residents: Arc<dyn Residents>) -> Self {
        self.residents = Some(residents);
        self
    }

    /// Loads a model that is left to its next request, as such a request would.
    async fn bring(&self, model: &str, deadline: Option<Instant>) -> Result<()> {
        if let (Some(residents), Some(model)) = (&self.residents, self.manager.on_demand(model)) {
            let version = VersionWish::default();
            residents.bring(Wanted { model, version, lane: Lane::Normal, deadline }).await?;
        }
        Ok(())
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
    /// Runs a request, which counts until it is answered: the answer, and its length on the wire.
    async fn answer(
        (infer, refusals): (S, Refusals),
        arrived: Result<Arrived>,
        request: proto::InferRequest,
        arrival: &Arrival,
    ) -> Result<((proto::InferResponse, usize), AnswerBytes)> {
        // Counted where it was refused.
        let arrived = arrived?;
        let lists = <Self as Infers>::listed(&request);
        let read = arrival.long(lists, move |arrival| infer_call(request, arrival)).await;
        let (call, form) = read.inspect_err(|error| refusals.count(Door::Grpc, error))?;
        let (request_id, model, received) = (call.request_id.clone(), call.model.clone(), call.received);
        let reply = infer.oneshot(call).await?;
        let lists = if form.typed { reply.output_bytes() } else { 0 };
        let write = move |_: &_| {
            let answer = infer_response(request_id, model, reply, form, received.elapsed());
            let length = answer.encoded_len();
            Ok((answer, length))
        };
        let (answer, length) = arrival.long(lists, write).await?;
        let bytes = arrived.answered(length.max(answer.listed()))?;
        Ok(((answer, length), bytes))
    }

    /// Runs an admin call in its own lane and within its deadline.
    async fn controlled<T, W>(
        &self,
        errand: Errand,
        deadline: Option<Instant>,
        late: &'static str,
        work: impl FnOnce(Arc<Manager>, ControlPlace) -> W,
    ) -> Result<T, Status>
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let manager = self.manager.clone();
        let outcome = self.control.run(errand, deadline, late, |place| work(manager, place)).await;
        outcome.map_err(|error| proto::status(&error))
    }
}

impl<S> Infers for ModelServerService<S>
where
    S: Service<InferCall, Response = InferReply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    const PATHS: [&'static str; 2] = [INFER[0], INFER_STREAM[0]];
    const RAW: Raw = Raw::OfInputs(4);
    type Request = proto::InferRequest;
    type Answer = proto::InferResponse;
    type Item = proto::InferStreamResponse;

    fn listed(request: &proto::InferRequest) -> usize {
        request.inputs.iter().map(listed).sum()
    }

    fn one(
        &self,
        request: Request<proto::InferRequest>,
    ) -> impl Future<Output = Result<Response<proto::InferResponse>, Status>> + Send {
        self.infer(request)
    }

    fn many(&self, requests: Request<Messages<proto::InferRequest>>) -> Items<proto::InferStreamResponse> {
        let deadline = deadline(&requests);
        let (metadata, extensions, requests) = requests.into_parts();
        let (to, metadata) = ((self.infer.clone(), self.refusals.clone()), Arc::new(metadata));
        let longest = self.longest;
        let answer = move |message: proto::InferRequest| {
            let to = to.clone();
            let arrival = Arrival::new(Door::Grpc, metadata.clone(), deadline).of(&extensions);
            let arrived = Arrived::new(&extensions);
            async move {
                let request_id = message.request_id.clone();
                let answered = Self::answer(to, arrived, message, &arrival).await;
                let (answer, bytes) = stream::parted(answered);
                (Ok(item(request_id, answer, longest)), bytes)
            }
        };
        stream::serve(requests, answer, Order::AsTheyCome, self.shutdown.clone(), &self.streams)
    }
}

const GOES_ON: &str = "the deadline passed; the change goes on: see GetModel or WatchModels";
const VALIDATES: &str = "the deadline passed before the version was validated; nothing is changed";

/// When a change must be made, and who asks for it.
fn asked<T>(request: &Request<T>) -> Result<(Option<Instant>, Asker), Status> {
    let asker = asker(request.metadata(), request.remote_addr()).map_err(|error| proto::status(&error))?;
    Ok((deadline(request), asker))
}

fn reload_request(request: proto::ReloadModelRequest) -> Result<ReloadRequest> {
    let version = match request.version.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|error: InvalidVersion| {
            let message = format!("version '{}': {error}", shown(text, 32));
            Error::new(Reason::BadRequest, message).with_field("version")
        })?),
    };
    let digest = |field: &'static str, text: String| {
        if text.is_empty() {
            return Ok(None);
        }
        if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(Some(text));
        }
        let message = format!("{field} is not 64 hexadecimal digits");
        Err(Error::new(Reason::BadRequest, message).with_field(field))
    };
    Ok(ReloadRequest {
        model: request.model,
        version,
        expected: Expected {
            sha256: digest("expected_sha256", request.expected_sha256)?,
            weights_sha256: digest("expected_weights_sha256", request.expected_weights_sha256)?,
        },
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
        let (metadata, extensions, message) = request.into_parts();
        let (to, arrived) = ((self.infer.clone(), self.refusals.clone()), Arrived::new(&extensions));
        let arrival = Arrival::new(Door::Grpc, Arc::new(metadata), deadline).of(&extensions);
        let answered = Self::answer(to, arrived, message, &arrival).await;
        let ((answer, _), bytes) = answered.map_err(|error| proto::status(&error))?;
        Ok(bytes.on(answer))
    }

    type InferStreamStream = Answers;

    async fn infer_stream(
        &self,
        request: Request<Streaming<proto::InferRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let answers = self.many(request.map(StreamExt::boxed)).map(|(answer, _held)| answer);
        Ok(Response::new(answers.boxed()))
    }

    async fn reload_model(
        &self,
        request: Request<proto::ReloadModelRequest>,
    ) -> Result<Response<proto::ReloadModelResponse>, Status> {
        let (deadline, asker) = asked(&request)?;
        let request = reload_request(request.into_inner()).map_err(|error| proto::status(&error))?;
        let late = if request.validate_only { VALIDATES } else { GOES_ON };
        let report = self
            .controlled(Errand::Change, deadline, late, async move |manager: Arc<Manager>, place| {
                manager.reload(request, asker, Some(place)).await
            })
            .await?;
        Ok(Response::new(models::reload_response(report)))
    }

    async fn list_models(
        &self,
        _: Request<proto::ListModelsRequest>,
    ) -> Result<Response<proto::ListModelsResponse>, Status> {
        self.manager.refresh().await;
        let models = self.manager.list().into_iter().map(models::model).collect();
        Ok(Response::new(proto::ListModelsResponse { models, notes: self.manager.complaints() }))
    }

    async fn load_model(
        &self,
        request: Request<proto::LoadModelRequest>,
    ) -> Result<Response<proto::Model>, Status> {
        let (deadline, model) = (deadline(&request), request.into_inner().model);
        self.manager.refresh().await;
        self.bring(&model, deadline).await.map_err(|error| proto::status(&error))?;
        let (model, profile) = self.manager.get(&model).map_err(|error| proto::status(&error))?;
        Ok(Response::new(proto::Model { profile: models::profile(&profile), ..models::model(model) }))
    }

    async fn get_model(
        &self,
        request: Request<proto::GetModelRequest>,
    ) -> Result<Response<proto::Model>, Status> {
        self.manager.refresh().await;
        let (model, profile) =
            self.manager.get(&request.into_inner().model).map_err(|error| proto::status(&error))?;
        Ok(Response::new(proto::Model { profile: models::profile(&profile), ..models::model(model) }))
    }

    async fn unload_model(
        &self,
        request: Request<proto::UnloadModelRequest>,
    ) -> Result<Response<proto::UnloadModelResponse>, Status> {
        let (deadline, asker) = asked(&request)?;
        let request = request.into_inner();
        let model = request.model.clone();
        let unload =
            async move |manager: Arc<Manager>, place| manager.unload(&model, asker, Some(place)).await;
        let (version, generation) = self.controlled(Errand::Undo, deadline, GOES_ON, unload).await?;
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
        let (deadline, asker) = asked(&request)?;
        let request = request.into_inner();
        let rollback = async move |manager: Arc<Manager>, place| {
            manager.rollback(&request.model, asker, Some(place)).await
        };
        let report = self.controlled(Errand::Undo, deadline, GOES_ON, rollback).await?;
        Ok(Response::new(models::reload_response(report)))
    }

    async fn list_changes(
        &self,
        request: Request<proto::ListChangesRequest>,
    ) -> Result<Response<proto::ListChangesResponse>, Status> {
        let proto::ListChangesRequest { model, limit } = request.into_inner();
        let limit = if limit == 0 { 100 } else { usize::try_from(limit).unwrap_or(usize::MAX) };
        let last = self.history.last(Some(model.as_str()).filter(|model| !model.is_empty()), limit);
        Ok(Response::new(proto::ListChangesResponse {
            changes: last.into_iter().map(models::change).collect(),
        }))
    }

    async fn set_rollout(
        &self,
        request: Request<proto::SetRolloutRequest>,
    ) -> Result<Response<proto::Rollout>, Status> {
        let (deadline, asker) = asked(&request)?;
        let request = request.into_inner();
        let model = request.model.clone();
        let change = rollout::change(request).map_err(|error| proto::status(&error))?;
        let errand = if change.undoes() { Errand::Undo } else { Errand::Change };
        let set = async move |manager: Arc<Manager>, place| {
            manager.set_rollout(&model, change, asker, Some(place)).await
        };
        let status = self.controlled(errand, deadline, GOES_ON, set).await?;
        Ok(Response::new(rollout::rollout(String::new(), Some(status))))
    }

    async fn get_rollout(
        &self,
        request: Request<proto::GetRolloutRequest>,
    ) -> Result<Response<proto::Rollout>, Status> {
        let model = request.into_inner().model;
        let now = self.manager.rollout(&model).map_err(|error| proto::status(&error))?;
        Ok(Response::new(rollout::rollout(model, now)))
    }

    type WatchModelsStream = Events;

    async fn watch_models(
        &self,
        request: Request<proto::WatchModelsRequest>,
    ) -> Result<Response<Events>, Status> {
        let only = request.into_inner().model;
        if !only.is_empty() {
            self.manager.refresh().await;
            self.manager.get(&only).map_err(|error| proto::status(&error))?;
        }
        let wanted = move |event: &proto::ModelEvent| {
            only.is_empty() || event.model.as_ref().is_some_and(|model| model.name == only)
        };
        let (now, changes) = self.manager.watch();
        let manager = self.manager.clone();
        let later = futures::stream::unfold(changes, move |mut changes| {
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
                Some((futures::stream::iter(events), changes))
            }
        });
        let events = futures::stream::iter(now.into_iter().map(models::snapshot))
            .chain(later.flatten())
            .filter(move |event| std::future::ready(wanted(event)))
            .map(Ok)
            .take_until(self.shutdown.clone().cancelled_owned());
        Ok(Response::new(Box::pin(events)))
    }
}
