//! Everything around the model, with a backend that needs no libtorch.

use std::{fs, path::Path, time::Duration};

use torchlane::loader::archive::safety::{Policy, Safety};
use torchlane::proto::{self, ModelState, Priority, model_server_client::ModelServerClient};

use super::server::{Server, f32s, floats, reason, refused, request, serving, tensor};

pub fn version(repository: &Path, model: &str, version: u64, script: &str) {
    let dir = repository.join(model).join(version.to_string());
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("model.pt"), script).unwrap();
}

pub fn repository(models: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (model, script) in models {
        version(dir.path(), model, 1, script);
    }
    dir
}

pub fn reload(model: &str, version: u64) -> proto::ReloadModelRequest {
    proto::ReloadModelRequest { model: model.into(), version: version.to_string(), ..Default::default() }
}

#[tokio::test]
async fn a_model_that_is_not_known_to_be_safe_is_refused_by_the_policy() {
    let dir = repository(&[("good", ""), ("bad", "unsafe = ['aten::x', 'ns::y']")]);
    let serves = async |policy, allow: &[&str]| {
        let server = Server::fake(dir.path(), |settings| {
            settings.safety = Safety { policy, allow: allow.iter().map(|&name| name.to_owned()).collect() };
        });
        let mut client = server.ready().await;
        client.reload_model(reload("bad", 1)).await
    };
    for allow in [&[][..], &["aten::x"], &["ns::*"]] {
        let status = serves(Policy::Strict, allow).await.unwrap_err();
        assert_eq!(
            (reason(&status).as_str(), status.code()),
            ("UNSAFE_MODEL", tonic::Code::FailedPrecondition)
        );
        assert!(
            status.message().starts_with("verify failed: the model is not known to be safe: "),
            "{status}"
        );
        assert_eq!(status.message().contains("aten::x"), !allow.contains(&"aten::x"), "{status}");
    }
    serves(Policy::Strict, &["aten::x", "ns::*"]).await.unwrap();
    serves(Policy::Warn, &[]).await.unwrap();
    serves(Policy::Off, &[]).await.unwrap();
}

#[tokio::test]
async fn bad_requests_get_their_own_errors_before_anything_runs() {
    let dir = repository(&[("m", "inputs = ['x']\nfail = 'ran'\nfail_always = true")]);
    fs::write(
        dir.path().join("m/model.toml"),
        "[[inputs]]\nname='x'\ndtype='FP32'\nshape=[-1, 2]\n[[outputs]]\nname='y'\n[warmup]\n",
    )
    .unwrap();
    // Warm-up would fail: give it no shape to run by leaving the first dimension open and batching off.
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let good = || f32s("x", &[1, 2], &[1.0, 2.0]);
    let cases = [
        (request("nope", vec![good()]), "UNKNOWN_MODEL", tonic::Code::NotFound),
        (
            proto::InferRequest { version: "9".into(), ..request("m", vec![good()]) },
            "UNKNOWN_VERSION",
            tonic::Code::NotFound,
        ),
        (request("m", vec![f32s("z", &[1, 2], &[1.0, 2.0])]), "UNKNOWN_INPUT", tonic::Code::InvalidArgument),
        (request("m", vec![good(), f32s("z", &[1], &[1.0])]), "UNKNOWN_INPUT", tonic::Code::InvalidArgument),
        (request("m", vec![good(), good()]), "DUPLICATE_INPUT", tonic::Code::InvalidArgument),
        (request("m", vec![]), "MISSING_INPUT", tonic::Code::InvalidArgument),
        (
            request("m", vec![tensor("x", "INT32", &[1, 2], vec![0; 8])]),
            "WRONG_DATATYPE",
            tonic::Code::InvalidArgument,
        ),
        (request("m", vec![f32s("x", &[2], &[1.0, 2.0])]), "WRONG_SHAPE", tonic::Code::InvalidArgument),
        (
            request("m", vec![f32s("x", &[1, 3], &[1.0, 2.0, 3.0])]),
            "WRONG_SHAPE",
            tonic::Code::InvalidArgument,
        ),
        (
            request("m", vec![tensor("x", "FP32", &[1, 2], vec![0; 7])]),
            "BAD_TENSOR",
            tonic::Code::InvalidArgument,
        ),
        (
            request("m", vec![tensor("x", "FP32", &[-1, 2], vec![0; 8])]),
            "BAD_TENSOR",
            tonic::Code::InvalidArgument,
        ),
        (
            request("m", vec![tensor("x", "FP32", &[i64::MAX, 2], vec![0; 8])]),
            "BAD_TENSOR",
            tonic::Code::InvalidArgument,
        ),
        (
            request("m", vec![proto::Tensor { float_data: vec![1.0, 2.0], ..good() }]),
            "BAD_TENSOR",
            tonic::Code::InvalidArgument,
        ),
        (
            proto::InferRequest { outputs: vec!["z".into()], ..request("m", vec![good()]) },
            "UNKNOWN_OUTPUT",
            tonic::Code::InvalidArgument,
        ),
    ];
    for (request, expected, code) in cases {
        let (reason, status) = refused(&mut client, request).await;
        assert_eq!((reason.as_str(), status.code()), (expected, code), "{}", status.message());
        assert!(!status.message().contains('\n') && status.message().len() <= 1024);
    }
    let (reason, status) = refused(&mut client, request("m", vec![good()])).await;
    assert_eq!((reason.as_str(), status.code()), ("FORWARD_FAILED", tonic::Code::Internal));
    assert!(status.message().contains("incident"), "{}", status.message());
}

