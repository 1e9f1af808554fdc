//! What clients of other makers, browsers and proxies send, and what they may be told.

use std::{fs, time::Duration};

use futures::StreamExt as _;
use http_body_util::BodyExt as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{
    Code, Request,
    body::Body,
    codec::CompressionEncoding,
    codegen::http,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use torchlane::proto::{self, inference as oip};
use tower::ServiceExt as _;

use super::{
    fake::{reload, repository, version},
    oip::{call, oip},
    server::{Server, f32s, floats, reason, request, until},
};

/// Status of a call as no gRPC library would make it, by HTTP and by gRPC.
async fn raw(channel: &Channel, method: &str, path: &str, headers: &[(&str, &str)]) -> (u16, Option<String>) {
    let mut request = http::Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    // One empty message.
    let body = http_body_util::Full::new(bytes::Bytes::from_static(&[0; 5]));
    let request = request.body(Body::new(body.map_err(|never| match never {}))).unwrap();
    let response = channel.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let (head, body) = response.into_parts();
    let trailers = body.collect().await.unwrap().trailers().cloned().unwrap_or_default();
    let code = head.headers.get("grpc-status").or(trailers.get("grpc-status"));
    (status, code.map(|code| code.to_str().unwrap().to_owned()))
}

const UNLOAD: &str = "/inference.GRPCInferenceService/RepositoryModelUnload";

#[tokio::test]
async fn what_a_page_can_send_is_no_grpc_call_to_any_service() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.server.origins = vec!["https://console.example".to_owned()];
    });
    let mut client = server.ready().await;
    let channel = server.channel().await;
    let grpc = ("content-type", "application/grpc");
    for path in [
        UNLOAD,
        "/torchlane.v1.ModelServer/ListModels",
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/nothing/There",
    ] {
        for (method, headers, status) in [
            ("POST", &[("content-type", "text/plain")][..], 415),
            ("POST", &[("content-type", "application/x-www-form-urlencoded")], 415),
            ("POST", &[], 415),
            ("GET", &[grpc], 405),
            ("OPTIONS", &[grpc, ("access-control-request-method", "POST")], 405),
            ("POST", &[grpc, ("origin", "https://evil.example")], 403),
            ("POST", &[grpc, ("origin", "null")], 403),
            ("POST", &[grpc, ("origin", "http://localhost"), ("origin", "https://console.example")], 400),
        ] {
            let (is, code) = raw(&channel, method, path, headers).await;
            assert_eq!(is, status, "{method} {path} {headers:?}");
            assert!(code.is_some_and(|code| code != "0"), "{method} {path} {headers:?}");
        }
    }
    let allowed = [("content-type", "application/grpc+proto"), ("origin", "https://console.example")];
    let health = raw(&channel, "POST", "/grpc.health.v1.Health/Check", &allowed).await;
    assert_eq!(health, (200, Some("0".to_owned())));
    client.infer(request("m", vec![f32s("x", &[1], &[1.0])])).await.expect("it was not unloaded");
}

async fn get(server: &Server, host: &str, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(server.http).await.unwrap();
    let sent = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    said
}

#[tokio::test]
async fn on_loopback_a_server_is_called_by_its_own_names() {
    let dir = repository(&[("m", "")]);
    let named = |hosts: &[&str]| {
        let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        Server::fake(dir.path(), |settings| settings.server.hosts = hosts)
    };
    let server = named(&[]);
    server.ready().await;
    let at = |server: &Server, origin: &str| {
        let endpoint = Endpoint::from_shared(format!("http://{}", server.grpc)).unwrap();
        HealthClient::new(endpoint.origin(origin.parse().unwrap()).connect_lazy())
    };
    for path in ["/", "/livez", "/metrics", "/v2/models/m", "/console/state", "/nothing"] {
        let said = get(&server, "evil.example:8080", path).await;
        assert!(said.starts_with("HTTP/1.1 403"), "{path}: {said}");
        assert!(said.contains("server.hosts"), "{said}");
    }
    for own in ["localhost", "127.0.0.1:8080", "[::1]:1"] {
        assert!(get(&server, own, "/livez").await.starts_with("HTTP/1.1 200"), "{own}");
    }
    // The target may have the name too, and then counts for more than the header.
    assert!(get(&server, "localhost", "http://evil.example/livez").await.starts_with("HTTP/1.1 403"));
    assert!(get(&server, "localhost", "http://localhost/livez").await.starts_with("HTTP/1.1 200"));
    let check = || HealthCheckRequest::default();
    let refused = at(&server, "http://evil.example").check(check()).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::PermissionDenied, "FORBIDDEN"));
    at(&server, "http://localhost:1").check(check()).await.unwrap();

    let server = named(&["models.example"]);
    server.ready().await;
    assert!(get(&server, "models.example", "/livez").await.starts_with("HTTP/1.1 200"));
    at(&server, "https://models.example").check(check()).await.unwrap();
    assert!(get(&server, "evil.example", "/livez").await.starts_with("HTTP/1.1 403"));
}

