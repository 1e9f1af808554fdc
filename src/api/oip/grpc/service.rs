//! The tonic service.

use std::{net::SocketAddr, sync::Arc};

use futures::{StreamExt, stream::BoxStream};
use prost::Message as _;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, Streaming};
use tower::Service;

use super::{
    decode, encode,
    stream::{Errors, item},
};
use crate::{
    api::{
        arrival::Arrival,
        inference::{Infers, Raw},
        oip::{OpenInference, incoming::Incoming, no_cuda, no_cuda_region, settings::LogValue},
        stream::{self, Items, Messages, Order},
    },
    call::{InferCall, InferReply},
    error::{Error, Result},
    layers::{AnswerBytes, Arrived, Deadline, INFER, INFER_STREAM, message_bytes},
    proto::{
        self,
        inference::{
            self as oip,
            grpc_inference_service_server::GrpcInferenceService,
            log_settings_response::{
                SettingValue as LogSetting, setting_value::ParameterChoice as LogChoice,
            },
            system_shared_memory_status_response::RegionStatus,
            trace_setting_response::SettingValue as TraceSetting,
        },
    },
    telemetry::Door,
};

/// `inference.GRPCInferenceService`.
#[derive(Debug, Clone)]
pub struct GrpcInference<S> {
    door: OpenInference<S>,
    /// Most bytes of an answer.
    longest: usize,
    shutdown: CancellationToken,
    streams: TaskTracker,
}

impl<S> GrpcInference<S> {
    /// Answers have at most `longest` bytes; `shutdown` ends streams, which would otherwise never end.
    pub fn new(door: OpenInference<S>, longest: usize, shutdown: CancellationToken) -> Self {
        Self { door, longest, shutdown, streams: TaskTracker::new() }
    }
}

/// What came with a request, its message, and where it came from.
fn call<T>(request: Request<T>) -> (Arrival, T, Option<SocketAddr>) {
    let from = request.remote_addr();
    let deadline = deadline(request.extensions());
    let (metadata, extensions, message) = request.into_parts();
    (Arrival::new(Door::Grpc, Arc::new(metadata), deadline).of(&extensions), message, from)
}

fn deadline(extensions: &http::Extensions) -> Option<Instant> {
    extensions.get::<Deadline>().and_then(|deadline| deadline.0)
}

/// Runs a request, which counts until it is answered.
async fn infer<S>(
    door: &OpenInference<S>,
    arrived: Result<Arrived>,
    message: oip::ModelInferRequest,
    arrival: &Arrival,
) -> Result<(oip::ModelInferResponse, AnswerBytes)>
where
    S: Service<InferCall, Response = InferReply, Error = Error> + Clone,
{
    // Counted where it was refused.
    let arrived = arrived?;
    let read = |message| decode::incoming(message).map(Incoming::settled);
    let incoming = arrival.long(lists_of(&message), move |_| read(message)).await;
    let incoming = incoming.inspect_err(|error| door.refused(arrival.door, error))?;
    let response = encode::response(door.infer(incoming, arrival, arrived.bytes()).await?);
    let bytes = arrived.answered(response.encoded_len())?;
    Ok((response, bytes))
}

fn lists_of(request: &oip::ModelInferRequest) -> usize {
    let contents = request.inputs.iter().filter_map(|input| input.contents.as_ref());
    contents.map(decode::listed).sum()
}

fn answer<T>(result: Result<T>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| proto::status(&error))
}

impl<S> Infers for GrpcInference<S>
where
    S: Service<InferCall, Response = InferReply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    const PATHS: [&'static str; 2] = [INFER[1], INFER_STREAM[1]];
    const RAW: Raw = Raw::OfRequest(7);
    type Request = oip::ModelInferRequest;
    type Answer = oip::ModelInferResponse;
    type Item = oip::ModelStreamInferResponse;

    fn listed(request: &oip::ModelInferRequest) -> usize {
        lists_of(request)
    }

    fn one(
        &self,
        request: Request<oip::ModelInferRequest>,
    ) -> impl Future<Output = Result<Response<oip::ModelInferResponse>, Status>> + Send {
        self.model_infer(request)
    }

    fn many(
        &self,
        requests: Request<Messages<oip::ModelInferRequest>>,
    ) -> Items<oip::ModelStreamInferResponse> {
        let deadline = deadline(requests.extensions());
        let (metadata, extensions, requests) = requests.into_parts();
        let (errors, metadata) = (Errors::wanted(&metadata), Arc::new(metadata));
        let (door, longest) = (self.door.clone(), self.longest);
        let answer = move |message: oip::ModelInferRequest| {
            let arrival = Arrival::new(Door::Grpc, metadata.clone(), deadline).of(&extensions);
            let door = door.clone();
            let arrived = Arrived::new(&extensions);
            async move {
                let of = (message.id.clone(), message.model_name.clone());
                let (response, bytes) = stream::parted(infer(&door, arrived, message, &arrival).await);
                (item(of, response, longest, errors), bytes)
            }
        };
        stream::serve(requests, answer, Order::OfRequests, self.shutdown.clone(), &self.streams)
    }
}

