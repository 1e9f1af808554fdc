//! Requests by HTTP as no client library would send them: paths, headers and bodies byte by byte.

use std::io::Write as _;

use flate2::{Compression, write::GzEncoder};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use torchlane::proto;

use super::{
    fake::{reload, repository},
    oip::{call, oip},
    server::{Server, f32s, reason, request},
};

/// All that the server says until it closes the connection.
async fn said(server: &Server, sent: impl AsRef<[u8]>) -> String {
    let mut stream = tokio::net::TcpStream::connect(server.http).await.unwrap();
    stream.write_all(sent.as_ref()).await.unwrap();
    let mut whole = Vec::new();
    stream.read_to_end(&mut whole).await.unwrap();
    String::from_utf8(whole).unwrap()
}

/// Status, and the error as every refusal has it.
fn refusal(said: &str) -> (u16, String, String) {
    let (head, body) = said.split_once("\r\n\r\n").expect("no end of headers");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let json: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("no JSON: {said}"));
    let reason = head.lines().find_map(|line| line.strip_prefix("torchlane-reason: ")).expect("no reason");
    (status, reason.to_owned(), json["error"].as_str().unwrap().to_owned())
}

fn one() -> String {
    json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}).to_string()
}

#[tokio::test]
async fn every_refusal_of_the_port_is_json() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let close = "Host: x\r\nConnection: close\r\n\r\n";
    for (line, status, reason) in [
        ("GET /v2/models/%ff", 400, "BAD_REQUEST"),
        ("POST /v2/models/%ff/infer", 400, "BAD_REQUEST"),
        ("GET /v2/models/m/versions/%c3%28", 400, "BAD_REQUEST"),
        ("GET /v2/systemsharedmemory/region/%ff/status", 400, "BAD_REQUEST"),
        ("GET /console/models/%ff", 400, "BAD_REQUEST"),
        ("GET /v2/models/%0a%1b", 404, "UNKNOWN_MODEL"),
        ("GET /nothing", 404, "UNIMPLEMENTED"),
        ("POST /livez", 405, "UNIMPLEMENTED"),
        ("DELETE /metrics", 405, "UNIMPLEMENTED"),
        ("POST /", 405, "UNIMPLEMENTED"),
        ("PUT /console/state", 405, "UNIMPLEMENTED"),
        ("GET /v2/models/m/infer", 405, "UNIMPLEMENTED"),
    ] {
        let (is, why, message) = refusal(&said(&server, format!("{line} HTTP/1.1\r\n{close}")).await);
        assert_eq!((is, why.as_str()), (status, reason), "{line}: {message}");
        assert!(!message.contains(char::is_control), "{message:?}");
    }
    // A name with a line break does not cut what is said of it.
    let (_, _, message) = refusal(&said(&server, format!("GET /v2/models/a%0ab HTTP/1.1\r\n{close}")).await);
    assert!(message.contains(r"'a\nb'") && message.contains("this server has"), "{message}");
}

#[tokio::test]
async fn a_request_names_its_host_once() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    for path in ["/", "/livez", "/metrics", "/v2", "/v2/models/m", "/console/state", "/nothing"] {
        for (hosts, says) in [("", "Host is missing"), ("Host: x\r\nhost: x\r\n", "more than once")] {
            let sent = format!("GET {path} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
            let (status, reason, message) = refusal(&said(&server, sent).await);
            assert_eq!((status, reason.as_str()), (400, "BAD_REQUEST"), "{path}");
            assert!(message.contains(says), "{message}");
        }
    }
    assert!(
        said(&server, "GET /livez HTTP/1.0\r\n\r\n").await.starts_with("HTTP/1.0 200"),
        "1.0 has no Host"
    );
}

#[tokio::test]
async fn a_body_has_one_length_and_nothing_behind_it_is_a_request() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let body = one();
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let hidden = "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n";
    for lengths in [
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n".to_owned(),
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n".to_owned(),
    ] {
        let sent = format!("POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n{lengths}\r\n{chunked}{hidden}");
        // hyper goes by the chunks and closes the connection, one of the two things that RFC 9112 allows.
        let said = said(&server, sent).await;
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{said}");
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    }
    for lengths in [
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Transfer-Encoding: gzip\r\n",
        "Content-Length: +4\r\n",
    ] {
        let sent = format!("POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\n{lengths}\r\nabcd{hidden}");
        let said = said(&server, sent).await;
        assert_eq!(said.matches("HTTP/1.1 ").count(), 1, "{said}");
        assert!(said.starts_with("HTTP/1.1 400"), "{said}");
    }
}

