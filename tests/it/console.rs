//! The console: its page, what it shows, and what it lets be changed.

use std::{fs, time::Duration};

use serde_json::{Value, json};
use torchlane::proto;

use super::{
    fake::{reload, repository, version},
    oip::{Answer, call},
    server::{Client, Server, f32s, request},
};

/// Doubles rows of two.
fn doubling() -> tempfile::TempDir {
    let dir = repository(&[("m", "scale = 2.0\nmemory_bytes = 4096")]);
    let text = "description = 'doubles'\n[batching]\nmax_batch = 4\n[[inputs]]\nname = 'x'\ndtype = 'FP32'\nshape = [-1, 2]\n\
                [[outputs]]\nname = 'y'\ndtype = 'FP32'\nshape = [-1, 2]\nlabels = ['left', 'right']\n";
    fs::write(dir.path().join("m/model.toml"), text).unwrap();
    dir
}

async fn get(server: &Server, path: &str) -> Answer {
    call(server, "GET", path, &[], b"").await
}

async fn state(server: &Server) -> Value {
    get(server, "/console/state").await.json()
}

/// The first state that is so, within ten seconds.
async fn state_where(server: &Server, is_so: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    for _ in 0..1000 {
        last = state(server).await;
        if is_so(&last) {
            return last;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it did not come to that: {last}");
}

async fn infer(client: &mut Client, model: &str, values: &[f32; 2]) -> Result<(), tonic::Status> {
    client.infer(request(model, vec![f32s("x", &[1, 2], values)])).await.map(drop)
}

const JSON: (&str, &str) = ("Content-Type", "application/json");
const OWN: (&str, &str) = ("x-torchlane-console", "1");

async fn change(server: &Server, what: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    call(server, "POST", &format!("/console/models/m/{what}"), headers, body.to_string().as_bytes()).await
}

#[tokio::test]
async fn the_page_comes_whole_from_this_server_and_may_load_nothing_else() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |_| {});
    let page = get(&server, "/").await;
    assert_eq!((page.status, page.headers["content-type"].as_str()), (200, "text/html; charset=utf-8"));
    let text = String::from_utf8(page.body).unwrap();
    let named = |attribute: &str| -> Vec<String> {
        let parts = text.split(attribute).skip(1);
        parts
            .map(|part| part.split('"').next().unwrap())
            // Below where the page is: a proxy may have all of it below a path of its own.
            .filter(|path| path.starts_with("console/"))
            .map(|path| format!("/{path}"))
            .collect()
    };
    let files = [named("src=\""), named("href=\"")].concat();
    assert!(files.len() >= 4, "{files:?}");
    for path in ["/".to_owned(), "/console".to_owned(), "/console/dom.js".to_owned()].iter().chain(&files) {
        let file = get(&server, path).await;
        assert_eq!(file.status, 200, "{path}");
        let policy = &file.headers["content-security-policy"];
        for part in
            ["default-src 'none'", "script-src 'self'", "connect-src 'self'", "frame-ancestors 'none'"]
        {
            assert!(policy.contains(part) && !policy.contains("unsafe"), "{path}: {policy}");
        }
        assert_eq!(file.headers["x-content-type-options"], "nosniff");
        assert_eq!(file.headers["cache-control"], "no-cache");
        let again =
            call(&server, "GET", path, &[("If-None-Match", file.headers["etag"].as_str())], b"").await;
        assert_eq!((again.status, again.body.len()), (304, 0), "{path}");
        let other = call(&server, "GET", path, &[("If-None-Match", "\"other\"")], b"").await;
        assert_eq!((other.status, &other.body), (200, &file.body), "{path}");
    }
    let zipped = call(&server, "GET", "/console/console.css", &[("Accept-Encoding", "gzip")], b"").await;
    assert_eq!(zipped.headers["content-encoding"], "gzip");
    assert_eq!(get(&server, "/console/none.js").await.status, 404);
    assert_eq!(call(&server, "POST", "/", &[], b"").await.status, 405);
}

