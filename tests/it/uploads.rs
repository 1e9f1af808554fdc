//! Models that come with a load, by both doors of the Open Inference Protocol.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use torchlane::{
    model::LoadMode,
    proto::{
        ListChangesRequest, RollbackModelRequest, UnloadModelRequest,
        inference::{
            ModelRepositoryParameter, RepositoryModelLoadRequest, RepositoryModelUnloadRequest,
            model_repository_parameter::ParameterChoice,
        },
        model_server_client::ModelServerClient,
    },
};

use super::{
    fake::{reload, repository, version},
    oip::{call, oip, post},
    server::{Server, f32s, floats, reason, request, until},
};

const CONFIG: &str = r#"{
    "platform": "pytorch_libtorch", "max_batch_size": 8,
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}]
}"#;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Door {
    Grpc,
    Rest,
}

/// A load with what comes with it. An error is the reason and the message.
async fn load(
    server: &Server,
    door: Door,
    model: &str,
    config: Option<&str>,
    files: &[(&str, &[u8])],
) -> Result<(), (String, String)> {
    match door {
        Door::Grpc => {
            let with = |choice| ModelRepositoryParameter { parameter_choice: Some(choice) };
            let files = files.iter().map(|(path, content)| {
                (format!("file:{path}"), with(ParameterChoice::BytesParam(content.to_vec().into())))
            });
            let config =
                config.map(|text| ("config".to_owned(), with(ParameterChoice::StringParam(text.to_owned()))));
            let parameters = files.chain(config).collect();
            let asked =
                RepositoryModelLoadRequest { model_name: model.into(), parameters, ..Default::default() };
            let mut open = oip(server).await;
            let loaded = open.repository_model_load(asked).await;
            loaded.map(drop).map_err(|status| (reason(&status), status.message().to_owned()))
        }
        Door::Rest => {
            let files =
                files.iter().map(|(path, content)| (format!("file:{path}"), STANDARD.encode(content)));
            let config = config.map(|text| ("config".to_owned(), text.to_owned()));
            let parameters: Map<String, Value> =
                files.chain(config).map(|(key, text)| (key, Value::String(text))).collect();
            let path = format!("/v2/repository/models/{model}/load");
            let answer = post(server, &path, &json!({"parameters": parameters})).await;
            let json = answer.json();
            let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
            if answer.status == 200 {
                Ok(())
            } else {
                Err((answer.headers["torchlane-reason"].clone(), text("error")))
            }
        }
    }
}

/// What the model multiplies by, and its version.
async fn serves(server: &Server, model: &str) -> Option<(f32, String)> {
    let mut client = server.ready().await;
    let answer = client.infer(request(model, vec![f32s("x", &[1, 2], &[1.0, 1.0])])).await.ok()?.into_inner();
    Some((floats(&answer.outputs[0])[0], answer.version))
}

fn is(scale: f32, version: &str) -> Option<(f32, String)> {
    Some((scale, version.to_owned()))
}

