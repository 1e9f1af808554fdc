//! A new version beside the live one: who sees it, and what becomes of it.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    time::Duration,
};

use tokio::time::Instant;
use torchlane::proto::{self, RolloutAction, RolloutState, RolloutStrategy};

use super::{
    fake::{repository, version},
    server::{Client, Server, f32s, floats, reason, request},
};

/// A server with version 1 live, and version 2 on disk.
async fn two(one: &str, second: &str) -> (tempfile::TempDir, Server, Client) {
    let dir = repository(&[("m", one)]);
    let server = Server::fake(dir.path(), |_| {});
    let client = server.ready().await;
    version(dir.path(), "m", 2, second);
    (dir, server, client)
}

/// What is asked for with a request beside its message.
#[derive(Clone, Default)]
struct With {
    wish: &'static str,
    headers: Vec<(&'static str, String)>,
}

fn keyed(key: impl std::fmt::Display) -> With {
    With { wish: "", headers: vec![("x-rollout-key", key.to_string())] }
}

/// The version that answers, and what 1.0 comes out as.
async fn ask(client: &mut Client, with: With) -> Result<(String, f32), tonic::Status> {
    let message =
        proto::InferRequest { version: with.wish.into(), ..request("m", vec![f32s("x", &[1], &[1.0])]) };
    let mut call = tonic::Request::new(message);
    for (name, value) in with.headers {
        call.metadata_mut().insert(name, value.parse().unwrap());
    }
    let answer = client.infer(call).await?.into_inner();
    Ok((answer.version, floats(&answer.outputs[0])[0]))
}

fn canary(percent: f64) -> proto::RolloutPlan {
    proto::RolloutPlan {
        strategy: RolloutStrategy::Canary.into(),
        percent: Some(percent),
        promote_after: Some(prost_types::Duration::default()),
        min_requests: Some(20),
        ..Default::default()
    }
}

fn plan(plan: proto::RolloutPlan) -> proto::SetRolloutRequest {
    proto::SetRolloutRequest { model: "m".into(), plan: Some(plan), ..Default::default() }
}

fn act(action: RolloutAction) -> proto::SetRolloutRequest {
    proto::SetRolloutRequest { model: "m".into(), action: action.into(), ..Default::default() }
}

async fn set(client: &mut Client, request: proto::SetRolloutRequest) -> proto::Rollout {
    client.set_rollout(request).await.unwrap().into_inner()
}

async fn get(client: &mut Client) -> proto::Rollout {
    client.get_rollout(proto::GetRolloutRequest { model: "m".into() }).await.unwrap().into_inner()
}

async fn model(client: &mut Client) -> proto::Model {
    client.get_model(proto::GetModelRequest { model: "m".into() }).await.unwrap().into_inner()
}

/// What callers saw while a rollout went on.
#[derive(Debug, Default)]
struct Callers {
    answers: BTreeMap<String, usize>,
    failures: Vec<String>,
    took: Duration,
}

/// Each has one request under way at most.
const CALLERS: u64 = 4;

/// [`CALLERS`] send requests until the rollout has ended, for at most 30 s.
async fn until_it_ends(client: &Client) -> (proto::Rollout, Callers) {
    let began = Instant::now();
    let stop = tokio_util::sync::CancellationToken::new();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let (mut client, stop) = (client.clone(), stop.clone());
            tokio::spawn(async move {
                let mut seen = Callers::default();
                for i in 0.. {
                    if stop.is_cancelled() {
                        break;
                    }
                    match ask(&mut client, keyed(format!("{caller} {i}"))).await {
                        Ok((version, _)) => *seen.answers.entry(version).or_default() += 1,
                        Err(status) => seen.failures.push(format!("{status:?}")),
                    }
                }
                seen
            })
        })
        .collect();
    let mut admin = client.clone();
    let mut now = get(&mut admin).await;
    while now.state() == RolloutState::Running && began.elapsed() < Duration::from_secs(30) {
        tokio::time::sleep(Duration::from_millis(50)).await;
        now = get(&mut admin).await;
    }
    let took = began.elapsed();
    stop.cancel();
    let mut all = Callers { took, ..Callers::default() };
    for caller in callers {
        let seen = caller.await.unwrap();
        all.failures.extend(seen.failures);
        seen.answers
            .into_iter()
            .for_each(|(version, count)| *all.answers.entry(version).or_default() += count);
    }
    (now, all)
}