#[tokio::test]
async fn the_state_has_what_the_server_does() {
    let dir = doubling();
    version(dir.path(), "broken", 1, "load_error = 'no weights'");
    let server = Server::fake(dir.path(), |settings| {
        settings.executors.threads = 3;
        settings.console.title = "here".to_owned();
        settings.memory.budget = bytesize::ByteSize::mib(1);
        settings.tenants.insert("lab".to_owned(), Default::default());
    });
    let mut client = server.ready().await;
    for _ in 0..5 {
        infer(&mut client, "m", &[1.0, 2.0]).await.unwrap();
    }
    let misfit = request("m", vec![f32s("x", &[1], &[1.0])]);
    client.infer(misfit).await.unwrap_err();

    let answer = get(&server, "/console/state").await;
    assert_eq!(answer.headers["cache-control"], "no-store");
    assert_eq!(answer.headers["content-type"], "application/json");
    let normal = |state: &Value| state["load"]["lanes"][2].clone();
    let counts = |state: &Value| {
        let whole = normal(state)["minute"]["whole"].clone();
        (whole["answered"].clone(), whole["failed"].clone())
    };
    let now = state_where(&server, |state| counts(state) == (json!(5), json!(1))).await;
    let lane = normal(&now);
    assert_eq!(lane["lane"], "NORMAL");
    assert_eq!((&lane["in_flight"], &lane["waiting_admission"]), (&json!(0), &json!(0)));
    let curve = lane["minute"]["answered"].as_array().unwrap();
    assert_eq!((curve.len(), curve.iter().map(|n| n.as_u64().unwrap()).sum::<u64>()), (60, 5));
    assert!(lane["minute"]["whole"]["p99_seconds"].as_f64().unwrap() > 0.0, "{lane}");
    assert_eq!(now["load"]["lanes"].as_array().unwrap().len(), 4);

    let told = &now["server"];
    assert_eq!(
        (&told["name"], &told["status"], &told["admin"]),
        (&json!("torchlane"), &json!("ready"), &json!(false))
    );
    assert_eq!(told["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&told["title"], &told["grpc_addr"], &told["http_addr"]),
        (&json!("here"), &json!(server.grpc.to_string()), &json!(server.http.to_string()))
    );
    assert!(!told["host"].as_str().unwrap().is_empty());
    assert!(told["uptime_seconds"].as_f64().unwrap() > 0.0);
    let executors = &now["load"]["executors"];
    assert_eq!((executors["busy_seconds"].as_array().unwrap().len(), &executors["healthy"]), (3, &json!(3)));
    let tenants: Vec<_> =
        now["load"]["tenants"].as_array().unwrap().iter().map(|t| t["tenant"].clone()).collect();
    assert_eq!(tenants, [json!("default"), json!("lab")]);
    assert_eq!(
        (&now["load"]["memory"]["budget_bytes"], &now["load"]["pressure"]["level"]),
        (&json!(1 << 20), &json!(0))
    );

    let models = now["models"].as_array().unwrap();
    let (broken, m) = (&models[0], &models[1]);
    assert_eq!((&m["name"], &m["state"], &m["live_version"]), (&json!("m"), &json!("ready"), &json!("1")));
    assert_eq!((&m["answered"], &m["failed"], &m["breaker_open"]), (&json!(5), &json!(1), &json!(false)));
    assert_eq!(
        (m["sha256"].as_str().unwrap().len(), &m["load"], &m["rollout"]),
        (64, &json!("eager"), &Value::Null)
    );
    assert_eq!((&broken["state"], &broken["live_version"]), (&json!("failed"), &Value::Null));
    assert!(broken["last_error"].as_str().unwrap().contains("no weights"), "{broken}");

    // What is wrong, and why requests failed.
    let troubles = now["troubles"].as_array().unwrap();
    assert_eq!(
        (troubles.len(), &troubles[0]["level"], &troubles[0]["model"]),
        (1, &json!("bad"), &json!("broken"))
    );
    assert!(troubles[0]["text"].as_str().unwrap().starts_with("no version serves: "), "{troubles:?}");
    assert_eq!(
        (&m["hour"]["answered"], &m["hour"]["failed"], &broken["hour"]),
        (&json!(5), &json!(1), &Value::Null)
    );
    let reasons = json!([{"reason": "WRONG_SHAPE", "count": 1}]);
    assert_eq!(
        (&m["hour"]["reasons"], &lane["minute"]["reasons"], &lane["hour"]["reasons"]),
        (&reasons, &reasons, &reasons)
    );
    assert!(m["hour"]["p99_seconds"].as_f64().unwrap() > 0.0, "{m}");
    assert_eq!(lane["hour"]["answered"].as_array().unwrap().len(), 60);
    let details = get(&server, "/console/models/m").await.json();
    assert_eq!(details["hour"]["reasons"], reasons);
}

#[tokio::test]
async fn a_canary_that_no_caller_reaches_says_why_it_waits() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    version(dir.path(), "m", 2, "scale = 2.0");
    let plan = proto::RolloutPlan {
        strategy: proto::RolloutStrategy::Canary.into(),
        percent: Some(0.01),
        ..Default::default()
    };
    let begin = proto::SetRolloutRequest { model: "m".into(), plan: Some(plan), ..Default::default() };
    client.set_rollout(begin).await.unwrap();
    for _ in 0..5 {
        let mut call = tonic::Request::new(request("m", vec![f32s("x", &[1, 2], &[1.0, 2.0])]));
        call.metadata_mut().insert("x-rollout-key", "one for all".parse().unwrap());
        client.infer(call).await.unwrap();
    }
    let says = |state: &Value| {
        let verdict = state["models"][0]["rollout"]["verdict"].as_str().unwrap_or_default();
        verdict.contains("0 of 100 requests")
            && verdict.contains("the callers use 1 key and none falls into its share")
    };
    state_where(&server, says).await;
    let listed = client.list_models(proto::ListModelsRequest {}).await.unwrap().into_inner().models;
    assert_eq!((listed[0].rollout_version.as_str(), listed[0].rollout_percent), ("2", 0.01));
}

