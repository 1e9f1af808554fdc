//! The Open Inference Protocol by both of its doors, with a backend that needs no libtorch.

use std::{collections::HashMap, fs, path::Path};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, Request, transport::Channel};
use torchlane::proto::{
    self, Priority,
    inference::{
        self as oip, InferParameter, grpc_inference_service_client::GrpcInferenceServiceClient,
        infer_parameter::ParameterChoice, model_infer_request::InferInputTensor,
        model_infer_request::InferRequestedOutputTensor,
    },
};

use super::{
    fake::{repository, version},
    server::{Server, f32s, reason, request},
};

pub type Oip = GrpcInferenceServiceClient<Channel>;

/// Doubles rows of two.
fn doubling() -> tempfile::TempDir {
    let dir = repository(&[("m", "scale = 2.0")]);
    describe(dir.path(), "m", "");
    dir
}

fn describe(repository: &Path, model: &str, more: &str) {
    let text = format!(
        "{more}\n[[inputs]]\nname = 'x'\ndtype = 'FP32'\nshape = [-1, 2]\n\
         [[outputs]]\nname = 'y'\ndtype = 'FP32'\nshape = [-1, 2]\nlabels = ['left', 'right']\n"
    );
    fs::write(repository.join(model).join("model.toml"), text).unwrap();
}

pub async fn oip(server: &Server) -> Oip {
    server.ready().await;
    GrpcInferenceServiceClient::new(server.channel().await)
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn by_number(number: i64) -> InferParameter {
    InferParameter { parameter_choice: Some(ParameterChoice::Int64Param(number)) }
}

fn by_text(text: &str) -> InferParameter {
    InferParameter { parameter_choice: Some(ParameterChoice::StringParam(text.to_owned())) }
}

fn infer(rows: i64, values: &[f32]) -> oip::ModelInferRequest {
    let input = InferInputTensor {
        name: "x".into(),
        datatype: "FP32".into(),
        shape: vec![rows, 2],
        ..Default::default()
    };
    oip::ModelInferRequest {
        model_name: "m".into(),
        inputs: vec![input],
        raw_input_contents: vec![bytes(values).into()],
        ..Default::default()
    }
}

/// An answer by HTTP.
pub struct Answer {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&self.body)))
    }

    pub fn error(&self) -> (u16, String) {
        let json = self.json();
        assert!(json["error"].as_str().is_some_and(|text| !text.contains('\n')), "{json}");
        assert_eq!(json.as_object().unwrap().len(), 1, "strict clients want no other key: {json}");
        (self.status, self.headers["torchlane-reason"].clone())
    }
}