#[tokio::test]
async fn an_over_long_message_names_the_setting() {
    let dir = repository(&[("m", "")]);
    let server =
        Server::fake(dir.path(), |settings| settings.server.max_message_bytes = bytesize::ByteSize::kib(64));
    let mut client = server.ready().await;
    let (reason, status) =
        refused(&mut client, request("m", vec![f32s("x", &[20_000], &vec![0.0; 20_000])])).await;
    assert_eq!((reason.as_str(), status.code()), ("MESSAGE_TOO_LARGE", tonic::Code::ResourceExhausted));
    assert!(status.message().contains("server.max_message_bytes"), "{}", status.message());
    let mut large = Server::fake(dir.path(), |_| {}).ready().await;
    let answer = large.infer(request("m", vec![f32s("x", &[2_000_000], &vec![1.0; 2_000_000])])).await;
    assert!(answer.is_err(), "that server is gone");
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let answer =
        client.infer(request("m", vec![f32s("x", &[2_000_000], &vec![1.0; 2_000_000])])).await.unwrap();
    assert_eq!(answer.into_inner().outputs[0].raw.len(), 8_000_000, "over gRPC's usual 4 MiB");
}

#[tokio::test]
async fn a_failed_reload_leaves_the_old_version_and_says_why() {
    let dir = repository(&[("m", "scale = 1.0")]);
    version(dir.path(), "m", 2, "scale = 2.0");
    version(dir.path(), "m", 3, "load_error = 'broken weights'");
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let x = || request("m", vec![f32s("x", &[1], &[3.0])]);
    // The newest does not load: an older one serves, and the list says so.
    let model = client.get_model(proto::GetModelRequest { model: "m".into() }).await.unwrap().into_inner();
    assert_eq!((model.live_version.as_str(), model.state()), ("2", ModelState::Ready));
    assert!(model.last_error.contains("load failed: broken weights"), "{}", model.last_error);

    let status = client.reload_model(reload("m", 3)).await.unwrap_err();
    assert_eq!((reason(&status).as_str(), status.code()), ("LOAD_FAILED", tonic::Code::FailedPrecondition));
    assert!(status.message().starts_with("load failed: broken weights"), "{}", status.message());
    assert_eq!(floats(&client.infer(x()).await.unwrap().into_inner().outputs[0]), [6.0]);

    let status = client.reload_model(reload("m", 7)).await.unwrap_err();
    assert_eq!(reason(&status), "UNKNOWN_VERSION");
    assert!(status.message().contains("versions 1, 2, 3"), "{}", status.message());
    let wrong = proto::ReloadModelRequest { expected_sha256: "0".repeat(64), ..reload("m", 1) };
    assert_eq!(reason(&client.reload_model(wrong).await.unwrap_err()), "DIGEST_MISMATCH");
    let odd = proto::ReloadModelRequest { expected_sha256: "xyz".into(), ..reload("m", 1) };
    assert_eq!(reason(&client.reload_model(odd).await.unwrap_err()), "BAD_REQUEST");

    let valid = proto::ReloadModelRequest { validate_only: true, ..reload("m", 1) };
    let report = client.reload_model(valid).await.unwrap().into_inner();
    assert!(report.validated_only && report.live_version == "2");

    let report = client.reload_model(reload("m", 1)).await.unwrap().into_inner();
    assert_eq!((report.previous_version.as_str(), report.live_version.as_str()), ("2", "1"));
    assert_eq!(report.warmup.unwrap().shapes, 1, "the shape that was served is warmed up");
    assert_eq!(floats(&client.infer(x()).await.unwrap().into_inner().outputs[0]), [3.0]);

    let back =
        client.rollback_model(proto::RollbackModelRequest { model: "m".into() }).await.unwrap().into_inner();
    assert_eq!((back.live_version.as_str(), back.generation > report.generation), ("2", true));
    // The archive to go back to is not what it was.
    version(dir.path(), "m", 1, "scale = 99.0");
    let status = client.rollback_model(proto::RollbackModelRequest { model: "m".into() }).await.unwrap_err();
    assert_eq!(reason(&status), "DIGEST_MISMATCH");
    assert_eq!(floats(&client.infer(x()).await.unwrap().into_inner().outputs[0]), [6.0]);
}

