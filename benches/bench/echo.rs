//! What gRPC alone costs: tonic as it comes, on tokio's default runtime. The request is decoded with the same message
//! types, and the answer is as long as the model's, but nothing is computed.

use std::{collections::HashMap, convert::Infallible, future::Ready, sync::Arc, task};

use tonic::{
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService, UnaryService},
};
use torchlane::proto::{InferRequest, InferResponse};

use crate::{Result, models::MODELS};

type Answers = Arc<HashMap<&'static str, InferResponse>>;

#[derive(Clone)]
struct Echo(Answers);

struct Answer(Answers);

impl UnaryService<InferRequest> for Answer {
    type Response = InferResponse;
    type Future = Ready<std::result::Result<tonic::Response<InferResponse>, tonic::Status>>;

    fn call(&mut self, request: tonic::Request<InferRequest>) -> Self::Future {
        std::future::ready(match self.0.get(request.get_ref().model.as_str()) {
            Some(answer) => Ok(tonic::Response::new(answer.clone())),
            None => Err(tonic::Status::not_found("no such model")),
        })
    }
}

impl NamedService for Echo {
    const NAME: &'static str = "torchlane.v1.ModelServer";
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut task::Context<'_>) -> task::Poll<std::result::Result<(), Infallible>> {
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answers = self.0.clone();
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<InferResponse, InferRequest>::default();
            let mut grpc = Grpc::new(codec).max_decoding_message_size(64 << 20);
            Ok(grpc.unary(Answer(answers), request).await)
        })
    }
}

/// Serves on a port of the system's choosing, which it prints.
#[tokio::main]
pub async fn serve() -> Result<()> {
    let answers = MODELS.iter().map(|model| (model.name, model.canned())).collect();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    // As the server under test sets it, and as every gRPC server does.
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    tonic::transport::Server::builder()
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(16 << 20)
        .add_service(Echo(Arc::new(answers)))
        .serve_with_incoming(incoming)
        .await?;
    Ok(())
}
