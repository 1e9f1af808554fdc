//! Models made of others, with a backend that needs no libtorch.

use std::{fs, path::Path, time::Duration};

use torchlane::{
    admission::TenantSettings,
    model::Lane,
    proto::{self, Priority},
};

use super::{
    fake::{reload, repository, version},
    server::{Client, Server, f32s, floats, reason, request, tensor, until},
};

const TENSORS: &str = "[[inputs]]\nname = 'in'\ndtype = 'FP32'\nshape = [-1, 2]\n[[outputs]]\nname = 'out'\n";

pub fn ensemble(repository: &Path, name: &str, steps: &str) {
    fs::create_dir_all(repository.join(name)).unwrap();
    fs::write(repository.join(name).join("model.toml"), format!("{TENSORS}{steps}")).unwrap();
}

/// `in` times two, plus one.
fn pair() -> tempfile::TempDir {
    let dir = repository(&[("double", "scale = 2.0"), ("add", "offset = 1.0")]);
    let steps = "[[steps]]\nmodel = 'add'\ninputs = { x = 'twice' }\noutputs = { output_0 = 'out' }\n\
                 [[steps]]\nmodel = 'double'\ninputs = { x = 'in' }\noutputs = { output_0 = 'twice' }\n";
    ensemble(dir.path(), "pair", steps);
    dir
}

/// How many requests to `model` ended so, in every lane.
async fn ended(server: &Server, model: &str, outcome: &str) -> u64 {
    let (_, text) = server.get("/metrics").await;
    let model = format!("torchlane_requests_total{{model=\"{model}\",");
    let outcome = format!("outcome=\"{outcome}\"}} ");
    let counts =
        text.lines().filter(|line| line.starts_with(&model)).filter_map(|line| line.split_once(&outcome));
    counts.map(|(_, count)| count.parse::<u64>().unwrap()).sum()
}

/// How many passes of `model` have ended, as the Open Inference Protocol tells it.
async fn executions(server: &Server, model: &str) -> u64 {
    let (_, text) = server.get(&format!("/v2/models/{model}/stats")).await;
    let told: serde_json::Value = serde_json::from_str(&text).unwrap();
    told["model_stats"][0]["execution_count"].as_u64().unwrap()
}

async fn ask(client: &mut Client, values: [f32; 2]) -> Result<Vec<f32>, tonic::Status> {
    let answer = client.infer(request("pair", vec![f32s("in", &[1, 2], &values)])).await?.into_inner();
    assert_eq!((answer.model.as_str(), answer.outputs[0].name.as_str()), ("pair", "out"));
    Ok(floats(&answer.outputs[0]))
}

#[tokio::test]
async fn steps_run_in_the_order_of_their_tensors() {
    let dir = pair();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    assert_eq!(ask(&mut client, [1.0, 2.0]).await.unwrap(), [3.0, 5.0]);
    let models = client.list_models(proto::ListModelsRequest {}).await.unwrap().into_inner().models;
    let pair = models.iter().find(|model| model.name == "pair").unwrap();
    assert_eq!((pair.live_version.as_str(), pair.signature.as_ref().unwrap().inputs.len()), ("1", 1));
    // Its steps are requests to their models.
    let (_, metrics) = server.get("/metrics").await;
    for model in ["pair", "double", "add"] {
        let line = format!(
            "torchlane_requests_total{{model=\"{model}\",version=\"1\",lane=\"NORMAL\",outcome=\"ok\"}} 1"
        );
        assert!(metrics.contains(&line), "{model}");
    }
}

#[tokio::test]
async fn it_is_ready_while_its_steps_are() {
    let dir = pair();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let is_ready = async || server.get("/v2/models/pair/ready").await.0 == 200;
    assert!(is_ready().await);
    client.unload_model(proto::UnloadModelRequest { model: "add".into() }).await.unwrap();
    assert!(!is_ready().await);
    client.reload_model(reload("add", 1)).await.unwrap();
    assert!(is_ready().await);
}

