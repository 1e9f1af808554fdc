//! `make bench-reload`, what it costs to find a model among many: the registry alone, and requests over the wire.
//!
//! Each name is looked up among 10 to 10,000, as every request does: the slot by its name, the version wished for in it, the slot
//! entered, and a lease of what stands there. With all names equally likely 10,000 models do not fit a core's cache; with ten
//! names alone they do, and what is left of the difference is the table's own.

use std::{
    fs,
    hint::black_box,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use prost::Message as _;
use serde_json::{Value, json};
use torchlane::{
    backend::FakeBackend,
    lifecycle::{Preparation, Rules, prepare},
    model::{ModelName, VersionWish},
    proto,
    registry::Registry,
    repository::Directory,
};

use crate::{
    Result,
    load::Caller,
    picture::{Anchor, Picture},
    process::{self, Server},
    stats::{self, Rounds, percentile},
};

pub struct Plan {
    pub rounds: usize,
    /// Numbers of models.
    pub models: Vec<usize>,
    /// Of each measurement over the wire.
    pub seconds: f64,
    pub json: PathBuf,
    pub svg: PathBuf,
}

/// Lookups of one measurement.
const LOOKUPS: usize = 200_000;
/// Names that are asked for where the table is to stay in the cache.
const FEW: usize = 10;
/// The largest number of models costs at most so many times what the smallest does.
const AIM: f64 = 1.5;

pub fn run(plan: &Plan) -> Result<()> {
    // The servers over the wire have both CPUs: first they, then this thread alone on one.
    let wire = wire(plan)?;
    let alone = std::thread::scope(|scope| scope.spawn(|| alone(plan)).join());
    let alone = alone.map_err(|_| "the lookups panicked")??;
    fs::create_dir_all(plan.svg.parent().unwrap_or(Path::new(".")))?;
    fs::write(&plan.svg, draw(&alone))?;
    let table: Vec<Value> = alone.iter().map(Row::json).collect();
    stats::write_json(
        &plan.json,
        &json!({"machine": stats::machine(), "rounds": plan.rounds, "registry": table, "wire": wire}),
    )
}

/// What is done with each name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Get,
    /// From the name to a lease.
    Lease,
}

struct Row {
    what: &'static str,
    work: Work,
    few: bool,
    /// Nanoseconds a lookup, by number of models.
    cost: Vec<(usize, Rounds)>,
}

impl Row {
    fn grown(&self) -> f64 {
        let cost = |at: Option<&(usize, Rounds)>| at.map_or(f64::NAN, |(_, cost)| cost.median());
        cost(self.cost.last()) / cost(self.cost.first())
    }

    fn json(&self) -> Value {
        let cost: Vec<_> =
            self.cost.iter().map(|(models, cost)| json!({"models": models, "ns": cost.json()})).collect();
        json!({"what": self.what, "largest_of_smallest": self.grown(), "met": self.grown() <= AIM, "cost": cost})
    }
}

/// A registry whose models are all loaded, each with a version of its own.
fn registry(models: usize) -> Result<(Registry, Vec<ModelName>)> {
    let dir = repository(1)?;
    let found = Directory::open(dir.path())?.scan()?;
    let files = found.first().and_then(|model| model.versions.first()).ok_or("no version")?;
    let names: Vec<ModelName> = (0..models).map(|i| Ok(name(i).parse()?)).collect::<Result<_>>()?;
    let registry = Registry::default();
    let rules = Rules::default();
    for slot in registry.insert_all(&names) {
        let alone = Preparation::alone(slot.name(), files, &rules);
        slot.swap(Some(prepare(&FakeBackend, &alone)?.servable));
    }
    Ok((registry, names))
}

