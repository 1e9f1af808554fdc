//! Models that fail, get stuck, or are asked for more than they can do.

use std::time::Duration;

use bytesize::ByteSize;
use futures::{StreamExt as _, stream};
use tonic::{Code, Request};
use tonic_types::StatusExt as _;
use torchlane::{
    admission::TenantSettings,
    config::Settings,
    model::Lane,
    proto::{self, Priority},
};

use super::{
    edges::{INFER, call},
    fake::repository,
    server::{HealthClient, Server, f32s, reason, request, serving, until},
};

fn one(model: &str, value: f32) -> proto::InferRequest {
    request(model, vec![f32s("x", &[1], &[value])])
}

async fn metric(server: &Server, beginning: &str) -> f64 {
    let (_, text) = server.get("/metrics").await;
    let line =
        text.lines().find(|line| line.starts_with(beginning)).unwrap_or_else(|| panic!("no {beginning}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_version_that_only_fails_is_refused_until_a_trial_goes_well() {
    let files = tempfile::tempdir().unwrap();
    let broken = files.path().join("broken");
    let dir = repository(&[("m", &format!("fail_while = '{}'", broken.display()))]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let health = HealthClient::new(server.channel().await);
    client.infer(one("m", 1.0)).await.unwrap();
    std::fs::write(&broken, "").unwrap();
    for _ in 0..10 {
        assert_eq!(reason(&client.infer(one("m", -1.0)).await.unwrap_err()), "FORWARD_FAILED");
    }
    let status = client.infer(one("m", 1.0)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "BREAKER_OPEN"));
    let wait = status.get_error_details().retry_info().unwrap().retry_delay.unwrap();
    assert!(wait <= Duration::from_secs(1), "{wait:?}");
    assert_eq!(metric(&server, "torchlane_breaker_open{model=\"m\"}").await, 1.0);
    let listed = client.list_models(proto::ListModelsRequest {}).await.unwrap().into_inner().models;
    assert!(listed[0].breaker_open, "and every list says so");
    until(async || serving(&mut health.clone(), "m").await == Some(false)).await;
    // So it does again after a reload that mends nothing for long, and health with it.
    std::fs::remove_file(&broken).unwrap();
    let reload = proto::ReloadModelRequest { model: "m".into(), ..Default::default() };
    client.reload_model(reload).await.unwrap();
    std::fs::write(&broken, "").unwrap();
    for _ in 0..10 {
        assert_eq!(reason(&client.infer(one("m", -1.0)).await.unwrap_err()), "FORWARD_FAILED");
    }
    until(async || serving(&mut health.clone(), "m").await == Some(false)).await;
    // One good answer among trials closes it.
    std::fs::remove_file(&broken).unwrap();
    until(async || client.clone().infer(one("m", 1.0)).await.is_ok()).await;
    client.infer(one("m", 1.0)).await.unwrap();
    until(async || serving(&mut health.clone(), "m").await == Some(true)).await;
}

#[tokio::test]
async fn what_callers_send_does_not_take_a_model_from_others() {
    let dir = repository(&[("m", "fail = 'negative'")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    for _ in 0..50 {
        assert_eq!(reason(&client.infer(one("m", -1.0)).await.unwrap_err()), "FORWARD_FAILED");
    }
    client.infer(one("m", 1.0)).await.unwrap();
    assert_eq!(metric(&server, "torchlane_breaker_open{model=\"m\"}").await, 0.0);
}

#[tokio::test]
async fn a_stuck_pass_loses_its_executor_and_others_go_on() {
    let dir = repository(&[("stuck", "delay_ms = 1500"), ("again", "delay_ms = 1500"), ("m", "")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.executors.threads = 1;
        settings.executors.spare = 1;
        settings.executors.stuck_after = Duration::from_millis(200);
    });
    let client = server.ready().await;
    // The second time the first one's executor is the spare.
    for model in ["stuck", "again"] {
        let mut caller = client.clone();
        let held = tokio::spawn(async move { caller.infer(one(model, 1.0)).await });
        until(async || metric(&server, "torchlane_in_flight{lane=\"NORMAL\"}").await == 1.0).await;
        until(async || metric(&server, &format!("torchlane_breaker_open{{model=\"{model}\"}}")).await == 1.0)
            .await;
        let status = client.clone().infer(one(model, 1.0)).await.unwrap_err();
        assert_eq!(reason(&status), "BREAKER_OPEN");
        client.clone().infer(one("m", 1.0)).await.unwrap();
        assert_eq!(metric(&server, "torchlane_executors_healthy").await, 1.0);
        assert!(!held.is_finished());
        held.await.unwrap().unwrap();
        until(async || metric(&server, "torchlane_in_flight{lane=\"NORMAL\"}").await == 0.0).await;
    }
}

#[tokio::test]
async fn a_reload_takes_the_place_of_a_stuck_version() {
    let dir = repository(&[("m", "delay_ms = 2500")]);
    std::fs::write(dir.path().join("m/model.toml"), "[scheduling]\nmax_concurrency = 1\n").unwrap();
    let server = Server::fake(dir.path(), |settings| {
        settings.executors.threads = 1;
        settings.executors.spare = 1;
        settings.executors.kept_from_low = 0;
        settings.executors.stuck_after = Duration::from_millis(1500);
    });
    let mut client = server.ready().await;
    let mut caller = client.clone();
    let mut low = one("m", 1.0);
    low.priority = Priority::Low.into();
    let held = tokio::spawn(async move { caller.infer(low).await });
    until(async || metric(&server, "torchlane_in_flight{lane=\"LOW\"}").await == 1.0).await;
    super::fake::version(dir.path(), "m", 2, "");
    let mut admin = client.clone();
    let reloaded = tokio::spawn(async move { admin.reload_model(super::fake::reload("m", 2)).await });
    // As soon as the pass is given up the new version runs, and it is not the one that is refused.
    let answer = client.infer(one("m", 1.0)).await.unwrap().into_inner();
    assert_eq!(answer.version, "2");
    assert!(!held.is_finished(), "the old one is stuck still");
    assert_eq!(metric(&server, "torchlane_breaker_open{model=\"m\"}").await, 0.0);
    held.await.unwrap().unwrap();
    reloaded.await.unwrap().unwrap();
}

#[tokio::test]
async fn health_says_so_when_every_executor_is_stuck() {
    let dir = repository(&[("stuck", "delay_ms = 3000")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.executors.threads = 1;
        settings.executors.spare = 0;
        settings.executors.stuck_after = Duration::from_millis(100);
    });
    let mut client = server.ready().await;
    let mut health = HealthClient::new(server.channel().await);
    let held = tokio::spawn(async move { client.infer(one("stuck", 1.0)).await });
    until(async || serving(&mut health.clone(), "torchlane.v1.ModelServer").await == Some(false)).await;
    assert_eq!(serving(&mut health, "").await, Some(false));
    assert_eq!((server.get("/readyz").await.0, server.get("/livez").await.0), (503, 503));
    // It ends after all: the executor comes back.
    held.await.unwrap().unwrap();
    until(async || serving(&mut health.clone(), "").await == Some(true)).await;
}

#[tokio::test]
async fn what_would_be_late_is_refused_at_once() {
    let dir = repository(&[("m", "delay_ms = 100")]);
    let server = Server::fake(dir.path(), |settings| settings.executors.threads = 1);
    let client = server.ready().await;
    let call = |timeout: Duration, priority: Priority| {
        let mut client = client.clone();
        let message = proto::InferRequest { priority: priority.into(), ..one("m", 1.0) };
        let mut request = Request::new(message);
        request.set_timeout(timeout);
        tokio::spawn(async move { client.infer(request).await })
    };
    for _ in 0..3 {
        call(Duration::from_secs(10), Priority::Normal).await.unwrap().unwrap();
    }
    // A more urgent lane: within a lane the earlier deadline would go first.
    let ahead: Vec<_> = (0..5).map(|_| call(Duration::from_secs(10), Priority::High)).collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let began = tokio::time::Instant::now();
    let status = call(Duration::from_millis(300), Priority::Normal).await.unwrap().unwrap_err();
    assert!(began.elapsed() < Duration::from_millis(200), "at once: {:?}", began.elapsed());
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    let details = status.get_error_details();
    let estimate: f64 = details.error_info().unwrap().metadata["estimate_ms"].parse().unwrap();
    assert!((300.0..3000.0).contains(&estimate), "{estimate}");
    for call in ahead {
        call.await.unwrap().unwrap();
    }
    assert_eq!(metric(&server, "torchlane_deadlines_total{lane=\"NORMAL\",result=\"refused\"}").await, 1.0);
    assert_eq!(metric(&server, "torchlane_deadlines_total{lane=\"NORMAL\",result=\"in_time\"}").await, 3.0);
    assert_eq!(metric(&server, "torchlane_deadlines_total{lane=\"HIGH\",result=\"in_time\"}").await, 5.0);
}

#[tokio::test]
async fn tenants_have_rates_lanes_and_equal_time() {
    let dir = repository(&[("m", "delay_ms = 4")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.executors.threads = 1;
        settings.admission.max_in_flight = 8;
        let default = TenantSettings::default();
        settings.tenants.insert("slow".into(), TenantSettings { rate: 0.5, burst: 1, ..default });
        settings.tenants.insert("batch".into(), TenantSettings { max_lane: Lane::Low, ..default });
        settings.tenants.insert("many".into(), default);
        settings.tenants.insert("few".into(), default);
    });
    let client = server.ready().await;
    let call = |tenant: &'static str| {
        let mut client = client.clone();
        let mut request = Request::new(one("m", 1.0));
        request.metadata_mut().insert("x-tenant", tenant.parse().unwrap());
        async move { client.infer(request).await }
    };
    call("slow").await.unwrap();
    let status = call("slow").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "RATE_LIMITED"));
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.unwrap() <= Duration::from_secs(2));
    // It asked for no lane, its model's is NORMAL, and it may not go above LOW.
    call("batch").await.unwrap();
    let low = r#"torchlane_requests_total{model="m",version="1",lane="LOW",outcome="ok"}"#;
    assert_eq!(metric(&server, low).await, 1.0);
    // Ten callers of one and three of another, all without pause, for two seconds: half of the time each.
    let until = tokio::time::Instant::now() + Duration::from_secs(2);
    let callers = ["many"; 10].into_iter().chain(["few"; 3]).map(|tenant| {
        let call = &call;
        async move {
            while tokio::time::Instant::now() < until {
                call(tenant).await.unwrap();
            }
        }
    });
    futures::future::join_all(callers).await;
    let compute = async |tenant: &str| {
        metric(&server, &format!("torchlane_tenant_compute_seconds_total{{tenant=\"{tenant}\"}}")).await
    };
    let (many, few) = (compute("many").await, compute("few").await);
    assert!((0.8..1.25).contains(&(few / many)), "{few} s and {many} s");
}