#[tokio::test]
async fn every_service_reads_compressed_messages_and_names_the_encodings() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let channel = server.channel().await;
    for encoding in [CompressionEncoding::Gzip, CompressionEncoding::Deflate, CompressionEncoding::Zstd] {
        let mut health = HealthClient::new(channel.clone()).send_compressed(encoding);
        let answer = health.check(HealthCheckRequest { service: "m".into() }).await.unwrap().into_inner();
        assert_eq!(answer.status, 1, "{encoding:?}");
        let mut native =
            proto::model_server_client::ModelServerClient::new(channel.clone()).send_compressed(encoding);
        native.infer(request("m", vec![f32s("x", &[64], &[1.0; 64])])).await.unwrap();
        native.list_models(proto::ListModelsRequest::default()).await.unwrap();
    }
    let mut asked = http::Request::post("/grpc.health.v1.Health/Check");
    for (name, value) in [("content-type", "application/grpc"), ("grpc-encoding", "br")] {
        asked = asked.header(name, value);
    }
    let refused = channel.clone().oneshot(asked.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(refused.headers()["grpc-status"], "12");
    let encodings = refused.headers()["grpc-accept-encoding"].to_str().unwrap();
    assert!(["gzip", "deflate", "zstd"].iter().all(|encoding| encodings.contains(encoding)), "{encodings}");
}

#[tokio::test]
async fn a_watch_of_a_model_that_is_not_there_yet_sees_it_come_and_go() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let mut health = HealthClient::new(server.channel().await);
    let watch = HealthCheckRequest { service: "later".into() };
    let mut statuses = health.watch(watch.clone()).await.unwrap().into_inner();
    let mut next = async || {
        let next = tokio::time::timeout(Duration::from_secs(20), statuses.next()).await.unwrap();
        next.unwrap().unwrap().status
    };
    assert_eq!(next().await, 3, "SERVICE_UNKNOWN, and the stream goes on");
    assert_eq!(health.check(watch).await.unwrap_err().code(), Code::NotFound);
    version(dir.path(), "later", 1, "");
    client.reload_model(reload("later", 1)).await.unwrap();
    while next().await != 1 {}
    client.unload_model(proto::UnloadModelRequest { model: "later".into() }).await.unwrap();
    assert_eq!(next().await, 2, "NOT_SERVING");
}

fn infer_m(outputs: Vec<oip::model_infer_request::InferRequestedOutputTensor>) -> oip::ModelInferRequest {
    let input = oip::model_infer_request::InferInputTensor {
        name: "x".into(),
        datatype: "FP32".into(),
        shape: vec![1, 2],
        ..Default::default()
    };
    let raw = [1.0_f32, 2.0].iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    oip::ModelInferRequest {
        model_name: "m".into(),
        inputs: vec![input],
        outputs,
        raw_input_contents: vec![raw.into()],
        ..Default::default()
    }
}

