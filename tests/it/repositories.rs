//! Several repositories, each by itself: one that is broken, empty or slow changes nothing for the others.

use std::{fs, net::TcpListener, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use tokio::time::Instant;
use torchlane::{app, config::Settings, proto};

use super::{
    fake::{reload, version},
    server::{Client, Server, f32s, floats, reason, request, until},
};

struct Two {
    dir: tempfile::TempDir,
}

impl Two {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn a(&self) -> std::path::PathBuf {
        self.dir.path().join("a")
    }

    fn b(&self) -> std::path::PathBuf {
        self.dir.path().join("b")
    }

    fn settings(&self, settings: &mut Settings) {
        settings.repositories = vec![self.a(), self.b()];
        settings.watch.interval = Duration::from_millis(100);
        settings.watch.settle = Duration::from_millis(200);
    }

    fn serve(&self) -> Server {
        Server::fake(&self.a(), |settings| self.settings(settings))
    }
}

async fn scale(client: &mut Client, model: &str, version: &str) -> Result<f32, tonic::Status> {
    let asked =
        proto::InferRequest { version: version.into(), ..request(model, vec![f32s("x", &[1], &[1.0])]) };
    Ok(floats(&client.infer(asked).await?.into_inner().outputs[0])[0])
}

async fn answers(client: &mut Client, model: &str, wanted: f32) {
    until(async || scale(client, model, "").await.is_ok_and(|got| got == wanted)).await;
}

/// It has a runtime of its own.
async fn check(settings: Settings) -> Vec<app::ModelCheck> {
    tokio::task::spawn_blocking(move || app::check_models(&settings).unwrap()).await.unwrap()
}

async fn notes(client: &mut Client) -> Vec<String> {
    client.list_models(proto::ListModelsRequest {}).await.unwrap().into_inner().notes
}

async fn get(client: &mut Client, model: &str) -> proto::Model {
    client.get_model(proto::GetModelRequest { model: model.into() }).await.unwrap().into_inner()
}

async fn metric(server: &Server, beginning: &str) -> Option<f64> {
    let (_, text) = server.get("/metrics").await;
    text.lines().find(|line| line.starts_with(beginning))?.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn one_that_turns_empty_or_goes_away_keeps_its_models_and_others_go_on() {
    let two = Two::new();
    version(&two.a(), "m", 1, "scale = 1.0");
    version(&two.b(), "n", 1, "scale = 20.0");
    version(&two.b(), "gone", 1, "scale = 3.0");
    let server = two.serve();
    let mut client = server.ready().await;
    let away = two.dir.path().join("away");
    for (step, turn) in [(2, "empty"), (3, "missing"), (4, "a file")] {
        fs::rename(two.a(), &away).unwrap();
        match turn {
            "empty" => fs::create_dir(two.a()).unwrap(),
            "a file" => fs::write(two.a(), "").unwrap(),
            _ => {}
        }
        let number = f32::from(u8::try_from(step).unwrap());
        version(&two.b(), "n", step, &format!("scale = {number}.0"));
        answers(&mut client, "n", number).await;
        let about = two.a().display().to_string();
        until(async || notes(&mut client).await.iter().any(|note| note.contains(&about))).await;
        assert_eq!(scale(&mut client, "m", "").await.unwrap(), 1.0, "{turn}");
        let beginning = format!("torchlane_repository_readable{{repository=\"{about}\"}}");
        assert_eq!(metric(&server, &beginning).await, Some(0.0));
        client.reload_model(reload("n", 1)).await.unwrap();
        let status = client.reload_model(reload("nowhere", 1)).await.unwrap_err();
        if turn == "missing" {
            // A caller is shown no directory of the server's machine.
            assert!(status.message().starts_with("cannot read a:"), "{status}");
        }
        client.rollback_model(proto::RollbackModelRequest { model: "n".into() }).await.unwrap();
        if turn == "empty" {
            fs::remove_dir(two.a()).unwrap();
        } else if turn == "a file" {
            fs::remove_file(two.a()).unwrap();
        }
        fs::rename(&away, two.a()).unwrap();
        until(async || notes(&mut client).await.is_empty()).await;
        assert_eq!(metric(&server, &beginning).await, Some(1.0));
    }
    // What is really removed goes.
    fs::remove_dir_all(two.b().join("gone")).unwrap();
    let is_gone = async |client: &mut Client| {
        scale(client, "gone", "").await.is_err_and(|status| reason(&status) == "UNKNOWN_MODEL")
    };
    until(async || is_gone(&mut client).await).await;
}

#[tokio::test]
async fn one_that_is_missing_at_the_start_joins_later() {
    let two = Two::new();
    version(&two.b(), "n", 1, "scale = 2.0");
    let server = two.serve();
    let mut client = server.ready().await;
    assert_eq!(scale(&mut client, "n", "").await.unwrap(), 2.0);
    let (_, text) = server.get("/readyz").await;
    assert!(text.starts_with("ready\n") && text.contains(two.a().to_str().unwrap()), "{text}");
    version(&two.a(), "m", 1, "scale = 1.0");
    answers(&mut client, "m", 1.0).await;
}

#[tokio::test]
async fn a_store_that_does_not_answer_holds_up_neither_start_nor_reloads_nor_the_end() {
    let dir = tempfile::tempdir().unwrap();
    version(dir.path(), "m", 1, "scale = 1.0");
    // It accepts connections, and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/models", silent.local_addr().unwrap());
    let begun = Instant::now();
    let server = Server::fake(dir.path(), |settings| {
        settings.repositories = vec![url.clone().into(), dir.path().to_owned()];
        settings.cache.directory = dir.path().join(".cache");
        settings.store.patience = Duration::from_secs(60);
    });
    let mut client = Client::new(server.channel().await);
    answers(&mut client, "m", 1.0).await;
    version(dir.path(), "m", 2, "scale = 2.0");
    client.reload_model(reload("m", 2)).await.unwrap();
    version(dir.path(), "new", 1, "scale = 7.0");
    client.reload_model(reload("new", 1)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
    let ending = Instant::now();
    tokio::task::spawn_blocking(move || server.join()).await.unwrap();
    assert!(ending.elapsed() < Duration::from_secs(20), "{:?}", ending.elapsed());
}

#[tokio::test]
async fn a_store_alone_that_cannot_be_reached_is_waited_for_and_a_signal_ends_the_wait() {
    let dir = tempfile::tempdir().unwrap();
    // Nothing listens there.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{free}/models");
    let server = Server::fake(Path::new(&url), |settings| {
        settings.cache.directory = dir.path().join("cache");
        settings.watch.interval = Duration::from_millis(100);
    });
    until(async || server.get("/readyz").await.1.contains(&url)).await;
    let (status, text) = server.get("/readyz").await;
    assert_eq!(status, 503, "{text}");
    assert_eq!(server.get("/livez").await.0, 200);
    let ending = Instant::now();
    tokio::task::spawn_blocking(move || server.join()).await.unwrap();
    assert!(ending.elapsed() < Duration::from_secs(20), "{:?}", ending.elapsed());
}

#[test]
fn where_no_repository_can_ever_be_read_the_process_ends_and_says_why() {
    let two = Two::new();
    let mut settings =
        Settings { backend: torchlane::config::BackendKind::Fake, allow_empty: true, ..Default::default() };
    two.settings(&mut settings);
    settings.server.grpc_addr = ([127, 0, 0, 1], 0).into();
    settings.server.http_addr = ([127, 0, 0, 1], 0).into();
    let error = app::serve_until(settings, Default::default(), |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("a does not exist") && error.contains("--repository"), "{error}");
}

#[tokio::test]
async fn a_model_in_two_repositories_is_the_first_ones_and_that_is_said() {
    let two = Two::new();
    version(&two.a(), "m", 1, "scale = 1.0");
    version(&two.b(), "m", 9, "scale = 9.0");
    fs::write(two.a().join("m.pt"), "scale = 5.0").unwrap();
    let server = two.serve();
    let mut client = server.ready().await;
    assert_eq!(scale(&mut client, "m", "").await.unwrap(), 1.0);
    let said = notes(&mut client).await;
    assert_eq!(said.len(), 1, "{said:?}");
    for part in ["'m'", two.a().to_str().unwrap(), two.b().to_str().unwrap()] {
        assert!(said[0].contains(part), "{said:?}");
    }
    let mut settings = Settings { backend: torchlane::config::BackendKind::Fake, ..Default::default() };
    two.settings(&mut settings);
    let checks = check(settings).await;
    assert_eq!((checks.len(), checks[0].version), (1, Some(1)));
    assert_eq!(checks[0].warnings, said);
    // Once the first is gone the second is served.
    fs::remove_file(two.a().join("m.pt")).unwrap();
    version(&two.a(), "other", 1, "");
    fs::remove_dir_all(two.a().join("m")).unwrap();
    answers(&mut client, "m", 9.0).await;
    until(async || notes(&mut client).await.is_empty()).await;
}

#[test]
fn check_names_a_repository_that_cannot_be_read_and_goes_on() {
    let two = Two::new();
    version(&two.b(), "good", 1, "");
    let mut settings = Settings { backend: torchlane::config::BackendKind::Fake, ..Default::default() };
    two.settings(&mut settings);
    let checks = app::check_models(&settings).unwrap();
    let problems: Vec<_> = checks.iter().map(|c| (c.name.clone(), c.problem.is_some())).collect();
    assert_eq!(problems, [(two.a().display().to_string(), true), ("good".to_owned(), false)]);
}

#[tokio::test]
async fn versions_that_are_asked_for_and_not_there_are_named_everywhere() {
    let two = Two::new();
    version(&two.a(), "m", 1, "scale = 1.0");
    fs::create_dir(two.b()).unwrap();
    let manifest = |text: &str| fs::write(two.a().join("m/model.toml"), text).unwrap();
    manifest("[versions]\nonly = [5]\n");
    let mut settings = Settings { backend: torchlane::config::BackendKind::Fake, ..Default::default() };
    two.settings(&mut settings);
    let checks = check(settings).await;
    let problem = checks[0].problem.clone().unwrap();
    assert!(problem.contains("version 5 is not in the repository (found: 1)"), "{problem}");
    let server = two.serve();
    let mut client = Client::new(server.channel().await);
    until(async || server.get("/readyz").await.1.contains("version 5 is not in the repository")).await;
    assert_eq!(server.get("/readyz").await.0, 503);
    until(async || get(&mut client, "m").await.last_error.contains(&problem)).await;
    version(&two.a(), "m", 5, "scale = 5.0");
    let mut client = server.ready().await;
    answers(&mut client, "m", 5.0).await;
    assert_eq!((get(&mut client, "m").await.last_error, notes(&mut client).await), (String::new(), vec![]));
    // The version behind a label is gone: no other answers for it. What is live stays.
    manifest("[versions]\nlabels = { stable = 5, canary = 1 }\n");
    until(async || scale(&mut client, "m", "canary").await.is_ok_and(|got| got == 1.0)).await;
    fs::remove_dir_all(two.a().join("m/5")).unwrap();
    until(async || notes(&mut client).await.iter().any(|note| note.contains("'stable'"))).await;
    assert_eq!(scale(&mut client, "m", "").await.unwrap(), 5.0, "the canary is not for all");
    assert_eq!(scale(&mut client, "m", "stable").await.unwrap(), 5.0, "it is still loaded");
    assert_eq!(scale(&mut client, "m", "canary").await.unwrap(), 1.0);
    server.join();
    let server = two.serve();
    let mut client = server.ready().await;
    let status = scale(&mut client, "m", "stable").await.unwrap_err();
    assert_eq!(reason(&status), "UNKNOWN_VERSION", "{status}");
    assert_eq!(scale(&mut client, "m", "").await.unwrap(), 1.0, "there is nothing else after a restart");
}

#[tokio::test]
async fn a_canary_stays_one_when_the_live_version_loses_its_directory() {
    for manifest in
        ["[rollout]\nstrategy = 'canary'\npercent = 0.001\n", "[versions]\nlabels = { canary = 2 }\n"]
    {
        let two = Two::new();
        version(&two.a(), "m", 1, "scale = 1.0");
        fs::write(two.a().join("m/model.toml"), manifest).unwrap();
        let server = two.serve();
        let mut client = server.ready().await;
        version(&two.a(), "m", 2, "scale = 2.0");
        until(async || !get(&mut client, "m").await.loaded.is_empty()).await;
        fs::remove_dir_all(two.a().join("m/1")).unwrap();
        until(async || get(&mut client, "m").await.versions == ["2"]).await;
        tokio::time::sleep(Duration::from_millis(900)).await;
        let now = get(&mut client, "m").await;
        assert_eq!((now.live_version.as_str(), now.loaded.len()), ("1", 1), "{manifest}");
        assert_eq!(scale(&mut client, "m", "2").await.unwrap(), 2.0);
        for _ in 0..20 {
            assert_eq!(scale(&mut client, "m", "").await.unwrap(), 1.0);
        }
    }
}

#[tokio::test]
async fn a_copy_into_a_new_version_is_waited_for_and_counts_as_no_failure() {
    let two = Two::new();
    version(&two.a(), "m", 1, "scale = 1.0");
    let server = Server::fake(&two.a(), |settings| {
        two.settings(settings);
        settings.watch.settle = Duration::from_secs(1);
    });
    let mut client = server.ready().await;
    // As rsync does: a hidden file that grows, then its name; the next file after that.
    let new = two.a().join("m/2");
    fs::create_dir(&new).unwrap();
    let copy = async |name: &str, bytes: &[u8]| {
        let hidden = new.join(format!(".{name}.Xa31Pq"));
        for length in 0..8 {
            fs::write(&hidden, &bytes[..bytes.len() * length / 8]).unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        fs::write(&hidden, bytes).unwrap();
        fs::rename(&hidden, new.join(name)).unwrap();
    };
    copy("model.pt", b"scale = 2.0").await;
    copy("notes.txt", b"seconds later, and nothing may be loaded before").await;
    assert_eq!(scale(&mut client, "m", "").await.unwrap(), 1.0, "the copy had not ended");
    answers(&mut client, "m", 2.0).await;
    let now = get(&mut client, "m").await;
    assert_eq!((now.generation, now.last_error.as_str()), (2, ""), "one reload and no failure");
    // Asked for by name, a version that is not there yet says so.
    fs::create_dir(two.a().join("m/3")).unwrap();
    let status = client.reload_model(reload("m", 3)).await.unwrap_err();
    assert_eq!(reason(&status), "UNKNOWN_VERSION");
    assert!(status.message().contains("holds neither an archive nor weights"), "{status}");
}

#[tokio::test]
async fn a_failure_is_tried_again_at_once_when_rights_change() {
    let two = Two::new();
    version(&two.a(), "m", 1, "scale = 1.0");
    let server = two.serve();
    let mut client = server.ready().await;
    version(&two.a(), "m", 2, "load_error = 'no'");
    let failed = async || metric(&server, "torchlane_reloads_total{model=\"m\",result=\"failed\"}").await;
    until(async || failed().await == Some(1.0)).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(failed().await, Some(1.0));
    let archive = two.a().join("m/2/model.pt");
    fs::set_permissions(&archive, fs::Permissions::from_mode(0o600)).unwrap();
    until(async || failed().await == Some(2.0)).await;
    // What failed goes, and the complaint with it.
    fs::remove_dir_all(two.a().join("m/2")).unwrap();
    until(async || get(&mut client, "m").await.last_error.is_empty()).await;
}
