//! Models from a web server that dies when it is told to, and a disk that takes nothing more.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use sha2::{Digest as _, Sha256};
use torchlane::{app, proto};

use super::{
    fake::reload,
    server::{Client, Server, f32s, floats, reason, request},
};

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// A fake archive of so many bytes.
fn archive(script: &str, bytes: usize) -> Vec<u8> {
    let mut text = format!("{script}\n# ");
    text.extend(std::iter::repeat_n('x', bytes - text.len()));
    text.into_bytes()
}

#[derive(Default)]
struct Site {
    files: BTreeMap<String, Vec<u8>>,
    /// Bytes of files that may still be sent; then every connection is broken.
    left: Option<usize>,
    /// Without ranges, as the simplest servers are.
    whole_only: bool,
    /// Path, first byte asked for, bytes sent.
    sent: Vec<(String, usize, usize)>,
}

/// A web server with an index, and a listing of what it was asked.
struct Web {
    site: Arc<Mutex<Site>>,
    addr: SocketAddr,
}

impl Web {
    fn start() -> Self {
        let site = Arc::new(Mutex::new(Site::default()));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let shared = site.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let site = shared.clone();
                std::thread::spawn(move || while answer(stream.as_ref().unwrap(), &site).is_some() {});
            }
        });
        Self { site, addr }
    }

    fn put(&self, path: &str, bytes: Vec<u8>) {
        self.site.lock().unwrap().files.insert(path.to_owned(), bytes);
    }

    fn dies_after(&self, bytes: usize) {
        self.site.lock().unwrap().left = Some(bytes);
    }

    fn comes_back(&self) {
        self.site.lock().unwrap().left = None;
    }

    /// What was sent of `path` since the last question: first byte and count.
    fn sent(&self, path: &str) -> Vec<(usize, usize)> {
        let mut site = self.site.lock().unwrap();
        let (these, others) = std::mem::take(&mut site.sent).into_iter().partition(|(sent, ..)| sent == path);
        site.sent = others;
        these.into_iter().map(|(_, from, count): (_, usize, usize)| (from, count)).collect()
    }

    fn url(&self) -> String {
        format!("http://{}/models", self.addr)
    }

    fn serve(&self, cache: &Path) -> Server {
        self.serve_with(cache, |_| {})
    }

    fn serve_with(&self, cache: &Path, change: impl FnOnce(&mut torchlane::config::Settings)) -> Server {
        Server::fake(Path::new(&self.url()), |settings| {
            settings.cache.directory = cache.to_owned();
            settings.store.patience = Duration::from_secs(3);
            settings.store.list_every = Duration::ZERO;
            change(settings);
        })
    }
}

/// Reads a request and answers it; `None` ends the connection.
fn answer(stream: &TcpStream, site: &Mutex<Site>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line == "\r\n" {
            break;
        }
        lines.push(line.trim_end().to_owned());
    }
    let path = lines[0].split(' ').nth(1)?.strip_prefix("/models/").unwrap_or_default().to_owned();
    let header = |name: &str| {
        lines.iter().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let mut site = site.lock().unwrap();
    if site.left == Some(0) {
        let _ = stream.shutdown(Shutdown::Both);
        return None;
    }
    let body = if path == "index.json" {
        let files: Vec<_> = site
            .files
            .iter()
            .map(|(path, bytes)| serde_json::json!({"path": path, "size": bytes.len(), "sha256": hex(bytes)}))
            .collect();
        Some(serde_json::json!({ "files": files }).to_string().into_bytes())
    } else {
        site.files.get(&path).cloned()
    };
    let mut stream = stream;
    let Some(body) = body else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").ok();
    };
    let tag = format!("\"{}\"", &hex(&body)[..16]);
    if header("if-match").is_some_and(|wanted| wanted != tag) {
        return stream.write_all(b"HTTP/1.1 412 Precondition Failed\r\ncontent-length: 0\r\n\r\n").ok();
    }
    let asked = header("range").filter(|_| !site.whole_only);
    let from: usize =
        asked.as_ref().map_or(0, |range| range["bytes=".len()..].split('-').next().unwrap().parse().unwrap());
    let part = &body[from..];
    let status = match asked {
        Some(_) => {
            format!("206 Partial Content\r\ncontent-range: bytes {from}-{}/{}", body.len() - 1, body.len())
        }
        None => "200 OK".to_owned(),
    };
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\netag: {tag}\r\n\r\n", part.len());
    stream.write_all(head.as_bytes()).ok()?;
    if path == "index.json" {
        return stream.write_all(part).ok();
    }
    let count = site.left.map_or(part.len(), |left| left.min(part.len()));
    site.left = site.left.map(|left| left - count);
    site.sent.push((path, from, count));
    let cut = count < part.len();
    stream.write_all(&part[..count]).ok()?;
    if cut {
        // What was written arrives; then the connection ends where nobody expects it.
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read(&mut [0]);
        return None;
    }
    Some(())
}

