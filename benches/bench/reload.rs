//! `make bench-reload`: versions 1 and 2 of the digits in turn, while callers send without pause. Every answer must be
//! the golden output of the version that it names; memory must stay where it was.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use torchlane::proto::{self, model_server_client::ModelServerClient};

use crate::{
    Result, process,
    stats::{self, percentile},
};

/// Pictures a request, at most.
const ROWS: usize = 4;
/// Kernels may sum in another order in another batch.
const TOLERANCE: f32 = 1e-4;

struct Data {
    /// 64 numbers each.
    pictures: Vec<f32>,
    /// 10 numbers a picture, by version.
    golden: [Vec<f32>; 2],
}

#[derive(Default)]
struct Seen {
    answered: [usize; 2],
    failed: Vec<String>,
    wrong: Vec<String>,
    /// When it was sent, after the start, and how long it took.
    latencies: Vec<(Duration, Duration)>,
}

#[tokio::main(flavor = "current_thread")]
pub async fn run(reloads: usize, callers: usize, path: &Path) -> Result<()> {
    let data = Arc::new(Data::read()?);
    let server = process::torchlane("models".as_ref(), &[]).await?;
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let began = Instant::now();
    let mut tasks = Vec::new();
    for caller in 0..callers {
        let client = ModelServerClient::connect(format!("http://{}", server.grpc)).await?;
        tasks.push(tokio::spawn(call(client, caller, data.clone(), stop.clone(), count.clone(), began)));
    }

    let mut admin = ModelServerClient::connect(format!("http://{}", server.grpc)).await?;
    // A second in which nothing changes, to compare with.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (mut spans, mut resident) = (Vec::new(), vec![server.process.resident()?]);
    for round in 0..reloads {
        let version = (round % 2 + 1).to_string();
        let asked = began.elapsed();
        let request = proto::ReloadModelRequest {
            model: "digits".into(),
            version: version.clone(),
            ..Default::default()
        };
        let report = admin.reload_model(request).await?.into_inner();
        assert_eq!(report.live_version, version, "another version went live");
        spans.push((asked, began.elapsed()));
        resident.push(server.process.resident()?);
        // Each version answers something before the next is asked for.
        let before = count.load(Ordering::Relaxed);
        while count.load(Ordering::Relaxed) < before + 4 * callers {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = Seen::default();
    for task in tasks {
        let seen = task.await?;
        all.answered = [all.answered[0] + seen.answered[0], all.answered[1] + seen.answered[1]];
        all.failed.extend(seen.failed);
        all.wrong.extend(seen.wrong);
        all.latencies.extend(seen.latencies);
    }

    let within = |sent: &Duration| spans.iter().any(|(from, to)| sent >= from && sent < to);
    let sorted = |wanted: &dyn Fn(&Duration) -> bool| {
        let mut some: Vec<_> =
            all.latencies.iter().filter(|(sent, _)| wanted(sent)).map(|(_, took)| *took).collect();
        some.sort_unstable();
        some
    };
    let quiet = sorted(&|sent| *sent < spans.first().map_or(Duration::MAX, |span| span.0));
    let busy = sorted(&within);
    let mut took: Vec<_> = spans.iter().map(|(from, to)| *to - *from).collect();
    took.sort_unstable();
    let kib = |bytes: u64| bytes / 1024;
    let ten = resident.get(10.min(resident.len() - 1)).copied().unwrap_or_default();
    let last = resident.last().copied().unwrap_or_default();

    println!("{reloads} reloads, {callers} callers without pause, {:.1} s", began.elapsed().as_secs_f64());
    println!(
        "answered  {} ({} by version 1, {} by version 2), every one compared with its version's golden output",
        all.answered[0] + all.answered[1],
        all.answered[0],
        all.answered[1]
    );
    println!("failed    {}", all.failed.len());
    println!("wrong     {}", all.wrong.len());
    println!(
        "a reload  p50 {:.1} ms, longest {:.1} ms",
        percentile(&took, 0.5) / 1e3,
        percentile(&took, 1.0) / 1e3
    );
    println!(
        "a request p50 {:.0} µs, p99 {:.0} µs before; p50 {:.0} µs, p99 {:.0} µs during reloads",
        percentile(&quiet, 0.5),
        percentile(&quiet, 0.99),
        percentile(&busy, 0.5),
        percentile(&busy, 0.99)
    );
    println!("resident  {} KiB after 10 reloads, {} KiB after {reloads}", kib(ten), kib(last));
    stats::write_json(
        path,
        &json!({
            "machine": stats::machine(),
            "reloads": reloads,
            "callers": callers,
            "answered": all.answered,
            "failed": all.failed.len(),
            "wrong": all.wrong.len(),
            "reload_ms": {"p50": percentile(&took, 0.5) / 1e3, "max": percentile(&took, 1.0) / 1e3},
            "request_us": {
                "before": {"p50": percentile(&quiet, 0.5), "p99": percentile(&quiet, 0.99)},
                "during": {"p50": percentile(&busy, 0.5), "p99": percentile(&busy, 0.99)},
            },
            "resident_bytes": resident,
        }),
    )?;
    for line in all.failed.iter().chain(&all.wrong).take(5) {
        eprintln!("{line}");
    }
    // Other versions' buffers come and go; a leak of a model a reload would be far more.
    let grown = last.saturating_sub(ten);
    if !all.failed.is_empty() || !all.wrong.is_empty() || all.answered.contains(&0) || grown > 8 << 20 {
        return Err("reloads were seen by the callers, or memory grew".into());
    }
    Ok(())
}

async fn call(
    mut client: ModelServerClient<tonic::transport::Channel>,
    caller: usize,
    data: Arc<Data>,
    stop: Arc<AtomicBool>,
    count: Arc<AtomicUsize>,
    began: Instant,
) -> Seen {
    let mut seen = Seen::default();
    let mut turn = caller;
    while !stop.load(Ordering::Relaxed) {
        turn += 1;
        let rows = turn % ROWS + 1;
        let place = (turn * 7 + caller * 31) % (data.pictures.len() / 64 - ROWS);
        let request = data.request(place, rows);
        let sent = Instant::now();
        match client.infer(request).await {
            Ok(answer) => match data.version_of(place, rows, answer.get_ref()) {
                Ok(version) => seen.answered[version] += 1,
                Err(why) => seen.wrong.push(why),
            },
            Err(status) => seen.failed.push(status.to_string()),
        }
        seen.latencies.push((sent - began, sent.elapsed()));
        count.fetch_add(1, Ordering::Relaxed);
    }
    seen
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect()
}

impl Data {
    fn read() -> Result<Self> {
        let heldout = fs::read("tests/data/digits/heldout.bin")?;
        let golden =
            |version| fs::read(format!("tests/data/digits/golden-{version}.bin")).map(|b| floats(&b));
        // A count, then records: 64 grey values of 0 to 16 and the label.
        let pictures = heldout
            .get(4..)
            .unwrap_or_default()
            .chunks_exact(65)
            .flat_map(|r| r[..64].iter().map(|p| f32::from(*p) / 16.0))
            .collect();
        Ok(Self { pictures, golden: [golden(1)?, golden(2)?] })
    }

    fn request(&self, place: usize, rows: usize) -> proto::InferRequest {
        let raw: Vec<u8> =
            self.pictures[place * 64..(place + rows) * 64].iter().flat_map(|p| p.to_le_bytes()).collect();
        let input = proto::Tensor {
            name: "image".into(),
            datatype: "FP32".into(),
            shape: vec![i64::try_from(rows).expect("a few"), 1, 8, 8],
            raw: raw.into(),
            ..Default::default()
        };
        proto::InferRequest { model: "digits".into(), inputs: vec![input], ..Default::default() }
    }

    /// The index of the version whose golden output this is, which must be the one that the answer names.
    fn version_of(
        &self,
        place: usize,
        rows: usize,
        answer: &proto::InferResponse,
    ) -> std::result::Result<usize, String> {
        let version = match answer.version.as_str() {
            "1" => 0,
            "2" => 1,
            other => return Err(format!("an answer of version {other:?}")),
        };
        let got = answer.outputs.first().map(|output| floats(&output.raw)).unwrap_or_default();
        let expected = &self.golden[version][place * 10..(place + rows) * 10];
        let same =
            got.len() == expected.len() && got.iter().zip(expected).all(|(a, b)| (a - b).abs() < TOLERANCE);
        same.then_some(version)
            .ok_or_else(|| format!("not the answer of version {}: {got:?}", answer.version))
    }
}
