//! Requests that are refused before they are read: each is counted once, by its door and reason, and as no request of a model's.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use prost::Message as _;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Request, transport::Channel};
use torchlane::proto::{self, inference as oip};

use super::{
    edges, ending,
    fake::{repository, version},
    oip::call,
    server::{Client, Server, f32s, reason, request, until},
};

type Oip = oip::grpc_inference_service_client::GrpcInferenceServiceClient<Channel>;

fn one() -> proto::InferRequest {
    request("m", vec![f32s("x", &[1], &[1.0])])
}

/// The value of the first line that starts so; 0 where there is none.
async fn metric(server: &Server, line: &str) -> f64 {
    let (_, text) = server.get("/metrics").await;
    let found = text.lines().find(|text| text.starts_with(line));
    found.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

async fn refused(server: &Server, door: &str, reason: &str) -> f64 {
    metric(server, &format!("torchlane_refusals_total{{door=\"{door}\",reason=\"{reason}\"}}")).await
}

/// All that were counted, and all requests.
async fn totals(server: &Server) -> (f64, f64) {
    let (_, text) = server.get("/metrics").await;
    let sum = |name: &str| {
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    };
    (sum("torchlane_refusals_total{"), sum("torchlane_requests_total{"))
}

const JSON: (&str, &str) = ("Content-Type", "application/json");

#[tokio::test]
async fn what_the_http_port_refuses_is_counted_by_its_reason() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.server.max_message_bytes = bytesize::ByteSize::b(512);
    });
    server.ready().await;
    let good =
        json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}).to_string();
    let misfit = good.replace("FP32", "INT99");
    let long = " ".repeat(600);
    let bad = "BAD_REQUEST";
    for (headers, body, reason) in [
        (vec![JSON, ("x-timeout-ms", "soon")], good.as_str(), bad),
        (vec![JSON, ("Content-Encoding", "br")], &good, bad),
        (vec![JSON, ("x-priority", "URGENT")], &good, bad),
        (vec![JSON, ("inference-header-content-length", "-1")], &good, bad),
        (vec![JSON], "{\"inputs\": ", bad),
        (vec![JSON], &long, "MESSAGE_TOO_LARGE"),
        (vec![JSON], &misfit, "WRONG_DATATYPE"),
    ] {
        let before = (refused(&server, "http", reason).await, totals(&server).await);
        let answer = call(&server, "POST", "/v2/models/m/infer", &headers, body.as_bytes()).await;
        assert_eq!(answer.error().1, reason, "{headers:?} {body}");
        let (refusals, requests) = before.1;
        assert_eq!(refused(&server, "http", reason).await, before.0 + 1.0, "{headers:?} {body}");
        assert_eq!(totals(&server).await, (refusals + 1.0, requests), "once, and as no request: {body}");
    }
    // What was read is a request, whatever becomes of it.
    let (refusals, requests) = totals(&server).await;
    for (path, status) in [("/v2/models/m/infer", 200), ("/v2/models/none/infer", 404)] {
        assert_eq!(call(&server, "POST", path, &[JSON], good.as_bytes()).await.status, status);
    }
    // Other calls are no inference.
    let load = "/v2/repository/models/m/load";
    assert_eq!(call(&server, "POST", load, &[JSON], b"{").await.error().1, bad);
    assert_eq!(totals(&server).await, (refusals, requests + 2.0));
}

