//! `make bench-reload`, more models than memory: a thousand lazy ones with room for fifty, and callers who want few of them often
//! and most of them seldom (Zipf). How many requests find their model in memory, and what the others wait.
//!
//! All are the digits, linked a thousand times: to the server they are models of their own, each read, verified, loaded and warmed
//! up. Their files are in the page cache, so what a load costs here has no disk in it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use torchlane::{
    load::{LoadReport, Report},
    proto::{self, model_server_client::ModelServerClient},
};

use crate::{
    Result,
    process::{self, Server},
    stats::{self, percentile},
};

pub struct Plan {
    pub models: usize,
    /// Models that the budget has room for.
    pub room: usize,
    pub callers: usize,
    /// Of each measurement.
    pub seconds: f64,
    /// How uneven the traffic is.
    pub exponents: Vec<f64>,
    pub json: PathBuf,
    pub svg: PathBuf,
}

/// Of the time that is measured, before it: the budget fills up.
const SETTLE: f64 = 0.25;

pub fn run(plan: &Plan) -> Result<()> {
    let dir = repository(plan.models)?;
    let footprint = footprint(dir.path(), plan)?;
    let budget = (footprint.booked * plan.room as f64) as u64;
    println!(
        "{} lazy models of {:.0} KiB each as the server measures it (the process grows by {:.0} KiB with each), \
         a budget of {:.1} MiB with room for {}, {} callers without pause:",
        plan.models,
        footprint.booked / 1024.0,
        footprint.grown / 1024.0,
        budget as f64 / f64::from(1 << 20),
        plan.room,
        plan.callers
    );
    let (mut rows, mut curves, mut met) = (Vec::new(), Vec::new(), true);
    for exponent in &plan.exponents {
        let outcome = measure(dir.path(), plan, budget, *exponent)?;
        let (row, well) = tell(plan, budget, *exponent, &outcome, &mut curves);
        rows.push(row);
        met &= well;
    }
    let title = format!(
        "{} models with room for {}: requests whose model was in memory, or was not",
        plan.models, plan.room
    );
    let report =
        Report { addr: String::new(), protocol: String::new(), seconds: plan.seconds, loads: curves };
    fs::create_dir_all(plan.svg.parent().unwrap_or(Path::new(".")))?;
    fs::write(&plan.svg, torchlane::load::svg(&title, &report))?;
    stats::write_json(
        &plan.json,
        &json!({
            "machine": stats::machine(), "models": plan.models, "room": plan.room, "callers": plan.callers,
            "seconds": plan.seconds, "footprint_bytes": {"booked": footprint.booked, "grown": footprint.grown},
            "budget_bytes": budget, "traffic": rows,
        }),
    )?;
    if met { Ok(()) } else { Err("a request failed, or the budget was exceeded".into()) }
}

fn name(model: usize) -> String {
    format!("digits-{model}")
}

fn repository(models: usize) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    let manifest = "load = \"lazy\"\n".to_owned() + &fs::read_to_string("models/digits/model.toml")?;
    let version = fs::canonicalize("models/digits/1")?;
    for model in 0..models {
        let folder = dir.path().join(name(model));
        fs::create_dir(&folder)?;
        fs::write(folder.join("model.toml"), &manifest)?;
        symlink(&version, folder.join("1"))?;
    }
    Ok(dir)
}

/// Bytes that a model takes: a mean of many.
struct Footprint {
    /// As the server measures and books it.
    booked: f64,
    /// By which the process grew, the warm-up's traces included.
    grown: f64,
}

/// Loads twice as many models as there is to be room for, without a budget.
fn footprint(repository: &Path, plan: &Plan) -> Result<Footprint> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let server = process::torchlane(repository, &[]).await?;
        let mut client = ModelServerClient::connect(format!("http://{}", server.grpc)).await?;
        let weighed = plan.models.min(2 * plan.room);
        // The first ones leave libtorch's own traces.
        let first = weighed / 5;
        let mut resident = 0;
        for model in 0..weighed {
            if model == first {
                resident = server.process.resident()?;
            }
            client.load_model(proto::LoadModelRequest { model: name(model) }).await?;
        }
        let grown = server.process.resident()? as f64 - resident as f64;
        let booked = server.metric("torchlane_memory_resident_bytes")?;
        Ok(Footprint { booked: booked / weighed as f64, grown: grown / (weighed - first) as f64 })
    })
}

/// A request and what came of it.
#[derive(Clone)]
struct One {
    took: Duration,
    /// Of the server's time, what was neither waiting for a ticket or an executor nor the pass: it was for the model, if any.
    apart: Duration,
    well: bool,
}

struct Outcome {
    seen: Vec<One>,
    seconds: f64,
    /// As the server counted them.
    missed: usize,
    refused: f64,
    loads: f64,
    evictions: f64,
    watched: Watched,
}

/// What was seen of the server's memory, in bytes.
#[derive(Default)]
struct Watched {
    before: u64,
    resident: u64,
    booked: f64,
    /// Models in memory, look by look.
    models: Vec<f64>,
}