#[tokio::test]
async fn a_model_that_is_opened_tells_its_signature_its_versions_and_its_past() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    version(dir.path(), "m", 2, "scale = 3.0");
    version(dir.path(), "m", 3, "load_error = 'torn'");
    let mut named = tonic::Request::new(reload("m", 2));
    named.metadata_mut().insert("x-tenant", "ops".parse().unwrap());
    client.reload_model(named).await.unwrap();
    client.reload_model(reload("m", 3)).await.unwrap_err();
    let told = get(&server, "/console/models/m").await.json();
    assert_eq!((&told["description"], &told["max_batch"]), (&json!("doubles"), &json!(4)));
    let input = json!({"name": "x", "datatype": "FP32", "shape": [-1, 2], "optional": false, "script_type": "Tensor", "labels": []});
    assert_eq!(told["signature"]["inputs"], json!([input]));
    assert_eq!(told["signature"]["outputs"][0]["labels"], json!(["left", "right"]));
    let versions: Vec<_> =
        told["versions"].as_array().unwrap().iter().map(|v| (&v["version"], &v["state"])).collect();
    let (live, on_disk) = (&json!("live"), &json!("on_disk"));
    assert_eq!(versions, [(&json!("3"), on_disk), (&json!("2"), live), (&json!("1"), on_disk)]);
    assert_eq!(told["versions"][2]["is_previous"], json!(true));
    assert!(!told["profile"].as_array().unwrap().is_empty(), "the warm-up has run");

    let changes = told["changes"].as_array().unwrap();
    let what: Vec<_> =
        changes.iter().map(|c| (c["change"].as_str().unwrap(), c["asker"].as_str().unwrap())).collect();
    assert_eq!(what[1..], [("reloaded", "caller ops"), ("ready", "start")]);
    assert_eq!((what[0].0, &changes[0]["reason"]), ("failed", &json!("LOAD_FAILED")));
    assert!(changes[0]["error"].as_str().unwrap().contains("torn"), "{}", changes[0]);
    assert_eq!((&changes[1]["previous_version"], &changes[1]["live_version"]), (&json!("1"), &json!("2")));
    let phases: Vec<_> =
        changes[1]["phases"].as_array().unwrap().iter().map(|p| p["phase"].as_str().unwrap()).collect();
    let order = ["verify", "load", "warm_up", "check", "swap", "drain"];
    let places: Vec<_> =
        phases.iter().map(|phase| order.iter().position(|name| name == phase).unwrap()).collect();
    assert!(places.is_sorted() && phases.contains(&"warm_up"), "{phases:?}");

    let unknown = get(&server, "/console/models/none").await;
    assert_eq!(unknown.error(), (404, "UNKNOWN_MODEL".to_owned()));
}

