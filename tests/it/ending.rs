//! The end of a server whose callers still wait for answers, or take them.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

use super::{
    fake::{repository, version},
    server::{Server, until},
};

/// A request of 16 MiB, by HTTP; its answer is as long.
pub async fn ask(server: &Server, model: &str) -> TcpStream {
    let (rows, bytes) = (4 << 20, 16 << 20);
    let inputs = json!({"name": "x", "datatype": "FP32", "shape": [rows],
        "parameters": {"binary_data_size": bytes}});
    let json = json!({"inputs": [inputs], "parameters": {"binary_data_output": true}}).to_string();
    let head = format!(
        "POST /v2/models/{model}/infer HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: {}\r\nContent-Length: {}\r\n\r\n{json}",
        json.len(),
        json.len() + bytes
    );
    let mut stream = TcpStream::connect(server.http).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&vec![0; bytes]).await.unwrap();
    stream
}

#[tokio::test]
async fn an_answer_that_is_being_taken_by_http_is_sent_to_its_end() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| settings.server.grace = Duration::from_secs(60));
    server.ready().await;
    let mut answer = ask(&server, "m").await;
    let mut taken = answer.read_u8().await.map(|_| 1).unwrap();
    let ended = tokio::task::spawn_blocking(move || drop(server));
    let mut some = vec![0; 1 << 20];
    loop {
        tokio::time::sleep(Duration::from_millis(50)).await;
        match answer.read(&mut some).await.unwrap() {
            0 => break,
            read => taken += read,
        }
    }
    assert!(taken > 16 << 20, "{taken}");
    ended.await.unwrap();
}

#[tokio::test]
async fn who_does_not_take_an_answer_by_http_does_not_keep_the_server() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |settings| settings.server.grace = Duration::from_secs(600));
    server.ready().await;
    let mut answer = ask(&server, "m").await;
    answer.read_u8().await.unwrap();
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    drop(answer);
}

#[tokio::test]
async fn a_pass_that_takes_longer_than_the_grace_time_is_not_waited_for() {
    let dir = repository(&[]);
    let gate = dir.path().join("gate");
    std::fs::write(&gate, "").unwrap();
    version(dir.path(), "slow", 1, &format!("hang_while = '{}'", gate.display()));
    let server = Server::fake(dir.path(), |settings| settings.server.grace = Duration::from_millis(300));
    let client = server.ready().await;
    let mut answer = ask(&server, "slow").await;
    until(async || {
        let (_, metrics) = server.get("/metrics").await;
        metrics.lines().any(|line| line.starts_with("torchlane_in_flight{") && line.ends_with(" 1"))
    })
    .await;
    let began = Instant::now();
    drop(client);
    tokio::task::spawn_blocking(move || drop(server)).await.unwrap();
    assert!(gate.exists() && began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let mut rest = Vec::new();
    let _reset = answer.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "cut off");
    std::fs::remove_file(gate).unwrap();
}
