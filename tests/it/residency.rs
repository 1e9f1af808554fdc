//! Models that are loaded when they are asked for, and have to go when others are.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytesize::ByteSize;
use tokio::time::Instant;
use tonic::Code;
use tonic_types::StatusExt as _;
use torchlane::{
    config::Settings,
    model::LoadMode,
    proto::{self, ModelState},
    residency::ReloadPolicy,
};

use super::{
    fake::{reload, repository, version},
    server::{Client, HealthClient, Server, f32s, floats, reason, request, serving, until},
};

/// A lazy server with room for so many bytes.
fn room(bytes: u64) -> impl FnOnce(&mut Settings) {
    move |settings| {
        settings.memory.budget = ByteSize::b(bytes);
        settings.memory.load = LoadMode::Lazy;
    }
}

fn one(model: &str) -> proto::InferRequest {
    request(model, vec![f32s("x", &[1], &[1.0])])
}

async fn ask(client: &mut Client, model: &str) -> Result<f32, tonic::Status> {
    Ok(floats(&client.infer(one(model)).await?.into_inner().outputs[0])[0])
}

async fn model(client: &mut Client, name: &str) -> proto::Model {
    client.get_model(proto::GetModelRequest { model: name.into() }).await.unwrap().into_inner()
}

async fn state(client: &mut Client, name: &str) -> ModelState {
    model(client, name).await.state()
}

async fn metric(server: &Server, name: &str) -> f64 {
    let (_, text) = server.get("/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
}

fn load_as(repository: &Path, model: &str, load: &str) {
    fs::write(repository.join(model).join("model.toml"), format!("load = '{load}'\n")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_lazy_models_share_a_small_budget_and_no_request_fails() {
    const MODELS: usize = 200;
    const CALLERS: u64 = 6;
    const EACH: usize = 120;
    let dir = tempfile::tempdir().unwrap();
    for i in 0..MODELS {
        version(dir.path(), &format!("m{i}"), 1, &format!("scale = {i}.0\nmemory_bytes = 1000"));
    }
    let server = Arc::new(Server::fake(dir.path(), room(10_000)));
    let mut client = server.ready().await;
    assert_eq!(metric(&server, "torchlane_memory_resident_bytes").await, 0.0, "ready without any of them");
    assert_eq!(state(&mut client, "m0").await, ModelState::OnDemand);
    let mut health = HealthClient::new(server.channel().await);
    assert_eq!(serving(&mut health, "m199").await, Some(true), "it answers, after a load");
    let (most, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let looking = {
        let (server, most, done) = (server.clone(), most.clone(), done.clone());
        tokio::spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let used = metric(&server, "torchlane_memory_resident_bytes").await;
                most.fetch_max(used as u64, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
    };
    // The first few models are asked for far more often than the others (Zipf, s = 1).
    let weights: Vec<f64> = (1..=MODELS).map(|rank| 1.0 / rank as f64).collect();
    let all: f64 = weights.iter().sum();
    let callers: Vec<_> = (0..CALLERS)
        .map(|seed| {
            let (mut client, weights) = (client.clone(), weights.clone());
            tokio::spawn(async move {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..EACH {
                    let mut left = random.f64() * all;
                    let rank = weights.iter().position(|weight| {
                        left -= weight;
                        left <= 0.0
                    });
                    let i = rank.unwrap_or(MODELS - 1);
                    assert_eq!(ask(&mut client, &format!("m{i}")).await.unwrap(), i as f32);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    looking.await.unwrap();
    let most = most.load(Ordering::Relaxed);
    assert!((1..=10_000).contains(&most), "{most} bytes");
    let loads = metric(&server, "torchlane_residency_loads_total{cause=\"request\"}").await;
    let evictions = metric(&server, "torchlane_residency_evictions_total").await;
    let waited = metric(&server, "torchlane_residency_misses_total{result=\"waited\"}").await;
    assert_eq!(metric(&server, "torchlane_models_resident").await, 10.0);
    assert_eq!(loads - evictions, 10.0, "{loads} loads, {evictions} evictions");
    assert_eq!(metric(&server, "torchlane_residency_misses_total{result=\"refused\"}").await, 0.0);
    let requests = (CALLERS as usize * EACH) as f64;
    assert!(waited >= loads && waited < requests, "{waited} of {requests} waited for {loads} loads");
}

#[tokio::test]
async fn requests_share_one_load() {
    let dir = repository(&[("m", "scale = 3.0\nload_delay_ms = 300")]);
    let server = Server::fake(dir.path(), room(0));
    let client = server.ready().await;
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { ask(&mut client, "m").await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), 3.0);
    }
    assert_eq!(metric(&server, "torchlane_residency_loads_total{cause=\"request\"}").await, 1.0);
    assert_eq!(metric(&server, "torchlane_residency_misses_total{result=\"waited\"}").await, 100.0);
    assert_eq!(metric(&server, "torchlane_residency_wait_seconds_count").await, 100.0);
}

#[tokio::test]
async fn more_than_may_wait_are_told_to_come_back() {
    let dir = repository(&[("m", "load_delay_ms = 500"), ("n", "")]);
    let server = Server::fake(dir.path(), |settings| {
        room(0)(settings);
        settings.memory.max_waiting_per_model = 2;
        settings.memory.max_waiting = 3;
    });
    let client = server.ready().await;
    let call = |model: &'static str| {
        let mut client = client.clone();
        tokio::spawn(async move { ask(&mut client, model).await })
    };
    let calls: Vec<_> = (0..6).map(|_| call("m")).collect();
    let mut refused = 0;
    for call in calls {
        if let Err(status) = call.await.unwrap() {
            assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "QUEUE_FULL"));
            assert!(status.message().contains("memory.max_waiting_per_model"), "{}", status.message());
            refused += 1;
        }
    }
    assert_eq!(refused, 4);
    assert!(call("n").await.unwrap().is_ok(), "all places are free again");
}

#[tokio::test]
async fn who_cannot_wait_is_told_at_once_when_to_come_back() {
    let dir = repository(&[
        ("slow", "scale = 2.0\nload_delay_ms = 1000\nmemory_bytes = 1000"),
        ("other", "memory_bytes = 1000"),
    ]);
    let server = Server::fake(dir.path(), room(1000));
    let mut client = server.ready().await;
    assert_eq!(ask(&mut client, "slow").await.unwrap(), 2.0);
    ask(&mut client, "other").await.unwrap();
    assert_eq!(state(&mut client, "slow").await, ModelState::OnDemand);
    // What a load takes is known by now.
    let mut hurried = tonic::Request::new(one("slow"));
    hurried.set_timeout(Duration::from_millis(700));
    let began = Instant::now();
    let status = client.infer(hurried).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_millis(700));
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "MODEL_NOT_READY"));
    let after = status.get_error_details().retry_info().unwrap().retry_delay.unwrap();
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&after), "{after:?}");
    // The load that it began goes on.
    until(async || state(&mut client.clone(), "slow").await == ModelState::Ready).await;
    assert_eq!(metric(&server, "torchlane_residency_loads_total{cause=\"request\"}").await, 3.0);
}