/// The host is `x`.
pub async fn call(
    server: &Server,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut stream = tokio::net::TcpStream::connect(server.http).await.unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    // One that is refused may be answered before all of it is read.
    let _refused = stream.write_all(body).await;
    let mut whole = Vec::new();
    stream.read_to_end(&mut whole).await.unwrap();
    let end = whole.windows(4).position(|window| window == b"\r\n\r\n").expect("no end of headers");
    let head = String::from_utf8(whole[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.filter_map(|line| line.split_once(": "));
    let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
    Answer { status, headers, body: whole[end + 4..].to_vec() }
}

pub async fn post(server: &Server, path: &str, body: &Value) -> Answer {
    call(server, "POST", path, &[], body.to_string().as_bytes()).await
}

/// The sum of the lines of a metric that have all of `labels`.
async fn metric(server: &Server, name: &str, labels: &[&str]) -> f64 {
    let (_, text) = server.get("/metrics").await;
    let lines = text.lines().filter(|line| line.starts_with(name) && labels.iter().all(|l| line.contains(l)));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test]
async fn one_request_by_four_doors_is_one_request() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |_| {});
    let mut native = server.ready().await;
    let mut open = oip(&server).await;
    let values = [1.0, -0.5, 1e-3, 7.25];
    let expected = bytes(&values.map(|value| value * 2.0));
    let counted = async || {
        let lane = ["model=\"m\"", "lane=\"CRITICAL\"", "outcome=\"ok\""];
        metric(&server, "torchlane_requests_total", &lane).await
    };

    let by_native = proto::InferRequest {
        priority: Priority::Critical.into(),
        ..request("m", vec![f32s("x", &[2, 2], &values)])
    };
    let answer = native.infer(by_native).await.unwrap().into_inner();
    assert_eq!((answer.outputs[0].raw.as_ref(), counted().await), (expected.as_slice(), 1.0));

    let mut by_oip = infer(2, &values);
    by_oip.parameters.insert("priority".into(), by_number(1));
    let answer = open.model_infer(by_oip).await.unwrap().into_inner();
    assert_eq!((answer.raw_output_contents[0].as_ref(), counted().await), (expected.as_slice(), 2.0));

    let input =
        json!({"name": "x", "shape": [2, 2], "datatype": "FP32", "data": [[1.0, -0.5], [1e-3, 7.25]]});
    let by_json = json!({"parameters": {"priority": 1}, "inputs": [input]});
    let answer = post(&server, "/v2/models/m/infer", &by_json).await.json();
    let found: Vec<f32> = serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap();
    assert_eq!((bytes(&found), counted().await), (expected.clone(), 3.0));

    let head = json!({"parameters": {"priority": 1, "binary_data_output": true}, "inputs":
        [{"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}]})
    .to_string();
    let length = head.len().to_string();
    let body = [head.as_bytes(), &bytes(&values)].concat();
    let headers = [("Inference-Header-Content-Length", length.as_str())];
    let answer = call(&server, "POST", "/v2/models/m/infer", &headers, &body).await;
    let split = answer.headers["inference-header-content-length"].parse().unwrap();
    assert_eq!((&answer.body[split..], counted().await), (expected.as_slice(), 4.0));
    assert_eq!(answer.headers["content-type"], "application/octet-stream");
}

#[tokio::test]
async fn the_server_and_its_models_say_what_they_are() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |_| {});
    let mut open = oip(&server).await;
    assert!(open.server_live(oip::ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(open.server_ready(oip::ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let metadata = open.server_metadata(oip::ServerMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!(metadata.name, "torchlane");
    assert!(!metadata.extensions.contains(&"system_shared_memory".to_owned()), "it is off");
    let of =
        |name: &str, version: &str| oip::ModelMetadataRequest { name: name.into(), version: version.into() };
    let model = open.model_metadata(of("m", "")).await.unwrap().into_inner();
    assert_eq!(
        (model.versions.as_slice(), model.platform.as_str()),
        (&["1".to_owned()][..], "pytorch_libtorch")
    );
    assert_eq!((model.inputs[0].datatype.as_str(), &model.inputs[0].shape), ("FP32", &vec![-1, 2]));
    let unknown = open.model_metadata(of("none", "")).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::NotFound, "UNKNOWN_MODEL"));
    assert_eq!(open.model_metadata(of("m", "7")).await.unwrap_err().code(), Code::NotFound);
    for (name, version, is) in [("m", "", true), ("m", "1", true), ("m", "7", false), ("none", "", false)] {
        let asked = oip::ModelReadyRequest { name: name.into(), version: version.into() };
        assert_eq!(open.model_ready(asked).await.unwrap().into_inner().ready, is, "{name} {version}");
    }

    for (path, status, field) in [
        ("/v2", 200, "name"),
        ("/v2/", 200, "extensions"),
        ("/v2/health/live", 200, "live"),
        ("/v2/health/ready", 200, "ready"),
        ("/v2/models/m", 200, "platform"),
        ("/v2/models/m/versions/1", 200, "inputs"),
        ("/v2/models/m/ready", 200, "ready"),
        ("/v2/models/m/versions/7/ready", 404, "error"),
        ("/v2/models/m/stats", 200, "model_stats"),
        ("/v2/models/m/versions/1/stats", 200, "model_stats"),
        ("/v2/models/stats", 200, "model_stats"),
        ("/v2/openapi.json", 200, "paths"),
        ("/v2/models/none", 404, "error"),
        ("/v2/models/m/versions/7", 404, "error"),
        ("/v2/nothing/here", 404, "error"),
        ("/v2/models/m/infer", 405, "error"),
        ("/v2/cudasharedmemory/region/r/status", 404, "error"),
        ("/v2/systemsharedmemory/region/r/status", 404, "error"),
    ] {
        let answer = call(&server, "GET", path, &[], b"").await;
        assert_eq!(answer.status, status, "{path}");
        assert!(answer.json().get(field).is_some(), "{path}: {}", answer.json());
    }
}

#[tokio::test]
async fn every_route_that_is_described_is_there() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let described = call(&server, "GET", "/v2/openapi.json", &[], b"").await.json();
    for (path, methods) in described["paths"].as_object().unwrap() {
        let path = path.replace("{model}", "none").replace("{version}", "1").replace("{region}", "r");
        let path = path.replace("{repository}", "x");
        for method in methods.as_object().unwrap().keys() {
            let answer = call(&server, &method.to_uppercase(), &path, &[], b"{}").await;
            assert_ne!(answer.status, 405, "{method} {path}");
            assert!(!String::from_utf8_lossy(&answer.body).contains("no route"), "{method} {path}");
        }
    }
}

#[tokio::test]
async fn rows_and_passes_are_counted_as_triton_counts_them() {
    let dir = doubling();
    describe(dir.path(), "m", "[batching]\nmax_batch = 8");
    let server = Server::fake(dir.path(), |_| {});
    let mut open = oip(&server).await;
    let statistics = async |open: &mut Oip| {
        let of = oip::ModelStatisticsRequest { name: "m".into(), ..Default::default() };
        open.model_statistics(of).await.unwrap().into_inner().model_stats.remove(0)
    };
    let before = statistics(&mut open).await;
    assert_eq!((before.inference_count, before.execution_count), (0, 0), "a warm-up is no request");
    open.model_infer(infer(8, &[1.0; 16])).await.unwrap();
    open.model_infer(infer(1, &[1.0; 2])).await.unwrap();
    let wrong = oip::ModelInferRequest { raw_input_contents: vec![], ..infer(1, &[1.0; 2]) };
    open.model_infer(wrong).await.unwrap_err();
    let unfit = infer(1, &[1.0; 2]);
    let unfit = oip::ModelInferRequest {
        inputs: vec![InferInputTensor { name: "z".into(), ..unfit.inputs[0].clone() }],
        ..unfit
    };
    open.model_infer(unfit).await.unwrap_err();
    let after = statistics(&mut open).await;
    assert_eq!((after.inference_count, after.execution_count), (9, 2));
    let stats = after.inference_stats.unwrap();
    assert_eq!((stats.success.unwrap().count, stats.queue.unwrap().count), (2, 2));
    assert_eq!(stats.fail.unwrap().count, 1, "what cannot be decoded is no request of a model's");
    let rows: Vec<_> = after.batch_stats.iter().map(|batch| batch.batch_size).collect();
    assert_eq!(rows, [1, 8]);
    assert!(after.last_inference > 1_700_000_000_000, "milliseconds since 1970");
    let json = call(&server, "GET", "/v2/models/m/stats", &[], b"").await.json();
    assert_eq!(json["model_stats"][0]["inference_count"], 9);
    assert_eq!(json["model_stats"][0]["inference_stats"]["success"]["count"], 2);
}

#[tokio::test]
async fn a_stream_answers_in_order_and_has_its_errors_within() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |_| {});
    let mut open = oip(&server).await;
    let requests: Vec<_> = (0..50_i16)
        .map(|n| oip::ModelInferRequest {
            id: n.to_string(),
            model_name: if n % 10 == 3 { "none".into() } else { "m".into() },
            ..infer(1, &[f32::from(n), 0.0])
        })
        .collect();
    let stream = || futures::stream::iter(requests.clone());
    let mut answers = open.model_stream_infer(stream()).await.unwrap().into_inner();
    for n in 0..50_i16 {
        let answer = answers.message().await.unwrap().unwrap();
        let response = answer.infer_response.unwrap();
        assert_eq!(response.id, n.to_string());
        if n % 10 == 3 {
            assert!(answer.error_message.starts_with("no model 'none'"), "{}", answer.error_message);
        } else {
            assert_eq!(answer.error_message, "");
            assert_eq!(response.raw_output_contents[0], bytes(&[f32::from(n) * 2.0, 0.0]));
        }
    }
    assert!(answers.message().await.unwrap().is_none());

    let mut strict = Request::new(stream());
    strict.metadata_mut().insert("triton_grpc_error", "true".parse().unwrap());
    let mut answers = open.model_stream_infer(strict).await.unwrap().into_inner();
    for n in 0..3 {
        let answer = answers.message().await.unwrap().unwrap();
        assert_eq!(answer.infer_response.unwrap().id, n.to_string());
    }
    assert_eq!(answers.message().await.unwrap_err().code(), Code::NotFound);

    let mut last = infer(1, &[1.0, 1.0]);
    let wants = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
    last.parameters.insert("triton_enable_empty_final_response".into(), wants.clone());
    let mut answers = open.model_stream_infer(futures::stream::iter([last])).await.unwrap().into_inner();
    let response = answers.message().await.unwrap().unwrap().infer_response.unwrap();
    assert_eq!(response.parameters["triton_final_response"], wants);
}

#[tokio::test]
async fn models_are_loaded_and_unloaded_by_hand() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |_| {});
    let mut open = oip(&server).await;
    let index = async |open: &mut Oip, ready| {
        let asked = oip::RepositoryIndexRequest { ready, ..Default::default() };
        let lines = open.repository_index(asked).await.unwrap().into_inner().models;
        lines.iter().map(|l| format!("{} {} {} {}", l.name, l.version, l.state, l.reason)).collect::<Vec<_>>()
    };
    assert_eq!(index(&mut open, false).await, ["m 1 READY "]);
    let load = || oip::RepositoryModelLoadRequest { model_name: "m".into(), ..Default::default() };
    let unload = || oip::RepositoryModelUnloadRequest { model_name: "m".into(), ..Default::default() };
    open.repository_model_unload(unload()).await.unwrap();
    open.repository_model_unload(unload()).await.expect("it stays unloaded");
    assert_eq!(index(&mut open, false).await, ["m 1 UNAVAILABLE unloaded"]);
    assert!(index(&mut open, true).await.is_empty());
    open.repository_model_load(load()).await.unwrap();

    version(dir.path(), "m", 2, "load_error = 'broken'");
    let failed = open.repository_model_load(load()).await.unwrap_err();
    assert_eq!(reason(&failed), "LOAD_FAILED");
    assert_eq!(index(&mut open, false).await, ["m 1 READY "], "what serves goes on serving");
    let other = oip::RepositoryModelLoadRequest { repository_name: "r".into(), ..load() };
    assert_eq!(open.repository_model_load(other).await.unwrap_err().code(), Code::InvalidArgument);
    let none = oip::RepositoryModelLoadRequest { model_name: "none".into(), ..load() };
    assert_eq!(open.repository_model_load(none).await.unwrap_err().code(), Code::NotFound);

    version(dir.path(), "m", 3, "scale = 3.0");
    assert_eq!(post(&server, "/v2/repository/models/m/load", &json!({})).await.json(), json!({}));
    let lines = call(&server, "POST", "/v2/repository/index", &[], b"").await.json();
    assert_eq!(lines, json!([{"name": "m", "version": "3", "state": "READY", "reason": ""}]));
    assert_eq!(post(&server, "/v2/repository/models/m/unload", &json!({})).await.status, 200);
    let answer = post(&server, "/v2/models/m/infer", &json!({"inputs": []})).await;
    assert_eq!(answer.error(), (503, "MODEL_NOT_READY".to_owned()));
}