#[tokio::test]
async fn a_header_that_means_one_thing_comes_once() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| settings.console.admin = true);
    let mut native = server.ready().await;
    let mut open = oip(&server).await;
    let body = one();
    let length = body.len().to_string();
    for (name, value) in [
        ("inference-header-content-length", length.as_str()),
        ("x-timeout-ms", "5000"),
        ("x-priority", "1"),
        ("x-tenant", "lab"),
        ("content-encoding", "gzip"),
    ] {
        let twice = [(name, value), (name, value)];
        let answer = call(&server, "POST", "/v2/models/m/infer", &twice, body.as_bytes()).await;
        assert_eq!(answer.error(), (400, "BAD_REQUEST".to_owned()), "{name}");
        assert!(answer.json()["error"].as_str().unwrap().contains(name), "{}", answer.json());
    }
    for name in ["origin", "x-tenant", "x-timeout-ms"] {
        let twice = [(name, "http://x"), (name, "http://elsewhere.example")];
        let answer = call(&server, "POST", "/v2/repository/models/m/load", &twice, b"").await;
        assert_eq!(answer.error(), (400, "BAD_REQUEST".to_owned()), "{name}");
    }
    for name in ["x-priority", "x-tenant"] {
        let twice = |request: &mut tonic::metadata::MetadataMap| {
            for value in ["1", "2"] {
                request.append(name, value.parse().unwrap());
            }
        };
        let mut asked = tonic::Request::new(request("m", vec![f32s("x", &[1], &[1.0])]));
        twice(asked.metadata_mut());
        let status = native.infer(asked).await.unwrap_err();
        assert_eq!(reason(&status), "BAD_REQUEST");
        assert!(status.message().contains(name), "{status}");
    }
    let mut reload =
        tonic::Request::new(proto::ReloadModelRequest { model: "m".into(), ..Default::default() });
    let mut load = tonic::Request::new(proto::inference::RepositoryModelLoadRequest {
        model_name: "m".into(),
        ..Default::default()
    });
    for metadata in [reload.metadata_mut(), load.metadata_mut()] {
        metadata.append("x-tenant", "lab".parse().unwrap());
        metadata.append("x-tenant", "ward".parse().unwrap());
    }
    assert_eq!(reason(&native.reload_model(reload).await.unwrap_err()), "BAD_REQUEST");
    assert_eq!(reason(&open.repository_model_load(load).await.unwrap_err()), "BAD_REQUEST");
}