#[tokio::test]
async fn a_call_that_ends_during_its_pass_is_a_failure_and_no_success() {
    let dir = repository(&[("m", "delay_ms = 400")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut open = oip(&server).await;
    let mut late = Request::new(infer_m(Vec::new()));
    late.set_timeout(Duration::from_millis(100));
    open.model_infer(late).await.unwrap_err();
    let mut left = open.clone();
    let mut counts = async || {
        let asked = oip::ModelStatisticsRequest { name: "m".into(), ..Default::default() };
        let stats = open.model_statistics(asked).await.unwrap().into_inner().model_stats.remove(0);
        let each = stats.inference_stats.unwrap();
        let (success, fail) = (each.success.unwrap().count, each.fail.unwrap().count);
        (success, fail, stats.execution_count, stats.inference_count)
    };
    until(async || counts().await.2 == 1).await;
    // The caller leaves.
    let _left = tokio::time::timeout(Duration::from_millis(100), left.model_infer(infer_m(Vec::new()))).await;
    until(async || counts().await.2 == 2).await;
    assert_eq!(counts().await, (0, 2, 2, 0));
    oip(&server).await.model_infer(infer_m(Vec::new())).await.unwrap();
    assert_eq!(counts().await, (1, 2, 3, 1));
}

#[tokio::test]
async fn an_answer_goes_to_the_region_that_had_the_name_when_the_request_came() {
    let dir = repository(&[("m", "delay_ms = 500\nscale = 2.0")]);
    let server = Server::fake(dir.path(), |settings| settings.oip.shared_memory = true);
    let mut open = oip(&server).await;
    let objects: Vec<_> = (0..2)
        .map(|_| {
            let object = tempfile::Builder::new().prefix("torchlane-test-").tempfile_in("/dev/shm").unwrap();
            object.as_file().set_len(8).unwrap();
            object
        })
        .collect();
    let register = |at: usize| oip::SystemSharedMemoryRegisterRequest {
        name: "r".into(),
        key: format!("/{}", objects[at].path().file_name().unwrap().to_str().unwrap()),
        offset: 0,
        byte_size: 8,
    };
    open.system_shared_memory_register(register(0)).await.unwrap();
    let parameter = |choice| oip::InferParameter { parameter_choice: Some(choice) };
    let parameters = [
        (
            "shared_memory_region".to_owned(),
            parameter(oip::infer_parameter::ParameterChoice::StringParam("r".into())),
        ),
        (
            "shared_memory_byte_size".to_owned(),
            parameter(oip::infer_parameter::ParameterChoice::Int64Param(8)),
        ),
    ];
    let output = oip::model_infer_request::InferRequestedOutputTensor {
        name: "output_0".into(),
        parameters: parameters.into(),
    };
    let asked = infer_m(vec![output]);
    let mut other = open.clone();
    let answer = tokio::spawn(async move { other.model_infer(asked).await });
    tokio::time::sleep(Duration::from_millis(150)).await;
    open.system_shared_memory_unregister(oip::SystemSharedMemoryUnregisterRequest { name: "r".into() })
        .await
        .unwrap();
    open.system_shared_memory_register(register(1)).await.unwrap();
    answer.await.unwrap().unwrap();
    let doubled: Vec<u8> = [2.0_f32, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert_eq!(fs::read(objects[0].path()).unwrap(), doubled);
    assert_eq!(fs::read(objects[1].path()).unwrap(), [0; 8]);
}

#[tokio::test]
async fn a_connection_goes_on_after_an_early_refusal_or_says_that_it_ends() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    for (head, body) in
        [("POST /nothing", 30_000), ("POST /v2/models/m/infer HTTP/1.1\r\nx-timeout-ms: soon", 30_000)]
    {
        let (head, more) = head
            .split_once(" HTTP/1.1\r\n")
            .map_or((head, String::new()), |(head, more)| (head, format!("{more}\r\n")));
        let mut stream = tokio::net::TcpStream::connect(server.http).await.unwrap();
        let sent = format!("{head} HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {body}\r\n\r\n");
        stream.write_all(sent.as_bytes()).await.unwrap();
        // As Python's http.client: the body follows by itself.
        tokio::time::sleep(Duration::from_millis(30)).await;
        stream.write_all(&vec![b' '; body]).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 4") && said.contains("HTTP/1.1 200"), "{head}: {said}");
    }
    // A connection of a probe carries one request.
    for head in
        ["POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000", "PUT /livez HTTP/1.1\r\nHost: x"]
    {
        let mut stream = tokio::net::TcpStream::connect(server.http).await.unwrap();
        stream.write_all(format!("{head}\r\n\r\n").as_bytes()).await.unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).await.unwrap();
        assert!(said.to_lowercase().contains("\r\nconnection: close\r\n"), "{said}");
    }
}

#[tokio::test]
async fn what_nothing_declares_is_learned_from_answers() {
    let dir = repository(&[("m", "inputs = ['x']\nscale = 2.0")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut open = oip(&server).await;
    let metadata = async || call(&server, "GET", "/v2/models/m", &[], b"").await.json();
    let before = metadata().await;
    assert_eq!(before["inputs"], json!([{"name": "x", "datatype": "", "shape": [-1]}]));
    open.model_infer(infer_m(Vec::new())).await.unwrap();
    let after = metadata().await;
    assert_eq!(after["inputs"], json!([{"name": "x", "datatype": "FP32", "shape": [1, 2]}]));
    assert_eq!(after["outputs"], json!([{"name": "output_0", "datatype": "FP32", "shape": [1, 2]}]));
    let config = call(&server, "GET", "/v2/models/m/config", &[], b"").await.json();
    assert_eq!(
        (&config["max_batch_size"], &config["input"][0]["data_type"]),
        (&json!(0), &json!("TYPE_FP32"))
    );
    assert_eq!(config["input"][0]["dims"], json!([1, 2]), "as the metadata has it");
    let longer = json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [3, 2], "data": [[1, 2], [3, 4], [5, 6]]}]});
    call(&server, "POST", "/v2/models/m/infer", &[], longer.to_string().as_bytes()).await;
    assert_eq!(metadata().await["inputs"][0]["shape"], json!([-1, 2]));
}

