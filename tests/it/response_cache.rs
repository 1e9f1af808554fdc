//! What the response cache counts: in metrics by torchlane's and Triton's names, and in the statistics by Triton's rules.

use std::fs;

use serde_json::Value;

use super::{
    fake::{reload, repository, version},
    oip::call,
    server::{Client, Server, f32s, request},
};

const LARGE: usize = 4096;

fn cached() -> tempfile::TempDir {
    let dir = repository(&[("m", "scale = 2.0\nfail = 'a bad number'"), ("plain", "")]);
    fs::write(dir.path().join("m/model.toml"), "response_cache = true\n").unwrap();
    dir
}

async fn ask(client: &mut Client, model: &str, values: &[f32]) {
    let shape = [i64::try_from(values.len()).unwrap()];
    client.infer(request(model, vec![f32s("x", &shape, values)])).await.unwrap();
}

async fn metric(server: &Server, line: &str) -> Option<f64> {
    let (_, text) = server.get("/metrics").await;
    let found = text.lines().find(|text| text.starts_with(&format!("{line} ")));
    found.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

async fn of_model(server: &Server, what: &str) -> f64 {
    let (name, label) = what.split_once(' ').unwrap();
    metric(server, &format!("torchlane_response_cache_{name}_total{{model=\"m\",{label}}}")).await.unwrap()
}

async fn statistics(server: &Server) -> Value {
    call(server, "GET", "/v2/models/m/stats", &[], b"").await.json()["model_stats"][0].clone()
}

#[tokio::test]
async fn lookups_insertions_and_evictions_are_counted_by_model() {
    let dir = cached();
    let server = Server::fake(dir.path(), |settings| {
        settings.response_cache.max_bytes = bytesize::ByteSize::kib(64);
        settings.metrics.triton_names = true;
    });
    let mut client = server.ready().await;
    for values in [[1.0, 2.0], [1.0, 2.0], [3.0, 4.0], [1.0, 2.0]] {
        ask(&mut client, "m", &values).await;
        ask(&mut client, "plain", &values).await;
    }
    assert_eq!(of_model(&server, "lookups result=\"hit\"").await, 2.0);
    assert_eq!(of_model(&server, "lookups result=\"miss\"").await, 2.0);
    assert_eq!(of_model(&server, "insertions result=\"kept\"").await, 2.0);
    assert_eq!(metric(&server, "torchlane_response_cache_entries").await, Some(2.0));
    let bytes = metric(&server, "torchlane_response_cache_bytes").await.unwrap();
    assert!((1000.0..2000.0).contains(&bytes), "{bytes}");
    let (_, text) = server.get("/metrics").await;
    assert!(!text.contains("torchlane_response_cache_lookups_total{model=\"plain\""), "it keeps no answers");

    ask(&mut client, "m", &[0.5; LARGE]).await;
    assert_eq!(of_model(&server, "insertions result=\"too_large\"").await, 1.0);
    for name in ["num_hits", "num_misses", "hit_duration", "miss_duration"] {
        let line = format!("nv_cache_{name}_per_model{{model=\"m\",version=\"1\"}}");
        let value = metric(&server, &line).await.unwrap();
        match name {
            "num_hits" => assert_eq!(value, 2.0),
            "num_misses" => assert_eq!(value, 3.0, "one whose answer is too large to be kept is one too"),
            _ => assert!(value >= 0.0),
        }
    }
    assert!(!text.contains("nv_cache_num_hits_per_model{model=\"plain\""));

    // A version takes its answers with it.
    version(dir.path(), "m", 2, "scale = 3.0");
    client.reload_model(reload("m", 2)).await.unwrap();
    assert_eq!(of_model(&server, "evictions cause=\"version\"").await, 2.0);
    assert_eq!(of_model(&server, "evictions cause=\"room\"").await, 0.0);
    assert_eq!(metric(&server, "torchlane_response_cache_entries").await, Some(0.0));
    assert_eq!(of_model(&server, "lookups result=\"hit\"").await, 2.0, "counters outlive versions");
}

#[tokio::test]
async fn a_hit_is_a_success_but_no_inference_and_a_failed_request_is_no_miss() {
    let dir = cached();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    ask(&mut client, "m", &[1.0, 2.0]).await;
    let first = statistics(&server).await;
    // So that the clock's milliseconds have moved on.
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    ask(&mut client, "m", &[1.0, 2.0]).await;
    let second = statistics(&server).await;
    let count = |of: &Value, what: &str| of["inference_stats"][what]["count"].as_u64().unwrap();
    for (what, before, after) in [
        ("success", 1, 2),
        ("queue", 1, 2),
        ("cache_hit", 0, 1),
        ("cache_miss", 1, 1),
        ("compute_infer", 1, 1),
    ] {
        assert_eq!((count(&first, what), count(&second, what)), (before, after), "{what}");
    }
    for what in ["inference_count", "execution_count", "last_inference", "batch_stats"] {
        assert_eq!(first[what], second[what], "{what} is of passes");
    }
    let ns = |what: &str| second["inference_stats"][what]["ns"].as_u64().unwrap();
    assert!(ns("cache_hit") > 0 && ns("cache_miss") > 0);
    assert!(ns("cache_hit") + ns("cache_miss") < ns("success"), "they are parts of their requests");

    client.infer(request("m", vec![f32s("x", &[1], &[-1.0])])).await.unwrap_err();
    let third = statistics(&server).await;
    assert_eq!((count(&third, "fail"), count(&third, "cache_miss")), (1, 1), "it has got no answer");
    assert_eq!(of_model(&server, "lookups result=\"miss\"").await, 2.0, "but it was looked up");
}