#[tokio::test]
async fn lane_and_deadline_are_those_of_the_whole() {
    let dir = pair();
    version(dir.path(), "double", 1, "delay_ms = 300");
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let urgent = proto::InferRequest {
        priority: Priority::Critical.into(),
        ..request("pair", vec![f32s("in", &[1, 2], &[1.0, 1.0])])
    };
    client.infer(urgent.clone()).await.unwrap();
    let (_, metrics) = server.get("/metrics").await;
    assert!(metrics.contains("model=\"add\",version=\"1\",lane=\"CRITICAL\",outcome=\"ok\"} 1"));
    let mut late = tonic::Request::new(urgent);
    late.set_timeout(Duration::from_millis(50));
    assert_eq!(client.infer(late).await.unwrap_err().code(), tonic::Code::DeadlineExceeded);
}

/// The first step of `pair` hangs while the file is there.
fn gated() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = pair();
    let gate = dir.path().join("gate");
    fs::write(&gate, "").unwrap();
    version(dir.path(), "double", 1, &format!("hang_while = '{}'", gate.display()));
    (dir, gate)
}

#[tokio::test]
async fn a_step_is_not_begun_after_the_deadline() {
    let (dir, gate) = gated();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let mut late = tonic::Request::new(request("pair", vec![f32s("in", &[1, 2], &[1.0, 2.0])]));
    late.set_timeout(Duration::from_millis(100));
    let status = client.infer(late).await.unwrap_err();
    assert!(matches!(status.code(), tonic::Code::DeadlineExceeded | tonic::Code::Cancelled), "{status}");
    until(async || {
        let ends =
            [ended(&server, "pair", "DEADLINE_EXCEEDED").await, ended(&server, "pair", "CANCELLED").await];
        ends.iter().sum::<u64>() == 1
    })
    .await;
    fs::remove_file(&gate).unwrap();
    // Whoever comes next finds all of it in order, and is the first to get to the second step.
    assert_eq!(ask(&mut client, [1.0, 2.0]).await.unwrap(), [2.0, 3.0]);
    assert_eq!((executions(&server, "add").await, ended(&server, "add", "ok").await), (1, 1));
}

#[tokio::test]
async fn a_step_that_fails_is_named_and_one_that_is_reloaded_is_followed() {
    let dir = pair();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    version(dir.path(), "add", 2, "offset = 10.0");
    client.reload_model(reload("add", 2)).await.unwrap();
    assert_eq!(ask(&mut client, [1.0, 2.0]).await.unwrap(), [12.0, 14.0]);
    version(dir.path(), "add", 3, "fail = 'no'");
    client.reload_model(reload("add", 3)).await.unwrap();
    let failed = ask(&mut client, [-1.0, 2.0]).await.unwrap_err();
    assert_eq!(reason(&failed), "FORWARD_FAILED");
    assert!(failed.message().starts_with("step 0 (add): "), "{failed}");
    let unload = proto::UnloadModelRequest { model: "double".into() };
    client.unload_model(unload).await.unwrap();
    let gone = ask(&mut client, [1.0, 2.0]).await.unwrap_err();
    assert_eq!((gone.code(), reason(&gone).as_str()), (tonic::Code::Unavailable, "MODEL_NOT_READY"));
    assert!(gone.message().starts_with("step 1 (double): "), "{gone}");
    let wrong = client.infer(request("pair", vec![f32s("in", &[2], &[1.0, 1.0])])).await.unwrap_err();
    assert_eq!(reason(&wrong), "WRONG_SHAPE");
}

#[tokio::test]
async fn its_own_steps_are_changed_by_a_reload() {
    let dir = pair();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    ensemble(
        dir.path(),
        "pair",
        "[[steps]]\nmodel = 'double'\ninputs = { x = 'in' }\noutputs = { output_0 = 'out' }\n",
    );
    client.reload_model(reload("pair", 1)).await.unwrap();
    assert_eq!(ask(&mut client, [1.0, 2.0]).await.unwrap(), [2.0, 4.0]);
    ensemble(
        dir.path(),
        "pair",
        "[[steps]]\nmodel = 'double'\ninputs = { x = 'z' }\noutputs = { output_0 = 'out' }\n",
    );
    let refused = client.reload_model(reload("pair", 1)).await.unwrap_err();
    assert!(refused.message().contains("'z', which step 0 (double) takes"), "{refused}");
    assert_eq!(ask(&mut client, [1.0, 2.0]).await.unwrap(), [2.0, 4.0], "what serves goes on serving");
}