#[tokio::test]
async fn callers_are_not_told_where_files_are() {
    let dir = repository(&[("m", "")]);
    version(dir.path(), "m", 2, "");
    fs::write(dir.path().join("m/2/samples.safetensors"), "none").unwrap();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let root = dir.path().to_str().unwrap();
    let digest = proto::ReloadModelRequest { expected_sha256: "0".repeat(64), ..reload("m", 1) };
    let wrong = client.reload_model(digest).await.unwrap_err();
    assert!(wrong.message().contains("sha256 of m/1/model.pt is "), "{wrong}");
    let failed = client.reload_model(reload("m", 2)).await.unwrap_err();
    assert!(failed.message().contains("m/2/samples.safetensors: "), "{failed}");
    for status in [&wrong, &failed] {
        assert!(!format!("{status:?}").contains(root), "{status:?}");
    }
    let listed = client.list_models(proto::ListModelsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.models[0].last_error, failed.message());
    let changes = client.list_changes(proto::ListChangesRequest::default()).await.unwrap().into_inner();
    assert!(!format!("{changes:?}").contains(root), "{changes:?}");
    for (method, path) in
        [("GET", "/console/state"), ("GET", "/console/models/m"), ("POST", "/v2/repository/index")]
    {
        let answer = call(&server, method, path, &[], b"").await;
        assert!(!String::from_utf8_lossy(&answer.body).contains(root), "{path}");
    }
}

#[tokio::test]
async fn every_answer_of_a_stream_says_that_it_is_the_last_of_its_request() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut open = oip(&server).await;
    let unknown = oip::ModelInferRequest { model_name: "none".into(), ..infer_m(Vec::new()) };
    let asked = futures::stream::iter([infer_m(Vec::new()), unknown]);
    let answers: Vec<_> = open.model_stream_infer(asked).await.unwrap().into_inner().collect().await;
    assert_eq!(answers.len(), 2);
    for answer in answers {
        let response = answer.unwrap().infer_response.unwrap();
        assert!(response.parameters.contains_key("triton_final_response"), "{response:?}");
    }
}

#[tokio::test]
async fn a_request_has_no_more_fields_than_a_model_could_use() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let good = || request("m", vec![f32s("x", &[1], &[1.0])]);
    let many = || proto::InferRequest { outputs: vec![String::new(); 5000], ..good() };
    let status = client.infer(many()).await.unwrap_err();
    assert_eq!(reason(&status), "BAD_REQUEST");
    assert_eq!(status.message(), "the message has more than 4096 inputs, outputs and parameters");
    let asked = futures::stream::iter([good(), good(), many(), good()]);
    let mut answers = client.infer_stream(asked).await.unwrap().into_inner();
    for _ in 0..2 {
        let answer = answers.message().await.unwrap().unwrap();
        assert!(
            matches!(answer.result, Some(proto::infer_stream_response::Result::Response(_))),
            "{answer:?}"
        );
    }
    assert_eq!(reason(&answers.message().await.unwrap_err()), "BAD_REQUEST");
    let mut open = oip(&server).await;
    let status = open.model_infer(infer_m(vec![Default::default(); 5000])).await.unwrap_err();
    assert_eq!(reason(&status), "BAD_REQUEST");
    let metrics = server.get("/metrics").await.1;
    let counted = "torchlane_refusals_total{door=\"grpc\",reason=\"BAD_REQUEST\"} 3";
    assert!(metrics.contains(counted), "{metrics}");
}

#[tokio::test]
async fn long_lists_come_and_go_like_short_ones() {
    let dir = repository(&[("m", "scale = 2.0")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    for count in [3, 200_000] {
        let values: Vec<f32> = (0..count).map(|value| value as f32).collect();
        let doubled: Vec<f32> = values.iter().map(|value| 2.0 * value).collect();
        let typed = proto::Tensor {
            name: "x".into(),
            datatype: "FP32".into(),
            shape: vec![1, count],
            float_data: values.clone(),
            ..Default::default()
        };
        let wanted = |inputs, typed: &str| proto::InferRequest {
            parameters: [("typed".to_owned(), typed.to_owned())].into(),
            ..request("m", inputs)
        };
        let raw = || f32s("x", &[1, count], &values);
        for (inputs, form) in
            [(typed.clone(), "true"), (typed.clone(), "false"), (raw(), "true"), (raw(), "false")]
        {
            let answer = client.infer(wanted(vec![inputs], form)).await.unwrap().into_inner();
            let output = &answer.outputs[0];
            let got = if form == "true" { output.float_data.clone() } else { floats(output) };
            assert!(got == doubled, "{count} {form}");
        }
        let asked = futures::stream::iter([wanted(vec![typed.clone()], "true"), wanted(vec![raw()], "true")]);
        let mut answers = client.infer_stream(asked).await.unwrap().into_inner();
        for _ in 0..2 {
            match answers.message().await.unwrap().unwrap().result {
                Some(proto::infer_stream_response::Result::Response(answer)) => {
                    assert!(answer.outputs[0].float_data == doubled, "{count}");
                }
                other => panic!("{other:?}"),
            }
        }
    }
}