#[tokio::test]
async fn a_rollout_is_shown_side_by_side() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    version(dir.path(), "m", 2, "scale = 2.0");
    let plan = proto::RolloutPlan {
        strategy: proto::RolloutStrategy::Canary.into(),
        percent: Some(50.0),
        promote_after: Some(prost_types::Duration::default()),
        ..Default::default()
    };
    let begin = proto::SetRolloutRequest { model: "m".into(), plan: Some(plan), ..Default::default() };
    client.set_rollout(begin).await.unwrap();
    for caller in 0..40 {
        let mut call = tonic::Request::new(request("m", vec![f32s("x", &[1, 2], &[1.0, 2.0])]));
        call.metadata_mut().insert("x-rollout-key", caller.to_string().parse().unwrap());
        client.infer(call).await.unwrap();
    }
    let answered = |rollout: &Value, side: &str| rollout[side]["answered"].as_u64().unwrap_or_default();
    let both = |rollout: &Value| answered(rollout, "live") + answered(rollout, "candidate");
    let now = state_where(&server, |state| both(&state["models"][0]["rollout"]) >= 40).await;
    let rollout = &now["models"][0]["rollout"];
    assert_eq!((&rollout["state"], &rollout["strategy"]), (&json!("running"), &json!("canary")));
    assert_eq!((&rollout["live_version"], &rollout["version"]), (&json!("1"), &json!("2")));
    assert_eq!((&rollout["percent"], &rollout["steps"]), (&json!(50.0), &json!([50.0])));
    for side in ["live", "candidate"] {
        assert!(
            answered(rollout, side) > 0 && rollout[side]["p99_seconds"].as_f64().unwrap() > 0.0,
            "{rollout}"
        );
        assert_eq!(rollout[side]["error_rate"], json!(0.0));
    }
    assert_eq!(rollout["checks"].as_array().unwrap().len(), 4);
    let action = proto::RolloutAction::Abort.into();
    client
        .set_rollout(proto::SetRolloutRequest { model: "m".into(), action, ..Default::default() })
        .await
        .unwrap();
    state_where(&server, |state| state["models"][0]["rollout"].is_null()).await;
    let told = get(&server, "/console/models/m").await.json();
    assert_eq!(told["rollout"]["state"], "aborted");
    let changes = told["changes"].as_array().unwrap();
    assert!(changes.iter().any(|change| change["change"] == "rollout_aborted"), "{changes:?}");
    // Not necessarily first: the version beside is dropped after that.
    let is_told = |change: &Value| change["model"] == "m" && change["change"] == "rollout_aborted";
    state_where(&server, |state| state["changes"].as_array().is_some_and(|all| all.iter().any(is_told)))
        .await;
}

#[tokio::test]
async fn an_ensemble_tells_its_steps() {
    let dir = doubling();
    let text = "[[inputs]]\nname = 'in'\ndtype = 'FP32'\nshape = [-1, 2]\n[[outputs]]\nname = 'out'\n[[steps]]\nmodel = 'm'\nversion = '1'\n\
                inputs = { x = 'in' }\noutputs = { y = 'out' }\n";
    fs::create_dir(dir.path().join("whole")).unwrap();
    fs::write(dir.path().join("whole/model.toml"), text).unwrap();
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let told = get(&server, "/console/models/whole").await.json();
    assert_eq!(told["steps"], json!([{"model": "m", "version": "1", "takes": ["in"], "makes": ["out"]}]));
    assert_eq!(get(&server, "/console/models/m").await.json()["steps"], json!([]));
}

#[tokio::test]
async fn nothing_can_be_changed_unless_a_setting_says_so() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let before = get(&server, "/console/models/m").await.json();
    for what in ["reload", "rollback", "unload", "rollout", "promote", "abort", "anything"] {
        let answer = change(&server, what, &[JSON, OWN], &json!({})).await;
        assert!(answer.json()["error"].as_str().unwrap().contains("console.admin"), "{what}");
        assert_eq!(answer.error(), (403, "FORBIDDEN".to_owned()), "{what}");
        assert_eq!(get(&server, &format!("/console/models/m/{what}")).await.status, 405, "{what}");
    }
    infer(&mut client, "m", &[1.0, 2.0]).await.unwrap();
    let after = get(&server, "/console/models/m").await.json();
    assert_eq!((&after["generation"], &after["changes"]), (&before["generation"], &before["changes"]));
}