#[tokio::test]
async fn ensembles_are_not_made_of_ensembles() {
    let dir = pair();
    let outer = |step: &str| {
        format!("[[steps]]\nmodel = '{step}'\ninputs = {{ in = 'in' }}\noutputs = {{ out = 'out' }}\n")
    };
    ensemble(dir.path(), "outer", &outer("pair"));
    ensemble(dir.path(), "itself", &outer("itself"));
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let refused = client.reload_model(reload("itself", 1)).await.unwrap_err();
    assert_eq!(reason(&refused), "LOAD_FAILED");
    assert!(refused.message().contains("step 0 (itself): it is an ensemble itself"), "{refused}");
    // More often than a breaker takes: the ensemble in it is well, and goes on answering.
    for _ in 0..12 {
        let nested =
            client.infer(request("outer", vec![f32s("in", &[1, 2], &[1.0, 1.0])])).await.unwrap_err();
        assert_eq!(reason(&nested), "FORWARD_FAILED");
        assert!(nested.message().starts_with("step 0 (pair): it is an ensemble itself"), "{nested}");
    }
    assert_eq!(ask(&mut client, [1.0, 2.0]).await.unwrap(), [3.0, 5.0]);
    assert_eq!((ended(&server, "pair", "ok").await, ended(&server, "pair", "FORWARD_FAILED").await), (1, 0));
}

/// `in` goes to two models side by side; what one of them makes goes to a third, and out.
fn fan() -> tempfile::TempDir {
    let dir = repository(&[("double", "scale = 2.0"), ("add", "offset = 1.0"), ("half", "scale = 0.5")]);
    fs::create_dir_all(dir.path().join("fan")).unwrap();
    fs::write(
        dir.path().join("fan/model.toml"),
        "[[inputs]]
         name = 'in'
         dtype = 'FP32'
         shape = [-1, -1]
         [[outputs]]
         name = 'twice'
         [[outputs]]
         name = 'more'
         [[outputs]]
         name = 'once'
         [[steps]]
         model = 'half'
         inputs = { x = 'twice' }
         outputs = { output_0 = 'once' }
         [[steps]]
         model = 'double'
         inputs = { x = 'in' }
         outputs = { output_0 = 'twice' }
         [[steps]]
         model = 'add'
         inputs = { x = 'in' }
         outputs = { output_0 = 'more' }",
    )
    .unwrap();
    dir
}

#[tokio::test]
async fn a_tensor_may_go_to_several_steps_and_out_and_have_any_size() {
    let dir = fan();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    for (rows, columns) in [(1, 2), (3, 1), (2, 5), (40, 1), (0, 3)] {
        let values: Vec<f32> = (0..rows * columns).map(|value| value as f32).collect();
        // The only input need not be named.
        for name in ["in", ""] {
            let answer = client.infer(request("fan", vec![f32s(name, &[rows, columns], &values)])).await;
            let answer = answer
                .unwrap_or_else(|status| panic!("'{name}' of {rows} x {columns}: {status}"))
                .into_inner();
            let outputs: Vec<_> =
                answer.outputs.iter().map(|output| (output.name.as_str(), floats(output))).collect();
            let expected = |change: fn(f32) -> f32| values.iter().copied().map(change).collect::<Vec<_>>();
            assert_eq!(
                outputs,
                [("twice", expected(|x| x * 2.0)), ("more", expected(|x| x + 1.0)), ("once", values.clone())]
            );
            assert!(answer.outputs.iter().all(|output| output.shape == [rows, columns]));
        }
    }
    let some = proto::InferRequest {
        outputs: vec!["once".into(), "twice".into()],
        ..request("fan", vec![f32s("in", &[1, 1], &[4.0])])
    };
    let answer = client.infer(some).await.unwrap().into_inner();
    assert_eq!(answer.outputs.iter().map(floats).collect::<Vec<_>>(), [[4.0], [8.0]]);
}