#[tokio::test]
async fn classes_come_with_their_labels() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |_| {});
    let mut open = oip(&server).await;
    let mut with_classes = infer(2, &[0.25, 0.5, 4.0, 1.0]);
    with_classes.outputs = vec![InferRequestedOutputTensor {
        name: "y".into(),
        parameters: [("classification".to_owned(), by_number(1))].into(),
    }];
    let answer = open.model_infer(with_classes).await.unwrap().into_inner();
    let output = &answer.outputs[0];
    assert_eq!((output.datatype.as_str(), &output.shape), ("BYTES", &vec![2, 1]));
    assert_eq!(
        answer.raw_output_contents[0],
        b"\x10\0\0\x001.000000:1:right\x0F\0\0\x008.000000:0:left".as_slice()
    );
    let input = json!({"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.25, 0.5]});
    let wanted = json!([{"name": "y", "parameters": {"classification": 2}}]);
    let body = json!({"id": "own", "inputs": [input], "outputs": wanted});
    let answer = post(&server, "/v2/models/m/infer", &body).await.json();
    assert_eq!(answer["id"], "own");
    assert_eq!(answer["outputs"][0]["data"], json!(["1.000000:1:right", "0.500000:0:left"]));
}

/// A shared memory object that is gone when the test is.
struct Object(std::path::PathBuf);

impl Object {
    fn new(length: usize) -> Self {
        let path = tempfile::Builder::new().prefix("torchlane-test-").tempfile_in("/dev/shm").unwrap();
        let (_, path) = path.keep().unwrap();
        fs::write(&path, vec![0; length]).unwrap();
        Self(path)
    }

    fn key(&self) -> String {
        format!("/{}", self.0.file_name().unwrap().to_str().unwrap())
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let _gone = fs::remove_file(&self.0);
    }
}

#[tokio::test]
async fn tensors_come_and_go_through_shared_memory() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |settings| settings.oip.shared_memory = true);
    let mut open = oip(&server).await;
    let object = Object::new(64);
    fs::write(&object.0, [bytes(&[1.0, 2.0, 3.0, 4.0]), vec![0; 48]].concat()).unwrap();
    let register = |name: &str, offset, byte_size| oip::SystemSharedMemoryRegisterRequest {
        name: name.into(),
        key: object.key(),
        offset,
        byte_size,
    };
    open.system_shared_memory_register(register("in", 0, 32)).await.unwrap();
    let twice = open.system_shared_memory_register(register("in", 0, 32)).await.unwrap_err();
    assert_eq!(twice.code(), Code::AlreadyExists);
    let beyond = open.system_shared_memory_register(register("more", 32, 64)).await.unwrap_err();
    assert_eq!(beyond.code(), Code::InvalidArgument);
    let path = "/v2/systemsharedmemory/region/out/register";
    let answer = post(&server, path, &json!({"key": object.key(), "offset": 32, "byte_size": 32})).await;
    assert_eq!(answer.status, 200);

    let place = |region: &str, size: i64, offset: i64| -> HashMap<String, InferParameter> {
        [
            ("shared_memory_region".to_owned(), by_text(region)),
            ("shared_memory_byte_size".to_owned(), by_number(size)),
            ("shared_memory_offset".to_owned(), by_number(offset)),
        ]
        .into()
    };
    let mut request = oip::ModelInferRequest { raw_input_contents: vec![], ..infer(1, &[]) };
    request.inputs[0].parameters = place("in", 8, 8);
    request.outputs = vec![InferRequestedOutputTensor { name: "y".into(), parameters: place("out", 16, 4) }];
    let answer = open.model_infer(request.clone()).await.unwrap().into_inner();
    assert_eq!(answer.raw_output_contents, [bytes::Bytes::new()], "an output has an entry all the same");
    assert_eq!(answer.outputs[0].parameters["shared_memory_byte_size"], by_number(8));
    assert_eq!(fs::read(&object.0).unwrap()[36..44], bytes(&[6.0, 8.0]));

    for (region, size, offset) in [("none", 8, 0), ("in", 8, 25), ("in", 33, 0), ("in", -1, 0), ("in", 8, -8)]
    {
        let mut bad = request.clone();
        bad.inputs[0].parameters = place(region, size, offset);
        let status = open.model_infer(bad).await.unwrap_err();
        assert!(
            matches!(status.code(), Code::InvalidArgument | Code::NotFound),
            "{region} {size} {offset}: {status}"
        );
    }
    let mut small = request.clone();
    small.outputs[0].parameters = place("out", 4, 0);
    assert_eq!(open.model_infer(small).await.unwrap_err().code(), Code::InvalidArgument);
    let regions = call(&server, "GET", "/v2/systemsharedmemory/status", &[], b"").await.json();
    assert_eq!(regions.as_array().unwrap().len(), 2);
    open.system_shared_memory_unregister(oip::SystemSharedMemoryUnregisterRequest::default()).await.unwrap();
    assert_eq!(open.model_infer(request).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn http_refuses_what_it_cannot_take() {
    let dir = repository(&[("m", "delay_ms = 300")]);
    describe(dir.path(), "m", "");
    let server = Server::fake(dir.path(), |settings| {
        settings.server.max_message_bytes = bytesize::ByteSize::kib(64);
    });
    server.ready().await;
    let path = "/v2/models/m/infer";
    let input = json!({"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]});
    let good = json!({"inputs": [input]}).to_string();
    let answer = |headers: Vec<(&'static str, &'static str)>, body: Vec<u8>| {
        let server = &server;
        async move { call(server, "POST", path, &headers, &body).await.error() }
    };
    let of = |status, reason: &str| (status, reason.to_owned());
    assert_eq!(answer(vec![], b"{".to_vec()).await, of(400, "BAD_REQUEST"));
    assert_eq!(answer(vec![], vec![b' '; 100_000]).await, of(413, "MESSAGE_TOO_LARGE"));
    assert_eq!(answer(vec![("Content-Encoding", "br")], vec![1]).await, of(400, "BAD_REQUEST"));
    assert_eq!(answer(vec![("Content-Encoding", "gzip")], vec![1]).await, of(400, "BAD_REQUEST"));
    assert_eq!(answer(vec![("x-timeout-ms", "5")], good.clone().into()).await, of(504, "DEADLINE_EXCEEDED"));
    assert_eq!(answer(vec![("x-timeout-ms", "soon")], good.clone().into()).await, of(400, "BAD_REQUEST"));
    for priority in ["urgent", "5", "7", "-1"] {
        let refused = answer(vec![("x-priority", priority)], good.clone().into()).await;
        assert_eq!(refused, of(400, "BAD_REQUEST"), "{priority}");
    }
    let length = ("Inference-Header-Content-Length", "9");
    assert_eq!(answer(vec![length], b"{}".to_vec()).await, of(400, "BAD_REQUEST"));
    assert_eq!(answer(vec![], br#"{"inputs": []}"#.to_vec()).await, of(400, "MISSING_INPUT"));
    // One tensor and nothing else: a row of what model.toml declares.
    let raw = [("Inference-Header-Content-Length", "0")];
    let whole = call(&server, "POST", path, &raw, &bytes(&[1.0, 2.0])).await;
    assert_eq!((whole.status, whole.body.ends_with(&bytes(&[1.0, 2.0]))), (200, true));
    assert_eq!(call(&server, "POST", path, &raw, &[0; 7]).await.error(), of(400, "BAD_REQUEST"));
}

#[tokio::test]
async fn what_is_compressed_counts_for_what_it_inflates_to() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |settings| {
        settings.server.max_message_bytes = bytesize::ByteSize::mib(1);
    });
    let open = oip(&server).await;
    let mut zipped = open.send_compressed(tonic::codec::CompressionEncoding::Gzip);
    let answer = zipped.model_infer(infer(1, &[1.0, 2.0])).await.unwrap().into_inner();
    assert_eq!(answer.raw_output_contents[0], bytes(&[2.0, 4.0]));
    // Two megabytes of zeros, two kilobytes on the wire.
    let bomb = infer(1 << 18, &vec![0.0; 1 << 19]);
    let refused = zipped.model_infer(bomb).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    assert!(refused.message().contains("inflates to more than 1048576 bytes"), "{refused}");
    assert!(metric(&server, "torchlane_in_flight_bytes", &[]).await < 1e6);
}

#[tokio::test]
async fn a_cached_answer_is_given_for_the_same_request_of_the_same_version_only() {
    let dir = doubling();
    describe(dir.path(), "m", "response_cache = true");
    let server = Server::fake(dir.path(), |_| {});
    let mut open = oip(&server).await;
    let ask = async |open: &mut Oip, values: [f32; 2]| {
        let answer = open.model_infer(infer(1, &values)).await.unwrap().into_inner();
        (answer.model_version, answer.raw_output_contents[0].clone())
    };
    let counts = async |open: &mut Oip| {
        let of = oip::ModelStatisticsRequest { name: "m".into(), ..Default::default() };
        let stats = open.model_statistics(of).await.unwrap().into_inner().model_stats.remove(0);
        let inference = stats.inference_stats.unwrap();
        let count = |duration: Option<oip::StatisticDuration>| duration.unwrap().count;
        (
            stats.execution_count,
            count(inference.success),
            count(inference.cache_hit),
            count(inference.cache_miss),
        )
    };
    let first = ask(&mut open, [1.0, 2.0]).await;
    for _ in 0..3 {
        assert_eq!(ask(&mut open, [1.0, 2.0]).await, first);
    }
    assert_eq!(counts(&mut open).await, (1, 4, 3, 1));
    assert_eq!(ask(&mut open, [1.0, 2.5]).await.1, bytes(&[2.0, 5.0]));
    assert_eq!(counts(&mut open).await, (2, 5, 3, 2));

    // The same number with other files, then another number: what was kept is of neither.
    for (number, scale) in [(1, 3.0), (2, 4.0)] {
        version(dir.path(), "m", number, &format!("scale = {scale:?}"));
        let load = oip::RepositoryModelLoadRequest { model_name: "m".into(), ..Default::default() };
        open.repository_model_load(load).await.unwrap();
        let expected = (number.to_string(), bytes::Bytes::from(self::bytes(&[scale, 2.0 * scale])));
        for _ in 0..2 {
            assert_eq!(ask(&mut open, [1.0, 2.0]).await, expected);
        }
    }
}