#[tokio::test]
async fn without_a_deadline_there_is_an_end_to_waiting() {
    let dir = repository(&[("slow", "load_delay_ms = 900")]);
    let server = Server::fake(dir.path(), |settings| {
        room(0)(settings);
        settings.memory.max_wait = Duration::from_millis(100);
    });
    let mut client = server.ready().await;
    let status = ask(&mut client, "slow").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "MODEL_NOT_READY"));
    assert!(status.message().contains("still being loaded"), "{}", status.message());
    until(async || state(&mut client.clone(), "slow").await == ModelState::Ready).await;
    ask(&mut client, "slow").await.unwrap();
}

#[tokio::test]
async fn a_broken_model_says_why_and_is_not_loaded_again_by_each_request() {
    let dir = repository(&[("m", "load_error = 'broken weights'")]);
    let server = Server::fake(dir.path(), room(0));
    let mut client = server.ready().await;
    for _ in 0..3 {
        let status = ask(&mut client, "m").await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "MODEL_NOT_READY"));
        assert!(status.message().contains("broken weights"), "{}", status.message());
        let after = status.get_error_details().retry_info().unwrap().retry_delay.unwrap();
        assert!(after > Duration::from_secs(3) && after <= Duration::from_secs(5), "{after:?}");
    }
    assert_eq!(metric(&server, "torchlane_reloads_total{model=\"m\",result=\"failed\"}").await, 1.0);
    assert_eq!(state(&mut client, "m").await, ModelState::Failed);
    let mut health = HealthClient::new(server.channel().await);
    until(async || serving(&mut health.clone(), "m").await == Some(false)).await;
    version(dir.path(), "m", 2, "scale = 4.0");
    client.reload_model(reload("m", 2)).await.unwrap();
    assert_eq!(ask(&mut client, "m").await.unwrap(), 4.0);
    until(async || serving(&mut health, "m").await == Some(true)).await;
}