/// A request of 300 KiB and a little.
fn large(model: &str) -> proto::InferRequest {
    request(model, vec![f32s("x", &[76_800], &vec![1.0; 76_800])])
}

/// May hold three of those, and refuses LOW from two.
fn small(settings: &mut Settings) {
    settings.server.max_in_flight_bytes = ByteSize::kib(1100);
    settings.server.caller_share = 1.0;
    settings.server.max_message_bytes = ByteSize::kib(400);
    settings.pressure.memory = 0.0;
}

#[tokio::test]
async fn lower_lanes_are_shed_while_many_bytes_are_here() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), small);
    let client = server.ready().await;
    let infer = async |priority: Priority, message: proto::InferRequest| {
        client.clone().infer(proto::InferRequest { priority: priority.into(), ..message }).await
    };
    // Each has sent its message and does not say that this was all.
    let mut uploads = Vec::new();
    let channel = server.channel().await;
    let mut upload = async |sent: u32| {
        let messages = stream::iter([large("m")]).chain(stream::pending());
        uploads.push(tokio::spawn(call(channel.clone(), INFER, messages)));
        let bytes = f64::from(sent * 300 * 1024);
        until(async || metric(&server, "torchlane_in_flight_bytes").await >= bytes).await;
    };
    upload(1).await;
    infer(Priority::Low, one("m", 1.0)).await.unwrap();
    upload(2).await;
    let status = infer(Priority::Low, one("m", 1.0)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "RESOURCE_PRESSURE"));
    assert!(status.message().contains("pressure.in_flight_bytes"), "{}", status.message());
    let retry = status.get_error_details().retry_info().unwrap().retry_delay;
    assert_eq!(retry, Some(Duration::from_secs(1)));
    infer(Priority::Normal, one("m", 1.0)).await.unwrap();
    assert_eq!(metric(&server, "torchlane_pressure_level").await, 1.0);
    upload(3).await;
    let status = infer(Priority::Normal, one("m", 1.0)).await.unwrap_err();
    assert_eq!(reason(&status), "RESOURCE_PRESSURE");
    infer(Priority::High, one("m", 1.0)).await.unwrap();
    assert_eq!(metric(&server, "torchlane_pressure_level").await, 2.0);
    // No lane goes over the limit.
    let status = infer(Priority::Critical, large("m")).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    assert!(status.get_error_details().retry_info().unwrap().retry_delay.is_some());
    infer(Priority::Critical, one("m", 1.0)).await.unwrap();
    // All hang up.
    uploads.iter().for_each(tokio::task::JoinHandle::abort);
    until(async || metric(&server, "torchlane_in_flight_bytes").await == 0.0).await;
    until(async || infer(Priority::Low, one("m", 1.0)).await.is_ok()).await;
    until(async || metric(&server, "torchlane_pressure_level").await == 0.0).await;
    assert_eq!(metric(&server, "torchlane_pressure_ratio{resource=\"in_flight_bytes\"}").await, 0.0);
}