/// It was rolled back for that reason, in time, and nobody noticed.
async fn is_rolled_back(client: &mut Client, why: &str) -> proto::Rollout {
    let (ended, callers) = until_it_ends(client).await;
    assert_eq!(ended.state(), RolloutState::RolledBack, "{ended:?}");
    assert!(ended.verdict.starts_with(why), "{}", ended.verdict);
    assert!(callers.failures.is_empty(), "{:?}", callers.failures);
    assert!(callers.took < Duration::from_secs(30));
    assert_eq!(model(client).await.live_version, "1");
    for i in 0..50 {
        assert_eq!(ask(client, keyed(i)).await.unwrap().0, "1", "nobody sees it any more");
    }
    ended
}

#[tokio::test]
async fn callers_stay_with_their_version_and_a_larger_share_only_adds_some() {
    let (_dir, _server, mut client) = two("scale = 1.0", "scale = 2.0").await;
    let begun = set(&mut client, plan(canary(20.0))).await;
    assert_eq!(
        (begun.state(), begun.version.as_str(), begun.live_version.as_str()),
        (RolloutState::Running, "2", "1")
    );
    let mut first = HashMap::new();
    for round in 0..2 {
        for key in 0..500 {
            let (version, value) = ask(&mut client, keyed(key)).await.unwrap();
            assert_eq!(version.parse::<f32>().unwrap(), value, "the answer is of the version that it names");
            assert_eq!(*first.entry(key).or_insert(version.clone()), version, "key {key} in round {round}");
        }
    }
    let share = first.values().filter(|version| *version == "2").count();
    assert!((70..130).contains(&share), "{share} of 500 at 20 %");
    set(&mut client, plan(canary(60.0))).await;
    let mut now = 0;
    for key in 0..500 {
        let version = ask(&mut client, keyed(key)).await.unwrap().0;
        assert!(first[&key] == "1" || version == "2", "key {key} was sent back");
        now += usize::from(version == "2");
    }
    assert!((255..345).contains(&now), "{now} of 500 at 60 %");
    // Whoever says what it wants gets that.
    for key in 0..50 {
        for (wish, answer) in [("stable", "1"), ("1", "1"), ("2", "2")] {
            let with = With { wish, ..keyed(key) };
            assert_eq!(ask(&mut client, with).await.unwrap().0, answer, "{wish}");
        }
    }
    // A tenant is a key too.
    let mut of_tenant = std::collections::HashSet::new();
    for _ in 0..20 {
        let with = With { headers: vec![("x-tenant", "lab".to_owned())], ..With::default() };
        of_tenant.insert(ask(&mut client, with).await.unwrap().0);
    }
    assert_eq!(of_tenant.len(), 1);
    let ended = set(&mut client, act(RolloutAction::Abort)).await;
    assert_eq!(ended.state(), RolloutState::Aborted);
    for key in 0..100 {
        assert_eq!(ask(&mut client, keyed(key)).await.unwrap().0, "1");
    }
    assert!(model(&mut client).await.loaded.is_empty(), "version 2 was dropped");
    let again = client.set_rollout(act(RolloutAction::Abort)).await.unwrap_err();
    assert_eq!(reason(&again), "NO_ROLLOUT");
}