#[tokio::test]
async fn what_the_grpc_port_refuses_is_counted_by_its_reason() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.server.max_message_bytes = bytesize::ByteSize::b(8192);
        settings.admission.max_deadline = Duration::from_millis(300);
    });
    let mut client = server.ready().await;
    let mut open = Oip::new(server.channel().await);
    let (bad, large) = ("BAD_REQUEST", "MESSAGE_TOO_LARGE");
    let late = "DEADLINE_EXCEEDED";

    let mut timeout = Request::new(one());
    timeout.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    assert_eq!(reason(&client.infer(timeout).await.unwrap_err()), bad);
    assert_eq!(refused(&server, "grpc", bad).await, 1.0, "a deadline that cannot be read");

    let unread = edges::call(server.channel().await, edges::INFER, stream::empty()).await.unwrap_err();
    assert_eq!(reason(&unread), "UNIMPLEMENTED");
    assert_eq!(refused(&server, "grpc", "UNIMPLEMENTED").await, 1.0, "no message");

    let mut lane = Request::new(one());
    lane.metadata_mut().insert("x-priority", "URGENT".parse().unwrap());
    assert_eq!(reason(&client.infer(lane).await.unwrap_err()), bad);
    assert_eq!(refused(&server, "grpc", bad).await, 2.0, "a lane that there is not");

    let torn = oip::ModelInferRequest {
        model_name: "m".into(),
        raw_input_contents: vec![vec![1].into()],
        ..Default::default()
    };
    let status = open.model_infer(torn).await.unwrap_err();
    let why = reason(&status);
    assert_eq!(refused(&server, "grpc", &why).await, if why == bad { 3.0 } else { 1.0 }, "{status}");
    let (refusals, _) = totals(&server).await;
    assert_eq!(refusals, 4.0);

    let long = request("m", vec![f32s("x", &[4000], &[0.5; 4000])]);
    assert_eq!(reason(&client.infer(long.clone()).await.unwrap_err()), large);
    assert_eq!(refused(&server, "grpc", large).await, 1.0);
    // In a stream too, after what came before it.
    let mut answers = client.infer_stream(stream::iter([one(), long])).await.unwrap().into_inner();
    answers.next().await.unwrap().unwrap();
    assert_eq!(reason(&answers.next().await.unwrap().unwrap_err()), large);
    assert_eq!(refused(&server, "grpc", large).await, 2.0);

    let silent = edges::call(server.channel().await, edges::INFER, stream::pending()).await.unwrap_err();
    assert_eq!(reason(&silent), late);
    assert_eq!(refused(&server, "grpc", late).await, 1.0);

    // Calls that are no inference are not counted, nor is an answer that is too long: its request was one.
    let (refusals, requests) = totals(&server).await;
    let mut admin = Request::new(proto::ListModelsRequest {});
    admin.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    assert_eq!(reason(&client.list_models(admin).await.unwrap_err()), bad);
    let mut echoed = request("m", vec![f32s("x", &[2000], &[0.5; 2000])]);
    // As long as may be, so that the answer, which repeats it, is too long.
    echoed.request_id = "i".repeat(8192 - echoed.encoded_len() - 3);
    assert_eq!(reason(&client.infer(echoed).await.unwrap_err()), large);
    assert_eq!(totals(&server).await, (refusals, requests + 1.0));
}

#[tokio::test]
async fn what_would_be_one_too_many_is_counted_at_both_doors() {
    let dir = repository(&[("m", "")]);
    let gate = dir.path().join("gate");
    std::fs::write(&gate, "").unwrap();
    version(dir.path(), "slow", 1, &format!("hang_while = '{}'", gate.display()));
    let server = Server::fake(dir.path(), |settings| settings.server.max_requests = 1);
    let mut client = server.ready().await;
    // A stream holds a place while it has a request, and no longer.
    let (hang_up, hung_up) = tokio::sync::oneshot::channel::<()>();
    let messages = stream::iter([one()]).chain(stream::pending()).take_until(hung_up);
    let mut open = client.infer_stream(messages).await.unwrap().into_inner();
    open.next().await.unwrap().unwrap();
    client.infer(one()).await.unwrap();

    let (first, second) = (one(), proto::InferRequest { request_id: "second".into(), ..one() });
    let slow = proto::InferRequest { model: "slow".into(), ..first };
    let mut both = client.infer_stream(stream::iter([slow, second])).await.unwrap().into_inner();
    let refusal = both.next().await.unwrap().unwrap();
    assert_eq!(refusal.request_id, "second");
    assert!(matches!(refusal.result, Some(proto::infer_stream_response::Result::Error(_))), "{refusal:?}");
    let mut other = Client::new(server.channel().await);
    assert_eq!(reason(&other.infer(one()).await.unwrap_err()), "OVERLOADED");
    assert_eq!(reason(&other.infer_stream(stream::iter([one()])).await.unwrap_err()), "OVERLOADED");
    let answer = call(&server, "POST", "/v2/models/m/infer", &[JSON], b"{}").await;
    assert_eq!(answer.error(), (429, "OVERLOADED".to_owned()));
    assert_eq!(refused(&server, "grpc", "OVERLOADED").await, 3.0);
    assert_eq!(refused(&server, "http", "OVERLOADED").await, 1.0);
    assert_eq!(totals(&server).await.1, 2.0, "the slow one is not answered yet");
    std::fs::remove_file(gate).unwrap();
    both.next().await.unwrap().unwrap();
    client.infer(one()).await.unwrap();
    drop((open, hang_up));
}