fn measure(repository: &Path, plan: &Plan, budget: u64, exponent: f64) -> Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let server = runtime.block_on(process::torchlane(repository, &[format!("memory.budget={budget}B")]))?;
    let before = server.process.resident()?;
    let traffic = Zipf::new(plan.models, exponent);
    let seconds = Duration::from_secs_f64(plan.seconds);
    // What is asked for goes on where it was: each call has other seeds.
    let traffic = |seed, time| runtime.block_on(traffic.send(&server, plan.callers, seed, time));
    let settled = traffic(1, seconds.mul_f64(SETTLE))?;
    let counts = || -> Result<[f64; 4]> {
        let names = ["misses_total{result=\"waited\"}", "misses_total{result=\"refused\"}"];
        let [missed, refused] = names.map(|name| server.metric(&format!("torchlane_residency_{name}")));
        let loads = server.metric("torchlane_residency_loads_total{cause=\"request\"}")?;
        Ok([missed?, refused?, loads, server.metric("torchlane_residency_evictions_total")?])
    };
    let (start, began, done) = (counts()?, Instant::now(), AtomicBool::new(false));
    let (seen, watched) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&server, &done));
        let seen = traffic(2, seconds);
        done.store(true, Ordering::Relaxed);
        (seen, watching.join())
    });
    let (seen, watched) = (seen?, watched.map_err(|_| "who looked at the memory panicked")??);
    let seconds = began.elapsed().as_secs_f64();
    let end = counts()?;
    let [missed, refused, loads, evictions] = std::array::from_fn(|i| end[i] - start[i]);
    if settled.iter().any(|one| !one.well) {
        return Err("a request failed before the measurement".into());
    }
    let watched = Watched { before, ..watched };
    Ok(Outcome { seen, seconds, missed: missed as usize, refused, loads, evictions, watched })
}