#[tokio::test]
async fn a_version_that_fails_now_and_then_is_rolled_back_and_no_caller_fails() {
    let (_dir, server, mut client) = two("", "fail_every = 20").await;
    let mut events =
        client.watch_models(proto::WatchModelsRequest { model: "m".into() }).await.unwrap().into_inner();
    set(&mut client, plan(canary(30.0))).await;
    let ended = is_rolled_back(&mut client, "errors: ").await;
    let failed = ended.candidate.unwrap().failed;
    // At the verdict a caller's failure may be counted and its fallback not yet.
    assert!(failed >= 3 && (failed.saturating_sub(CALLERS)..=failed).contains(&ended.fallbacks), "{ended:?}");
    let (_, metrics) = server.get("/metrics").await;
    let line =
        metrics.lines().find_map(|line| line.strip_prefix("torchlane_rollout_fallbacks_total{model=\"m\"} "));
    let fallbacks: u64 = line.unwrap().parse().unwrap();
    // What was under way then may have fallen back since.
    assert!((failed..=failed + CALLERS).contains(&fallbacks), "{failed} failed, {fallbacks} fell back");
    assert!(metrics.contains("torchlane_rollout_state{model=\"m\",version=\"2\",state=\"rolled_back\"} 1"));
    let mut changes = Vec::new();
    while changes.last().is_none_or(|change| change != "dropped_beside") {
        let event = events.message().await.unwrap().unwrap();
        if event.change == "rolled_back" {
            assert_eq!((event.reason.as_str(), event.asker.as_str()), ("ROLLED_BACK", "rollout"));
        }
        changes.push(event.change);
    }
    let wanted =
        ["snapshot", "loading_beside", "loaded_beside", "rollout_started", "rolled_back", "dropped_beside"];
    assert_eq!(changes, wanted);
}

#[tokio::test]
async fn a_version_that_always_fails_or_takes_other_inputs_costs_no_answer_either() {
    for second in ["fail = 'broken'\nfail_always = true", "inputs = ['x', 'z']"] {
        let (_dir, _server, mut client) = two("", second).await;
        set(&mut client, plan(canary(50.0))).await;
        is_rolled_back(&mut client, "errors: ").await;
    }
}

#[tokio::test]
async fn a_version_that_is_three_times_as_slow_is_rolled_back() {
    let (_dir, _server, mut client) = two("delay_ms = 2", "delay_ms = 6").await;
    set(&mut client, plan(canary(30.0))).await;
    let ended = is_rolled_back(&mut client, "").await;
    assert!(
        ended.verdict.starts_with("latency: ") || ended.verdict.starts_with("tail: "),
        "{}",
        ended.verdict
    );
}

#[tokio::test]
async fn a_version_whose_outputs_drift_is_rolled_back() {
    for second in ["offset = 0.05", "nan_at_zero = true\nscale = 0.0"] {
        let dir = repository(&[("m", "")]);
        // The warm-up would see the NaN.
        fs::write(dir.path().join("m/model.toml"), "[warmup]\nallow_non_finite = true\n").unwrap();
        let server = Server::fake(dir.path(), |_| {});
        let mut client = server.ready().await;
        version(dir.path(), "m", 2, second);
        set(&mut client, plan(proto::RolloutPlan { max_difference: Some(0.01), ..canary(20.0) })).await;
        let ended = is_rolled_back(&mut client, "outputs: ").await;
        assert!(ended.different >= 3 && ended.largest_difference >= 0.049, "{ended:?}");
    }
}

#[tokio::test]
async fn a_good_version_takes_its_steps_and_is_promoted_without_being_loaded_again() {
    let (_dir, _server, mut client) = two("", "").await;
    let steps = proto::RolloutPlan {
        steps: vec![20.0, 50.0],
        promote_after: Some(prost_types::Duration { seconds: 2, nanos: 0 }),
        max_difference: Some(0.0),
        compare: Some(50.0),
        ..canary(10.0)
    };
    set(&mut client, plan(steps)).await;
    let (ended, callers) = until_it_ends(&client).await;
    assert_eq!(ended.state(), RolloutState::Promoted, "{ended:?}");
    assert!(callers.failures.is_empty(), "{:?}", callers.failures);
    assert!(ended.step == 1 && ended.different == 0 && ended.compared >= 20, "{ended:?}");
    let now = model(&mut client).await;
    assert_eq!((now.live_version.as_str(), now.previous_version.as_str()), ("2", "1"));
    assert_eq!(
        now.last_phases.unwrap().load,
        Some(prost_types::Duration::default()),
        "it was loaded already"
    );
    client.rollback_model(proto::RollbackModelRequest { model: "m".into() }).await.unwrap();
    assert_eq!(model(&mut client).await.live_version, "1");
}