#[tokio::test]
async fn what_somebody_chose_survives_eviction() {
    let dir = repository(&[("m", "scale = 1.0\nmemory_bytes = 1000"), ("other", "memory_bytes = 2000")]);
    version(dir.path(), "m", 2, "scale = 2.0\nmemory_bytes = 1000");
    let server = Server::fake(dir.path(), room(2000));
    let mut client = server.ready().await;
    assert_eq!(ask(&mut client, "m").await.unwrap(), 2.0);
    client.reload_model(reload("m", 1)).await.unwrap();
    ask(&mut client, "other").await.unwrap();
    let away = model(&mut client, "m").await;
    assert_eq!(
        (away.state(), away.live_version.as_str(), away.resident_bytes),
        (ModelState::OnDemand, "", 0)
    );
    assert_eq!(away.previous_version, "2", "an eviction is no step");
    assert_eq!(ask(&mut client, "m").await.unwrap(), 1.0, "not the newest: somebody chose this one");
    let back = model(&mut client, "m").await;
    assert_eq!((back.previous_version.as_str(), back.resident_bytes), ("2", 1000));
    // Unloaded by somebody while it is not in memory: no request brings it back.
    ask(&mut client, "other").await.unwrap();
    let unload = || proto::UnloadModelRequest { model: "m".into() };
    assert_eq!(client.unload_model(unload()).await.unwrap().into_inner().unloaded_version, "1");
    assert_eq!(reason(&ask(&mut client, "m").await.unwrap_err()), "MODEL_NOT_READY");
    assert_eq!(state(&mut client, "m").await, ModelState::Unloaded);
    client.rollback_model(proto::RollbackModelRequest { model: "m".into() }).await.unwrap();
    assert_eq!(ask(&mut client, "m").await.unwrap(), 1.0);
}

#[tokio::test]
async fn versions_and_labels_are_found_on_the_first_request() {
    let dir = repository(&[("m", "scale = 1.0\nmemory_bytes = 1000"), ("other", "memory_bytes = 2000")]);
    version(dir.path(), "m", 2, "scale = 2.0\nmemory_bytes = 1000");
    fs::write(dir.path().join("m/model.toml"), "[versions]\nlabels = { old = 1 }\n").unwrap();
    let server = Server::fake(dir.path(), room(2000));
    let mut client = server.ready().await;
    for wish in ["1", "old"] {
        let asked = proto::InferRequest { version: wish.into(), ..one("m") };
        assert_eq!(client.infer(asked).await.unwrap().into_inner().version, "1", "{wish}");
        assert_eq!(model(&mut client, "m").await.resident_bytes, 2000, "both versions count");
        ask(&mut client, "other").await.unwrap();
        assert_eq!(model(&mut client, "m").await.resident_bytes, 0, "both versions go");
    }
    let asked = proto::InferRequest { version: "9".into(), ..one("m") };
    assert_eq!(reason(&client.infer(asked).await.unwrap_err()), "UNKNOWN_VERSION");
}

#[tokio::test]
async fn a_model_can_be_loaded_before_its_first_request() {
    let dir = repository(&[("m", "inputs = ['a', 'b']"), ("broken", "load_error = 'broken weights'")]);
    let server = Server::fake(dir.path(), room(0));
    let mut client = server.ready().await;
    assert!(model(&mut client, "m").await.signature.is_none());
    let load = |name: &str| proto::LoadModelRequest { model: name.into() };
    let m = client.load_model(load("m")).await.unwrap().into_inner();
    assert_eq!((m.signature.unwrap().inputs.len(), m.load.as_str()), (2, "lazy"));
    assert_eq!(client.load_model(load("m")).await.unwrap().into_inner().generation, 1, "once");
    assert_eq!(reason(&client.load_model(load("broken")).await.unwrap_err()), "MODEL_NOT_READY");
    assert_eq!(reason(&client.load_model(load("nope")).await.unwrap_err()), "UNKNOWN_MODEL");
}