/// The registry alone, on one CPU.
fn alone(plan: &Plan) -> Result<Vec<Row>> {
    process::pin_to_one_cpu()?;
    let tables = plan.models.iter().map(|models| registry(*models)).collect::<Result<Vec<_>>>()?;
    let none = || plan.models.iter().map(|models| (*models, Rounds::default())).collect();
    let mut rows: Vec<Row> = [
        ("get, any name", Work::Get, false),
        ("get, the same ten names", Work::Get, true),
        ("to a lease, any name", Work::Lease, false),
        ("to a lease, the same ten names", Work::Lease, true),
    ]
    .map(|(what, work, few)| Row { what, work, few, cost: none() })
    .into();
    let mut random = fastrand::Rng::with_seed(1);
    for round in 0..=plan.rounds {
        for row in &mut rows {
            for ((registry, names), (_, rounds)) in tables.iter().zip(&mut row.cost) {
                let among = if row.few { FEW.min(names.len()) } else { names.len() };
                // A request brings its name along: here they lie one behind the other and cost no cache miss of their own.
                let asked: Vec<Box<str>> =
                    (0..LOOKUPS).map(|_| names[random.usize(..among)].as_str().into()).collect();
                let began = Instant::now();
                for name in &asked {
                    look_up(registry, name, row.work);
                }
                let ns = began.elapsed().as_secs_f64() * 1e9 / LOOKUPS as f64;
                if round > 0 {
                    rounds.0.push(ns);
                }
            }
        }
    }
    println!("\nFrom a name to its model in the registry, ns (one thread, one CPU):");
    print!("  {:32}", "models");
    plan.models.iter().for_each(|models| print!("{models:>18}"));
    println!("{:>12}", "growth");
    for row in &rows {
        print!("  {:32}", row.what);
        for (_, ns) in &row.cost {
            print!("{:>18}", format!("{:.0} ({:.0}..{:.0})", ns.median(), ns.min(), ns.max()));
        }
        let word = if row.grown() <= AIM { "met" } else { "missed" };
        println!("{:>12}   {AIM} at most: {word}", format!("{:.2} times", row.grown()));
    }
    Ok(rows)
}

fn look_up(registry: &Registry, name: &str, work: Work) {
    let slot = registry.get(name).expect("it is there");
    match work {
        Work::Get => drop(black_box(slot)),
        Work::Lease => {
            let (slot, _) = slot.find(&VersionWish::Any);
            let slot = slot.enter().expect("nobody evicts it");
            black_box(slot.lease().expect("it is loaded"));
        }
    }
}

fn name(model: usize) -> String {
    format!("model-{model}")
}

fn repository(models: usize) -> Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    for model in 0..models {
        let folder = dir.path().join(name(model)).join("1");
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("model.pt"), "")?;
    }
    Ok(dir)
}

struct Subject {
    models: usize,
    server: Server,
    requests: Vec<Bytes>,
    /// CPUs that looking at the repository takes, by default settings.
    watched: f64,
    /// p50 and p99 in µs.
    rounds: [Rounds; 2],
    _dir: tempfile::TempDir,
}

/// CPUs that a server takes by default settings of which nobody asks anything.
fn idle(repository: &Path) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let settings = ["backend=fake", "memory.load=lazy"].map(String::from);
    let server = runtime.block_on(process::torchlane(repository, &settings))?;
    let window = Duration::from_secs(10);
    // The start is not in it.
    std::thread::sleep(window / 2);
    let before = server.process.cpu()?;
    std::thread::sleep(window);
    Ok((server.process.cpu()? - before).as_secs_f64() / window.as_secs_f64())
}

/// One caller, each request for any of the models, which are all loaded: the fewest and the most there are, turn by turn.
fn wire(plan: &Plan) -> Result<Value> {
    let sizes: Vec<usize> =
        plan.models.iter().min().into_iter().chain(plan.models.iter().max()).copied().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut subjects = Vec::new();
    for models in sizes {
        let dir = repository(models)?;
        let watched = idle(dir.path())?;
        // The server that waits for its turn must not take the other's time by looking at its files.
        let settings = ["backend=fake", "memory.load=lazy", "watch.interval=0s"].map(String::from);
        let server = runtime.block_on(process::torchlane(dir.path(), &settings))?;
        let requests: Vec<Bytes> = (0..models).map(request).collect();
        runtime.block_on(ask_all(&server, &requests))?;
        let rounds = [Rounds::default(), Rounds::default()];
        subjects.push(Subject { models, server, requests, watched, rounds, _dir: dir });
    }
    for round in 0..plan.rounds {
        for Subject { server, requests, rounds: [p50, p99], .. } in &mut subjects {
            let window = Duration::from_secs_f64(plan.seconds);
            let took = runtime.block_on(ask(server, requests, round as u64, window))?;
            p50.0.push(percentile(&took, 0.5));
            p99.0.push(percentile(&took, 0.99));
        }
    }
    println!("A small request over the wire, one caller, µs (the fake backend: its pass only copies):");
    let mut rows = Vec::new();
    for Subject { models, watched, rounds: [p50, p99], .. } in &subjects {
        let spread =
            |rounds: &Rounds| format!("{:.0} ({:.0}..{:.0})", rounds.median(), rounds.min(), rounds.max());
        println!(
            "  {models:>6} models: p50 {}, p99 {}; looking at their files takes {:.1} % of a CPU",
            spread(p50),
            spread(p99),
            watched * 100.0
        );
        rows.push(json!({
            "models": models, "p50_us": p50.json(), "p99_us": p99.json(), "watching_cpus": watched,
        }));
    }
    if let [few, many] = subjects.as_slice() {
        let ratio = many.rounds[0].with(&few.rounds[0], |many, few| many / few).median();
        println!("  p50 {ratio:.2} times ({AIM} at most: {})", if ratio <= AIM { "met" } else { "missed" });
    }
    Ok(rows.into())
}

