//! What native code does to a whole process: what a server says when it ends it, and where the lines go that models write.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, ChildStderr, Command, Stdio},
};

use tonic::transport::Channel;
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

struct Server {
    process: Process,
    log: BufReader<ChildStderr>,
    client: ModelServerClient<Channel>,
}

impl Server {
    /// Starts one over `dir`, and reads its log until it is ready.
    async fn start(dir: &Path, options: &[&str]) -> Self {
        let process = Command::new(env!("CARGO_BIN_EXE_torchlane"))
            .args(["serve", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--repository"])
            .arg(dir)
            .args(options)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut process = Process(process);
        let mut log = BufReader::new(process.0.stderr.take().unwrap());
        let (mut address, mut line) = (None, String::new());
        while !line.contains("ready") {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the server ended before it was ready");
            let words = &mut line.split(['=', '"', ' ', '\u{1b}']);
            if let Some(found) = words.find(|word| word.starts_with("127.0.0.1:")) {
                address.get_or_insert(found.trim_end_matches(',').to_owned());
            }
        }
        let client = ModelServerClient::connect(format!("http://{}", address.unwrap())).await.unwrap();
        Self { process, log, client }
    }
}

async fn crash(format: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("left/3")).unwrap();
    fs::copy("tests/data/models/remainder.pt", dir.path().join("left/3/model.pt")).unwrap();
    // Shapes for the warm-up: without them it would be the warm-up that ends the process.
    let shapes = "[[inputs]]\nname = \"x\"\ndtype = \"FP32\"\nshape = [2]\n[[inputs]]\nname = \"y\"\ndtype = \"FP32\"\nshape = [-1]\n";
    fs::write(dir.path().join("left/model.toml"), shapes).unwrap();
    let mut server = Server::start(dir.path(), &["--log-format", format]).await;
    let inputs = vec![f32s("x", &[2], &[1.0, 2.0]), f32s("y", &[0], &[])];
    let _gone = server.client.infer(request("left", inputs)).await.unwrap_err();
    let status = server.process.0.wait().unwrap();
    assert_eq!(status.signal(), Some(SIGFPE), "the default action goes on: {status}");
    let mut rest = String::new();
    server.log.read_to_string(&mut rest).unwrap();
    rest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_a_model_prints_and_warns_of_are_lines_of_the_log_in_its_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy("tests/data/boundary/speaks.pt", dir.path().join("speaks.pt")).unwrap();
    let options = ["--log-format", "json"];
    let mut server = Server::start(dir.path(), &options).await;
    server.client.infer(request("speaks", vec![f32s("x", &[1], &[1.0])])).await.unwrap();
    let mut said = Vec::new();
    while said.len() < 4 {
        let mut line = String::new();
        assert!(server.log.read_line(&mut line).unwrap() > 0, "{said:?}");
        let line: serde_json::Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("raw: {line}"));
        if line["target"] == "torchlane::model" && line["during"] == "a pass of model 'speaks' version 1" {
            said.push((
                line["level"].as_str().unwrap().to_owned(),
                line["message"].as_str().unwrap().to_owned(),
            ));
        }
    }
    let line = |level: &str, text: &str| (level.to_owned(), format!("the model {text}"));
    let expected = [
        line("INFO", "prints: first 1 "),
        line("INFO", "prints: second \\u{1b}[31m"),
        line("WARN", "warns: beware"),
        line("WARN", "warns: 2030-01-01T00:00:00Z ERROR torchlane: all is lost"),
    ];
    assert_eq!(said, expected);
    server.process.0.kill().unwrap();
    let mut printed = String::new();
    server.process.0.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert!(!printed.contains("first"), "{printed}");
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