async fn scale(client: &mut Client) -> f32 {
    let answer = client.infer(request("m", vec![f32s("x", &[1], &[1.0])])).await.unwrap();
    floats(&answer.into_inner().outputs[0])[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_goes_on_where_it_ended_even_in_another_process() {
    const SIZE: usize = 300_000;
    let (web, cache) = (Web::start(), tempfile::tempdir().unwrap());
    web.put("m/1/model.pt", archive("scale = 3.0", SIZE));
    web.dies_after(100_000);
    let server = web.serve(cache.path());
    let mut client = proto::model_server_client::ModelServerClient::new(server.channel().await);
    let mut failed = None;
    for _ in 0..2000 {
        let asked = proto::GetModelRequest { model: "m".into() };
        let model = client.get_model(asked).await.ok();
        failed = model.map(|model| model.into_inner().last_error).filter(|error| !error.is_empty());
        if failed.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let failed = failed.expect("the model did not fail");
    assert!(failed.contains("/models/m/1/model.pt"), "{failed}");
    assert_eq!(web.sent("m/1/model.pt"), [(0, 100_000)]);
    server.join();
    web.comes_back();
    let server = web.serve(cache.path());
    assert_eq!(scale(&mut server.ready().await).await, 3.0);
    assert_eq!(web.sent("m/1/model.pt"), [(100_000, SIZE - 100_000)], "not a byte twice");
    server.join();
    // Once more: nothing at all.
    let server = web.serve(cache.path());
    assert_eq!(scale(&mut server.ready().await).await, 3.0);
    assert_eq!(web.sent("m/1/model.pt"), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_is_read_from_the_beginning() {
    let (web, cache) = (Web::start(), tempfile::tempdir().unwrap());
    web.put("m/1/model.pt", archive("scale = 3.0", 200_000));
    web.site.lock().unwrap().whole_only = true;
    web.dies_after(50_000);
    let (site, server) = (web.site.clone(), web.serve(cache.path()));
    tokio::task::spawn_blocking(move || {
        while site.lock().unwrap().left != Some(0) {
            std::thread::sleep(Duration::from_millis(2));
        }
        site.lock().unwrap().left = None;
    })
    .await
    .unwrap();
    assert_eq!(scale(&mut server.ready().await).await, 3.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_changed_in_between_begins_anew() {
    let (web, cache) = (Web::start(), tempfile::tempdir().unwrap());
    web.put("m/1/model.pt", archive("scale = 1.0", 1000));
    let server = web.serve(cache.path());
    let mut client = server.ready().await;
    web.put("m/2/model.pt", archive("scale = 2.0", 200_000));
    web.dies_after(50_000);
    let (why, status) = failure(&mut client, 2).await;
    assert_eq!((why.as_str(), status.code()), ("STORE_UNAVAILABLE", tonic::Code::Unavailable));
    web.comes_back();
    web.put("m/2/model.pt", archive("scale = 4.0", 200_000));
    web.sent("m/2/model.pt");
    client.reload_model(reload("m", 2)).await.unwrap();
    assert_eq!(web.sent("m/2/model.pt"), [(0, 200_000)]);
    assert_eq!(scale(&mut client).await, 4.0);
}

async fn failure(client: &mut Client, version: u64) -> (String, tonic::Status) {
    let status = client.reload_model(reload("m", version)).await.expect_err("was not refused");
    assert!(!status.message().contains('\n') && status.message().len() <= 1024, "{}", status.message());
    (reason(&status), status)
}

/// Where the cache keeps what has come of a file so far.
fn part(cache: &Path, url: &str, path: &str) -> std::path::PathBuf {
    let store = &hex(url.as_bytes())[..16];
    cache.join("parts").join(format!("{}.part", hex(format!("{store}\n{path}").as_bytes())))
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_the_old_version_serves_on_and_everyone_is_told_why() {
    let (web, cache) = (Web::start(), tempfile::tempdir().unwrap());
    web.put("m/1/model.pt", archive("scale = 1.0", 1000));
    let server = web.serve(cache.path());
    let mut client = server.ready().await;
    web.put("m/2/model.pt", archive("scale = 2.0", 1000));
    // Every write to this device fails with ENOSPC.
    std::os::unix::fs::symlink("/dev/full", part(cache.path(), &web.url(), "m/2/model.pt")).unwrap();
    let mut events = client.watch_models(proto::WatchModelsRequest::default()).await.unwrap().into_inner();
    let (why, status) = failure(&mut client, 2).await;
    assert_eq!((why.as_str(), status.code()), ("CACHE_FULL", tonic::Code::ResourceExhausted));
    assert!(status.message().contains("No space left on device"), "{}", status.message());
    assert!(status.message().contains("cache.directory"), "{}", status.message());
    let told = loop {
        let event = events.message().await.unwrap().unwrap();
        if !event.error.is_empty() {
            break event.error;
        }
    };
    assert_eq!(told, status.message(), "the event says the same");
    let (_, metrics) = server.get("/metrics").await;
    assert!(metrics.contains(r#"torchlane_store_fetches_total{store="http",result="full"} 1"#), "{metrics}");
    assert!(metrics.contains(r#"torchlane_reloads_total{model="m",result="failed"} 1"#), "{metrics}");
    assert_eq!(scale(&mut client).await, 1.0, "the old version serves on");
    client.reload_model(reload("m", 2)).await.unwrap();
    assert_eq!(scale(&mut client).await, 2.0, "once there is room");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_keeps_what_serves_and_what_a_rollback_needs() {
    let (web, cache) = (Web::start(), tempfile::tempdir().unwrap());
    web.put("m/1/model.pt", archive("scale = 1.0", 1000));
    let server =
        web.serve_with(cache.path(), |settings| settings.cache.max_bytes = bytesize::ByteSize::b(2500));
    let mut client = server.ready().await;
    for version in 2..=4_u8 {
        web.put(&format!("m/{version}/model.pt"), archive(&format!("scale = {version}.0"), 1000));
    }
    client.reload_model(reload("m", 2)).await.unwrap();
    let (why, status) = failure(&mut client, 3).await;
    assert_eq!((why.as_str(), status.code()), ("CACHE_FULL", tonic::Code::ResourceExhausted));
    assert!(status.message().contains("cache.max_bytes"), "{}", status.message());
    // A rollback needs no store.
    web.dies_after(0);
    let back = proto::RollbackModelRequest { model: "m".into() };
    client.rollback_model(back).await.unwrap();
    assert_eq!(scale(&mut client).await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_store_a_server_starts_with_what_it_had() {
    let (web, cache) = (Web::start(), tempfile::tempdir().unwrap());
    web.put("m/1/model.pt", archive("scale = 1.0", 1000));
    web.put("n/1/model.pt", archive("scale = 9.0", 1000));
    let server = web.serve(cache.path());
    server.ready().await;
    server.join();
    web.dies_after(0);
    let server = web.serve(cache.path());
    assert_eq!(scale(&mut server.ready().await).await, 1.0);
}

#[test]
fn check_fetches_and_loads_what_a_server_would() {
    let (web, cache) = (Web::start(), tempfile::tempdir().unwrap());
    web.put("good.pt", archive("scale = 1.0", 100));
    web.put("bad/1/model.pt", archive("load_error = 'broken'", 100));
    let mut settings = torchlane::config::Settings {
        repositories: vec![web.url().into()],
        backend: torchlane::config::BackendKind::Fake,
        ..Default::default()
    };
    settings.cache.directory = cache.path().to_owned();
    let checks = app::check_models(&settings).unwrap();
    let problems: Vec<_> =
        checks.iter().map(|check| (check.name.as_str(), check.problem.is_some())).collect();
    assert_eq!(problems, [("bad", true), ("good", false)]);
    assert!(fs::read_dir(cache.path().join("parts")).unwrap().next().is_none(), "nothing is left half");
}