#[tokio::test]
async fn pinned_models_and_models_in_use_stay() {
    let dir = repository(&[
        ("pinned", "memory_bytes = 1000"),
        ("busy", "delay_ms = 2000\nmemory_bytes = 1000"),
        ("a", "memory_bytes = 1000"),
        ("b", "memory_bytes = 1000"),
        ("large", "memory_bytes = 2500"),
    ]);
    load_as(dir.path(), "pinned", "pinned");
    let server = Server::fake(dir.path(), room(3000));
    let mut client = server.ready().await;
    assert_eq!(state(&mut client, "pinned").await, ModelState::Ready);
    ask(&mut client, "busy").await.unwrap();
    let running = {
        let mut client = client.clone();
        tokio::spawn(async move { ask(&mut client, "busy").await })
    };
    until(async || metric(&server, "torchlane_in_flight{lane=\"NORMAL\"}").await == 1.0).await;
    for name in ["a", "b", "a", "b"] {
        ask(&mut client, name).await.unwrap();
        let (pinned, busy) = (model(&mut client, "pinned").await, model(&mut client, "busy").await);
        assert_eq!((pinned.generation, busy.generation), (1, 1), "neither was touched");
    }
    // There is no room until the request in flight has ended.
    version(dir.path(), "wide", 1, "memory_bytes = 2000");
    client.reload_model(reload("wide", 1)).await.unwrap();
    running.await.unwrap().unwrap();
    assert_eq!(metric(&server, "torchlane_memory_resident_bytes").await, 3000.0);
    // What does not fit beside what is pinned never will.
    let status = ask(&mut client, "large").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "MODEL_NOT_READY"));
    assert!(status.message().contains("pinned models take 1000 B"), "{}", status.message());
    assert_eq!(state(&mut client, "wide").await, ModelState::Ready, "and nothing has gone for it");
}