#[tonic::async_trait]
impl<S> GrpcInferenceService for GrpcInference<S>
where
    S: Service<InferCall, Response = InferReply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    async fn server_live(
        &self,
        _: Request<oip::ServerLiveRequest>,
    ) -> Result<Response<oip::ServerLiveResponse>, Status> {
        Ok(Response::new(oip::ServerLiveResponse { live: !self.door.health().is_broken() }))
    }

    async fn server_ready(
        &self,
        _: Request<oip::ServerReadyRequest>,
    ) -> Result<Response<oip::ServerReadyResponse>, Status> {
        Ok(Response::new(oip::ServerReadyResponse { ready: self.door.health().is_ready() }))
    }

    async fn model_ready(
        &self,
        request: Request<oip::ModelReadyRequest>,
    ) -> Result<Response<oip::ModelReadyResponse>, Status> {
        let oip::ModelReadyRequest { name, version } = request.into_inner();
        // What is not there is not ready: clients ask again and again until it is, and take an error for the end.
        let ready = self.door.model_ready(&name, &version).unwrap_or(false);
        Ok(Response::new(oip::ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<oip::ServerMetadataRequest>,
    ) -> Result<Response<oip::ServerMetadataResponse>, Status> {
        Ok(Response::new(self.door.server_metadata()))
    }

    async fn model_metadata(
        &self,
        request: Request<oip::ModelMetadataRequest>,
    ) -> Result<Response<oip::ModelMetadataResponse>, Status> {
        let (arrival, oip::ModelMetadataRequest { name, version }, _) = call(request);
        answer(self.door.model_metadata(&name, &version, arrival.deadline).await)
    }

    async fn model_infer(
        &self,
        request: Request<oip::ModelInferRequest>,
    ) -> Result<Response<oip::ModelInferResponse>, Status> {
        let arrived = Arrived::new(request.extensions());
        let (arrival, message, _) = call(request);
        let (response, bytes) =
            infer(&self.door, arrived, message, &arrival).await.map_err(|error| proto::status(&error))?;
        Ok(bytes.on(response))
    }

    type ModelStreamInferStream = BoxStream<'static, Result<oip::ModelStreamInferResponse, Status>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<oip::ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let answers = self.many(request.map(StreamExt::boxed)).map(|(answer, _held)| answer);
        Ok(Response::new(answers.boxed()))
    }

    async fn model_config(
        &self,
        request: Request<oip::ModelConfigRequest>,
    ) -> Result<Response<oip::ModelConfigResponse>, Status> {
        let (arrival, oip::ModelConfigRequest { name, version }, _) = call(request);
        let config = self.door.model_config(&name, &version, arrival.deadline).await;
        answer(config.map(|config| oip::ModelConfigResponse { config: Some(config) }))
    }

    async fn model_statistics(
        &self,
        request: Request<oip::ModelStatisticsRequest>,
    ) -> Result<Response<oip::ModelStatisticsResponse>, Status> {
        let oip::ModelStatisticsRequest { name, version } = request.into_inner();
        answer(self.door.statistics(&name, &version))
    }

    async fn repository_index(
        &self,
        request: Request<oip::RepositoryIndexRequest>,
    ) -> Result<Response<oip::RepositoryIndexResponse>, Status> {
        let oip::RepositoryIndexRequest { repository_name, ready } = request.into_inner();
        answer(self.door.index(&repository_name, ready).await)
    }

    async fn repository_model_load(
        &self,
        request: Request<oip::RepositoryModelLoadRequest>,
    ) -> Result<Response<oip::RepositoryModelLoadResponse>, Status> {
        let counted = message_bytes(request.extensions());
        let (arrival, message, from) = call(request);
        let loaded = async {
            let oip::RepositoryModelLoadRequest { repository_name, model_name, parameters } = message;
            let parameters = parameters.into_iter().map(|(key, value)| (key, decode::load(value))).collect();
            self.door.load(&repository_name, model_name, parameters, counted, (&arrival, from)).await
        };
        answer(loaded.await.map(|()| oip::RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<oip::RepositoryModelUnloadRequest>,
    ) -> Result<Response<oip::RepositoryModelUnloadResponse>, Status> {
        let (arrival, message, from) = call(request);
        let oip::RepositoryModelUnloadRequest { repository_name, model_name, .. } = message;
        let unloaded = self.door.unload(&repository_name, model_name, (&arrival, from));
        answer(unloaded.await.map(|()| oip::RepositoryModelUnloadResponse {}))
    }

    async fn system_shared_memory_status(
        &self,
        request: Request<oip::SystemSharedMemoryStatusRequest>,
    ) -> Result<Response<oip::SystemSharedMemoryStatusResponse>, Status> {
        let named = self.door.regions().status(&request.into_inner().name);
        answer(named.map(|named| {
            let regions = named.into_iter().map(|(name, region)| {
                let (key, offset, byte_size) = (region.key, region.offset, region.size);
                (name.clone(), RegionStatus { name, key, offset, byte_size })
            });
            oip::SystemSharedMemoryStatusResponse { regions: regions.collect() }
        }))
    }

    async fn system_shared_memory_register(
        &self,
        request: Request<oip::SystemSharedMemoryRegisterRequest>,
    ) -> Result<Response<oip::SystemSharedMemoryRegisterResponse>, Status> {
        let (_, message, from) = call(request);
        let oip::SystemSharedMemoryRegisterRequest { name, key, offset, byte_size } = message;
        let registered = self.door.regions().register(&name, &key, offset, byte_size, from);
        answer(registered.map(|()| oip::SystemSharedMemoryRegisterResponse {}))
    }

    async fn system_shared_memory_unregister(
        &self,
        request: Request<oip::SystemSharedMemoryUnregisterRequest>,
    ) -> Result<Response<oip::SystemSharedMemoryUnregisterResponse>, Status> {
        self.door.regions().unregister(&request.into_inner().name);
        Ok(Response::new(oip::SystemSharedMemoryUnregisterResponse {}))
    }

    // There are no regions in the memory of GPUs: clients that only tidy up find nothing to tidy.
    async fn cuda_shared_memory_status(
        &self,
        request: Request<oip::CudaSharedMemoryStatusRequest>,
    ) -> Result<Response<oip::CudaSharedMemoryStatusResponse>, Status> {
        answer(no_cuda_region(&request.into_inner().name).map(|()| Default::default()))
    }

    async fn cuda_shared_memory_register(
        &self,
        _: Request<oip::CudaSharedMemoryRegisterRequest>,
    ) -> Result<Response<oip::CudaSharedMemoryRegisterResponse>, Status> {
        answer(Err(no_cuda()))
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<oip::CudaSharedMemoryUnregisterRequest>,
    ) -> Result<Response<oip::CudaSharedMemoryUnregisterResponse>, Status> {
        Ok(Response::new(oip::CudaSharedMemoryUnregisterResponse {}))
    }

    async fn trace_setting(
        &self,
        request: Request<oip::TraceSettingRequest>,
    ) -> Result<Response<oip::TraceSettingResponse>, Status> {
        let (arrival, oip::TraceSettingRequest { settings, model_name }, from) = call(request);
        let wanted: Vec<_> = settings.into_iter().map(|(key, wanted)| (key, wanted.value)).collect();
        let settings = self.door.trace_settings(&model_name, &wanted, (&arrival, from));
        answer(settings.map(|settings| {
            let settings = settings
                .into_iter()
                .map(|(key, value)| (key.to_owned(), TraceSetting { value: vec![value] }));
            oip::TraceSettingResponse { settings: settings.collect() }
        }))
    }

    async fn log_settings(
        &self,
        request: Request<oip::LogSettingsRequest>,
    ) -> Result<Response<oip::LogSettingsResponse>, Status> {
        let (arrival, oip::LogSettingsRequest { settings }, from) = call(request);
        let wanted: Vec<_> = settings.into_iter().map(|(key, wanted)| (key, decode::log(wanted))).collect();
        let settings = self.door.log_settings(&wanted, (&arrival, from));
        answer(settings.map(|settings| {
            let settings = settings.into_iter().map(|(key, value)| {
                let choice = match value {
                    LogValue::Bool(is) => LogChoice::BoolParam(is),
                    LogValue::Number(number) => {
                        LogChoice::Uint32Param(u32::try_from(number).unwrap_or(u32::MAX))
                    }
                    LogValue::Text(text) => LogChoice::StringParam(text),
                    LogValue::None => return (key.to_owned(), LogSetting::default()),
                };
                (key.to_owned(), LogSetting { parameter_choice: Some(choice) })
            });
            oip::LogSettingsResponse { settings: settings.collect() }
        }))
    }
}