#[tokio::test]
async fn a_shadow_is_compared_and_answers_nobody() {
    let (_dir, _server, mut client) = two("scale = 1.0", "scale = 1.5").await;
    let shadow = |percent| proto::RolloutPlan { strategy: RolloutStrategy::Shadow.into(), ..canary(percent) };
    set(&mut client, plan(shadow(50.0))).await;
    let mut sent = 0;
    while get(&mut client).await.compared < 40 {
        for _ in 0..50 {
            assert_eq!(ask(&mut client, With::default()).await.unwrap(), ("1".to_owned(), 1.0));
        }
        sent += 50;
        assert!(sent < 5000, "{:?}", get(&mut client).await);
    }
    let now = get(&mut client).await;
    assert_eq!((now.state(), now.different, now.largest_difference), (RolloutState::Running, 0, 0.5));
    assert_eq!((now.fallbacks, now.percent), (0, 0.0));
    assert!(now.compared + now.dropped <= sent, "{now:?}");
    // With a bound it is bad at once.
    set(&mut client, plan(proto::RolloutPlan { max_difference: Some(0.1), ..shadow(50.0) })).await;
    is_rolled_back(&mut client, "outputs: ").await;
}

#[tokio::test]
async fn headers_and_tenants_choose_a_side() {
    let (_dir, _server, mut client) = two("", "").await;
    let ab = proto::RolloutPlan {
        strategy: RolloutStrategy::Ab.into(),
        header: "x-experiment".into(),
        value: "b".into(),
        tenants: vec!["lab".into()],
        ..canary(10.0)
    };
    set(&mut client, plan(ab)).await;
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[], "1"),
        (&[("x-experiment", "b")], "2"),
        (&[("x-experiment", "a")], "1"),
        (&[("x-tenant", "lab")], "2"),
        (&[("x-tenant", "ward")], "1"),
    ];
    for (headers, answer) in cases {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let with = With { wish: "", headers };
        assert_eq!(ask(&mut client, with.clone()).await.unwrap().0, answer, "{:?}", with.headers);
    }
    // Somebody decides.
    let ended = set(&mut client, act(RolloutAction::Promote)).await;
    assert_eq!(
        (ended.state(), model(&mut client).await.live_version.as_str()),
        (RolloutState::Promoted, "2")
    );
}

#[tokio::test]
async fn what_callers_get_wrong_is_not_the_new_versions_fault() {
    let (_dir, _server, mut client) = two("fail = 'negative'", "fail = 'negative'").await;
    set(&mut client, plan(canary(100.0))).await;
    for _ in 0..30 {
        let negative = request("m", vec![f32s("x", &[1], &[-1.0])]);
        assert_eq!(reason(&client.infer(negative).await.unwrap_err()), "FORWARD_FAILED");
        let wrong = request("m", vec![f32s("y", &[1], &[1.0]), f32s("z", &[1], &[1.0])]);
        assert!(client.infer(wrong).await.is_err());
        assert_eq!(ask(&mut client, With::default()).await.unwrap().0, "2");
    }
    let now = get(&mut client).await;
    let candidate = now.candidate.unwrap();
    assert_eq!((candidate.answered, candidate.failed, now.fallbacks), (30, 0, 0), "{now:?}");
}