#[tokio::test]
async fn a_reload_that_breaks_the_budget_is_refused() {
    let dir = repository(&[("m", "scale = 1.0\nmemory_bytes = 2048"), ("other", "memory_bytes = 1024")]);
    version(dir.path(), "m", 2, "scale = 2.0\nmemory_bytes = 2048");
    version(dir.path(), "m", 3, "scale = 3.0\nmemory_bytes = 1024");
    let server = Server::fake(dir.path(), room(3072));
    let mut client = server.ready().await;
    client.reload_model(reload("m", 1)).await.unwrap();
    ask(&mut client, "other").await.unwrap();
    let status = client.reload_model(reload("m", 2)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "MEMORY_BUDGET"));
    for part in ["needs 2.0 KiB", "memory.budget = 3.0 KiB", "take 2.0 KiB", "unload_first"] {
        assert!(status.message().contains(part), "{part}: {}", status.message());
    }
    assert_eq!(ask(&mut client, "m").await.unwrap(), 1.0);
    assert_eq!(state(&mut client, "other").await, ModelState::Ready, "nothing went for what never fits");
    // One that fits once the other model has gone.
    client.reload_model(reload("m", 3)).await.unwrap();
    assert_eq!(ask(&mut client, "m").await.unwrap(), 3.0);
    assert_eq!(state(&mut client, "other").await, ModelState::OnDemand);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn or_the_old_version_goes_first_and_requests_wait() {
    let dir = repository(&[("m", "scale = 1.0\nmemory_bytes = 2000\ndelay_ms = 5")]);
    version(dir.path(), "m", 2, "scale = 2.0\nmemory_bytes = 2000\nload_delay_ms = 200");
    version(dir.path(), "m", 3, "load_error = 'broken'\nmemory_bytes = 2000");
    let server = Server::fake(dir.path(), |settings| {
        room(3000)(settings);
        settings.memory.reload = ReloadPolicy::UnloadFirst;
    });
    let mut client = server.ready().await;
    client.reload_model(reload("m", 1)).await.unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (mut client, done) = (client.clone(), done.clone());
            tokio::spawn(async move {
                let mut last = 0.0;
                while !done.load(Ordering::Relaxed) {
                    let now = ask(&mut client, "m").await.unwrap();
                    assert!(now >= last, "{now} after {last}");
                    last = now;
                }
                last
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let report = client.reload_model(reload("m", 2)).await.unwrap().into_inner();
    assert_eq!((report.previous_version.as_str(), report.live_version.as_str()), ("1", "2"));
    tokio::time::sleep(Duration::from_millis(50)).await;
    done.store(true, Ordering::Relaxed);
    for caller in callers {
        assert_eq!(caller.await.unwrap(), 2.0);
    }
    assert_eq!(metric(&server, "torchlane_memory_resident_bytes").await, 2000.0);
    // The new one does not load: the old one comes back with the next request.
    assert_eq!(reason(&client.reload_model(reload("m", 3)).await.unwrap_err()), "LOAD_FAILED");
    assert_eq!(metric(&server, "torchlane_models_resident").await, 0.0);
    let back = async || ask(&mut client.clone(), "m").await.is_ok_and(|value| value == 2.0);
    until(back).await;
}

#[tokio::test]
async fn the_start_loads_what_is_pinned_then_what_is_newest() {
    let dir = repository(&[]);
    for (age, name) in ["newest", "newer", "older", "oldest"].iter().enumerate() {
        version(dir.path(), name, 1, "memory_bytes = 1000");
        let archive = fs::File::options().write(true).open(dir.path().join(name).join("1/model.pt")).unwrap();
        let written = SystemTime::now() - Duration::from_secs(100 * (age as u64 + 1));
        archive.set_modified(written).unwrap();
    }
    load_as(dir.path(), "oldest", "pinned");
    let server = Server::fake(dir.path(), |settings| settings.memory.budget = ByteSize::b(3500));
    let mut client = server.ready().await;
    let states = async |client: &mut Client| {
        let mut states = Vec::new();
        for name in ["oldest", "newest", "newer", "older"] {
            states.push(state(client, name).await);
        }
        states
    };
    let (ready, on_demand) = (ModelState::Ready, ModelState::OnDemand);
    assert_eq!(states(&mut client).await, [ready, ready, ready, on_demand]);
    // An eager one goes like a lazy one, the one first that was used longest ago.
    ask(&mut client, "newest").await.unwrap();
    ask(&mut client, "older").await.unwrap();
    assert_eq!(states(&mut client).await, [ready, ready, on_demand, ready]);
    ask(&mut client, "newer").await.unwrap();
    assert_eq!(states(&mut client).await, [ready, on_demand, ready, ready]);
    let pinned = model(&mut client, "oldest").await;
    assert_eq!((pinned.load.as_str(), pinned.resident_bytes), ("pinned", 1000));
}

#[tokio::test]
async fn a_wrong_estimate_is_put_right_before_the_version_goes_live() {
    let dir = repository(&[
        ("small", "memory_bytes = 1000"),
        ("liar", "memory_bytes = 2000\nestimate_bytes = 10"),
        ("monster", "memory_bytes = 9000\nestimate_bytes = 10"),
    ]);
    let server = Server::fake(dir.path(), room(2500));
    let mut client = server.ready().await;
    ask(&mut client, "small").await.unwrap();
    ask(&mut client, "liar").await.unwrap();
    assert_eq!(metric(&server, "torchlane_memory_resident_bytes").await, 2000.0, "the small one went");
    let status = ask(&mut client, "monster").await.unwrap_err();
    assert!(status.message().contains("where 10 B were expected"), "{}", status.message());
    assert_eq!(metric(&server, "torchlane_memory_resident_bytes").await, 2000.0, "the liar stays");
}

#[tokio::test]
async fn the_most_urgent_load_is_next() {
    let dir = repository(&[("first", "load_delay_ms = 1500"), ("low", ""), ("critical", ""), ("late", "")]);
    let server = Server::fake(dir.path(), room(0));
    let mut client = server.ready().await;
    let mut events =
        client.watch_models(proto::WatchModelsRequest { model: String::new() }).await.unwrap().into_inner();
    let call = |model: &'static str, priority: proto::Priority| {
        let mut client = client.clone();
        let asked = proto::InferRequest { priority: priority.into(), ..one(model) };
        tokio::spawn(async move { client.infer(asked).await })
    };
    let mut calls = vec![call("first", proto::Priority::Normal)];
    until(async || state(&mut client.clone(), "first").await == ModelState::Loading).await;
    for (model, priority) in [("low", proto::Priority::Low), ("late", proto::Priority::High)] {
        calls.push(call(model, priority));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    calls.push(call("critical", proto::Priority::Critical));
    for call in calls {
        call.await.unwrap().unwrap();
    }
    let mut order = Vec::new();
    while order.len() < 4 {
        let event = events.message().await.unwrap().unwrap();
        if event.change == "ready" {
            assert_eq!(event.asker, "request");
            order.push(event.model.unwrap().name);
        }
    }
    assert_eq!(order, ["first", "critical", "late", "low"]);
}

#[tokio::test]
async fn models_that_only_take_each_others_place_are_noticed() {
    let dir = repository(&[("a", "memory_bytes = 1000"), ("b", "memory_bytes = 1000")]);
    let server = Server::fake(dir.path(), room(1500));
    let mut client = server.ready().await;
    for _ in 0..4 {
        ask(&mut client, "a").await.unwrap();
        ask(&mut client, "a").await.unwrap();
    }
    assert_eq!(metric(&server, "torchlane_residency_thrash").await, 0.0);
    for _ in 0..10 {
        ask(&mut client, "b").await.unwrap();
        ask(&mut client, "a").await.unwrap();
    }
    assert_eq!(metric(&server, "torchlane_residency_thrash").await, 1.0);
    assert_eq!(metric(&server, "torchlane_residency_evictions_total").await, 20.0);
}
