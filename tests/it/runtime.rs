//! What goes on around requests: files that do not answer, changes that wait for each other, health, metrics, signals.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use bytesize::ByteSize;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;
use torchlane::{
    model::LoadMode,
    proto::{self, ModelState, Priority},
};

use super::{
    ensemble::ensemble,
    fake::{reload, repository, version},
    server::{Client, HealthClient, Server, f32s, floats, reason, request, serving, until},
    watching::watched,
};

/// Long enough for anything that waits for nothing.
const SOON: Duration = Duration::from_secs(10);

fn one(model: &str) -> proto::InferRequest {
    request(model, vec![f32s("x", &[1], &[1.0])])
}

async fn ask(client: &mut Client, model: &str) -> Result<f32, tonic::Status> {
    Ok(floats(&client.infer(one(model)).await?.into_inner().outputs[0])[0])
}

async fn state(client: &mut Client, name: &str) -> ModelState {
    client.get_model(proto::GetModelRequest { model: name.into() }).await.unwrap().into_inner().state()
}

#[tokio::test]
async fn files_that_do_not_answer_hold_their_model_alone() {
    let files = tempfile::tempdir().unwrap();
    let stalls = files.path().join("stalls");
    let dir = repository(&[("m", "scale = 2.0"), ("gone", "")]);
    let server = Server::fake(dir.path(), |settings| settings.server.io_threads = 1);
    let mut client = server.ready().await;
    fs::write(&stalls, "").unwrap();
    version(dir.path(), "gone", 2, &format!("scale = 3.0\nstall_while = '{}'", stalls.display()));
    let mut stalled = {
        let mut client = client.clone();
        tokio::spawn(async move { client.reload_model(reload("gone", 2)).await })
    };
    until(async || state(&mut client.clone(), "gone").await == ModelState::Reloading).await;
    // Calls on the same connection, and so on the same thread.
    let all = async {
        assert_eq!(ask(&mut client, "m").await.unwrap(), 2.0);
        assert_eq!(ask(&mut client, "gone").await.unwrap(), 1.0, "its old version serves on");
        let mut health = HealthClient::new(server.channel().await);
        assert_eq!(serving(&mut health, "gone").await, Some(true));
        for (path, text) in [("/livez", "alive\n"), ("/readyz", "ready\n")] {
            assert_eq!(server.get(path).await, (200, text.to_owned()));
        }
        client.reload_model(reload("m", 1)).await.unwrap();
        client.list_models(proto::ListModelsRequest::default()).await.unwrap();
    };
    timeout(SOON, all).await.unwrap();
    assert!(timeout(Duration::from_millis(50), &mut stalled).await.is_err());
    fs::remove_file(&stalls).unwrap();
    stalled.await.unwrap().unwrap();
    assert_eq!(ask(&mut client, "gone").await.unwrap(), 3.0);
}