#[tokio::test]
async fn requests_that_never_come_whole_keep_nobody_out() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| settings.server.max_requests = 1);
    let mut client = server.ready().await;
    let mut slow = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(server.http).await.unwrap();
        let head = "POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 50000000\r\n\r\n{";
        stream.write_all(head.as_bytes()).await.unwrap();
        // Just enough not to be given up.
        slow.push(tokio::spawn(async move {
            while stream.write_all(&[b' '; 4096]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }));
    }
    let mut unsent = Vec::new();
    for _ in 0..3 {
        let channel = server.channel().await;
        unsent.push(tokio::spawn(edges::call(channel, edges::INFER, stream::pending())));
    }
    // They have arrived.
    until(async || metric(&server, "torchlane_in_flight_bytes").await >= 3.0 * 4096.0).await;
    for _ in 0..20 {
        client.infer(one()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(slow.iter().all(|slow| !slow.is_finished()), "they send on");
    unsent.iter().for_each(|call| call.abort());
    slow.iter().for_each(|slow| slow.abort());
}

#[tokio::test]
async fn answers_that_nobody_reads_count_until_they_are_gone() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.server.max_in_flight_bytes = bytesize::ByteSize::mib(64);
        settings.server.caller_share = 1.0;
        settings.pressure.in_flight_bytes = 0.0;
    });
    let mut client = server.ready().await;
    // More than the buffers of the connection take.
    let (rows, bytes) = (4 << 20, 16 << 20);
    let mut unread = ending::ask(&server, "m").await;
    let mut first = [0; 12];
    unread.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let large = || request("m", vec![f32s("x", &[rows], &vec![1.0; rows as usize])]);
    let answer_bytes = || async { metric(&server, "torchlane_in_flight_bytes").await };
    assert!(answer_bytes().await >= bytes as f64);
    // By gRPC no more is sent than a window.
    let (hang_up, hung_up) = tokio::sync::oneshot::channel::<()>();
    let messages = stream::iter([large()]).chain(stream::pending()).take_until(hung_up);
    let stream = client.infer_stream(messages).await.unwrap();
    until(async || answer_bytes().await >= 2.0 * bytes as f64).await;
    let one_answer = edges::begin(server.channel().await, edges::INFER, large()).await.unwrap();
    until(async || answer_bytes().await >= 3.0 * bytes as f64).await;
    let refused = client.infer(large()).await.unwrap_err();
    assert_eq!(
        (reason(&refused).as_str(), refused.message().contains("bytes of answers")),
        ("OVERLOADED", true)
    );
    client.infer(one()).await.unwrap();
    drop((unread, one_answer, stream, hang_up));
    until(async || answer_bytes().await == 0.0).await;
    client.infer(large()).await.unwrap();
}

#[tokio::test]
async fn an_answer_in_json_is_held_to_the_longest_message() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.server.max_message_bytes = bytesize::ByteSize::kib(8);
    });
    server.ready().await;
    let raw = |rows: usize| {
        let size = json!({"binary_data_size": rows * 4});
        let json =
            json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [rows], "parameters": size}]});
        let data = 0.123_456_79_f32.to_le_bytes().repeat(rows);
        (json.to_string().len(), [json.to_string().into_bytes(), data].concat())
    };
    for (rows, status) in [(500, 200), (1900, 413)] {
        let (length, body) = raw(rows);
        let length = length.to_string();
        let headers = [JSON, ("inference-header-content-length", length.as_str())];
        let answer = call(&server, "POST", "/v2/models/m/infer", &headers, &body).await;
        assert_eq!(answer.status, status, "{rows}");
    }
}

#[tokio::test]
async fn bytes_for_which_there_is_no_room_are_counted_at_both_doors() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.server.max_in_flight_bytes = bytesize::ByteSize::kib(512);
        settings.pressure.in_flight_bytes = 0.0;
    });
    let mut client = server.ready().await;
    let large = request("m", vec![f32s("x", &[1 << 18], &vec![0.5; 1 << 18])]);
    assert_eq!(reason(&client.infer(large).await.unwrap_err()), "OVERLOADED");
    assert_eq!(refused(&server, "grpc", "OVERLOADED").await, 1.0);
    let answer = call(&server, "POST", "/v2/models/m/infer", &[JSON], &vec![b' '; 1 << 20]).await;
    assert_eq!(answer.error(), (429, "OVERLOADED".to_owned()));
    assert_eq!(refused(&server, "http", "OVERLOADED").await, 1.0);
    assert_eq!(totals(&server).await, (2.0, 0.0));
}
