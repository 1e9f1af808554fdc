//! At the edges of the protocol and of the server's life: calls that are no good, changes that cross, the end.

use std::{fs, time::Duration};

use futures::{StreamExt as _, stream};
use prost::Message as _;
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use torchlane::proto::{self, ModelState, infer_stream_response};

use super::{
    fake::{reload, repository, version},
    server::{Client, Server, f32s, reason, request, until},
};

fn one(model: &str) -> proto::InferRequest {
    request(model, vec![f32s("x", &[1], &[1.0])])
}

/// A call of any method with any number of messages.
pub async fn call(
    channel: Channel,
    path: &'static str,
    messages: impl stream::Stream<Item = proto::InferRequest> + Send + 'static,
) -> Result<proto::InferResponse, Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::default();
    grpc.client_streaming(Request::new(messages), PathAndQuery::from_static(path), codec)
        .await
        .map(|r| r.into_inner())
}

/// A call with one message, whose answer is not read yet.
pub async fn begin(
    channel: Channel,
    path: &'static str,
    message: proto::InferRequest,
) -> Result<tonic::Streaming<proto::InferResponse>, Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::default();
    let begun = grpc.server_streaming(Request::new(message), PathAndQuery::from_static(path), codec);
    begun.await.map(|r| r.into_inner())
}

pub const INFER: &str = "/torchlane.v1.ModelServer/Infer";

#[tokio::test]
async fn every_refusal_has_a_reason() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.server.max_message_bytes = bytesize::ByteSize::b(8192);
    });
    let mut client = server.ready().await;
    let channel = server.channel().await;
    let unknown = call(channel.clone(), "/torchlane.v1.ModelServer/Guess", stream::empty()).await;
    let unknown = unknown.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::Unimplemented, "UNIMPLEMENTED"));
    let empty = call(channel.clone(), INFER, stream::empty()).await.unwrap_err();
    assert_eq!((empty.code(), reason(&empty).as_str()), (Code::Unimplemented, "UNIMPLEMENTED"));
    let two = call(channel.clone(), INFER, stream::iter([one("m"), one("m")])).await.unwrap_err();
    assert_eq!((two.code(), reason(&two).as_str()), (Code::Unimplemented, "UNIMPLEMENTED"));

    // As long as may be, so that the answer, which repeats it, is too long.
    let mut long = request("m", vec![f32s("x", &[2000], &[0.5; 2000])]);
    long.request_id = "i".repeat(8192 - long.encoded_len() - 3);
    assert_eq!(long.encoded_len(), 8192);
    let status = client.infer(long.clone()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    assert!(status.message().starts_with("the answer has"), "{status}");

    // In a stream what came before is answered first.
    long.request_id.push_str("more");
    let mut answers = client.infer_stream(stream::iter([one("m"), long])).await.unwrap().into_inner();
    let first = answers.next().await.unwrap().unwrap();
    assert!(matches!(first.result, Some(infer_stream_response::Result::Response(_))));
    let status = answers.next().await.unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE"));
    assert!(status.message().starts_with("the message has"), "{status}");
}

#[tokio::test]
async fn a_call_that_sends_nothing_is_given_up() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.server.max_requests = 1;
        settings.admission.max_deadline = Duration::from_millis(200);
    });
    let mut client = server.ready().await;
    let silent = call(server.channel().await, INFER, stream::pending());
    let status = tokio::time::timeout(Duration::from_secs(20), silent).await.unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    client.infer(one("m")).await.unwrap();
}

#[tokio::test]
async fn who_does_not_read_answers_holds_nobody_up() {
    let dir = repository(&[("m", "delay_ms = 1"), ("other", "")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.admission.max_in_flight = 8;
        settings.server.grace = Duration::from_secs(1);
    });
    let mut client = server.ready().await;
    // More than the flow control of a connection lets through: the server cannot send, and nobody takes.
    let large = || request("m", vec![f32s("x", &[65536], &vec![1.0; 65536])]);
    let mut unread = Vec::new();
    for _ in 0..2 {
        let mut own = Client::new(server.channel().await);
        let messages = stream::iter((0..100).map(move |_| large())).chain(stream::pending());
        unread.push((own.infer_stream(messages).await.unwrap(), own));
    }
    until(async || {
        let (_, metrics) = server.get("/metrics").await;
        let mut ran =
            metrics.lines().filter(|line| line.starts_with("torchlane_batch_size_count{model=\"m\"}"));
        ran.any(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap() >= 128)
    })
    .await;
    for _ in 0..20 {
        let mut request = Request::new(one("other"));
        request.set_timeout(Duration::from_secs(5));
        client.infer(request).await.unwrap();
    }
    // The last ticket comes back a moment after its answer.
    until(async || {
        let (_, metrics) = server.get("/metrics").await;
        !metrics.lines().any(|line| line.starts_with("torchlane_in_flight{") && !line.ends_with(" 0"))
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_too_long_fails_alone_in_a_stream() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.server.max_message_bytes = bytesize::ByteSize::b(8192);
    });
    let mut client = server.ready().await;
    let mut long = request("m", vec![f32s("x", &[2000], &[0.5; 2000])]);
    long.request_id = "i".repeat(8192 - long.encoded_len() - 3);
    let answers = client.infer_stream(stream::iter([one("m"), long, one("m")])).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
    let errors: Vec<_> = answers
        .iter()
        .filter_map(|answer| match answer.result.as_ref().unwrap() {
            infer_stream_response::Result::Error(error) => {
                Some((error.code, answer.request_id.get(..1).unwrap()))
            }
            infer_stream_response::Result::Response(_) => None,
        })
        .collect();
    assert_eq!((answers.len(), errors), (3, vec![(Code::ResourceExhausted as i32, "i")]));
}