fn watch(server: &Server, done: &AtomicBool) -> Result<Watched> {
    let mut watched = Watched::default();
    for look in 0_u32.. {
        if done.load(Ordering::Relaxed) {
            break;
        }
        watched.resident = watched.resident.max(server.process.resident()?);
        // A reading of all metrics costs the server something, too.
        if look.is_multiple_of(10) {
            watched.booked = watched.booked.max(server.metric("torchlane_memory_resident_bytes")?);
            watched.models.push(server.metric("torchlane_models_resident")?);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(watched)
}

/// The n-th most popular of the models is wanted in proportion to `n` to the power of `-exponent`.
struct Zipf {
    /// Most popular first: the part of the requests that is for it.
    parts: Vec<f64>,
    /// Sums of the parts.
    up_to: Vec<f64>,
    /// Which model has which rank.
    ranked: Vec<usize>,
}

impl Zipf {
    fn new(models: usize, exponent: f64) -> Self {
        let weights: Vec<f64> = (1..=models).map(|rank| (rank as f64).powf(-exponent)).collect();
        let all: f64 = weights.iter().sum();
        let parts: Vec<f64> = weights.into_iter().map(|weight| weight / all).collect();
        let up_to = parts.iter().scan(0.0, |sum, part| {
            *sum += part;
            Some(*sum)
        });
        let mut ranked: Vec<usize> = (0..models).collect();
        let up_to = up_to.collect();
        fastrand::Rng::with_seed(3).shuffle(&mut ranked);
        Self { parts, up_to, ranked }
    }

    fn pick(&self, random: &mut fastrand::Rng) -> usize {
        let at = random.f64();
        let rank = self.up_to.partition_point(|up_to| *up_to <= at);
        self.ranked[rank.min(self.ranked.len() - 1)]
    }

    /// The part of the requests that whoever keeps the `room` most popular models answers from memory: no policy that keeps
    /// so many and does not know the next request does better.
    fn best(&self, room: f64) -> f64 {
        self.parts.iter().take(room.round() as usize).sum()
    }

    /// The part that is to be expected of keeping those `room` models that were used last (Che, Tung and Wang, "Hierarchical
    /// Web caching systems", 2002): each stays for a time in which `room` different ones are asked for.
    fn last_used(&self, room: f64) -> f64 {
        let in_memory = |time: f64, part: &f64| 1.0 - (-part * time).exp();
        let (mut low, mut high) = (0.0, 1e9);
        for _ in 0..200 {
            let time = f64::midpoint(low, high);
            let kept: f64 = self.parts.iter().map(|part| in_memory(time, part)).sum();
            if kept < room { low = time } else { high = time }
        }
        self.parts.iter().map(|part| part * in_memory(low, part)).sum()
    }

    async fn send(&self, server: &Server, callers: usize, seed: u64, time: Duration) -> Result<Vec<One>> {
        let until = Instant::now() + time;
        let calls = (0..callers as u64).map(|caller| self.call(server, seed * 1000 + caller, until));
        Ok(futures::future::try_join_all(calls).await?.concat())
    }

    async fn call(&self, server: &Server, seed: u64, until: Instant) -> Result<Vec<One>> {
        let mut client = ModelServerClient::connect(format!("http://{}", server.grpc)).await?;
        let mut random = fastrand::Rng::with_seed(seed);
        let mut seen = Vec::new();
        while Instant::now() < until {
            let request = request(name(self.pick(&mut random)));
            let sent = Instant::now();
            let answer = client.infer(request).await;
            let (took, well) = (sent.elapsed(), answer.is_ok());
            let timing = answer.ok().and_then(|answer| answer.into_inner().timing).unwrap_or_default();
            let time = |part: Option<prost_types::Duration>| {
                part.and_then(|part| Duration::try_from(part).ok()).unwrap_or_default()
            };
            let accounted = time(timing.queue) + time(timing.batch_wait) + time(timing.compute);
            seen.push(One { took, apart: time(timing.total).saturating_sub(accounted), well });
        }
        Ok(seen)
    }
}

fn request(model: String) -> proto::InferRequest {
    let input = proto::Tensor {
        name: "image".into(),
        datatype: "FP32".into(),
        shape: vec![1, 1, 8, 8],
        raw: [0.5_f32; 64].iter().flat_map(|p| p.to_le_bytes()).collect::<Vec<u8>>().into(),
        ..Default::default()
    };
    proto::InferRequest { model, inputs: vec![input], ..Default::default() }
}

fn tell(
    plan: &Plan,
    budget: u64,
    exponent: f64,
    outcome: &Outcome,
    curves: &mut Vec<LoadReport>,
) -> (Value, bool) {
    let zipf = Zipf::new(plan.models, exponent);
    let Outcome { seen, seconds, missed, refused, loads, evictions, watched } = outcome;
    let failed = seen.iter().filter(|one| !one.well).count();
    // The server counts who waited for a model. Which they were is told by the time that nothing else accounts for.
    let mut answered: Vec<&One> = seen.iter().filter(|one| one.well).collect();
    answered.sort_unstable_by_key(|one| one.apart);
    let (hits, misses) = answered.split_at(answered.len().saturating_sub(*missed));
    let apart = |one: Option<&&One>| one.map_or(f64::NAN, |one| one.apart.as_secs_f64() * 1e3);
    let border = [apart(hits.last()), apart(misses.first())];
    let sorted = |some: &[&One]| {
        let mut took: Vec<_> = some.iter().map(|one| one.took).collect();
        took.sort_unstable();
        took
    };
    let (hit, miss) = (sorted(hits), sorted(misses));
    let rate = hit.len() as f64 / seen.len().max(1) as f64;
    let kept = watched.models.iter().sum::<f64>() / watched.models.len().max(1) as f64;
    let (best, last_used) = (zipf.best(plan.room as f64), zipf.last_used(kept));
    let ms = |sorted: &[Duration], part| percentile(sorted, part) / 1e3;
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    let within = watched.booked <= budget as f64;
    let word = |met| if met { "met" } else { "missed" };

    println!(
        "\ns = {exponent:.1}: {} requests in {seconds:.0} s, {:.0} a second",
        seen.len(),
        seen.len() as f64 / seconds
    );
    println!(
        "  failed     {failed} (none: {}), {refused} of them refused for want of their model",
        word(failed == 0)
    );
    println!(
        "  in memory  {:.1} % of the requests; keeping the {} most popular: {:.1} %; to be expected of {kept:.0} used last: {:.1} %",
        rate * 100.0,
        plan.room,
        best * 100.0,
        last_used * 100.0
    );
    println!("  hits       p50 {:.2} ms, p99 {:.2} ms", ms(&hit, 0.5), ms(&hit, 0.99));
    println!("  misses     p50 {:.1} ms, p99 {:.1} ms", ms(&miss, 0.5), ms(&miss, 0.99));
    println!("  loads      {loads}, {evictions} evictions; {kept:.1} models in memory on average");
    println!(
        "  booked     {:.2} MiB at most of {:.2} (never more: {}); resident {:.0} MiB before, {:.0} at most",
        mib(watched.booked),
        mib(budget as f64),
        word(within),
        mib(watched.before as f64),
        mib(watched.resident as f64)
    );
    for (what, sorted) in [("in memory", &hit), ("had to be loaded", &miss)] {
        let curve = stats::curve(&format!("s = {exponent:.1}: {what}"), sorted);
        curves.push(LoadReport { rate: sorted.len() as f64 / seconds, ..curve });
    }
    let value = json!({
        "exponent": exponent, "requests": seen.len(), "seconds": seconds, "failed": failed, "refused": refused,
        "hits": hit.len(), "misses": missed, "hit_rate": rate, "best_hit_rate": best, "last_used_hit_rate": last_used,
        "hit_ms": {"p50": ms(&hit, 0.5), "p99": ms(&hit, 0.99), "max": ms(&hit, 1.0)},
        "miss_ms": {"p50": ms(&miss, 0.5), "p99": ms(&miss, 0.99), "max": ms(&miss, 1.0)},
        "unaccounted_ms": {"largest_of_hits": border[0], "smallest_of_misses": border[1]},
        "loads": loads, "evictions": evictions, "models_in_memory": kept,
        "booked_bytes_at_most": watched.booked, "resident_bytes": {"before": watched.before, "at_most": watched.resident},
    });
    (value, failed == 0 && within)
}
