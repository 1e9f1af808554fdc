//! A server in this process, and what tests ask of it.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{LazyLock, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tonic::{Status, transport::Channel};
use tonic_types::StatusExt as _;
use torchlane::{
    app,
    config::{BackendKind, Settings, Watch},
    proto::{self, model_server_client::ModelServerClient},
};

pub struct Server {
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

pub type Client = ModelServerClient<Channel>;

/// Where connections live: a test that waits for its server's end keeps its own thread from closing them.
fn clients() -> &'static Runtime {
    static CLIENTS: LazyLock<Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    });
    &CLIENTS
}

impl Server {
    pub fn start(repository: &Path, backend: BackendKind, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings =
            Settings { repositories: vec![repository.to_owned()], backend, ..Settings::default() };
        settings.server.grpc_addr = ([127, 0, 0, 1], 0).into();
        settings.server.http_addr = ([127, 0, 0, 1], 0).into();
        settings.server.grace = Duration::from_secs(5);
        // What tests that write HTTP by hand call their host.
        settings.server.hosts = vec!["x".to_owned()];
        // Tests ask for reloads themselves, and write whole files before they do.
        settings.watch = Watch { interval: Duration::ZERO, settle: Duration::ZERO };
        change(&mut settings);
        let stop = CancellationToken::new();
        let (started, addresses) = mpsc::channel();
        let token = stop.clone();
        let thread = std::thread::spawn(move || {
            app::serve_until(settings, token, |grpc, http| started.send((grpc, http)).unwrap()).unwrap();
        });
        let (grpc, http) = addresses.recv_timeout(Duration::from_secs(20)).expect("the server did not start");
        Self { grpc, http, stop, thread: Some(thread) }
    }

    pub fn fake(repository: &Path, change: impl FnOnce(&mut Settings)) -> Self {
        Self::start(repository, BackendKind::Fake, change)
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.grpc)).unwrap();
        clients().spawn(async move { endpoint.connect().await.unwrap() }).await.unwrap()
    }

    /// A client, once the server says that it is ready.
    pub async fn ready(&self) -> Client {
        let channel = self.channel().await;
        let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
        for _ in 0..6000 {
            if serving(&mut health, "").await == Some(true) {
                return ModelServerClient::new(channel)
                    .max_decoding_message_size(256 << 20)
                    .max_encoding_message_size(256 << 20);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the server did not become ready");
    }

    pub fn stop(&self) {
        self.stop.cancel();
    }

    pub fn join(mut self) {
        self.stop.cancel();
        self.thread.take().unwrap().join().unwrap();
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub type HealthClient = tonic_health::pb::health_client::HealthClient<Channel>;

/// `None`: the service is not known.
pub async fn serving(health: &mut HealthClient, service: &str) -> Option<bool> {
    let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
    health.check(request).await.ok().map(|answer| answer.into_inner().status == 1)
}

pub fn tensor(name: &str, datatype: &str, shape: &[i64], raw: Vec<u8>) -> proto::Tensor {
    proto::Tensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: shape.to_vec(),
        raw: raw.into(),
        ..Default::default()
    }
}

pub fn f32s(name: &str, shape: &[i64], values: &[f32]) -> proto::Tensor {
    tensor(name, "FP32", shape, values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

pub fn floats(tensor: &proto::Tensor) -> Vec<f32> {
    assert_eq!(tensor.datatype, "FP32");
    tensor.raw.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

pub fn request(model: &str, inputs: Vec<proto::Tensor>) -> proto::InferRequest {
    proto::InferRequest { model: model.into(), inputs, ..Default::default() }
}

/// The reason in google.rpc.ErrorInfo.
pub fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}

pub async fn refused(client: &mut Client, request: proto::InferRequest) -> (String, Status) {
    let status = client.infer(request).await.expect_err("was not refused");
    (reason(&status), status)
}

/// Asks again until it is so, for at most 20 s.
pub async fn until(mut so: impl AsyncFnMut() -> bool) {
    for _ in 0..2000 {
        if so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come to that");
}
