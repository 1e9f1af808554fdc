//! What is remembered of changes.

use torchlane::proto::{self, ModelChange};

use super::{
    fake::{reload, repository, version},
    server::{Client, Server, until},
};

async fn last(client: &mut Client, model: &str, limit: u32) -> Vec<ModelChange> {
    let request = proto::ListChangesRequest { model: model.into(), limit };
    client.list_changes(request).await.unwrap().into_inner().changes
}

#[tokio::test]
async fn every_change_is_written_down_and_survives_a_restart() {
    let dir = repository(&[("m", "scale = 1.0"), ("other", "")]);
    let log = dir.path().join("audit.jsonl");
    let start = || Server::fake(dir.path(), |settings| settings.audit.file = Some(log.clone()));
    let server = start();
    let mut client = server.ready().await;
    version(dir.path(), "m", 2, "scale = 2.0");
    version(dir.path(), "m", 3, "load_error = 'broken'");
    let mut named = tonic::Request::new(reload("m", 2));
    named.metadata_mut().insert("x-tenant", "ops".parse().unwrap());
    client.reload_model(named).await.unwrap();
    client.reload_model(reload("m", 3)).await.unwrap_err();
    client.rollback_model(proto::RollbackModelRequest { model: "m".into() }).await.unwrap();
    client.unload_model(proto::UnloadModelRequest { model: "m".into() }).await.unwrap();

    let all = last(&mut client, "m", 0).await;
    let told: Vec<_> = all
        .iter()
        .map(|c| {
            (c.change.as_str(), c.previous_version.as_str(), c.version.as_str(), c.live_version.as_str())
        })
        .collect();
    let expected = [
        ("ready", "", "1", "1"),
        ("reloaded", "1", "2", "2"),
        ("failed", "2", "3", "2"),
        ("rolled_back", "2", "1", "1"),
        ("unloaded", "1", "1", ""),
    ];
    assert_eq!(told, expected);
    assert_eq!((all[0].asker.as_str(), all[1].asker.as_str()), ("start", "caller ops"));
    assert!(all[2].asker.starts_with("caller 127.0.0.1:"), "{}", all[2].asker);
    assert_eq!((all[2].reason.as_str(), all[2].sha256.as_str()), ("LOAD_FAILED", ""));
    assert!(all[2].error.contains("broken"), "{}", all[2].error);
    let (first, second) = (&all[0], &all[1]);
    assert!(first.sha256.len() == 64 && second.sha256.len() == 64 && first.sha256 != second.sha256);
    assert_eq!((second.bytes, second.generation > first.generation), (11, true));
    assert!(second.phase_seconds["total"] >= second.phase_seconds["load"], "{:?}", second.phase_seconds);
    assert_eq!(last(&mut client, "m", 1).await, all[4..]);
    assert_eq!(last(&mut client, "", 0).await.len(), 6);
    tokio::task::spawn_blocking(|| server.join()).await.unwrap();

    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 6);
    assert!(lines.iter().any(|line| line["reason"] == "LOAD_FAILED" && line["version"] == 3));
    let server = start();
    let mut client = server.ready().await;
    let again = last(&mut client, "m", 0).await;
    assert_eq!(again[..5], all, "from before the start");
    assert_eq!(again.last().unwrap().change, "ready", "and of this one");
    // Moved away, as log rotation does: what follows is in a new one. Of the start, what came to `m` and `other` comes first.
    let lines = || std::fs::read_to_string(&log).unwrap().lines().count();
    let written = 6 + (again.len() - 5) + 1;
    until(async || lines() == written).await;
    std::fs::rename(&log, dir.path().join("audit.1")).unwrap();
    client.reload_model(reload("m", 2)).await.unwrap();
    tokio::task::spawn_blocking(|| server.join()).await.unwrap();
    assert_eq!(std::fs::read_to_string(&log).unwrap().lines().count(), 1);
}