#[tokio::test]
async fn a_reload_that_somebody_asks_for_ends_a_rollout() {
    let (dir, _server, mut client) = two("", "").await;
    set(&mut client, plan(canary(50.0))).await;
    version(dir.path(), "m", 3, "");
    client.reload_model(super::fake::reload("m", 3)).await.unwrap();
    let ended = get(&mut client).await;
    assert_eq!(ended.state(), RolloutState::Aborted, "{ended:?}");
    assert!(ended.verdict.contains("version 3 was put live"), "{}", ended.verdict);
    assert!(model(&mut client).await.loaded.is_empty());
    for bad in [
        plan(canary(0.0)),
        plan(proto::RolloutPlan { strategy: RolloutStrategy::Ab.into(), ..canary(1.0) }),
        proto::SetRolloutRequest { version: "3".into(), ..plan(canary(10.0)) },
        proto::SetRolloutRequest { version: "x".into(), ..plan(canary(10.0)) },
        plan(proto::RolloutPlan::default()),
    ] {
        let status = client.set_rollout(bad).await.unwrap_err();
        assert_eq!(reason(&status), "BAD_REQUEST", "{}", status.message());
    }
}

/// Waits for at most 20 s.
async fn until(client: &mut Client, so: impl Fn(&proto::Rollout) -> bool) -> proto::Rollout {
    let mut now = get(client).await;
    for _ in 0..2000 {
        if so(&now) {
            return now;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        now = get(client).await;
    }
    panic!("it did not come to that: {now:?}");
}

fn add(dir: &Path, number: u64, script: &str) {
    let aside = dir.join(format!("m/.{number}"));
    fs::create_dir_all(&aside).unwrap();
    fs::write(aside.join("model.pt"), script).unwrap();
    fs::rename(aside, dir.join(format!("m/{number}"))).unwrap();
}

#[tokio::test]
async fn new_versions_on_disk_are_rolled_out_and_a_bad_one_is_not_tried_again() {
    let dir = repository(&[("m", "")]);
    let manifest = |text: &str| {
        let rollout =
            "[rollout]\nstrategy = 'canary'\npercent = 50\npromote_after = '1s'\nmin_requests = 20\n";
        fs::write(dir.path().join("m/model.toml"), format!("{rollout}{text}")).unwrap();
    };
    manifest("");
    let server = Server::fake(dir.path(), |settings| {
        settings.watch.interval = Duration::from_millis(100);
        settings.watch.settle = Duration::from_millis(200);
    });
    let mut client = server.ready().await;
    add(dir.path(), 2, "fail_every = 5");
    until(&mut client, |now| now.state() == RolloutState::Running && now.version == "2").await;
    is_rolled_back(&mut client, "errors: ").await;
    // Neither with the next look nor with another model.toml, which the live version follows.
    manifest("[batching]\nmax_batch = 4\n");
    for _ in 0..1000 {
        if model(&mut client).await.max_batch == 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let now = model(&mut client).await;
    assert_eq!((now.live_version.as_str(), now.max_batch, now.loaded.len()), ("1", 4, 0));
    assert_eq!(get(&mut client).await.state(), RolloutState::RolledBack);
    // Other files under the same number are another chance.
    fs::remove_dir_all(dir.path().join("m/2")).unwrap();
    add(dir.path(), 2, "scale = 1.0");
    until(&mut client, |now| now.state() == RolloutState::Running).await;
    let (ended, callers) = until_it_ends(&client).await;
    assert_eq!(ended.state(), RolloutState::Promoted, "{ended:?}");
    assert!(callers.failures.is_empty(), "{:?}", callers.failures);
    assert_eq!(model(&mut client).await.live_version, "2");
}

#[tokio::test]
async fn a_version_that_keeps_state_gets_no_copies() {
    let (_dir, server, mut client) = two("scale = 1.0", "scale = 1.0\nstateful = true").await;
    let shadow = proto::RolloutPlan { strategy: RolloutStrategy::Shadow.into(), ..canary(100.0) };
    set(&mut client, plan(shadow)).await;
    for _ in 0..20 {
        assert_eq!(ask(&mut client, With::default()).await.unwrap().0, "1");
    }
    let now = get(&mut client).await;
    assert_eq!((now.compared, now.dropped), (0, 20), "{now:?}");
    let stats = super::oip::call(&server, "GET", "/v2/models/m/versions/2/stats", &[], b"").await.json();
    assert_eq!(stats["model_stats"][0]["execution_count"], 0, "{stats}");
}
