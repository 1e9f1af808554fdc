//! Traces, against a collector in this process, and metrics by Triton's names: with a backend that needs no libtorch.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::Span,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};
use torchlane::{
    proto::{
        self,
        inference::{
            ModelInferRequest, TraceSettingRequest,
            grpc_inference_service_client::GrpcInferenceServiceClient, model_infer_request::InferInputTensor,
            trace_setting_request,
        },
    },
    telemetry::TelemetrySettings,
};

use super::{
    fake::{reload, repository, version},
    server::{Server, f32s, refused, request},
};

/// Keeps every span that it is sent.
#[derive(Debug, Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans.into_iter();
        let spans = resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    /// With the URL that it listens on, until the test ends.
    async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (url, collector) = (url(&listener), Self::default());
        let service = TraceServiceServer::new(collector.clone());
        let serving = tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(serving);
        (collector, url)
    }

    /// All that have this name.
    fn named(&self, name: &str) -> Vec<Span> {
        self.0.lock().unwrap().iter().filter(|span| span.name == name).cloned().collect()
    }

    /// The one that has this name, and that parent.
    fn child(&self, parent: &Span, name: &str) -> Span {
        let mut found = self.named(name);
        found.retain(|span| span.parent_span_id == parent.span_id && span.trace_id == parent.trace_id);
        assert_eq!(found.len(), 1, "{name} in {}: {found:?}", parent.name);
        found.remove(0)
    }
}

fn url(listener: &TcpListener) -> String {
    format!("http://{}", listener.local_addr().unwrap())
}

/// A server that traces what its callers trace, and nothing else.
fn tracing(repository: &Path, url: String) -> Server {
    Server::fake(repository, |settings| {
        settings.executors.threads = 1;
        settings.telemetry = TelemetrySettings { otlp_endpoint: url, sample: 0.0, ..Default::default() };
    })
}

/// Ends the server, and with it whatever it still has to send.
async fn ended(server: Server) {
    let ending = tokio::task::spawn_blocking(|| server.join());
    tokio::time::timeout(Duration::from_secs(30), ending).await.expect("it does not end").unwrap();
}

fn parent(trace: u128) -> String {
    format!("00-{trace:032x}-{:016x}-01", 7)
}

fn traced<T>(message: T, trace: u128) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("traceparent", parent(trace).parse().unwrap());
    request
}

fn text(span: &Span, key: &str) -> String {
    let attribute = span.attributes.iter().find(|attribute| attribute.key == key);
    let value = attribute.and_then(|attribute| attribute.value.as_ref()?.value.as_ref());
    match value {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{key} of {}: {other:?}", span.name),
    }
}

fn traces(spans: &[Span]) -> BTreeSet<Vec<u8>> {
    spans.iter().map(|span| span.trace_id.clone()).collect()
}

fn ids<const N: usize>(traces: [u128; N]) -> BTreeSet<Vec<u8>> {
    traces.into_iter().map(|trace| trace.to_be_bytes().to_vec()).collect()
}

fn row() -> proto::InferRequest {
    request("m", vec![f32s("x", &[1, 2], &[1.0, 2.0])])
}

#[tokio::test]
async fn requests_that_share_a_batch_have_their_own_traces_and_are_linked_with_it() {
    let (collector, url) = Collector::start().await;
    let dir = repository(&[("m", "delay_ms = 2")]);
    // Neither runs before both are there: nobody would wait ten seconds.
    // The warm-up has seen that rows may share a pass.
    let manifest = "[batching]\nmax_batch = 2\nmax_delay = '10s'\n[warmup]\nshapes = [{ x = [1, 2] }]";
    fs::write(dir.path().join("m/model.toml"), manifest).unwrap();
    let server = tracing(dir.path(), url);
    let mut first = server.ready().await;
    let mut second = first.clone();
    let (first, second) = tokio::join!(first.infer(traced(row(), 0xa)), second.infer(traced(row(), 0xb)));
    assert_eq!((first.unwrap().into_inner().timing.unwrap().batch_size, second.is_ok()), (2, true));
    ended(server).await;

    let batches = collector.named("batch");
    assert_eq!(batches.len(), 1, "{batches:?}");
    let batch = &batches[0];
    assert!(batch.parent_span_id.is_empty(), "it is no request's child");
    assert_eq!(["requests", "rows", "version", "model"].map(|key| text(batch, key)), ["2", "2", "1", "m"]);
    let requests = collector.named("infer");
    let linked: BTreeSet<_> = batch.links.iter().map(|link| link.span_id.clone()).collect();
    assert_eq!(linked, requests.iter().map(|request| request.span_id.clone()).collect::<BTreeSet<_>>());
    assert_eq!(traces(&requests), ids([0xa, 0xb]));
    for request in &requests {
        assert_eq!(request.parent_span_id, 7_u64.to_be_bytes());
        assert_eq!(
            ["model", "version", "lane", "outcome", "rows"].map(|key| text(request, key)),
            ["m", "1", "NORMAL", "ok", "1"]
        );
        let [queue, wait, compute] =
            ["queue", "batch_wait", "compute"].map(|phase| collector.child(request, phase));
        assert_eq!(queue.end_time_unix_nano, wait.start_time_unix_nano);
        assert_eq!(wait.end_time_unix_nano, compute.start_time_unix_nano);
        let took = Duration::from_nanos(compute.end_time_unix_nano - compute.start_time_unix_nano);
        assert!(took >= Duration::from_millis(2), "{took:?}");
        assert_eq!(compute.links.iter().map(|link| &link.span_id).collect::<Vec<_>>(), [&batch.span_id]);
    }
}