#[tokio::test]
async fn what_undoes_does_not_wait_for_changes_that_do_not_end() {
    let files = tempfile::tempdir().unwrap();
    let stalls = files.path().join("stalls");
    let dir = repository(&[("m", "scale = 1.0"), ("a", ""), ("b", ""), ("c", ""), ("d", "")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    version(dir.path(), "m", 2, "scale = 2.0");
    client.reload_model(reload("m", 2)).await.unwrap();
    fs::write(&stalls, "").unwrap();
    let stalled: Vec<_> = ["a", "b", "c", "d"]
        .into_iter()
        .map(|model| {
            version(dir.path(), model, 2, &format!("stall_while = '{}'", stalls.display()));
            let mut client = client.clone();
            tokio::spawn(async move { client.reload_model(reload(model, 2)).await })
        })
        .collect();
    for model in ["a", "b", "c", "d"] {
        until(async || state(&mut client.clone(), model).await == ModelState::Reloading).await;
    }
    let waits = {
        let mut client = client.clone();
        tokio::spawn(async move { client.reload_model(reload("m", 2)).await })
    };
    let back = client.rollback_model(proto::RollbackModelRequest { model: "m".into() });
    timeout(SOON, back).await.unwrap().unwrap();
    assert_eq!(ask(&mut client, "m").await.unwrap(), 1.0);
    timeout(SOON, client.unload_model(proto::UnloadModelRequest { model: "m".into() }))
        .await
        .unwrap()
        .unwrap();
    assert!(!waits.is_finished(), "all other places are held");
    fs::remove_file(&stalls).unwrap();
    for change in stalled.into_iter().chain([waits]) {
        change.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_rollback_does_not_wait_for_the_load_of_another_model() {
    let dir = repository(&[("m", "scale = 1.0"), ("slow", "")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    version(dir.path(), "m", 2, "scale = 2.0");
    client.reload_model(reload("m", 2)).await.unwrap();
    version(dir.path(), "slow", 2, "load_delay_ms = 4000");
    let slow = {
        let mut client = client.clone();
        tokio::spawn(async move { client.reload_model(reload("slow", 2)).await })
    };
    until(async || state(&mut client.clone(), "slow").await == ModelState::Reloading).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    client.rollback_model(proto::RollbackModelRequest { model: "m".into() }).await.unwrap();
    assert!(!slow.is_finished());
    slow.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_load_that_waits_for_memory_keeps_no_other_from_loading() {
    let files = tempfile::tempdir().unwrap();
    let hangs = files.path().join("hangs");
    let dir = repository(&[
        ("busy", &format!("memory_bytes = 1000\nhang_while = '{}'", hangs.display())),
        ("large", "memory_bytes = 1000"),
        ("small", "memory_bytes = 500"),
    ]);
    let server = Server::fake(dir.path(), |settings| {
        settings.memory.budget = ByteSize::b(1500);
        settings.memory.load = LoadMode::Lazy;
    });
    let mut client = server.ready().await;
    ask(&mut client, "busy").await.unwrap();
    fs::write(&hangs, "").unwrap();
    let spawn = |request: proto::InferRequest| {
        let mut client = client.clone();
        tokio::spawn(async move { client.infer(request).await })
    };
    let busy = spawn(one("busy"));
    until(async || {
        let (_, text) = server.get("/metrics").await;
        text.lines().any(|line| line.starts_with("torchlane_in_flight{") && line.ends_with(" 1"))
    })
    .await;
    let large = spawn(proto::InferRequest { priority: Priority::Low.into(), ..one("large") });
    until(async || state(&mut client.clone(), "large").await == ModelState::Loading).await;
    let urgent = proto::InferRequest { priority: Priority::Critical.into(), ..one("small") };
    timeout(SOON, client.infer(urgent)).await.expect("it waits behind the low lane").unwrap();
    assert!(!large.is_finished());
    fs::remove_file(&hangs).unwrap();
    busy.await.unwrap().unwrap();
    large.await.unwrap().unwrap();
}

#[tokio::test]
async fn ten_loads_of_one_model_at_once_are_one() {
    let dir = repository(&[("m", "load_delay_ms = 400")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let before = client.get_model(proto::GetModelRequest { model: "m".into() }).await.unwrap().into_inner();
    let loads: Vec<_> = (0..10)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { client.reload_model(reload("m", 1)).await })
        })
        .collect();
    for load in loads {
        let report = load.await.unwrap().unwrap().into_inner();
        assert_eq!((report.live_version.as_str(), report.generation), ("1", before.generation + 1));
    }
    // One after the other they are two.
    let again = client.reload_model(reload("m", 1)).await.unwrap().into_inner();
    assert_eq!(again.generation, before.generation + 2);
    // Other files are another change: the newest wins.
    version(dir.path(), "m", 2, "load_delay_ms = 400");
    let first = {
        let mut client = client.clone();
        tokio::spawn(async move { client.reload_model(reload("m", 1)).await })
    };
    until(async || state(&mut client.clone(), "m").await == ModelState::Reloading).await;
    client.reload_model(reload("m", 2)).await.unwrap();
    assert_eq!(reason(&first.await.unwrap().unwrap_err()), "SUPERSEDED");
}

#[tokio::test]
async fn health_follows_the_breaker_whatever_else_happens_to_the_model() {
    let files = tempfile::tempdir().unwrap();
    let broken = files.path().join("broken");
    let dir = repository(&[("m", &format!("fail_while = '{}'", broken.display())), ("other", "")]);
    let steps = "[[steps]]\nmodel = 'm'\ninputs = { x = 'in' }\noutputs = { output_0 = 'out' }\n";
    ensemble(dir.path(), "whole", steps);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let mut health = HealthClient::new(server.channel().await);
    until(async || serving(&mut health.clone(), "whole").await == Some(true)).await;
    fs::write(&broken, "").unwrap();
    for _ in 0..10 {
        ask(&mut client, "m").await.unwrap_err();
    }
    until(async || serving(&mut health.clone(), "m").await == Some(false)).await;
    version(dir.path(), "m", 2, "load_error = 'broken weights'");
    client.reload_model(reload("m", 2)).await.unwrap_err();
    for _ in 0..60 {
        assert_eq!(serving(&mut health, "m").await, Some(false), "it refuses all requests");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_ne!(server.get("/v2/models/m/ready").await.0, 200);
    assert_eq!(server.get("/v2/models/other/ready").await.0, 200);
    assert_eq!(serving(&mut health, "other").await, Some(true));
    assert_eq!(serving(&mut health, "whole").await, Some(false), "its step answers nothing");
    fs::remove_file(&broken).unwrap();
    until(async || ask(&mut client.clone(), "m").await.is_ok()).await;
    until(async || serving(&mut health.clone(), "m").await == Some(true)).await;
    until(async || serving(&mut health.clone(), "whole").await == Some(true)).await;
}

#[tokio::test]
async fn metrics_stay_as_long_as_there_are_models_and_versions() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let mut sizes = Vec::new();
    for number in 1..=150 {
        version(dir.path(), "m", number, &format!("scale = {number}.0"));
        client.reload_model(reload("m", number)).await.unwrap();
        assert_eq!(ask(&mut client, "m").await.unwrap(), number as f32);
        if number == 10 || number == 150 {
            sizes.push(server.get("/metrics").await.1);
        }
        // Old versions stay on disk in a repository, but not in this one: looks at it would take ever longer.
        if number > 2 {
            fs::remove_dir_all(dir.path().join(format!("m/{}", number - 2))).unwrap();
        }
    }
    let [early, late] = &sizes[..] else { panic!() };
    assert!(late.len() < early.len() + early.len() / 20, "{} bytes, then {}", early.len(), late.len());
    let counted = |version: &str| {
        let series = format!("torchlane_requests_total{{model=\"m\",version=\"{version}\"");
        late.lines().filter(|line| line.starts_with(&series)).count()
    };
    assert_eq!((counted("150"), counted("149"), counted("148")), (1, 1, 0), "live, previous, gone");
}

#[tokio::test]
async fn nothing_is_said_of_models_that_are_gone() {
    let files = tempfile::tempdir().unwrap();
    let broken = files.path().join("broken");
    let dir = repository(&[("stays", "")]);
    for i in 0..20 {
        version(dir.path(), &format!("gone{i}"), 1, &format!("fail_while = '{}'", broken.display()));
        fs::write(dir.path().join(format!("gone{i}/model.toml")), "response_cache = true\n").unwrap();
    }
    let server = Server::fake(dir.path(), watched);
    let mut client = server.ready().await;
    let mut health = HealthClient::new(server.channel().await);
    for i in 0..20 {
        ask(&mut client, &format!("gone{i}")).await.unwrap();
    }
    fs::write(&broken, "").unwrap();
    for value in 0..10 {
        let request = request("gone7", vec![f32s("x", &[1], &[value as f32 + 2.0])]);
        client.infer(request).await.unwrap_err();
    }
    let (_, text) = server.get("/metrics").await;
    assert!(text.contains("torchlane_breaker_open{model=\"gone7\"} 1"), "{text}");
    assert_eq!(serving(&mut health, "gone3").await, Some(true));
    for i in 0..20 {
        fs::remove_dir_all(dir.path().join(format!("gone{i}"))).unwrap();
    }
    until(async || serving(&mut health.clone(), "gone19").await.is_none()).await;
    until(async || serving(&mut health.clone(), "gone3").await.is_none()).await;
    until(async || !server.get("/metrics").await.1.contains("gone")).await;
    assert_eq!(serving(&mut health, "stays").await, Some(true));
}

/// The shipped binary, and where it listens for HTTP.
struct Process {
    child: Child,
    log: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Process {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_torchlane"))
            .args([
                "serve",
                "--grpc-addr",
                "127.0.0.1:0",
                "--http-addr",
                "127.0.0.1:0",
                "--set",
                "backend=fake",
            ])
            .args(["--set", "watch.interval=0s", "--set", "watch.settle=0s"])
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        Self { child, log }
    }

    fn until(&mut self, text: &str) -> String {
        let mut before = Vec::new();
        for line in self.log.by_ref() {
            let line = line.unwrap();
            if line.contains(text) {
                return line;
            }
            before.push(line);
        }
        panic!("it ended without '{text}': {before:#?}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
fn signals_that_do_not_mean_the_end_do_not_end_the_server() {
    let dir = repository(&[("m", "")]);
    let mut process = Process::start(&["--repository", dir.path().to_str().unwrap()]);
    process.until(" ready ");
    for signal in [Signal::USR1, Signal::USR2] {
        process.signal(signal);
        process.until("no meaning here");
    }
    version(dir.path(), "new", 1, "");
    process.signal(Signal::HUP);
    process.until("SIGHUP: looking");
    let line = process.until("model=new");
    assert!(line.contains("loading"), "{line}");
    process.signal(Signal::TERM);
    process.until("stopped");
    assert!(process.child.wait().unwrap().success());
}

#[test]
fn a_level_that_is_none_is_refused_at_the_start() {
    for level in ["verbose", ""] {
        let mut process = Process::start(&["--allow-empty", "--set", &format!("log.level={level}")]);
        let line = process.until("error:");
        assert!(
            line.contains("log.level") && line.contains("off, error, warn, info, debug, trace"),
            "{line}"
        );
        assert_eq!(process.child.wait().unwrap().code(), Some(2));
    }
}

#[test]
fn the_audit_log_goes_to_standard_output() {
    let dir = repository(&[("m", "")]);
    let repository = dir.path().to_str().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_torchlane"))
        .args(["serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--set", "backend=fake"])
        .args(["--repository", repository, "--set", "audit.file=/dev/stdout"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let status = child.wait().unwrap();
    assert!(line.contains("\"change\":\"ready\""), "{line}");
    assert!(status.success(), "{status}");
}