#[tokio::test]
async fn a_step_that_no_longer_fits_fails_and_is_not_the_callers_doing() {
    let dir = pair();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let manifest =
        |model: &str, text: &str| fs::write(dir.path().join(model).join("model.toml"), text).unwrap();
    let misfits = [
        // Another name of the input, one more input, another datatype, another name of the output.
        (
            "inputs = ['z']",
            "",
            "step 0 (add): the ensemble does not fit the model: the model has no input 'x': the model takes z",
        ),
        (
            "inputs = ['x', 'z']",
            "",
            "step 0 (add): the ensemble does not fit the model: input 'z' is missing",
        ),
        (
            "",
            "[[inputs]]\nname = 'x'\ndtype = 'INT64'",
            "step 0 (add): the ensemble does not fit the model: input 'x' has datatype FP32",
        ),
        (
            "",
            "[[outputs]]\nname = 'y'",
            "step 0 (add): the ensemble does not fit the model: the model has no output 'output_0'",
        ),
    ];
    for (number, (script, text, expected)) in (2..).zip(misfits) {
        manifest("add", text);
        version(dir.path(), "add", number, script);
        client.reload_model(reload("add", number)).await.unwrap();
        let status = ask(&mut client, [1.0, 2.0]).await.unwrap_err();
        assert_eq!(
            (reason(&status).as_str(), status.code()),
            ("FORWARD_FAILED", tonic::Code::Internal),
            "{status}"
        );
        assert!(status.message().starts_with(expected), "{status}");
    }
    // A shape may follow from what the caller sent: that stays a bad request, but names no field of it.
    manifest("add", "[[inputs]]\nname = 'x'\nshape = [1, 2]");
    version(dir.path(), "add", 6, "offset = 1.0");
    client.reload_model(reload("add", 6)).await.unwrap();
    assert_eq!(ask(&mut client, [1.0, 2.0]).await.unwrap(), [3.0, 5.0]);
    let status = client.infer(request("pair", vec![f32s("in", &[2, 2], &[1.0; 4])])).await.unwrap_err();
    assert_eq!(reason(&status), "WRONG_SHAPE");
    assert!(status.message().starts_with("step 0 (add): input 'x' has shape"), "{status}");
    let details = tonic_types::StatusExt::get_error_details(&status);
    assert!(details.bad_request().is_none(), "{details:?}");
}

#[tokio::test]
async fn outputs_are_as_they_are_declared_or_the_request_fails() {
    let dir = pair();
    let write = |name: &str, output: &str| {
        fs::create_dir_all(dir.path().join(name)).unwrap();
        let text = format!(
            "[[inputs]]\nname = 'in'\n[[outputs]]\nname = 'out'\n{output}\n[[steps]]\nmodel = 'double'\n\
             inputs = {{ x = 'in' }}\noutputs = {{ output_0 = 'out' }}\n"
        );
        fs::write(dir.path().join(name).join("model.toml"), text).unwrap();
    };
    write("typed", "dtype = 'FP32'");
    write("shaped", "shape = [-1, 3]");
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let int = || tensor("in", "INT32", &[1, 2], vec![0; 8]);
    for (model, good, bad, expected) in [
        ("typed", f32s("in", &[1], &[1.0]), int(), "output 'out' has datatype INT32, FP32 is declared"),
        (
            "shaped",
            f32s("in", &[1, 3], &[1.0; 3]),
            int(),
            "output 'out' has shape [1, 2], [-1, 3] is declared",
        ),
    ] {
        client.infer(request(model, vec![good])).await.unwrap();
        let status = client.infer(request(model, vec![bad])).await.unwrap_err();
        assert_eq!((reason(&status).as_str(), status.message()), ("FORWARD_FAILED", expected));
    }
}