fn names(root: &Path) -> Vec<String> {
    let names = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

/// A server with a model `own` of the operator's, and the directory that takes uploads.
fn open_server() -> (tempfile::TempDir, tempfile::TempDir, Server) {
    let own = repository(&[("own", "scale = 1.0")]);
    let uploads = tempfile::tempdir().unwrap();
    let server = open_on(own.path(), uploads.path());
    (own, uploads, server)
}

fn open_on(own: &Path, uploads: &Path) -> Server {
    Server::fake(own, |settings| settings.oip.uploads = Some(uploads.to_owned()))
}

#[tokio::test]
async fn uploads_are_refused_unless_a_setting_allows_them() {
    let dir = repository(&[("m", "scale = 1.0")]);
    let server = Server::fake(dir.path(), |_| {});
    for door in [Door::Grpc, Door::Rest] {
        for (config, files) in [
            (Some(CONFIG), vec![]),
            (None, vec![("1/model.pt", &b"scale = 2.0"[..])]),
            (Some(CONFIG), vec![("1/model.pt", b"")]),
        ] {
            for model in ["m", "new"] {
                let (reason, message) = load(&server, door, model, config, &files).await.unwrap_err();
                assert_eq!(reason, "UNIMPLEMENTED", "{door:?}: {message}");
                assert!(message.contains("oip.uploads"), "{message}");
            }
        }
        let large = vec![0; 100_000];
        let (reason, _) =
            load(&server, door, "m", Some(CONFIG), &[("1/model.pt", &large)]).await.unwrap_err();
        assert_eq!(reason, "MESSAGE_TOO_LARGE", "nobody reads them, either");
    }
    assert_eq!(serves(&server, "m").await, is(1.0, "1"));
    assert_eq!(names(dir.path()), ["m"]);
}

#[tokio::test]
async fn a_model_comes_with_a_load_and_replaces_all_that_was_there() {
    let (own, uploads, server) = open_server();
    for (door, model) in [(Door::Grpc, "a"), (Door::Rest, "b")] {
        // Longer than other calls may be.
        let script = format!("scale = 2.0\n#{}", "x".repeat(200_000));
        load(&server, door, model, Some(CONFIG), &[("7/model.pt", script.as_bytes())]).await.unwrap();
        assert_eq!(serves(&server, model).await, is(2.0, "7"), "{door:?}");
        assert_eq!(names(&uploads.path().join(model)), ["7", "config.pbtxt"]);
        // An older number, by torchlane's own description.
        let toml = b"description = 'again'\n[[inputs]]\nname = 'x'\n[[outputs]]\nname = 'y'\n";
        load(&server, door, model, None, &[("3/model.pt", b"scale = 3.0"), ("model.toml", toml)])
            .await
            .unwrap();
        assert_eq!(serves(&server, model).await, is(3.0, "3"), "{door:?}");
        assert_eq!(names(&uploads.path().join(model)), ["3", "model.toml"]);
    }
    assert_eq!(names(uploads.path()), ["a", "b"]);

    // A configuration alone is of what is there.
    for door in [Door::Grpc, Door::Rest] {
        load(&server, door, "a", Some(CONFIG), &[]).await.unwrap();
        let now = call(&server, "GET", "/v2/models/a/config", &[], b"").await.json();
        assert_eq!((&now["max_batch_size"], serves(&server, "a").await), (&json!(8), is(3.0, "3")));
        // What the server tells may be sent back, changed or not.
        let mut changed = now.clone();
        changed["max_batch_size"] = json!(4);
        load(&server, door, "a", Some(&changed.to_string()), &[]).await.unwrap();
        let now = call(&server, "GET", "/v2/models/a/config", &[], b"").await.json();
        assert_eq!((&now["max_batch_size"], serves(&server, "a").await), (&json!(4), is(3.0, "3")));
    }
    assert_eq!(names(&uploads.path().join("a")), ["3", "config.pbtxt"]);

    // An unload leaves the files, and so does the end of the server.
    let mut open = oip(&server).await;
    let unload = RepositoryModelUnloadRequest { model_name: "a".into(), ..Default::default() };
    open.repository_model_unload(unload).await.unwrap();
    assert_eq!(serves(&server, "a").await, None);
    assert_eq!(names(uploads.path()), ["a", "b"]);
    drop(open);
    drop(server);
    let server = open_on(own.path(), uploads.path());
    assert_eq!((serves(&server, "a").await, serves(&server, "b").await), (is(3.0, "3"), is(3.0, "3")));
}

#[tokio::test]
async fn what_does_not_load_leaves_what_was_there() {
    let (_own, uploads, server) = open_server();
    load(&server, Door::Grpc, "m", Some(CONFIG), &[("1/model.pt", b"scale = 2.0")]).await.unwrap();
    let written = || fs::read_to_string(uploads.path().join("m/1/model.pt")).unwrap();
    for door in [Door::Grpc, Door::Rest] {
        for (model, bad) in [
            ("m", &[("2/model.pt", &b"load_error = 'broken'"[..])][..]),
            ("m", &[("1/model.pt", b"unsafe = ['aten::x']")]),
            ("m", &[("1/model.pt", b"scale = 3.0"), ("1/manifest.json", b"{}")]),
            ("m", &[("labels.txt", b"no version")]),
            ("new", &[("1/model.pt", b"load_error = 'broken'")]),
        ] {
            let (reason, message) = load(&server, door, model, Some(CONFIG), bad).await.unwrap_err();
            assert!(
                ["LOAD_FAILED", "UNSAFE_MODEL", "DIGEST_MISMATCH", "UNKNOWN_VERSION"]
                    .contains(&reason.as_str()),
                "{door:?} {reason}: {message}"
            );
            assert_eq!(serves(&server, "m").await, is(2.0, "1"), "{message}");
            assert_eq!((names(uploads.path()), written()), (vec!["m".to_owned()], "scale = 2.0".to_owned()));
        }
        let tensorrt = r#"{"platform": "tensorrt_plan"}"#;
        let (_, message) = load(&server, door, "m", Some(tensorrt), &[]).await.unwrap_err();
        assert!(message.contains("tensorrt_plan"), "{message}");
        assert_eq!(names(&uploads.path().join("m")), ["1", "config.pbtxt"]);
    }
    let index = call(&server, "POST", "/v2/repository/index", &[], b"").await.json();
    let models: Vec<_> = index.as_array().unwrap().iter().map(|line| line["name"].clone()).collect();
    assert_eq!(models, ["m", "own"], "what never loaded never was there");
    // What is there can be loaded as ever.
    load(&server, Door::Rest, "m", None, &[]).await.unwrap();
    assert_eq!(serves(&server, "m").await, is(2.0, "1"));
}

#[tokio::test]
async fn what_may_not_come_is_refused_before_anything_is_written() {
    let (own, uploads, server) = open_server();
    load(&server, Door::Grpc, "m", Some(CONFIG), &[("1/model.pt", b"scale = 2.0")]).await.unwrap();
    for door in [Door::Grpc, Door::Rest] {
        for path in [
            "../m/1/model.pt",
            "1/../../own/1/model.pt",
            "/tmp/model.pt",
            "",
            "..",
            "1//model.pt",
            "1/.hidden",
            "1/run.sh",
        ] {
            for model in ["m", "new"] {
                let refused = load(&server, door, model, Some(CONFIG), &[(path, b"scale = 3.0")]).await;
                assert_eq!(refused.unwrap_err().0, "BAD_REQUEST", "{door:?} {path:?}");
            }
        }
        for (model, config, files, reason, says) in [
            ("m", Some(r#"{"max_batches": 4}"#), vec![], "BAD_REQUEST", "'max_batches'"),
            ("m", Some("{"), vec![], "BAD_REQUEST", "config: "),
            ("m", None, vec![("1/model.pt", &b""[..])], "BAD_REQUEST", "'config'"),
            ("m", Some(CONFIG), vec![("config.pbtxt", b"")], "BAD_REQUEST", "one of them"),
            ("m", Some(CONFIG), vec![("model.toml", b"")], "BAD_REQUEST", "one of them"),
            ("own", Some(CONFIG), vec![("1/model.pt", b"")], "NOT_UPLOADED", "oip.uploads"),
            ("own", Some(CONFIG), vec![], "NOT_UPLOADED", "oip.uploads"),
            ("new", Some(CONFIG), vec![], "UNKNOWN_MODEL", "oip.uploads"),
        ] {
            let (found, message) = load(&server, door, model, config, &files).await.unwrap_err();
            assert_eq!(found, reason, "{door:?} {model}: {message}");
            assert!(message.contains(says), "{message}");
        }
    }
    let answer =
        post(&server, "/v2/repository/models/m/load", &json!({"parameters": {"file:1/model.pt": "?"}})).await;
    assert!(answer.json()["error"].as_str().unwrap().contains("base64"));
    for odd in [json!({"config": 1}), json!({"file:1/model.pt": 1}), json!({"other": "x"})] {
        let answer = post(&server, "/v2/repository/models/m/load", &json!({ "parameters": odd })).await;
        assert_eq!(answer.error(), (400, "BAD_REQUEST".to_owned()));
    }
    let name = "/v2/repository/models/.upload-m/load";
    let body = json!({"parameters": {"config": CONFIG, "file:1/model.pt": ""}});
    assert_eq!(post(&server, name, &body).await.error(), (400, "BAD_REQUEST".to_owned()));
    let foreign = [("origin", "http://elsewhere.example")];
    let path = "/v2/repository/models/new/load";
    let answer = call(&server, "POST", path, &foreign, body.to_string().as_bytes()).await;
    assert_eq!(answer.error(), (403, "FORBIDDEN".to_owned()));
    assert_eq!((names(uploads.path()), names(own.path())), (vec!["m".to_owned()], vec!["own".to_owned()]));
    assert_eq!((serves(&server, "m").await, serves(&server, "own").await), (is(2.0, "1"), is(1.0, "1")));
}

#[tokio::test]
async fn uploads_of_one_model_at_once_come_one_after_the_other() {
    let (_own, uploads, server) = open_server();
    let scripts: Vec<String> = (1..=4).map(|n| format!("scale = {n}.0\nload_delay_ms = 50")).collect();
    let files: Vec<_> = scripts.iter().map(|script| [("1/model.pt", script.as_bytes())]).collect();
    let doors = [Door::Grpc, Door::Rest, Door::Grpc, Door::Rest];
    let loads = files.iter().zip(doors).map(|(files, door)| load(&server, door, "m", Some(CONFIG), files));
    for loaded in futures::future::join_all(loads).await {
        loaded.expect("none makes another out of date");
    }
    let (scale, _) = serves(&server, "m").await.unwrap();
    let written = fs::read_to_string(uploads.path().join("m/1/model.pt")).unwrap();
    assert!(written.starts_with(&format!("scale = {scale}.0")), "{written} is what serves, not {scale}");
    assert_eq!(names(uploads.path()), ["m"]);
}

/// Waits until what came for `m` lies where it is looked for, and is not known to load.
async fn on_trial(uploads: &Path) {
    until(async || uploads.join("m/.unproven").exists()).await;
}

/// What the log of changes has of `m`, the oldest first.
async fn told(server: &Server) -> Vec<String> {
    let mut client = ModelServerClient::new(server.channel().await);
    let changes = client.list_changes(ListChangesRequest::default()).await.unwrap().into_inner().changes;
    changes
        .into_iter()
        .rev()
        .filter(|change| change.model == "m")
        .map(|change| format!("{change:?}"))
        .collect()
}

#[tokio::test]
async fn nobody_loads_what_is_on_trial() {
    let (_own, uploads, server) = open_server();
    load(&server, Door::Grpc, "m", Some(CONFIG), &[("1/model.pt", b"scale = 2.0")]).await.unwrap();
    let bad = [("2/model.pt", &b"load_delay_ms = 400\nload_error = 'broken'"[..])];
    for door in [Door::Grpc, Door::Rest] {
        let others = async {
            on_trial(uploads.path()).await;
            let mut native = server.ready().await;
            let mut second = server.ready().await;
            tokio::join!(
                load(&server, door, "m", None, &[]),
                async { native.reload_model(reload("m", 1)).await.map(drop) },
                async { second.rollback_model(RollbackModelRequest { model: "m".into() }).await.map(drop) },
            )
        };
        let (uploaded, (loaded, reloaded, rolled_back)) =
            tokio::join!(load(&server, door, "m", Some(CONFIG), &bad), others);
        let (reason, message) = uploaded.unwrap_err();
        assert_eq!(reason, "LOAD_FAILED", "{message}");
        assert!(message.contains("broken"), "{message}");
        // Of the three one is the newest: the others may have given way to it, and none has met a file that is gone.
        let reasons =
            [loaded.map_err(|(reason, _)| reason), reloaded.map_err(|status| super::server::reason(&status))];
        for outcome in reasons {
            assert!(outcome.is_ok() || outcome == Err("SUPERSEDED".to_owned()), "{outcome:?}");
        }
        assert_eq!(super::server::reason(&rolled_back.unwrap_err()), "NO_PREVIOUS_VERSION");
        assert_eq!(serves(&server, "m").await, is(2.0, "1"));
    }
    assert!(told(&server).await.iter().all(|change| !change.contains("No such file")));
}

#[tokio::test]
async fn an_upload_that_gives_way_is_to_be_sent_again() {
    let (_own, uploads, server) = open_server();
    load(&server, Door::Grpc, "m", Some(CONFIG), &[("1/model.pt", b"scale = 2.0")]).await.unwrap();
    let slow = [("2/model.pt", &b"load_delay_ms = 1500"[..])];
    let mut native = server.ready().await;
    let watching = native.clone();
    let unload = async {
        // An unload that comes before the load would be the older wish of the two.
        until(async || {
            let request = torchlane::proto::GetModelRequest { model: "m".into() };
            let model = watching.clone().get_model(request).await.unwrap().into_inner();
            model.state() == torchlane::proto::ModelState::Reloading
        })
        .await;
        native.unload_model(UnloadModelRequest { model: "m".into() }).await.unwrap();
    };
    let (uploaded, ()) = tokio::join!(load(&server, Door::Rest, "m", Some(CONFIG), &slow), unload);
    let (reason, message) = uploaded.unwrap_err();
    assert_eq!(reason, "SUPERSEDED", "{message}");
    assert!(message.contains("send it again"), "{message}");
    assert_eq!(names(&uploads.path().join("m")), ["1", "config.pbtxt"], "what was there is there again");
}

#[tokio::test]
async fn a_request_that_would_load_what_is_on_trial_waits() {
    let own = repository(&[("own", "scale = 1.0")]);
    let uploads = tempfile::tempdir().unwrap();
    let start = || {
        Server::fake(own.path(), |settings| {
            settings.oip.uploads = Some(uploads.path().to_owned());
            settings.memory.load = LoadMode::Lazy;
        })
    };
    let server = start();
    load(&server, Door::Grpc, "m", Some(CONFIG), &[("1/model.pt", b"scale = 2.0")]).await.unwrap();
    drop(server);
    let server = start();
    server.ready().await;
    // What describes it is another file, so that the one before is not there meanwhile.
    let bad = [
        ("2/model.pt", &b"load_delay_ms = 400\nload_error = 'broken'"[..]),
        ("model.toml", b"[[inputs]]\nname = 'x'\n[[outputs]]\nname = 'y'\n"),
    ];
    let asked = async {
        on_trial(uploads.path()).await;
        serves(&server, "m").await
    };
    let (uploaded, answer) = tokio::join!(load(&server, Door::Grpc, "m", None, &bad), asked);
    assert_eq!(uploaded.unwrap_err().0, "LOAD_FAILED");
    assert_eq!(answer, is(2.0, "1"));

    drop(server);
    let server = start();
    server.ready().await;
    assert_eq!(load(&server, Door::Grpc, "m", None, &bad).await.unwrap_err().0, "LOAD_FAILED");
    assert_eq!(serves(&server, "m").await, is(2.0, "1"), "afterwards it is loaded as if nothing had come");
}

#[tokio::test]
async fn what_a_killed_process_left_is_undone_at_the_start() {
    let own = repository(&[("own", "scale = 1.0")]);
    let uploads = repository(&[("m", "scale = 9.0")]);
    // It was loading what had come when it was killed.
    fs::write(uploads.path().join("m/.unproven"), "").unwrap();
    version(&uploads.path().join(".upload-m"), "model", 1, "scale = 2.0");
    // And was writing another.
    version(&uploads.path().join(".upload-n"), "model", 1, "scale = 3.0");
    fs::write(uploads.path().join(".upload-n/model/.unproven"), "").unwrap();
    let server = open_on(own.path(), uploads.path());
    assert_eq!(serves(&server, "m").await, is(2.0, "1"));
    assert_eq!(names(uploads.path()), ["m"]);
}

#[tokio::test]
async fn the_one_repository_may_take_uploads_and_the_history_says_who_sent_them() {
    let dir = repository(&[("m", "scale = 1.0")]);
    let server = Server::fake(dir.path(), |settings| {
        settings.oip.uploads = Some(dir.path().to_owned());
        settings.server.max_message_bytes = bytesize::ByteSize::kib(256);
    });
    assert_eq!(serves(&server, "m").await, is(1.0, "1"));
    let large = vec![b'#'; 300_000];
    for door in [Door::Grpc, Door::Rest] {
        let (reason, message) =
            load(&server, door, "m", Some(CONFIG), &[("2/model.pt", &large)]).await.unwrap_err();
        assert_eq!(reason, "MESSAGE_TOO_LARGE");
        assert!(message.contains("server.max_message_bytes"), "{message}");
    }
    let body = json!({"parameters": {"config": CONFIG, "file:2/model.pt": STANDARD.encode("scale = 2.0")}});
    let who = [("x-tenant", "trainer")];
    let path = "/v2/repository/models/m/load";
    assert_eq!(call(&server, "POST", path, &who, body.to_string().as_bytes()).await.status, 200);
    assert_eq!(serves(&server, "m").await, is(2.0, "2"));
    let mut client = ModelServerClient::new(server.channel().await);
    let changes = client.list_changes(ListChangesRequest::default()).await.unwrap().into_inner().changes;
    assert!(changes.iter().any(|change| format!("{change:?}").contains("trainer")), "{changes:?}");
}
