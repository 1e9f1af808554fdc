//! `make bench-reload`, what reloads cost those who are served meanwhile: one model under a steady load, and that model or
//! another reloaded back to back. Windows with and without reloads alternate within one run, so that what else happens on the
//! machine is in both; and those of a group are sent the same requests at the same times, so that bursts are in both.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;
use torchlane::{
    load::{Latency, LoadReport, Report},
    proto::{self, model_server_client::ModelServerClient},
};

use crate::{
    Result,
    load::{self, Caller},
    models::MODELS,
    process::{self, Server},
    stats::{self, Rounds, percentile},
};

pub struct Plan {
    /// Has `cnn45` and `resnet18`.
    pub repository: PathBuf,
    /// In each scenario.
    pub reloads: usize,
    /// Length of a window, in seconds.
    pub seconds: f64,
    /// Windows with reloads for each without.
    pub busy: usize,
    /// Most of a scenario.
    pub minutes: Option<f64>,
    /// Part of capacity that is sent.
    pub load: f64,
    pub only: Vec<String>,
    pub json: PathBuf,
    pub svg: PathBuf,
}

/// What is in the pipes when a window begins counts for neither.
const BETWEEN: Duration = Duration::from_secs(1);
/// p99 under reloads, of that without.
const LATENCY_AIM: f64 = 1.1;
/// Resident after the last reload, of that after the first ten; both at rest, without requests and reloads under way: what those
/// hold for a moment comes and goes, by far more than this.
const MEMORY_AIM: f64 = 1.02;
/// Nothing is sent for that long before a look at what is resident at rest.
const REST: Duration = Duration::from_secs(5);

/// One item a pass: a warm-up of every batch size would make the reload longer, not harder.
const MANIFEST: &str = "[[inputs]]\nname = 'x'\ndtype = 'FP32'\nshape = [1, 3, 224, 224]\n\
                        [[outputs]]\nname = 'y'\ndtype = 'FP32'\nshape = [1, 1000]\n";

/// Two versions of a model of 45 MB that is reloaded (`cnn`), and one that is not (`still`).
fn repository(from: &Path) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    for (model, source, versions) in [("cnn", "cnn45", 2), ("still", "resnet18", 1)] {
        let folder = dir.path().join(model);
        fs::create_dir(&folder)?;
        fs::write(folder.join("model.toml"), MANIFEST)?;
        for version in 1..=versions {
            let version = version.to_string();
            let source = fs::canonicalize(from.join(source).join(&version))?;
            symlink(source, folder.join(version))?;
        }
    }
    Ok(dir)
}

/// A request and when it was due.
#[derive(Clone, Copy)]
struct One {
    due: Instant,
    took: Duration,
    well: bool,
}

/// Sends at `rate` a second as independent callers do, until there are no more windows, and times each request from when it
/// was due. A window is named by the seed of its arrivals; nothing is sent in one without.
fn send(
    server: &Server,
    request: bytes::Bytes,
    rate: f64,
    mut window: watch::Receiver<Option<u64>>,
) -> std::thread::JoinHandle<Result<Vec<One>>> {
    let to = server.grpc;
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let caller = Caller::connect(to).await?;
            let seen = Arc::new(Mutex::new(Vec::new()));
            let mut arrivals: Option<fastrand::Rng> = None;
            let mut due = Instant::now();
            let mut tasks = tokio::task::JoinSet::new();
            loop {
                if let Some(random) = &mut arrivals {
                    due += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / rate);
                }
                tokio::select! {
                    () = tokio::time::sleep_until(due.into()), if arrivals.is_some() => {}
                    begun = window.changed() => {
                        if begun.is_err() {
                            break;
                        }
                        (arrivals, due) = (window.borrow().map(fastrand::Rng::with_seed), Instant::now());
                        continue;
                    }
                }
                let (mut caller, request, seen) = (caller.clone(), request.clone(), seen.clone());
                tasks.spawn(async move {
                    let well = caller.infer(request).await.is_ok();
                    seen.lock().push(One { due, took: due.elapsed(), well });
                });
                while tasks.try_join_next().is_some() {}
            }
            while tasks.join_next().await.is_some() {}
            let seen = std::mem::take(&mut *seen.lock());
            Ok(seen)
        })
    })
}

struct Window {
    from: Instant,
    until: Instant,
    busy: bool,
}