#[tokio::test]
async fn an_admin_changes_models_and_a_foreign_page_does_not() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |settings| settings.console.admin = true);
    let mut client = server.ready().await;
    version(dir.path(), "m", 2, "scale = 3.0");
    let empty = json!({});
    let refused = async |headers: &[(&str, &str)]| change(&server, "unload", headers, &empty).await.error();
    let forbidden = (403, "FORBIDDEN".to_owned());
    assert_eq!(refused(&[JSON]).await, forbidden, "no header of our own");
    assert_eq!(refused(&[("Content-Type", "text/plain"), OWN]).await, (400, "BAD_REQUEST".to_owned()));
    assert_eq!(refused(&[OWN]).await, (400, "BAD_REQUEST".to_owned()));
    for origin in ["http://y", "http://x:81", "null"] {
        assert_eq!(refused(&[JSON, OWN, ("Origin", origin)]).await, forbidden, "{origin}");
    }
    let list = change(&server, "unload", &[JSON, OWN], &json!([])).await;
    assert!(list.json()["error"].as_str().unwrap().contains("expected an object"));
    assert_eq!(list.error(), (400, "BAD_REQUEST".to_owned()));
    assert_eq!(state(&server).await["models"][0]["live_version"], "1", "nothing of that was done");

    let same = [JSON, OWN, ("Origin", "http://x")];
    let answer = change(&server, "reload", &same, &empty).await.json();
    assert_eq!((&answer["previous_version"], &answer["live_version"]), (&json!("1"), &json!("2")));
    let answer = change(&server, "rollback", &same, &empty).await.json();
    assert_eq!((&answer["previous_version"], &answer["live_version"]), (&json!("2"), &json!("1")));
    let answer = change(&server, "reload", &[JSON, OWN], &json!({"version": "2"})).await.json();
    assert_eq!(answer["live_version"], "2");
    let failed = change(&server, "reload", &same, &json!({"version": "9"})).await;
    assert_eq!(failed.error(), (404, "UNKNOWN_VERSION".to_owned()));
    let answer = change(&server, "unload", &same, &empty).await.json();
    assert_eq!((&answer["previous_version"], &answer["live_version"]), (&json!("2"), &Value::Null));
    infer(&mut client, "m", &[1.0, 2.0]).await.unwrap_err();
    assert_eq!(change(&server, "delete", &same, &empty).await.error(), (501, "UNIMPLEMENTED".to_owned()));
    let long = json!({"version": "1".repeat(8 << 10)});
    assert_eq!(change(&server, "reload", &same, &long).await.error().0, 413);

    let answer = change(&server, "reload", &same, &json!({"version": "1"})).await.json();
    assert_eq!(answer["live_version"], "1");
    let begun = change(&server, "rollout", &same, &json!({"percent": 25})).await.json();
    assert_eq!((&begun["live_version"], &begun["new_version"]), (&json!("1"), &json!("2")));
    let rollout = get(&server, "/console/models/m").await.json()["rollout"].clone();
    assert_eq!((&rollout["strategy"], &rollout["steps"]), (&json!("canary"), &json!([25.0])));
    let aborted = change(&server, "abort", &same, &empty).await.json();
    assert_eq!((&aborted["live_version"], &aborted["new_version"]), (&json!("1"), &Value::Null));
    change(&server, "rollout", &same, &json!({"version": "2"})).await;
    let promoted = change(&server, "promote", &same, &empty).await.json();
    assert_eq!((&promoted["previous_version"], &promoted["live_version"]), (&json!("1"), &json!("2")));
    let none = change(&server, "promote", &same, &empty).await.error();
    assert_eq!(none.1, "NO_ROLLOUT", "it is live already: {none:?}");
    change(&server, "unload", &same, &empty).await;

    let told = get(&server, "/console/models/m").await.json();
    let asker = told["changes"][0]["asker"].as_str().unwrap();
    assert!(asker.starts_with("caller console at 127.0.0.1:"), "{asker}");
    assert_eq!(
        state_where(&server, |state| state["models"][0]["state"] == "unloaded").await["server"]["admin"],
        true
    );
}

#[tokio::test]
async fn a_foreign_page_changes_nothing_by_the_open_inference_protocol_either() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let status = async |path: &str, origin: Option<&str>| {
        let headers: Vec<_> = origin.map(|origin| ("Origin", origin)).into_iter().collect();
        call(&server, "POST", path, &headers, b"{}").await.status
    };
    let (load, unload) = ("/v2/repository/models/m/load", "/v2/repository/models/m/unload");
    assert_eq!(status(unload, Some("http://elsewhere")).await, 403);
    assert_eq!(status("/v2/systemsharedmemory/unregister", Some("http://elsewhere")).await, 403);
    assert_eq!(state(&server).await["models"][0]["live_version"], "1");
    assert_eq!((status(load, None).await, status(unload, Some("http://x")).await), (200, 200));
}

#[tokio::test]
async fn without_the_console_there_is_a_line() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |settings| settings.console.enabled = false);
    server.ready().await;
    let (status, line) = server.get("/").await;
    assert_eq!((status, line.lines().count()), (200, 1));
    assert!(line.starts_with("torchlane ") && line.contains("/v2/openapi.json"), "{line}");
    for path in ["/console", "/console/state", "/console/models/m", "/console/console.js"] {
        assert_eq!(get(&server, path).await.status, 404, "{path}");
    }
}

#[tokio::test]
async fn a_server_that_drains_says_so_as_long_as_it_answers() {
    let dir = doubling();
    let server = Server::fake(dir.path(), |settings| settings.server.drain_delay = Duration::from_secs(2));
    server.ready().await;
    server.stop();
    let now = state_where(&server, |state| state["server"]["status"] == "draining").await;
    assert_eq!(now["models"][0]["live_version"], "1", "it still serves");
    tokio::task::spawn_blocking(|| server.join()).await.unwrap();
}