#[tokio::test]
async fn an_unloaded_model_has_not_failed_and_can_be_rolled_back_to() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    version(dir.path(), "m", 2, "load_error = 'broken'");
    client.reload_model(reload("m", 2)).await.unwrap_err();
    client.unload_model(proto::UnloadModelRequest { model: "m".into() }).await.unwrap();
    assert_eq!(state(&mut client, "m").await, ModelState::Unloaded);
    version(dir.path(), "m", 3, "");
    client.reload_model(reload("m", 3)).await.unwrap();
    let back = client.rollback_model(proto::RollbackModelRequest { model: "m".into() }).await.unwrap();
    assert_eq!(back.into_inner().live_version, "1");
    // A load that gives way is not the model's fault either.
    version(dir.path(), "m", 4, "load_delay_ms = 500");
    let mut admin = client.clone();
    let slow = tokio::spawn(async move { admin.reload_model(reload("m", 4)).await });
    until(async || state(&mut client.clone(), "m").await == ModelState::Reloading).await;
    client.unload_model(proto::UnloadModelRequest { model: "m".into() }).await.unwrap();
    assert_eq!(reason(&slow.await.unwrap().unwrap_err()), "SUPERSEDED");
    assert_eq!(state(&mut client, "m").await, ModelState::Unloaded);
}

