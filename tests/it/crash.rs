//! What a server says when native code ends it. It runs in a process of its own, since it dies.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::ExitStatusExt as _,
    process::{Child, Command, Stdio},
};

use torchlane::proto::model_server_client::ModelServerClient;

use super::server::{f32s, request};

const SIGFPE: i32 = 8;

/// Ends with the test, whatever becomes of it.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn crash(format: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("left/3")).unwrap();
    fs::copy("tests/data/models/remainder.pt", dir.path().join("left/3/model.pt")).unwrap();
    // Shapes for the warm-up: without them it would be the warm-up that ends the process.
    let shapes = "[[inputs]]\nname = \"x\"\ndtype = \"FP32\"\nshape = [2]\n[[inputs]]\nname = \"y\"\ndtype = \"FP32\"\nshape = [-1]\n";
    fs::write(dir.path().join("left/model.toml"), shapes).unwrap();
    let server = Command::new(env!("CARGO_BIN_EXE_torchlane"))
        .args(["serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--log-format", format])
        .arg("--repository")
        .arg(dir.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut server = Process(server);
    let mut log = BufReader::new(server.0.stderr.take().unwrap());
    let (mut address, mut line) = (None, String::new());
    while !line.contains("ready") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0, "the server ended before it was ready");
        if let Some(found) = line.split(['=', '"', ' ', '\u{1b}']).find(|word| word.starts_with("127.0.0.1:"))
        {
            address.get_or_insert(found.trim_end_matches(',').to_owned());
        }
    }
    let mut client = ModelServerClient::connect(format!("http://{}", address.unwrap())).await.unwrap();
    let inputs = vec![f32s("x", &[2], &[1.0, 2.0]), f32s("y", &[0], &[])];
    let _gone = client.infer(request("left", inputs)).await.unwrap_err();
    let status = server.0.wait().unwrap();
    assert_eq!(status.signal(), Some(SIGFPE), "the default action goes on: {status}");
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    rest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_crash_names_the_model_its_version_and_the_signal() {
    let log = crash("pretty").await;
    let line = log.lines().find(|line| line.contains("torchlane::crash")).unwrap_or_else(|| panic!("{log}"));
    assert_eq!(
        line,
        "ERROR torchlane::crash: SIGFPE (integer division by zero or overflow) ends the server during a pass of model \
         'left' version 3"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_crash_is_json_where_the_log_is() {
    let log = crash("json").await;
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let crash = lines
        .into_iter()
        .find(|line| line["target"] == "torchlane::crash")
        .unwrap_or_else(|| panic!("{log}"));
    assert!(
        crash["message"].as_str().unwrap().ends_with("during a pass of model 'left' version 3"),
        "{crash}"
    );
}