fn request(model: usize) -> Bytes {
    let input = proto::Tensor {
        name: "x".into(),
        datatype: "FP32".into(),
        shape: vec![1, 16],
        raw: vec![0; 64].into(),
        ..Default::default()
    };
    let request = proto::InferRequest { model: name(model), inputs: vec![input], ..Default::default() };
    request.encode_to_vec().into()
}

/// Each once: they are loaded by that.
async fn ask_all(server: &Server, requests: &[Bytes]) -> Result<()> {
    let mut caller = Caller::connect(server.grpc).await?;
    for request in requests {
        caller.infer(request.clone()).await?;
    }
    Ok(())
}

async fn ask(server: &Server, requests: &[Bytes], seed: u64, window: Duration) -> Result<Vec<Duration>> {
    let mut caller = Caller::connect(server.grpc).await?;
    let mut random = fastrand::Rng::with_seed(seed);
    let until = Instant::now() + window;
    let mut took = Vec::new();
    while Instant::now() < until {
        let request = requests[random.usize(..requests.len())].clone();
        let sent = Instant::now();
        caller.infer(request).await?;
        took.push(sent.elapsed());
    }
    took.sort_unstable();
    Ok(took)
}

fn draw(rows: &[Row]) -> String {
    let (width, height, left, right, top, bottom) = (860.0, 360.0, 60.0, 240.0, 56.0, 50.0);
    let mut picture =
        Picture::new(width, height, "From a name to its model, nanoseconds by number of models");
    let all = || rows.iter().flat_map(|row| &row.cost);
    let most = all().map(|(_, ns)| ns.median()).fold(1.0, f64::max) * 1.1;
    let decades = |models: usize| (models.max(1) as f64).log10();
    let ends = all().map(|(models, _)| decades(*models));
    let (low, high) = ends.fold((f64::MAX, f64::MIN), |(low, high), at| (low.min(at), high.max(at)));
    let x = |models: usize| left + (decades(models) - low) / (high - low).max(1e-9) * (width - left - right);
    let y = |ns: f64| top + (1.0 - ns / most) * (height - top - bottom);
    let step = [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0].into_iter().find(|step| most / step < 7.0);
    let step = step.unwrap_or(most);
    for mark in (0..).map(|i| f64::from(i) * step).take_while(|ns| *ns <= most) {
        picture.line("rule", (left, y(mark)), (width - right, y(mark)));
        picture.text("dim", Anchor::End, (left - 8.0, y(mark) + 4.0), &format!("{mark:.0} ns"));
    }
    for (models, _) in rows.first().map(|row| row.cost.as_slice()).unwrap_or_default() {
        picture.text("dim", Anchor::Middle, (x(*models), height - bottom + 18.0), &models.to_string());
    }
    picture.text("dim", Anchor::Middle, ((left + width - right) / 2.0, height - 12.0), "models");
    for (place, (row, class)) in rows.iter().zip(["a", "c", "b", "d"]).enumerate() {
        let points: Vec<_> = row.cost.iter().map(|(models, ns)| (x(*models), y(ns.median()))).collect();
        picture.curve(class, &points);
        let (at, line) = (width - right + 20.0, top + 14.0 + 38.0 * place as f64);
        picture.bar(class, (at, line - 6.0), (14.0, 4.0));
        picture.text("ink", Anchor::Start, (at + 20.0, line), row.what);
        let times = format!("{:.2} times from first to last", row.grown());
        picture.text("dim", Anchor::Start, (at + 20.0, line + 15.0), &times);
    }
    picture.finish()
}
