//! A network in memory, and servers on it that do as they are told. Nothing here is a socket, so the runtime knows when
//! everything waits, and a paused clock moves then and only then.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::Arc,
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, DuplexStream, copy_bidirectional, duplex},
    sync::mpsc,
    time::Instant,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, body::Body};
use tonic_prost::ProstCodec;

use torchlane_proto as proto;

use crate::network::{Io, Network};

/// Bytes under way on a connection.
const PIPE: usize = 64 << 10;

#[derive(Default)]
pub(super) struct Memory {
    hosts: Mutex<HashMap<String, Host>>,
    names: Mutex<HashMap<String, Vec<SocketAddr>>>,
    dialled: Mutex<HashMap<String, usize>>,
    tasks: TaskTracker,
}

#[derive(Clone)]
enum Host {
    Up(Arc<Server>, mpsc::Sender<io::Result<DuplexStream>>),
    /// Connections to it never come about.
    Silent,
    /// Connections to it end once they have begun.
    Rude,
}

/// A server that answers with what it is sent, unless its script says otherwise.
pub(super) struct Server {
    address: String,
    script: Mutex<VecDeque<Step>>,
    asked: Mutex<Vec<Asked>>,
    /// Ends the connections that are open now.
    cut: Mutex<CancellationToken>,
}

/// What becomes of a request in place of an answer.
#[derive(Clone)]
pub(super) enum Step {
    Refuse(Status),
    Hang,
    Cut,
}

/// A request as it came.
#[derive(Clone)]
pub(super) struct Asked {
    pub(super) at: Instant,
    pub(super) timeout: Option<String>,
    pub(super) tenant: Option<String>,
    pub(super) message: proto::InferRequest,
}

impl Memory {
    pub(super) fn start(&self, address: &str, script: impl IntoIterator<Item = Step>) -> Arc<Server> {
        let (connections, incoming) = mpsc::channel(64);
        let server = Arc::new(Server {
            address: address.to_owned(),
            script: Mutex::new(script.into_iter().collect()),
            asked: Mutex::default(),
            cut: Mutex::default(),
        });
        let host = Host::Up(server.clone(), connections);
        self.hosts.lock().insert(address.to_owned(), host);
        let answering = server.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let server = answering.clone();
            async move {
                let answer = tower::service_fn(move |request: Request<proto::InferRequest>| {
                    let server = server.clone();
                    async move { server.answer(request).await }
                });
                let codec = ProstCodec::<proto::InferResponse, proto::InferRequest>::default();
                Ok::<_, Infallible>(tonic::server::Grpc::new(codec).unary(answer, request).await)
            }
        });
        let incoming = ReceiverStream::new(incoming);
        self.tasks.spawn(tonic::transport::Server::builder().serve_with_incoming(service, incoming));
        server
    }

    /// The server at `address` is gone, and so are its connections.
    pub(super) fn stop(&self, address: &str) {
        let gone = self.hosts.lock().remove(address);
        if let Some(Host::Up(server, _)) = gone {
            server.cut.lock().cancel();
        }
    }

    pub(super) fn silent(&self, address: &str) {
        self.hosts.lock().insert(address.to_owned(), Host::Silent);
    }

    pub(super) fn rude(&self, address: &str) {
        self.hosts.lock().insert(address.to_owned(), Host::Rude);
    }

    /// What `NAME:PORT` stands for from now on; nothing: there is no such name.
    pub(super) fn name(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        self.names.lock().insert(name.to_owned(), addresses);
    }

    /// How often somebody tried to connect there.
    pub(super) fn dialled(&self, address: &str) -> usize {
        self.dialled.lock().get(address).copied().unwrap_or_default()
    }

    /// Two ends of a connection that ends when `cut` is cancelled.
    fn connection(&self, cut: CancellationToken) -> (DuplexStream, DuplexStream) {
        let ((near, mut from), (mut to, far)) = (duplex(PIPE), duplex(PIPE));
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                _ended = copy_bidirectional(&mut from, &mut to) => {}
            }
        });
        (near, far)
    }
}

impl Network for Memory {
    fn dial<'a>(&'a self, to: &'a str) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            *self.dialled.lock().entry(to.to_owned()).or_default() += 1;
            let host = self.hosts.lock().get(to).cloned();
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let near = match host {
                None => return Err(refused()),
                Some(Host::Silent) => std::future::pending().await,
                Some(Host::Rude) => {
                    let (near, mut far) = duplex(PIPE);
                    // The client's first words, then nothing more.
                    self.tasks.spawn(async move { far.read_exact(&mut [0; 24]).await });
                    near
                }
                Some(Host::Up(server, connections)) => {
                    let cut = server.cut.lock().clone();
                    let (near, far) = self.connection(cut);
                    connections.send(Ok(far)).await.map_err(|_| refused())?;
                    near
                }
            };
            Ok(Box::new(near) as Box<dyn Io>)
        })
    }

    fn resolve<'a>(&'a self, name: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            let found = self.names.lock().get(name).cloned().unwrap_or_default();
            if found.is_empty() { Err(io::Error::other("no such name")) } else { Ok(found) }
        })
    }
}

impl Server {
    /// How many requests came.
    pub(super) fn count(&self) -> usize {
        self.asked.lock().len()
    }

    /// Adds to the script.
    pub(super) fn tell(&self, steps: impl IntoIterator<Item = Step>) {
        self.script.lock().extend(steps);
    }

    /// What came, in order.
    pub(super) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }

    async fn answer(
        &self,
        request: Request<proto::InferRequest>,
    ) -> Result<Response<proto::InferResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let text = |key: &'static str| metadata.get(key).and_then(|it| it.to_str().ok()).map(str::to_owned);
        let (timeout, tenant) = (text("grpc-timeout"), text("x-tenant"));
        self.asked.lock().push(Asked { at: Instant::now(), timeout, tenant, message: message.clone() });
        let step = self.script.lock().pop_front();
        match step {
            None => Ok(Response::new(proto::InferResponse {
                request_id: message.request_id,
                model: message.model,
                version: self.address.clone(),
                outputs: message.inputs,
                timing: None,
            })),
            Some(Step::Refuse(status)) => Err(status),
            Some(Step::Hang) => std::future::pending().await,
            Some(Step::Cut) => {
                std::mem::take(&mut *self.cut.lock()).cancel();
                std::future::pending().await
            }
        }
    }
}