#[tokio::test]
async fn unload_and_watch() {
    let dir = repository(&[("a", ""), ("b", "load_error = 'no'")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let mut health = super::server::HealthClient::new(server.channel().await);
    assert_eq!(serving(&mut health, "a").await, Some(true));
    assert_eq!(
        serving(&mut health, "b").await,
        Some(false),
        "one bad model does not keep the other from serving"
    );
    let mut events =
        client.watch_models(proto::WatchModelsRequest { model: "a".into() }).await.unwrap().into_inner();
    assert_eq!(events.message().await.unwrap().unwrap().change, "snapshot");
    client.unload_model(proto::UnloadModelRequest { model: "a".into() }).await.unwrap();
    assert_eq!(events.message().await.unwrap().unwrap().change, "unloaded");
    let (reason, status) = refused(&mut client, request("a", vec![f32s("x", &[1], &[1.0])])).await;
    assert_eq!((reason.as_str(), status.code()), ("MODEL_NOT_READY", tonic::Code::Unavailable));
    client.reload_model(reload("a", 1)).await.unwrap();
    let changes: Vec<_> = [events.message().await, events.message().await]
        .into_iter()
        .map(|e| e.unwrap().unwrap().change)
        .collect();
    assert_eq!(changes, ["loading", "ready"]);
    assert!(client.infer(request("a", vec![f32s("x", &[1], &[1.0])])).await.is_ok());
    server.stop();
    assert!(events.message().await.map_or(true, |event| event.is_none()), "watches end when the server does");
}

#[tokio::test]
async fn reloads_are_single_flight_and_the_newest_wins() {
    let dir = repository(&[("m", "scale = 1.0")]);
    version(dir.path(), "m", 2, "scale = 2.0\nload_delay_ms = 300");
    version(dir.path(), "m", 3, "scale = 3.0");
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    client.reload_model(reload("m", 1)).await.unwrap();
    let mut other = client.clone();
    let slow = tokio::spawn(async move { other.reload_model(reload("m", 2)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let newest = client.reload_model(reload("m", 3)).await.unwrap().into_inner();
    assert_eq!(newest.live_version, "3");
    let status = slow.await.unwrap().unwrap_err();
    assert_eq!((reason(&status).as_str(), status.code()), ("SUPERSEDED", tonic::Code::Aborted));
}

#[tokio::test]
async fn a_caller_that_hangs_up_does_not_stop_a_reload() {
    let dir = repository(&[("m", "")]);
    version(dir.path(), "m", 2, "load_delay_ms = 300");
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    client.reload_model(reload("m", 1)).await.unwrap();
    let mut impatient = tonic::Request::new(reload("m", 2));
    impatient.set_timeout(Duration::from_millis(50));
    assert!(client.reload_model(impatient).await.is_err());
    for _ in 0..200 {
        let model =
            client.get_model(proto::GetModelRequest { model: "m".into() }).await.unwrap().into_inner();
        if model.live_version == "2" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the reload was given up");
}

#[tokio::test]
async fn lanes_hold_under_a_flood_and_overflow_is_refused_with_a_hint() {
    let dir = repository(&[("slow", "delay_ms = 5"), ("other", "delay_ms = 5")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.executors.threads = 1;
        settings.admission.max_in_flight = 8;
        settings.admission.queue_depth = 16;
    });
    let client = server.ready().await;
    let low: Vec<_> = (0..64)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let request = proto::InferRequest {
                    priority: Priority::Low.into(),
                    ..request("slow", vec![f32s("x", &[1], &[1.0])])
                };
                client.infer(request).await
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    // LOW holds at most 6 of 8 tickets and 16 places: the critical one runs after the pass that is under way.
    let mut critical = client.clone();
    let call = proto::InferRequest {
        priority: Priority::Critical.into(),
        ..request("other", vec![f32s("x", &[1], &[1.0])])
    };
    let timing = critical.infer(call).await.unwrap().into_inner().timing.unwrap();
    let wait = |d: Option<prost_types::Duration>| Duration::try_from(d.unwrap_or_default()).unwrap();
    assert!(wait(timing.queue).is_zero(), "headroom was kept for it");
    assert!(wait(timing.batch_wait) < Duration::from_millis(60), "{:?}", timing.batch_wait);
    let (mut served, mut shed) = (0, 0);
    for call in low {
        match call.await.unwrap() {
            Ok(_) => served += 1,
            Err(status) => {
                assert_eq!(
                    (reason(&status).as_str(), status.code()),
                    ("QUEUE_FULL", tonic::Code::ResourceExhausted)
                );
                use tonic_types::StatusExt as _;
                assert!(status.get_error_details().retry_info().is_some());
                shed += 1;
            }
        }
    }
    assert_eq!(served + shed, 64);
    assert!(served >= 22 && shed > 0, "{served} served, {shed} shed");
}

#[tokio::test]
async fn deadlines_hold_while_waiting() {
    let dir = repository(&[("slow", "delay_ms = 150"), ("quick", "")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.executors.threads = 1;
        // The client would give up at its own deadline: the server brings this one forward.
        settings.admission.max_deadline = Duration::from_millis(40);
    });
    let client = server.ready().await;
    let mut first = client.clone();
    let running =
        tokio::spawn(async move { first.infer(request("slow", vec![f32s("x", &[1], &[1.0])])).await });
    tokio::time::sleep(Duration::from_millis(30)).await;
    let batches = |text: &str| {
        text.lines()
            .find(|l| l.starts_with("torchlane_compute_duration_seconds_count{model=\"quick\""))
            .map(str::to_owned)
    };
    let mut hurried = tonic::Request::new(request("quick", vec![f32s("x", &[1], &[1.0])]));
    hurried.metadata_mut().insert("grpc-timeout", "10S".parse().unwrap());
    let status = client.clone().infer(hurried).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::DeadlineExceeded, "{status:?}");
    running.await.unwrap().unwrap();
    let (_, text) = server.get("/metrics").await;
    assert!(batches(&text).is_none(), "it must not have run");
    assert!(text.contains("outcome=\"DEADLINE_EXCEEDED\""), "{text}");
    let mut odd = tonic::Request::new(request("quick", vec![f32s("x", &[1], &[1.0])]));
    odd.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    let status = client.clone().infer(odd).await.unwrap_err();
    assert_eq!((reason(&status).as_str(), status.code()), ("BAD_REQUEST", tonic::Code::InvalidArgument));
}

#[tokio::test]
async fn a_stream_answers_each_request_and_survives_a_bad_one() {
    let dir = repository(&[("m", "scale = 2.0")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let requests = (0..20).map(|i| {
        let model = if i == 7 { "nope" } else { "m" };
        proto::InferRequest {
            request_id: i.to_string(),
            ..request(model, vec![f32s("x", &[1], &[i as f32])])
        }
    });
    let mut answers = client.infer_stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let mut seen = std::collections::BTreeSet::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let id: usize = answer.request_id.parse().unwrap();
        match answer.result.unwrap() {
            proto::infer_stream_response::Result::Response(response) => {
                assert_eq!(floats(&response.outputs[0]), [2.0 * id as f32]);
            }
            proto::infer_stream_response::Result::Error(error) => {
                assert_eq!((id, error.code, error.details.is_empty()), (7, 5, false));
            }
        }
        assert!(seen.insert(id));
    }
    assert_eq!(seen.len(), 20);
}

#[tokio::test]
async fn draining_finishes_what_is_in_flight() {
    let dir = repository(&[("slow", "delay_ms = 300")]);
    let server =
        Server::fake(dir.path(), |settings| settings.server.drain_delay = Duration::from_millis(150));
    let client = server.ready().await;
    let mut health = super::server::HealthClient::new(server.channel().await);
    let mut caller = client.clone();
    let running =
        tokio::spawn(async move { caller.infer(request("slow", vec![f32s("x", &[1], &[1.0])])).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.stop();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(serving(&mut health, "").await, Some(false), "not ready before the door closes");
    assert_eq!(server.get("/readyz").await.0, 503);
    assert_eq!(server.get("/livez").await.0, 200);
    assert!(running.await.unwrap().is_ok(), "what was in flight ends well");
    let grpc = server.grpc;
    server.join();
    assert!(tokio::net::TcpStream::connect(grpc).await.is_err(), "the port is free again");
}

#[tokio::test]
async fn health_reflection_and_metrics() {
    let dir = repository(&[("m", "load_delay_ms = 200")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut health = super::server::HealthClient::new(server.channel().await);
    assert_eq!(serving(&mut health, "").await, Some(false), "not before the first models are ready");
    assert_eq!(serving(&mut health, "torchlane.v1.ModelServer").await, Some(true), "alive all the same");
    assert_eq!(server.get("/readyz").await.0, 503);
    let watch = tonic_health::pb::HealthCheckRequest { service: String::new() };
    let mut watching = health.watch(watch).await.unwrap().into_inner();
    assert_eq!(watching.message().await.unwrap().unwrap().status, 2);
    assert_eq!(watching.message().await.unwrap().unwrap().status, 1);
    let mut client = ModelServerClient::new(server.channel().await);
    client.infer(request("m", vec![f32s("x", &[1], &[1.0])])).await.unwrap();
    let (status, text) = server.get("/metrics").await;
    assert_eq!(status, 200);
    let labels = "{model=\"m\",version=\"1\",lane=\"NORMAL\",outcome=\"ok\"}";
    for line in [
        format!("torchlane_requests_total{labels} 1"),
        format!("torchlane_request_duration_seconds_count{labels} 1"),
        "torchlane_reloads_total{model=\"m\",result=\"ok\"} 1".to_owned(),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    assert!(text.contains("torchlane_model_info{model=\"m\",version=\"1\",sha256="), "{text}");
    assert_eq!(server.get("/readyz").await.0, 200);
    assert_eq!(server.get("/nothing").await.0, 404);
}

#[test]
fn a_server_that_cannot_start_says_what_to_do() {
    use torchlane::{
        app::serve_until,
        config::{BackendKind, Settings},
    };
    let start = |repository: &Path, addr: std::net::SocketAddr| {
        let mut settings = Settings {
            repositories: vec![repository.to_owned()],
            backend: BackendKind::Fake,
            ..Settings::default()
        };
        settings.server.grpc_addr = addr;
        settings.server.http_addr = ([127, 0, 0, 1], 0).into();
        serve_until(settings, Default::default(), |_, _| {}).unwrap_err().to_string()
    };
    let any = ([127, 0, 0, 1], 0).into();
    let empty = tempfile::tempdir().unwrap();
    assert!(start(empty.path(), any).contains("--allow-empty"));
    assert!(start(Path::new("no/such/dir"), any).contains("does not exist"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = repository(&[("m", "")]);
    let error = start(dir.path(), taken.local_addr().unwrap());
    assert!(error.contains("in use") && error.contains("--grpc-addr"), "{error}");
}

#[tokio::test]
async fn a_server_whose_models_were_all_broken_is_ready_once_one_is_mended() {
    let dir = repository(&[("m", "inputs = ['x']\nload_error = 'broken'")]);
    let server = Server::fake(dir.path(), |_| {});
    let channel = server.channel().await;
    let mut client = ModelServerClient::new(channel.clone());
    let failed = client.reload_model(reload("m", 1)).await.unwrap_err();
    assert!(failed.message().contains("broken"), "{failed}");
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    assert_eq!(serving(&mut health, "").await, Some(false));
    version(dir.path(), "m", 1, "inputs = ['x']");
    client.reload_model(reload("m", 1)).await.unwrap();
    server.ready().await;
}

#[tokio::test]
async fn a_request_that_fails_does_not_stand_in_the_way_of_a_reload() {
    let dir = repository(&[("m", "inputs = ['x']\nfail = 'negative'")]);
    version(dir.path(), "m", 2, "inputs = ['x']\nfail = 'any'\nfail_always = true");
    fs::rename(dir.path().join("m/2"), dir.path().join("later")).unwrap();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let status = client.infer(request("m", vec![f32s("x", &[2], &[-1.0, 0.0])])).await.unwrap_err();
    assert_eq!(reason(&status), "FORWARD_FAILED");
    fs::rename(dir.path().join("later"), dir.path().join("m/2")).unwrap();
    // Nothing that went well is known, so nothing is run that could fail.
    client.reload_model(reload("m", 2)).await.unwrap();
    client.reload_model(reload("m", 1)).await.unwrap();
    client.infer(request("m", vec![f32s("x", &[2], &[1.0, 0.0])])).await.unwrap();
    let status = client.reload_model(reload("m", 2)).await.unwrap_err();
    assert!(status.message().contains("warm-up"), "what went well must go well again: {status}");
}

#[tokio::test]
async fn half_a_request_on_the_http_port_does_not_keep_the_server_up() {
    use tokio::io::AsyncWriteExt as _;
    let dir = repository(&[("m", "inputs = ['x']")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let mut half = tokio::net::TcpStream::connect(server.http).await.unwrap();
    half.write_all(b"GET /metrics HT").await.unwrap();
    tokio::time::timeout(Duration::from_secs(20), tokio::task::spawn_blocking(|| server.join()))
        .await
        .expect("still up after 20 s")
        .unwrap();
}

/// Seconds that the threads of the wire have spent on passes.
pub async fn run_on_the_wire(server: &Server) -> f64 {
    let (_, text) = server.get("/metrics").await;
    let line = text.lines().find(|line| line.contains(r#"executor="wire""#)).unwrap();
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_quick_pass_needs_no_executor_unless_others_are_there() {
    const MANIFEST: &str = "[[inputs]]\nname='x'\ndtype='FP32'\nshape=[1, 2]\n";
    let dir = repository(&[
        ("quick", "inputs = ['x']"),
        ("slow", "inputs = ['x']\ndelay_ms = 2"),
        ("stateful", "inputs = ['x']\nstateful = true"),
    ]);
    for model in ["quick", "slow", "stateful"] {
        fs::write(dir.path().join(model).join("model.toml"), MANIFEST).unwrap();
    }
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    for model in ["slow", "stateful"] {
        for _ in 0..30 {
            client.infer(request(model, vec![f32s("x", &[1, 2], &[1.0, 2.0])])).await.unwrap();
        }
    }
    assert_eq!(run_on_the_wire(&server).await, 0.0);
    for _ in 0..100 {
        let answer = client.infer(request("quick", vec![f32s("x", &[1, 2], &[1.0, 2.0])])).await.unwrap();
        assert_eq!(floats(&answer.get_ref().outputs[0]), [1.0, 2.0]);
    }
    assert!(run_on_the_wire(&server).await > 0.0);
}

#[tokio::test]
async fn an_urgent_quick_pass_does_not_wait_for_long_ones_below_it() {
    let dir = repository(&[("quick", "inputs = ['x']"), ("long", "inputs = ['x']\ndelay_ms = 300")]);
    for model in ["quick", "long"] {
        let manifest = "[[inputs]]\nname='x'\ndtype='FP32'\nshape=[1, 2]\n";
        fs::write(dir.path().join(model).join("model.toml"), manifest).unwrap();
    }
    let server = Server::fake(dir.path(), |settings| settings.executors.threads = 1);
    let client = server.ready().await;
    let call = |model: &str, priority: Priority| {
        let mut client = client.clone();
        let mut request = request(model, vec![f32s("x", &[1, 2], &[1.0, 2.0])]);
        request.priority = priority.into();
        tokio::spawn(async move { client.infer(request).await.unwrap() })
    };
    let long = call("long", Priority::Normal);
    while !server.get("/metrics").await.1.contains("torchlane_in_flight{lane=\"NORMAL\"} 1") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let equal = call("quick", Priority::Normal);
    for _ in 0..5 {
        call("quick", Priority::Critical).await.unwrap();
    }
    assert!(run_on_the_wire(&server).await > 0.0);
    assert!(!long.is_finished() && !equal.is_finished(), "its own lane waits for its turn");
    long.await.unwrap();
    equal.await.unwrap();
}