#[tokio::test]
async fn a_reload_that_waits_for_old_requests_holds_up_no_other() {
    let dir = repository(&[("busy", "delay_ms = 3000"), ("m", "")]);
    version(dir.path(), "m", 2, "");
    let server = Server::fake(dir.path(), |settings| settings.admission.control_in_flight = 1);
    let mut client = server.ready().await;
    let mut caller = client.clone();
    let running = tokio::spawn(async move { caller.infer(one("busy")).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut admin = client.clone();
    let draining = tokio::spawn(async move { admin.reload_model(reload("busy", 1)).await });
    until(async || {
        let get = proto::GetModelRequest { model: "busy".into() };
        client.clone().get_model(get).await.unwrap().into_inner().generation == 2
    })
    .await;
    client.reload_model(reload("m", 1)).await.unwrap();
    assert!(!running.is_finished() && !draining.is_finished());
    running.await.unwrap().unwrap();
    assert!(draining.await.unwrap().unwrap().into_inner().phases.unwrap().drain.unwrap().seconds >= 1);
}

#[tokio::test]
async fn the_end_waits_for_a_reload_and_tells_streams() {
    let dir = repository(&[("m", "")]);
    version(dir.path(), "m", 2, "load_delay_ms = 1500");
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    client.reload_model(reload("m", 1)).await.unwrap();
    let mut open =
        client.infer_stream(stream::iter([one("m")]).chain(stream::pending())).await.unwrap().into_inner();
    open.next().await.unwrap().unwrap();
    let mut admin = client.clone();
    let reloading = tokio::spawn(async move { admin.reload_model(reload("m", 2)).await });
    until(async || state(&mut client.clone(), "m").await == ModelState::Reloading).await;
    server.stop();
    let status = open.next().await.unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    assert_eq!(reloading.await.unwrap().unwrap().into_inner().live_version, "2");
}

#[tokio::test]
async fn the_end_does_not_wait_for_loads_that_have_not_begun() {
    let models: Vec<String> = (0..20).map(|i| format!("m{i}")).collect();
    let models: Vec<_> = models.iter().map(|name| (name.as_str(), "load_delay_ms = 1000")).collect();
    let dir = repository(&models);
    let server = Server::fake(dir.path(), |_| {});
    let began = tokio::time::Instant::now();
    tokio::task::spawn_blocking(|| server.join()).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_validation_leaves_no_trace() {
    let dir = repository(&[("m", "")]);
    version(dir.path(), "m", 2, "load_error = 'broken'");
    fs::rename(dir.path().join("m/2"), dir.path().join(".two")).unwrap();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    fs::rename(dir.path().join(".two"), dir.path().join("m/2")).unwrap();
    let get = proto::GetModelRequest { model: "m".into() };
    let before = client.get_model(get.clone()).await.unwrap().into_inner();
    let check = |v| proto::ReloadModelRequest { validate_only: true, ..reload("m", v) };
    assert_eq!(reason(&client.reload_model(check(2)).await.unwrap_err()), "LOAD_FAILED");
    let report = client.reload_model(check(1)).await.unwrap().into_inner();
    assert!(report.validated_only);
    assert_eq!((report.live_version.as_str(), report.generation), ("1", before.generation));
    let after = client.get_model(get).await.unwrap().into_inner();
    assert_eq!(proto::Model { versions: before.versions.clone(), ..after.clone() }, before);
    assert_eq!(after.versions, ["1", "2"]);
    let (_, metrics) = server.get("/metrics").await;
    let reloads: Vec<_> =
        metrics.lines().filter(|line| line.starts_with("torchlane_reloads_total{")).collect();
    assert_eq!(reloads.len(), 1, "the load at the start and nothing else: {reloads:?}");
}

/// Opening it would wait for its writer.
#[tokio::test]
async fn a_pipe_in_the_place_of_an_archive_holds_nobody_up() {
    let dir = repository(&[("m", "scale = 2.0")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let archive = dir.path().join("m/2/model.pt");
    fs::create_dir_all(archive.parent().unwrap()).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&archive).status().unwrap().success());
    let status = client.reload_model(reload("m", 2)).await.unwrap_err();
    assert!(status.message().ends_with("it is not a file"), "{status}");
    client.reload_model(reload("m", 1)).await.unwrap();
}

#[tokio::test]
async fn the_live_version_again_is_no_step_to_go_back_from() {
    let dir = repository(&[("m", "scale = 1.0")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    version(dir.path(), "m", 2, "scale = 2.0");
    client.reload_model(reload("m", 2)).await.unwrap();
    client.reload_model(reload("m", 2)).await.unwrap();
    let back = client.rollback_model(proto::RollbackModelRequest { model: "m".into() }).await.unwrap();
    assert_eq!(back.into_inner().live_version, "1");
}

#[tokio::test]
async fn an_unload_that_is_refused_does_not_stop_a_load() {
    let dir = repository(&[("m", "load_delay_ms = 400"), ("first", "")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = Client::new(server.channel().await);
    until(async || state(&mut client.clone(), "m").await == ModelState::Loading).await;
    let unload = proto::UnloadModelRequest { model: "m".into() };
    assert_eq!(reason(&client.unload_model(unload).await.unwrap_err()), "MODEL_NOT_READY");
    server.ready().await;
    client.infer(one("m")).await.unwrap();
}

#[tokio::test]
async fn models_and_versions_on_disk_are_listed_and_other_directories_are_not() {
    let dir = repository(&[("m", "")]);
    fs::create_dir_all(dir.path().join("docs/pictures")).unwrap();
    fs::create_dir_all(dir.path().join("misplaced")).unwrap();
    fs::write(dir.path().join("misplaced/model.pt"), "").unwrap();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    version(dir.path(), "m", 2, "");
    version(dir.path(), "new", 7, "");
    // A look is at most a second old.
    until(async || listed(&mut client.clone()).await.len() == 3).await;
    let models = listed(&mut client).await;
    let seen: Vec<_> = models.iter().map(|m| (m.name.as_str(), m.versions.join(","), m.state())).collect();
    let expected = [
        ("m", "1,2".to_owned(), ModelState::Ready),
        ("misplaced", String::new(), ModelState::Failed),
        ("new", "7".to_owned(), ModelState::Unloaded),
    ];
    assert_eq!(seen, expected);
    assert!(models[1].last_error.contains("misplaced/1/model.pt"), "{}", models[1].last_error);
}

#[tokio::test]
async fn a_model_that_is_sound_but_for_zeros_loads() {
    let dir = repository(&[("log", "nan_at_zero = true"), ("broken", "nan = true")]);
    for model in ["log", "broken"] {
        let manifest = "[[inputs]]\nname='x'\ndtype='FP32'\nshape=[2]\n";
        fs::write(dir.path().join(model).join("model.toml"), manifest).unwrap();
    }
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    assert_eq!(state(&mut client, "log").await, ModelState::Ready);
    assert_eq!(state(&mut client, "broken").await, ModelState::Failed);
}

async fn listed(client: &mut Client) -> Vec<proto::Model> {
    client.list_models(proto::ListModelsRequest {}).await.unwrap().into_inner().models
}

async fn state(client: &mut Client, model: &str) -> ModelState {
    let request = proto::GetModelRequest { model: model.into() };
    client.get_model(request).await.map(|model| model.into_inner().state()).unwrap_or_default()
}