#[tokio::test]
async fn a_message_counts_until_it_is_answered_and_its_caller_is_there() {
    let dir = repository(&[("m", ""), ("slow", "delay_ms = 1000")]);
    let server = Server::fake(dir.path(), |settings| {
        small(settings);
        settings.pressure.in_flight_bytes = 0.0;
        settings.executors.threads = 1;
    });
    let mut client = server.ready().await;
    let bytes = async || metric(&server, "torchlane_in_flight_bytes").await;
    let calls: Vec<_> = (0..3)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.infer(large("slow")).await })
        })
        .collect();
    // One runs and two wait.
    until(async || bytes().await > 900.0 * 1024.0).await;
    calls[2].abort();
    until(async || (600.0..700.0).contains(&(bytes().await / 1024.0))).await;
    for call in calls.into_iter().take(2) {
        call.await.unwrap().unwrap();
    }
    until(async || bytes().await == 0.0).await;
    // More than the limit over one stream, that stays open.
    let (send, messages) = futures::channel::mpsc::unbounded();
    let mut open = client.infer_stream(messages).await.unwrap().into_inner();
    for _ in 0..8 {
        send.unbounded_send(large("m")).unwrap();
        open.next().await.unwrap().unwrap();
    }
    assert_eq!(bytes().await, 0.0);
}