#[tokio::test]
async fn a_tenant_is_counted_once_and_its_lane_is_that_of_all_steps() {
    let dir = fan();
    let server = Server::fake(dir.path(), |settings| {
        let one = TenantSettings { max_in_flight: 1, rate: 0.001, burst: 1, ..TenantSettings::default() };
        settings.tenants.insert("one".into(), TenantSettings { max_lane: Lane::Low, ..one });
    });
    let mut client = server.ready().await;
    let call = || {
        let urgent = proto::InferRequest {
            priority: Priority::Critical.into(),
            ..request("fan", vec![f32s("in", &[1, 1], &[1.0])])
        };
        let mut call = tonic::Request::new(urgent);
        call.metadata_mut().insert("x-tenant", "one".parse().unwrap());
        call
    };
    // One request at once and one in a long while: two steps run side by side, and a third after them.
    client.infer(call()).await.unwrap();
    assert_eq!(reason(&client.infer(call()).await.unwrap_err()), "RATE_LIMITED");
    let (_, metrics) = server.get("/metrics").await;
    for model in ["fan", "double", "add", "half"] {
        let line = format!("model=\"{model}\",version=\"1\",lane=\"LOW\",outcome=\"ok\"}} 1");
        assert!(metrics.contains(&line), "{model}");
        assert!(!metrics.contains(&format!("model=\"{model}\",version=\"1\",lane=\"CRITICAL\"")), "{model}");
    }
}

#[tokio::test]
async fn the_first_failure_ends_the_request_and_what_runs_beside_it() {
    let (dir, files) = (fan(), tempfile::tempdir().unwrap());
    let gate = files.path().join("gate");
    fs::write(&gate, "").unwrap();
    version(dir.path(), "double", 1, &format!("hang_while = '{}'", gate.display()));
    version(dir.path(), "add", 1, "fail = 'no'");
    let server = Server::fake(dir.path(), |settings| settings.executors.threads = 2);
    let mut client = server.ready().await;
    // The gate stands while the answer comes.
    let failed = client.infer(request("fan", vec![f32s("in", &[1, 1], &[-1.0])])).await.unwrap_err();
    assert_eq!(reason(&failed), "FORWARD_FAILED");
    assert!(failed.message().starts_with("step 2 (add): "), "{failed}");
    until(async || ended(&server, "double", "CANCELLED").await == 1).await;
    assert_eq!(
        (ended(&server, "fan", "FORWARD_FAILED").await, ended(&server, "add", "FORWARD_FAILED").await),
        (1, 1)
    );
    fs::remove_file(&gate).unwrap();
    client.infer(request("double", vec![f32s("x", &[1], &[1.0])])).await.unwrap();
    assert_eq!(executions(&server, "half").await, 0);
}

#[tokio::test]
async fn steps_of_a_caller_that_leaves_are_not_begun() {
    let (dir, gate) = gated();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let mut leaving = client.clone();
    let call = tokio::spawn(async move { ask(&mut leaving, [1.0, 2.0]).await });
    until(async || {
        let (_, metrics) = server.get("/metrics").await;
        metrics.lines().any(|line| line.starts_with("torchlane_in_flight{") && line.ends_with(" 1"))
    })
    .await;
    call.abort();
    until(async || ended(&server, "pair", "CANCELLED").await == 1).await;
    assert_eq!(ended(&server, "double", "CANCELLED").await, 1);
    fs::remove_file(&gate).unwrap();
    assert_eq!(ask(&mut client, [1.0, 2.0]).await.unwrap(), [2.0, 3.0]);
    assert_eq!((executions(&server, "add").await, ended(&server, "add", "ok").await), (1, 1));
}

#[tokio::test]
async fn a_step_is_answered_from_its_models_cache() {
    let dir = pair();
    fs::write(dir.path().join("double/model.toml"), "response_cache = true").unwrap();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    for _ in 0..3 {
        assert_eq!(ask(&mut client, [1.0, 2.0]).await.unwrap(), [3.0, 5.0]);
    }
    assert_eq!((executions(&server, "double").await, executions(&server, "add").await), (1, 3));
    assert_eq!(ask(&mut client, [2.0, 2.0]).await.unwrap(), [5.0, 5.0]);
    assert_eq!(executions(&server, "double").await, 2);
}