#[tokio::test]
async fn every_door_takes_the_callers_trace() {
    let (collector, url) = Collector::start().await;
    let dir = repository(&[("m", "")]);
    let server = tracing(dir.path(), url);
    let mut native = server.ready().await;
    native.infer(row()).await.unwrap();
    native.infer(traced(row(), 1)).await.unwrap();

    let mut open = GrpcInferenceServiceClient::new(server.channel().await);
    let raw: Vec<u8> = [1.0_f32, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let (name, datatype, shape) = ("x".to_owned(), "FP32".to_owned(), vec![1, 2]);
    let message = ModelInferRequest {
        model_name: "m".into(),
        inputs: vec![InferInputTensor { name, datatype, shape, ..Default::default() }],
        raw_input_contents: vec![raw.into()],
        ..Default::default()
    };
    open.model_infer(traced(message, 2)).await.unwrap();

    let body = r#"{"inputs":[{"name":"x","shape":[1,2],"datatype":"FP32","data":[1,2]}]}"#;
    let mut http = TcpStream::connect(server.http).await.unwrap();
    let head = format!(
        "POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTraceparent: {}\r\n\
         Content-Length: {}\r\n\r\n",
        parent(3),
        body.len()
    );
    http.write_all((head + body).as_bytes()).await.unwrap();
    let mut answer = String::new();
    http.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    ended(server).await;
    assert_eq!(traces(&collector.named("infer")), ids([1, 2, 3]));
}

#[tokio::test]
async fn a_reload_is_traced_with_its_phases_and_a_failed_one_with_the_reason() {
    let (collector, url) = Collector::start().await;
    let dir = repository(&[("m", "")]);
    let server = tracing(dir.path(), url);
    let mut client = server.ready().await;
    version(dir.path(), "m", 2, "scale = 2.0\nload_delay_ms = 20");
    version(dir.path(), "m", 3, "load_error = 'broken weights'");
    client.reload_model(reload("m", 2)).await.unwrap();
    client.reload_model(reload("m", 3)).await.unwrap_err();
    ended(server).await;

    let reloads = collector.named("reload");
    let told: Vec<_> = reloads.iter().map(|span| ["version", "outcome"].map(|key| text(span, key))).collect();
    assert_eq!(told, [["1", "ok"], ["2", "ok"], ["3", "LOAD_FAILED"]]);
    assert_eq!(text(&reloads[0], "asker"), "start");
    assert_eq!(text(&reloads[1], "previous"), "1");
    let load = collector.child(&reloads[1], "load");
    let took = Duration::from_nanos(load.end_time_unix_nano - load.start_time_unix_nano);
    assert!(took >= Duration::from_millis(20), "{took:?}");
    for phase in ["verify", "swap"] {
        let phase = collector.child(&reloads[1], phase);
        assert!(phase.start_time_unix_nano >= reloads[1].start_time_unix_nano);
    }
    let status = reloads[2].status.as_ref().unwrap();
    assert!(status.message.contains("broken weights"), "{status:?}");
}

#[tokio::test]
async fn a_traced_request_is_an_exemplar_of_its_latency() {
    let (_collector, url) = Collector::start().await;
    let dir = repository(&[("m", "")]);
    let server = tracing(dir.path(), url);
    let mut client = server.ready().await;
    client.infer(row()).await.unwrap();
    let exemplars = async || {
        let (_, metrics) = server.get("/metrics").await;
        metrics.lines().filter(|line| line.contains(" # {")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(exemplars().await, [""; 0], "it is not traced");
    client.infer(traced(row(), 0xabc)).await.unwrap();
    let found = exemplars().await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("torchlane_request_duration_seconds_bucket{"), "{}", found[0]);
    assert!(found[0].contains(&format!("# {{trace_id=\"{:032x}\"}} ", 0xabc)), "{}", found[0]);
}

#[tokio::test]
async fn a_collector_that_never_answers_costs_no_request_anything_and_what_is_lost_is_counted() {
    // It takes connections, and says nothing.
    let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.telemetry =
            TelemetrySettings { otlp_endpoint: url(&deaf), sample: 1.0, timeout: Duration::from_millis(200) };
        settings.server.grace = Duration::from_secs(2);
    });
    let mut client = server.ready().await;
    for _ in 0..50 {
        client.infer(row()).await.unwrap();
    }
    let failed = async || {
        let (_, metrics) = server.get("/metrics").await;
        let line = metrics.lines().find(|line| line.starts_with("torchlane_spans_total{result=\"failed\"}"));
        line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    // 50 requests with three phases each and as many passes, and the load of the model with its phases.
    for _ in 0..1000 {
        if failed().await > 250 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(failed().await > 250, "{}", failed().await);
    client.infer(row()).await.unwrap();
    ended(server).await;
}

#[tokio::test]
async fn tritons_names_are_there_where_they_are_asked_for() {
    let dir = repository(&[("m", "")]);
    // Of a model without batches every request counts as one.
    let text = "[batching]\nmax_batch = 4\n[[inputs]]\nname = 'x'\ndtype = 'FP32'\nshape = [-1, 2]\n";
    fs::write(dir.path().join("m/model.toml"), text).unwrap();
    let shown = async |triton_names| {
        let server = Server::fake(dir.path(), |settings| settings.metrics.triton_names = triton_names);
        let mut client = server.ready().await;
        client.infer(row()).await.unwrap();
        client.infer(request("m", vec![f32s("x", &[3, 2], &[0.0; 6])])).await.unwrap();
        refused(&mut client, request("m", vec![])).await;
        let (status, text) = server.get("/metrics").await;
        assert_eq!((status, text.ends_with("# EOF\n")), (200, true));
        text
    };
    let text = shown(true).await;
    for line in [
        r#"nv_inference_request_success{model="m",version="1"} 2"#,
        r#"nv_inference_request_failure{model="m",reason="OTHER",version="1"} 1"#,
        r#"nv_inference_request_failure{model="m",reason="BACKEND",version="1"} 0"#,
        r#"nv_inference_count{model="m",version="1"} 4"#,
        r#"nv_inference_exec_count{model="m",version="1"} 2"#,
        r#"nv_inference_pending_request_count{model="m",version="1"} 0"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in {text}");
    }
    assert!(!shown(false).await.contains("nv_inference"));
}

#[tokio::test]
async fn what_is_traced_can_be_changed_while_the_server_runs() {
    let (collector, url) = Collector::start().await;
    let dir = repository(&[("m", "scale = 2.0")]);
    let server = tracing(dir.path(), url);
    let mut client = server.ready().await;
    let mut open = GrpcInferenceServiceClient::new(server.channel().await);
    let mut change = async |key: &str, value: &[&str]| {
        let value = value.iter().map(|value| (*value).to_owned()).collect();
        let settings = [(key.to_owned(), trace_setting_request::SettingValue { value })].into();
        let asked = TraceSettingRequest { settings, ..Default::default() };
        let told = open.trace_setting(asked).await.unwrap().into_inner().settings;
        ["trace_level", "trace_rate"].map(|key| told[key].value.concat())
    };
    let x = || request("m", vec![f32s("x", &[1], &[1.0])]);
    client.infer(x()).await.unwrap();
    assert_eq!(change("trace_rate", &["1"]).await, ["TIMESTAMPS", "1"]);
    client.infer(x()).await.unwrap();
    assert_eq!(change("trace_level", &["OFF"]).await, ["OFF", "1"]);
    client.infer(traced(x(), 5)).await.unwrap();
    assert_eq!(change("trace_rate", &["0"]).await, ["OFF", "0"]);
    assert_eq!(change("trace_level", &["TIMESTAMPS"]).await, ["TIMESTAMPS", "0"]);
    client.infer(x()).await.unwrap();
    client.infer(traced(x(), 6)).await.unwrap();
    assert_eq!(change("trace_rate", &["4"]).await, ["TIMESTAMPS", "4"]);
    // What the settings say.
    assert_eq!(change("trace_rate", &[]).await, ["TIMESTAMPS", "0"]);
    ended(server).await;
    let traces: Vec<_> = collector.named("infer").into_iter().map(|span| span.trace_id).collect();
    assert_eq!(traces.len(), 2, "one by the rate, and one whose caller wanted it");
    assert_eq!(traces[1], 6_u128.to_be_bytes());
}
