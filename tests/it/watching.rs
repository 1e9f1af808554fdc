//! Changes on disk, and what becomes of them.

use std::{fs, os::unix::fs::symlink, path::Path, time::Duration};

use torchlane::{config::Settings, proto};

use super::{
    fake::{reload, repository, version},
    server::{Client, Server, f32s, floats, reason, request},
};

/// Looks often, so that the tests are short; a second is long enough for a slow machine to write two files.
pub fn watched(settings: &mut Settings) {
    settings.watch.interval = Duration::from_millis(100);
    settings.watch.settle = Duration::from_millis(200);
}

async fn model(client: &mut Client, name: &str) -> Option<proto::Model> {
    let request = proto::GetModelRequest { model: name.into() };
    client.get_model(request).await.ok().map(tonic::Response::into_inner)
}

/// Waits until the model is as wanted, for at most 20 s.
async fn until(client: &mut Client, name: &str, so: impl Fn(&proto::Model) -> bool) -> proto::Model {
    let mut last = None;
    for _ in 0..2000 {
        last = model(client, name).await;
        if let Some(model) = last.as_ref().filter(|model| so(model)) {
            return model.clone();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come to that: {last:?}");
}

fn live(version: &'static str) -> impl Fn(&proto::Model) -> bool {
    move |model| model.live_version == version
}

/// What 1.0 comes out as, and which version says so.
async fn ask(client: &mut Client, name: &str, version: &str) -> Result<(f32, String), tonic::Status> {
    let asked =
        proto::InferRequest { version: version.into(), ..request(name, vec![f32s("x", &[1], &[1.0])]) };
    let answer = client.infer(asked).await?.into_inner();
    Ok((floats(&answer.outputs[0])[0], answer.version))
}

#[tokio::test]
async fn new_changed_and_removed_models_are_picked_up() {
    let dir = repository(&[("m", "scale = 1.0"), ("stays", "")]);
    fs::write(dir.path().join("bare.pt"), "scale = 1.0").unwrap();
    let server = Server::fake(dir.path(), watched);
    let mut client = server.ready().await;
    // A new version, and a new model.
    version(dir.path(), "m", 2, "scale = 2.0");
    version(dir.path(), "new", 7, "scale = 7.0");
    until(&mut client, "m", live("2")).await;
    until(&mut client, "new", live("7")).await;
    assert_eq!(ask(&mut client, "new", "").await.unwrap(), (7.0, "7".into()));
    // A bare file, replaced.
    fs::write(dir.path().join(".bare"), "scale = 3.0").unwrap();
    fs::rename(dir.path().join(".bare"), dir.path().join("bare.pt")).unwrap();
    until(&mut client, "bare", |model| model.generation == 2).await;
    assert_eq!(ask(&mut client, "bare", "").await.unwrap(), (3.0, "1".into()));
    // model.toml alone.
    fs::write(dir.path().join("m/model.toml"), "[batching]\nmax_batch = 4\n").unwrap();
    until(&mut client, "m", |model| model.max_batch == 4).await;
    // The live version goes, an older one is there; then the model goes.
    fs::remove_dir_all(dir.path().join("m/2")).unwrap();
    until(&mut client, "m", live("1")).await;
    fs::remove_dir_all(dir.path().join("m")).unwrap();
    for _ in 0..2000 {
        if model(&mut client, "m").await.is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(reason(&ask(&mut client, "m", "").await.unwrap_err()), "UNKNOWN_MODEL");
    // It comes back.
    version(dir.path(), "m", 1, "scale = 5.0");
    until(&mut client, "m", live("1")).await;
    assert_eq!(ask(&mut client, "m", "").await.unwrap().0, 5.0);
}

#[tokio::test]
async fn a_file_that_is_still_being_written_is_not_loaded() {
    let dir = repository(&[("m", "scale = 1.0")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.watch.interval = Duration::from_millis(50);
        settings.watch.settle = Duration::from_secs(2);
    });
    let mut client = server.ready().await;
    // Half of a file would load (it is a good script), and be wrong.
    version(dir.path(), "m", 2, "scale = 2");
    for length in 1..15 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        version(dir.path(), "m", 2, &format!("scale = 2{}.0", "0".repeat(length)));
        assert_eq!(ask(&mut client, "m", "").await.unwrap(), (1.0, "1".into()), "after {length} writes");
    }
    version(dir.path(), "m", 2, "scale = 42.0");
    let after = until(&mut client, "m", live("2")).await;
    assert_eq!(ask(&mut client, "m", "").await.unwrap().0, 42.0);
    assert_eq!(after.generation, 2, "one reload and no other");
}

/// As Kubernetes writes a mounted volume: files are links through `..data`, which is turned to another directory.
#[tokio::test]
async fn turned_links_are_seen() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("m/1");
    let write = |generation: &str, script: &str| {
        fs::create_dir_all(root.join(generation)).unwrap();
        fs::write(root.join(generation).join("model.pt"), script).unwrap();
        symlink(generation, root.join("..data_tmp")).unwrap();
        fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
    };
    write("..2026_01", "scale = 1.0");
    symlink("..data/model.pt", root.join("model.pt")).unwrap();
    let server = Server::fake(dir.path(), watched);
    let mut client = server.ready().await;
    write("..2026_02", "scale = 2.0");
    until(&mut client, "m", |model| model.generation == 2).await;
    assert_eq!(ask(&mut client, "m", "").await.unwrap().0, 2.0);
}

#[tokio::test]
async fn a_version_that_does_not_load_leaves_the_old_one_and_is_tried_again_when_it_changes() {
    let dir = repository(&[("m", "scale = 1.0")]);
    let server = Server::fake(dir.path(), watched);
    let mut client = server.ready().await;
    version(dir.path(), "m", 2, "load_error = 'broken'");
    let failed = until(&mut client, "m", |model| model.last_error.contains("broken")).await;
    assert_eq!(failed.live_version, "1");
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (_, metrics) = server.get("/metrics").await;
    assert!(metrics.contains("reloads_total{model=\"m\",result=\"failed\"} 1"), "tried more than once");
    version(dir.path(), "m", 2, "scale = 2.0");
    until(&mut client, "m", live("2")).await;
}

#[tokio::test]
async fn what_somebody_chose_stays_until_something_newer_comes() {
    let dir = repository(&[("m", "scale = 1.0")]);
    version(dir.path(), "m", 2, "scale = 2.0");
    let server = Server::fake(dir.path(), watched);
    let mut client = server.ready().await;
    client.reload_model(reload("m", 1)).await.unwrap();
    fs::write(dir.path().join("m/model.toml"), "[batching]\nmax_batch = 4\n").unwrap();
    let after = until(&mut client, "m", |model| model.max_batch == 4).await;
    assert_eq!(after.live_version, "1", "a new model.toml is no new version");
    client.unload_model(proto::UnloadModelRequest { model: "m".into() }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(model(&mut client, "m").await.unwrap().live_version, "");
    version(dir.path(), "m", 3, "scale = 3.0");
    until(&mut client, "m", live("3")).await;
    client.rollback_model(proto::RollbackModelRequest { model: "m".into() }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_ne!(model(&mut client, "m").await.unwrap().live_version, "3");
}

#[tokio::test]
async fn versions_stand_side_by_side_and_have_labels() {
    let dir = repository(&[("m", "scale = 1.0")]);
    version(dir.path(), "m", 2, "scale = 2.0");
    version(dir.path(), "m", 3, "scale = 3.0");
    let manifest = |text: &str| fs::write(dir.path().join("m/model.toml"), text).unwrap();
    manifest("[versions]\nlatest = 2\nlabels = { canary = 3 }\n");
    let server = Server::fake(dir.path(), watched);
    let mut client = server.ready().await;
    let loaded = |wanted: &'static [&'static str]| {
        move |model: &proto::Model| {
            model.loaded.iter().map(|l| l.version.as_str()).collect::<Vec<_>>() == wanted
        }
    };
    until(&mut client, "m", loaded(&["1", "3"])).await;
    for (wish, answer) in [("", 2.0), ("stable", 2.0), ("canary", 3.0), ("1", 1.0), ("2", 2.0), ("3", 3.0)] {
        assert_eq!(ask(&mut client, "m", wish).await.unwrap().0, answer, "{wish}");
    }
    for wish in ["beta", "4"] {
        let status = ask(&mut client, "m", wish).await.unwrap_err();
        assert_eq!(reason(&status), "UNKNOWN_VERSION", "{}", status.message());
    }
    // The canary is taken for good: it takes the live one's place without being loaded again.
    manifest("[versions]\nlatest = 2\n");
    let after = until(&mut client, "m", live("3")).await;
    until(&mut client, "m", loaded(&["2"])).await;
    assert_eq!(ask(&mut client, "m", "2").await.unwrap().0, 2.0);
    assert_eq!(reason(&ask(&mut client, "m", "canary").await.unwrap_err()), "UNKNOWN_VERSION");
    assert!(after.last_error.is_empty(), "{}", after.last_error);
}

/// An empty mount point is no reason to drop everything.
#[tokio::test]
async fn a_repository_that_is_gone_takes_no_model_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("models");
    version(&root, "m", 1, "scale = 2.0");
    let server = Server::fake(&root, watched);
    let mut client = server.ready().await;
    let away = dir.path().join("away");
    let still = async |client: &mut Client| {
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert_eq!(ask(client, "m", "").await.unwrap().0, 2.0);
    };
    fs::rename(&root, &away).unwrap();
    still(&mut client).await;
    let status = client.reload_model(reload("m", 1)).await.unwrap_err();
    let name = root.file_name().unwrap().to_str().unwrap();
    assert!(status.message().contains(&format!("cannot read {name}: ")), "it says what: {status}");
    assert!(!status.message().contains(root.to_str().unwrap()), "and not where: {status}");
    fs::create_dir(&root).unwrap();
    still(&mut client).await;
    fs::remove_dir(&root).unwrap();
    fs::rename(&away, &root).unwrap();
    version(&root, "m", 2, "scale = 4.0");
    until(&mut client, "m", live("2")).await;
}

#[tokio::test]
async fn requests_are_answered_while_versions_come_and_go() {
    let dir = repository(&[("m", "scale = 1.0\ndelay_ms = 1")]);
    fs::write(dir.path().join("m/model.toml"), "[versions]\nlatest = 2\n").unwrap();
    let server = Server::fake(dir.path(), watched);
    let client = server.ready().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let callers: Vec<_> = (0..4)
        .map(|_| {
            let (mut client, stop) = (client.clone(), stop.clone());
            tokio::spawn(async move {
                let mut answered = 0;
                while !stop.is_cancelled() {
                    let (value, version) = ask(&mut client, "m", "").await.unwrap();
                    assert_eq!(value.to_string(), version);
                    answered += 1;
                }
                answered
            })
        })
        .collect();
    let mut admin = client.clone();
    for number in 2..=8 {
        let path = dir.path().join("m");
        add(&path, number);
        until(&mut admin, "m", |model| model.live_version == number.to_string()).await;
        until(&mut admin, "m", |model| model.loaded.len() == 1).await;
    }
    stop.cancel();
    for caller in callers {
        assert!(caller.await.unwrap() > 0);
    }
}

fn add(model: &Path, number: u64) {
    let aside = model.join(format!(".{number}"));
    fs::create_dir_all(&aside).unwrap();
    fs::write(aside.join("model.pt"), format!("scale = {number}.0\ndelay_ms = 1")).unwrap();
    fs::rename(aside, model.join(number.to_string())).unwrap();
}