pub fn run(plan: &Plan) -> Result<()> {
    let mut all = serde_json::Map::new();
    all.insert("machine".into(), stats::machine());
    all.insert("reloads".into(), plan.reloads.into());
    all.insert("seconds".into(), plan.seconds.into());
    all.insert("busy".into(), plan.busy.into());
    all.insert("load".into(), plan.load.into());
    let mut curves = Vec::new();
    let mut met = true;
    for (scenario, served) in [("same", "cnn"), ("other", "still")] {
        if !plan.only.is_empty() && !plan.only.iter().any(|only| only == scenario) {
            continue;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (value, well) = runtime.block_on(reloaded(plan, scenario, served, &mut curves))?;
        all.insert(scenario.into(), value);
        met &= well;
    }
    let report =
        Report { addr: String::new(), protocol: String::new(), seconds: plan.seconds, loads: curves };
    fs::create_dir_all(plan.svg.parent().unwrap_or(Path::new(".")))?;
    fs::write(
        &plan.svg,
        torchlane::load::svg("Requests without and beside reloads of a model of 45 MB", &report),
    )?;
    stats::write_json(&plan.json, &all.into())?;
    if met { Ok(()) } else { Err("a request failed under reloads".into()) }
}

async fn reloaded(
    plan: &Plan,
    scenario: &str,
    served: &str,
    curves: &mut Vec<LoadReport>,
) -> Result<(Value, bool)> {
    let dir = repository(&plan.repository)?;
    let server = process::torchlane(dir.path(), &["watch.interval=0s".to_owned()]).await?;
    let model = MODELS.iter().find(|model| model.name == "resnet18").ok_or("no such model")?;
    let request = model.request_to(served);
    let callers = [Caller::connect(server.grpc).await?, Caller::connect(server.grpc).await?];
    let (settle, window) = (Duration::from_secs(2), Duration::from_secs(5));
    let cost = || Ok(Duration::ZERO);
    let capacity =
        load::closed_loop(&[callers.clone(), callers].concat(), &request, settle, window, cost).await?.rate;
    let rate = plan.load * capacity;
    println!("\n{scenario}: {rate:.1} requests a second, {} of what it can do", plan.load);

    let (seeds, seed) = watch::channel(None);
    let sending = send(&server, request, rate, seed);
    let mut admin = ModelServerClient::connect(format!("http://{}", server.grpc)).await?;
    let (mut windows, mut took, mut resident) = (Vec::new(), Vec::new(), Vec::new());
    let at_rest = async || -> Result<u64> {
        seeds.send(None)?;
        tokio::time::sleep(REST).await;
        server.process.resident()
    };
    let mut after_ten = None;
    let length = Duration::from_secs_f64(plan.seconds);
    let group = 1 + plan.busy;
    let began = Instant::now();
    let in_time = || plan.minutes.is_none_or(|minutes| began.elapsed().as_secs_f64() < minutes * 60.0);
    while took.len() < plan.reloads && in_time() || windows.len() % group != 0 {
        if after_ten.is_none() && took.len() >= 10 {
            after_ten = Some(at_rest().await?);
        }
        // The place of the one without changes: what drifts is in both.
        let (nth, place) = (windows.len() / group, windows.len() % group);
        let busy = place != nth % group;
        let from = Instant::now() + BETWEEN;
        let until = from + length;
        seeds.send(Some(nth as u64))?;
        while busy && Instant::now() < until {
            let asked = Instant::now();
            let version = (took.len() % 2 + 1).to_string();
            let request = proto::ReloadModelRequest { model: "cnn".into(), version, ..Default::default() };
            admin.reload_model(request).await?;
            took.push(asked.elapsed());
            resident.push(server.process.resident()?);
        }
        tokio::time::sleep_until(until.into()).await;
        windows.push(Window { from, until, busy });
        if windows.len() % 20 == 0 {
            println!("  {} reloads", took.len());
        }
    }
    let at_the_end = at_rest().await?;
    drop(seeds);
    let seen = sending.join().map_err(|_| "the generator panicked")??;

    let in_window = |window: &Window| {
        let mut some: Vec<_> = seen
            .iter()
            .filter(|one| one.due >= window.from && one.due < window.until)
            .map(|one| one.took)
            .collect();
        some.sort_unstable();
        some
    };
    let side = |busy: bool| {
        let each: Vec<_> = windows.iter().filter(|window| window.busy == busy).map(in_window).collect();
        let rounds = Rounds(each.iter().map(|window| percentile(window, 0.99) / 1e3).collect());
        let mut all = each.concat();
        all.sort_unstable();
        (all, rounds)
    };
    let ((quiet, quiet_rounds), (busy, busy_rounds)) = (side(false), side(true));
    let mean = |all: &[Duration]| all.iter().sum::<Duration>().as_secs_f64() * 1e3 / all.len().max(1) as f64;
    let failed = seen.iter().filter(|one| !one.well).count();
    took.sort_unstable();
    let memory = after_ten.map(|ten| at_the_end as f64 / ten as f64);
    let ms = |sorted: &[Duration], part| percentile(sorted, part) / 1e3;
    let ratio = ms(&busy, 0.99) / ms(&quiet, 0.99);
    let by_window = busy_rounds.median() / quiet_rounds.median();
    let verdict = |met| if met { "met" } else { "missed" };
    println!("  requests   {} without reloads, {} beside them, {failed} failed", quiet.len(), busy.len());
    println!(
        "  without    mean {:.1} ms, p50 {:.1} ms, p99 {:.1} ms",
        mean(&quiet),
        ms(&quiet, 0.5),
        ms(&quiet, 0.99)
    );
    println!(
        "  beside     mean {:.1} ms, p50 {:.1} ms, p99 {:.1} ms: {ratio:.2} times ({} at most: {})",
        mean(&busy),
        ms(&busy, 0.5),
        ms(&busy, 0.99),
        LATENCY_AIM,
        verdict(ratio <= LATENCY_AIM)
    );
    println!("             the median window's p99: {by_window:.2} times");
    println!(
        "  a reload   p50 {:.0} ms, longest {:.0} ms, {} of them",
        ms(&took, 0.5),
        ms(&took, 1.0),
        took.len()
    );
    match after_ten.zip(memory) {
        Some((ten, memory)) => println!(
            "  resident   {} KiB at rest after ten, {} KiB at the end: {memory:.3} times ({MEMORY_AIM} at most: {})",
            ten / 1024,
            at_the_end / 1024,
            verdict(memory <= MEMORY_AIM)
        ),
        None => {
            println!("  resident   {} KiB at rest at the end; too few reloads to compare", at_the_end / 1024)
        }
    }
    for (name, sorted) in [("without reloads", &quiet), ("beside reloads", &busy)] {
        curves.push(curve(&format!("{scenario}: {name}"), sorted));
    }
    let value = json!({
        "rate": rate, "capacity": capacity, "reloads": took.len(), "failed": failed,
        "requests": {"without": quiet.len(), "beside": busy.len()},
        "mean_ms": {"without": mean(&quiet), "beside": mean(&busy)},
        "p50_ms": {"without": ms(&quiet, 0.5), "beside": ms(&busy, 0.5)},
        "p99_ms": {"without": ms(&quiet, 0.99), "beside": ms(&busy, 0.99), "ratio": ratio, "ratio_by_window": by_window},
        "p99_ms_by_window": {"without": quiet_rounds.json(), "beside": busy_rounds.json()},
        "reload_ms": {"p50": ms(&took, 0.5), "p99": ms(&took, 0.99), "max": ms(&took, 1.0)},
        "resident_bytes": {"at_rest_after_ten": after_ten, "at_rest_at_the_end": at_the_end, "ratio": memory, "after_each": resident},
    });
    Ok((value, failed == 0))
}

fn curve(name: &str, sorted: &[Duration]) -> LoadReport {
    let parts = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999];
    let telling = |part: &f64| (1.0 - part) * sorted.len() as f64 >= 1.0;
    let at = |part: f64| percentile(sorted, part) / 1e3;
    let latency = Latency {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: at(1.0),
        curve: parts.into_iter().filter(telling).map(|part| (part, at(part.max(1e-9)))).collect(),
    };
    LoadReport {
        name: name.to_owned(),
        model: String::new(),
        pace: String::new(),
        sent: sorted.len() as u64,
        unsent: 0,
        ok: sorted.len() as u64,
        refused: 0,
        errors: Default::default(),
        rate: 0.0,
        rows_per_second: 0.0,
        latency,
        generator_lag_p99_ms: 0.0,
        timeline: Vec::new(),
    }
}