#[tokio::test]
async fn a_compressed_body_is_read_to_its_end_or_refused() {
    let dir = repository(&[("m", "scale = 2.0")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let member = |text: &str| {
        let mut member = GzEncoder::new(Vec::new(), Compression::default());
        member.write_all(text.as_bytes()).unwrap();
        member.finish().unwrap()
    };
    let whole = one();
    let (begin, end) = whole.split_at(20);
    let two = [member(begin), member(end)].concat();
    for coding in ["gzip", "GZIP", "x-gzip", "identity, gzip"] {
        let answer = call(&server, "POST", "/v2/models/m/infer", &[("Content-Encoding", coding)], &two).await;
        assert_eq!((answer.status, &answer.json()["outputs"][0]["data"]), (200, &json!([2.0])), "{coding}");
    }
    for (coding, body) in [
        ("gzip", [&two[..], b"behind"].concat()),
        ("gzip", two[..two.len() - 1].to_vec()),
        ("gzip, gzip", two.clone()),
        ("compress", two.clone()),
    ] {
        for path in ["/v2/models/m/infer", "/v2/repository/index"] {
            let answer = call(&server, "POST", path, &[("Content-Encoding", coding)], &body).await;
            assert_eq!(answer.error(), (400, "BAD_REQUEST".to_owned()), "{coding} {path}");
        }
    }
}

#[tokio::test]
async fn a_model_called_as_a_route_is_serves_and_no_name_looks_like_an_option() {
    let dir = repository(&[("stats", "scale = 2.0"), ("-rf", ""), ("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let index = call(&server, "POST", "/v2/repository/index", &[], b"").await.json();
    let names: Vec<_> = index.as_array().unwrap().iter().map(|line| line["name"].clone()).collect();
    assert_eq!(names, ["m", "stats"]);
    let answer = call(&server, "POST", "/v2/models/stats/infer", &[], one().as_bytes()).await;
    assert_eq!(answer.json()["outputs"][0]["data"], json!([2.0]));
    assert!(call(&server, "GET", "/v2/models/stats", &[], b"").await.json()["model_stats"].is_array());
    let metadata = call(&server, "GET", "/v2/models/stats/versions/1", &[], b"").await.json();
    assert_eq!(metadata["name"], "stats");
    let refused = call(&server, "POST", "/v2/repository/models/-rf/load", &[], b"").await;
    assert_eq!(refused.error(), (404, "UNKNOWN_MODEL".to_owned()));

    let settings = torchlane::config::Settings {
        repositories: vec![dir.path().to_owned()],
        backend: torchlane::config::BackendKind::Fake,
        ..Default::default()
    };
    let checks = tokio::task::spawn_blocking(move || torchlane::app::check_models(&settings).unwrap());
    let warned: Vec<_> =
        checks.await.unwrap().into_iter().map(|check| (check.name, check.warnings.concat())).collect();
    assert_eq!(warned[0], ("m".to_owned(), String::new()));
    assert!(warned[1].0 == "stats" && warned[1].1.contains("/v2/models/stats/versions/"), "{warned:?}");
}

#[tokio::test]
async fn a_list_is_no_object_whatever_it_holds() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let change = |what: &str| format!("/v2/repository/models/m/{what}");
    for (path, body) in [
        (
            "/v2/models/m/infer",
            json!(["own", {}, [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}], []]),
        ),
        ("/v2/models/m/infer", json!({"inputs": [["x", [1], "FP32", {}, [1.0]]]})),
        ("/v2/models/m/infer", json!([])),
        ("/v2/repository/index", json!([true])),
        (&change("load"), json!([])),
        (&change("unload"), json!([])),
        (&change("unload"), json!([{}])),
        (&change("unload"), json!({"parameters": []})),
        ("/v2/logging", json!([])),
        ("/v2/systemsharedmemory/region/r/register", json!(["/r", 0, 8])),
    ] {
        let answer = call(&server, "POST", path, &[], body.to_string().as_bytes()).await;
        assert_eq!(answer.error(), (400, "BAD_REQUEST".to_owned()), "{path} {body}");
        let message = answer.json()["error"].to_string();
        assert!(message.contains("expected an object") && !message.contains("struct"), "{path}: {message}");
    }
    assert_eq!(
        call(&server, "GET", "/v2/models/m/ready", &[], b"").await.status,
        200,
        "and none was carried out"
    );
}

#[tokio::test]
async fn a_model_that_is_not_there_is_told_with_those_that_are() {
    let dir = repository(&[("m", ""), ("n", "")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let expected = "no model 'nope': this server has m, n";
    for (method, path) in [
        ("GET", "/v2/models/nope"),
        ("GET", "/v2/models/nope/ready"),
        ("GET", "/v2/models/nope/config"),
        ("GET", "/v2/models/nope/stats"),
        ("POST", "/v2/repository/models/nope/load"),
        ("POST", "/v2/repository/models/nope/unload"),
        ("GET", "/console/models/nope"),
    ] {
        let answer = call(&server, method, path, &[], b"").await;
        assert_eq!((answer.status, &answer.json()["error"]), (404, &json!(expected)), "{path}");
    }
    let infer = client.infer(request("nope", vec![f32s("x", &[1], &[1.0])])).await.unwrap_err();
    let get = client.get_model(proto::GetModelRequest { model: "nope".into() }).await.unwrap_err();
    let reload = client.reload_model(reload("nope", 1)).await.unwrap_err();
    for status in [infer, get, reload] {
        assert_eq!((reason(&status).as_str(), status.message()), ("UNKNOWN_MODEL", expected));
    }
}

#[tokio::test]
async fn what_does_not_inflate_is_refused_with_a_reason_by_grpc() {
    use tower::Service as _;

    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    // Said to be compressed, and four bytes long.
    let message = bytes::Bytes::from_static(b"\x01\0\0\0\x04junk");
    let sent = http::Request::post("http://x/inference.GRPCInferenceService/ModelInfer")
        .header("content-type", "application/grpc")
        .header("grpc-encoding", "gzip")
        .header("te", "trailers")
        .body(tonic::body::Body::new(http_body_util::Full::new(message)))
        .unwrap();
    let mut channel = server.channel().await;
    std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
    let answer = channel.call(sent).await.unwrap();
    let status = tonic::Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(reason(&status), "BAD_REQUEST", "{status}");
    assert!(status.message().contains("does not inflate"), "{status}");
}
