//! Processes under measurement: started here, asked for their CPU time and memory, and ended here.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::Result;

pub struct Process {
    child: Child,
}

impl Process {
    /// CPU time of all its threads. Threads that have ended are not in it; the subjects keep theirs.
    pub fn cpu(&self) -> Result<Duration> {
        let mut sum = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(task?.path().join("schedstat"))?;
            sum += text.split_whitespace().next().unwrap_or("0").parse::<u64>()?;
        }
        Ok(Duration::from_nanos(sum))
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> Result<u64> {
        resident(self.child.id())
    }
}

/// Resident memory of any process, in bytes.
pub fn resident(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// From here on this thread and those that it starts share one CPU.
pub fn pin_to_one_cpu() -> Result<()> {
    let may = rustix::thread::sched_getaffinity(None)?;
    let last = (0..rustix::thread::CpuSet::MAX_CPU).rev().find(|cpu| may.is_set(*cpu)).ok_or("no CPU")?;
    let mut one = rustix::thread::CpuSet::new();
    one.set(last);
    Ok(rustix::thread::sched_setaffinity(None, &one)?)
}

impl Server {
    /// The metrics whose line begins like that, summed.
    pub fn metric(&self, beginning: &str) -> Result<f64> {
        use std::io::Read as _;
        let mut stream = std::net::TcpStream::connect(self.http.ok_or("it has no metrics")?)?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let values = text.lines().filter(|line| line.starts_with(beginning));
        Ok(values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

/// A server under test.
pub struct Server {
    pub process: Process,
    pub grpc: SocketAddr,
    /// Where metrics are; the echo has none.
    pub http: Option<SocketAddr>,
    /// From the start of the process to its first SERVING.
    pub ready: Duration,
}

/// The shipped binary, on ports of the system's choosing.
pub async fn torchlane(repository: &Path, settings: &[String]) -> Result<Server> {
    let began = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_torchlane"));
    command.args([
        "serve",
        "--grpc-addr",
        "127.0.0.1:0",
        "--http-addr",
        "127.0.0.1:0",
        "--log-format",
        "json",
    ]);
    command.arg("--repository").arg(repository);
    for setting in settings {
        command.args(["--set", setting]);
    }
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let log = BufReader::new(child.stderr.take().ok_or("no log")?);
    let process = Process { child };
    let mut lines = log.lines();
    let mut said = Vec::new();
    let (grpc, http) = loop {
        let Some(line) = lines.next() else {
            return Err(format!("the server ended: {}", said.join("\n")).into());
        };
        let line = line?;
        let value: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
        let address = |key| value.get(key).and_then(serde_json::Value::as_str);
        if let (Some(grpc), Some(http)) = (address("grpc"), address("http")) {
            break (grpc.parse()?, http.parse()?);
        }
        said.push(line);
    };
    // Nobody may block on a full pipe.
    std::thread::spawn(move || lines.for_each(drop));

    let channel = tonic::transport::Channel::from_shared(format!("http://{grpc}"))?.connect().await?;
    let mut health = HealthClient::new(channel);
    while began.elapsed() < Duration::from_secs(60) {
        let answer = health.check(HealthCheckRequest::default()).await?;
        if answer.into_inner().status == 1 {
            return Ok(Server { process, grpc, http: Some(http), ready: began.elapsed() });
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Err("the server is not ready after a minute".into())
}

/// This binary in another role.
fn role(args: &[&str]) -> Result<(Process, ChildStdin, BufReader<ChildStdout>)> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdin = child.stdin.take().ok_or("no stdin")?;
    let stdout = BufReader::new(child.stdout.take().ok_or("no stdout")?);
    Ok((Process { child }, stdin, stdout))
}

pub fn echo() -> Result<Server> {
    let (process, _, mut stdout) = role(&["echo"])?;
    let mut line = String::new();
    stdout.read_line(&mut line)?;
    Ok(Server { process, grpc: line.trim().parse()?, http: None, ready: Duration::ZERO })
}

/// The plain loop, which does one line of orders at a time.
pub struct Plain {
    pub process: Process,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Plain {
    pub fn start(repository: &Path, threads: usize) -> Result<Self> {
        let repository = repository.to_str().ok_or("the repository's path is not text")?;
        let (process, orders, answers) = role(&["plain", repository, "--threads", &threads.to_string()])?;
        Ok(Self { process, orders, answers })
    }

    /// Items a second.
    pub fn run(&mut self, model: &str, batch: i64, seconds: f64) -> Result<f64> {
        writeln!(self.orders, "{model} {batch} {seconds}")?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line.trim().parse()?)
    }
}
