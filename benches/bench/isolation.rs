//! `make bench-isolation`: what holds under floods. Each flood has a generator thread of its own, so that urgent requests do
//! not wait behind it before they are even sent; all of them share the CPUs with the server.

use std::{fs, path::Path, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use torchlane::{
    load::{self, LoadSpec, Report, RunConfig},
    model::Lane,
};

use crate::{
    Result,
    process::{self, Server},
    stats::{self, Rounds},
};

pub struct Plan {
    pub repository: PathBuf,
    pub rounds: usize,
    pub seconds: f64,
    pub only: Vec<String>,
    pub json: PathBuf,
    pub svg: PathBuf,
}

/// Load that is not counted, before each measurement.
const WARM_UP: Duration = Duration::from_secs(1);
/// As the server has it by default.
const MAX_BLOCK_MS: f64 = 25.0;
/// Of every lower lane.
const MIN_SHARE: f64 = 0.05;

impl Plan {
    fn wants(&self, scenario: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == scenario)
    }

    /// Runs each list of loads in a thread of its own, at the same time.
    fn load(&self, server: &Server, threads: &[Vec<LoadSpec>]) -> Result<Vec<Report>> {
        let config = RunConfig {
            addr: server.grpc.to_string(),
            warm_up: WARM_UP,
            duration: Duration::from_secs_f64(self.seconds),
            ..RunConfig::default()
        };
        let reports = std::thread::scope(|scope| {
            let running: Vec<_> = threads
                .iter()
                .enumerate()
                .map(|(i, loads)| {
                    let config = RunConfig { seed: 1 + i as u64, ..config.clone() };
                    scope.spawn(move || {
                        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                        Ok::<_, crate::Error>(runtime.block_on(load::run(&config, loads, |_| ()))?)
                    })
                })
                .collect();
            running
                .into_iter()
                .map(|thread| thread.join().expect("a generator panicked"))
                .collect::<Result<_>>()
        })?;
        std::thread::sleep(Duration::from_millis(300));
        Ok(reports)
    }

    /// Answers a second of a model that always has work.
    fn capacity(&self, server: &Server, model: &str) -> Result<f64> {
        let callers = 2 * batch_limit(model);
        let report =
            self.load(server, &[vec![spec(&format!("model={model},callers={callers},priority=low"))?]])?;
        Ok(report[0].loads[0].rate)
    }
}

fn spec(text: &str) -> Result<LoadSpec> {
    Ok(text.parse::<LoadSpec>()?)
}

fn batch_limit(model: &str) -> usize {
    if model == "mlp" { 32 } else { 8 }
}

pub fn run(plan: &Plan) -> Result<()> {
    let mut all = serde_json::Map::new();
    all.insert("machine".into(), stats::machine());
    all.insert("rounds".into(), plan.rounds.into());
    all.insert("seconds".into(), plan.seconds.into());
    let mut curves = Vec::new();
    for (scenario, pairs) in [
        ("same", [("mlp", "mlp"), ("transformer", "transformer"), ("resnet18", "resnet18")]),
        ("other", [("mlp", "resnet18"), ("transformer", "mlp"), ("resnet18", "mlp")]),
    ] {
        if !plan.wants(scenario) {
            continue;
        }
        println!(
            "\nCRITICAL at 5 % of capacity, and a flood of LOW at twice capacity on the {scenario} model:"
        );
        println!(
            "  {:12} {:12} {:>22} {:>22} {:>8} {:>10} {:>8}",
            "critical", "flood", "p99 alone, ms", "p99 flooded, ms", "limit", "LOW of cap", "lost"
        );
        let mut rows = Vec::new();
        for (victim, flood) in pairs {
            let row = flooded(plan, victim, flood, &mut curves)?;
            rows.push(row);
        }
        all.insert(scenario.into(), rows.into());
    }
    if plan.wants("tenants") {
        all.insert("tenants".into(), tenants(plan)?);
    }
    if plan.wants("deadlines") {
        all.insert("deadlines".into(), deadlines(plan)?);
    }
    if plan.wants("batches") {
        all.insert("batches".into(), batches(plan)?);
    }
    if let Some(folder) = plan.svg.parent() {
        fs::create_dir_all(folder)?;
    }
    let picture =
        Report { addr: String::new(), protocol: "native".into(), seconds: plan.seconds, loads: curves };
    fs::write(&plan.svg, load::svg("CRITICAL requests, alone and beside a flood of LOW", &picture))?;
    stats::write_json(&plan.json, &Value::Object(all))
}

fn flooded(plan: &Plan, victim: &str, flood: &str, curves: &mut Vec<load::LoadReport>) -> Result<Value> {
    let server = start(&plan.repository, &[])?;
    let (mut alone, mut beside, mut low_share) = (Rounds::default(), Rounds::default(), Rounds::default());
    let (mut median_alone, mut median_beside) = (Rounds::default(), Rounds::default());
    let mut lost = 0;
    let mut sent_low = Rounds::default();
    let mut reports = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let full = plan.capacity(&server, victim)?;
        let flood_full = if flood == victim { full } else { plan.capacity(&server, flood)? };
        let critical = spec(&format!("model={victim},rate={},priority=critical", full * 0.05))?;
        let low = spec(&format!("model={flood},rate={},priority=low", flood_full * 2.0))?;
        let quiet = plan.load(&server, &[vec![critical.clone()]])?;
        let loud = plan.load(&server, &[vec![critical], vec![low]])?;
        let (quiet, urgent, low) = (&quiet[0].loads[0], &loud[0].loads[0], &loud[1].loads[0]);
        alone.0.push(quiet.latency.p99);
        beside.0.push(urgent.latency.p99);
        median_alone.0.push(quiet.latency.p50);
        median_beside.0.push(urgent.latency.p50);
        low_share.0.push(low.rate / flood_full);
        sent_low.0.push((low.sent + low.unsent) as f64 / plan.seconds / flood_full);
        // Every request has an answer or a refusal with a reason; CRITICAL ones an answer.
        let reasons = ["QUEUE_FULL", "OVERLOADED", "DEADLINE_EXCEEDED"];
        let odd = |load: &load::LoadReport| {
            load.errors
                .iter()
                .filter(|(reason, _)| !reasons.contains(&reason.as_str()))
                .map(|(_, n)| n)
                .sum::<u64>()
        };
        lost += odd(low) + odd(urgent) + urgent.refused + quiet.refused;
        reports = (vec![quiet.clone()], vec![urgent.clone()]);
    }
    let limit = 1.5 * alone.median() + MAX_BLOCK_MS;
    let same = if flood == victim { "its own model".to_owned() } else { flood.to_owned() };
    for (mut report, how) in reports
        .0
        .into_iter()
        .map(|r| (r, "alone".to_owned()))
        .chain(reports.1.into_iter().map(|r| (r, format!("flood on {same}"))))
    {
        report.name = format!("{victim}, {how}");
        // Alone it is the same in both scenarios.
        let again = flood != victim && how == "alone";
        if victim != "resnet18" && !again {
            curves.push(report);
        }
    }
    let spread =
        |rounds: &Rounds| format!("{:.1} ({:.1}..{:.1})", rounds.median(), rounds.min(), rounds.max());
    println!(
        "  {victim:12} {flood:12} {:>22} {:>22} {limit:>8.1} {:>9.0}% {lost:>8}   {}",
        spread(&alone),
        spread(&beside),
        low_share.median() * 100.0,
        if beside.median() <= limit && low_share.median() >= MIN_SHARE && lost == 0 {
            "met"
        } else {
            "MISSED"
        },
    );
    Ok(json!({
        "critical": victim, "flood": flood,
        "p50_alone_ms": median_alone.json(), "p50_flooded_ms": median_beside.json(),
        "p99_alone_ms": alone.json(), "p99_flooded_ms": beside.json(), "limit_ms": limit,
        "low_of_capacity": low_share.json(), "low_sent_of_capacity": sent_low.json(), "lost": lost,
    }))
}

fn tenants(plan: &Plan) -> Result<Value> {
    println!("\nTwo tenants of equal weight, one sending ten times what the other does (transformer):");
    // Both named, so that each has a metric of its own.
    let settings = ["tenants.a.weight=1", "tenants.b.weight=1"].map(String::from);
    let server = start(&plan.repository, &settings)?;
    let (mut share, mut ok) = (Rounds::default(), Rounds::default());
    for _ in 0..plan.rounds {
        let full = plan.capacity(&server, "transformer")?;
        let compute = |tenant: &str| {
            server.metric(&format!("torchlane_tenant_compute_seconds_total{{tenant=\"{tenant}\"}}"))
        };
        let few = spec(&format!("model=transformer,rate={},tenant=a,name=a", full))?;
        let many = spec(&format!("model=transformer,rate={},tenant=b,name=b", full * 10.0))?;
        // While both send: afterwards the one with more still waiting has the executors for itself.
        let meanwhile = || -> Result<(f64, f64)> {
            std::thread::sleep(WARM_UP);
            let before = (compute("a")?, compute("b")?);
            std::thread::sleep(Duration::from_secs_f64(plan.seconds));
            Ok((compute("a")? - before.0, compute("b")? - before.1))
        };
        let (reports, shares) = std::thread::scope(|scope| {
            let shares = scope.spawn(meanwhile);
            (plan.load(&server, &[vec![few], vec![many]]), shares.join().expect("a thread panicked"))
        });
        let (reports, (a, b)) = (reports?, shares?);
        share.0.push(a / (a + b));
        ok.0.push(reports[0].loads[0].rate / (reports[0].loads[0].rate + reports[1].loads[0].rate));
    }
    let met = (0.45..=0.55).contains(&share.median());
    println!(
        "  compute of the one that sends less: {:.3} ({:.3}..{:.3}) of both; its part of the answers {:.3}   {}",
        share.median(),
        share.min(),
        share.max(),
        ok.median(),
        if met { "met" } else { "MISSED" }
    );
    Ok(json!({"compute_share": share.json(), "answer_share": ok.json()}))
}

/// Requests of the flood that may be unanswered at once, as of so many callers. With one FIFO without end in the generator
/// whatever comes out of it would be late, whatever the server does.
const CALLERS: usize = 512;

fn deadlines(plan: &Plan) -> Result<Value> {
    println!("\nDeadlines at twice capacity, {CALLERS} callers:");
    println!(
        "  {:12} {:>8} {:>22} {:>22} {:>9} {:>9} {:>17}",
        "model",
        "deadline",
        "in time of let in",
        "goodput of capacity",
        "refused",
        "not sent",
        "refusals right"
    );
    let mut rows = Vec::new();
    // A pass of the last takes nearly as long as the shorter deadline.
    for (model, ms) in [("mlp", 50), ("transformer", 50), ("resnet18", 50), ("resnet18", 200)] {
        let server = start(&plan.repository, &[])?;
        let (mut kept, mut goodput, mut early) = (Rounds::default(), Rounds::default(), Rounds::default());
        let (mut unsent, mut tried) = (Rounds::default(), [0.0, 0.0]);
        for _ in 0..plan.rounds {
            let full = plan.capacity(&server, model)?;
            let count = || -> Result<Vec<f64>> {
                let lane = Lane::Normal.as_str();
                ["in_time", "late", "refused", "trial_in_time", "trial_late"]
                    .iter()
                    .map(|result| format!("torchlane_deadlines_total{{lane=\"{lane}\",result=\"{result}\"}}"))
                    .map(|name| server.metric(&name))
                    .collect()
            };
            let before = count()?;
            let rate = full * 2.0;
            let load =
                format!("model={model},rate={rate},priority=normal,timeout={ms}ms,outstanding={CALLERS}");
            let report = plan.load(&server, &[vec![spec(&load)?]])?;
            let load = &report[0].loads[0];
            let counts: Vec<f64> =
                count()?.iter().zip(before).map(|(after, before)| after - before).collect();
            let [good, late, refused, wrongly, rightly] = counts[..] else {
                return Err("five counts".into());
            };
            kept.0.push(good / (good + late));
            goodput.0.push(load.rate / full);
            early.0.push(refused / (good + late + refused));
            unsent.0.push(load.unsent as f64 / (load.sent + load.unsent) as f64);
            tried = [tried[0] + wrongly, tried[1] + rightly];
        }
        let right = tried[1] / (tried[0] + tried[1]);
        println!(
            "  {model:12} {ms:>5} ms {:>6.3} ({:.3}..{:.3}) {:>6.2} ({:.2}..{:.2}) {:>9.2} {:>9.2} {:>5.2} of {:>6.0} tried   {}",
            kept.median(),
            kept.min(),
            kept.max(),
            goodput.median(),
            goodput.min(),
            goodput.max(),
            early.median(),
            unsent.median(),
            right,
            tried[0] + tried[1],
            if kept.median() >= 0.95 && goodput.median() >= 0.9 { "met" } else { "MISSED" }
        );
        rows.push(json!({
            "model": model, "deadline_ms": ms, "in_time": kept.json(), "goodput": goodput.json(), "refused": early.json(),
            "not_sent": unsent.json(), "tried_in_time": tried[0], "tried_late": tried[1],
        }));
    }
    Ok(rows.into())
}

fn batches(plan: &Plan) -> Result<Value> {
    println!("\nRows a second with sizes by the learned profile, of the best fixed size:");
    let mut rows = Vec::new();
    for model in ["mlp", "transformer", "resnet18"] {
        let sizes: Vec<usize> = std::iter::successors(Some(1), |n| Some(n * 2))
            .take_while(|n| *n <= batch_limit(model))
            .collect();
        let copies = sizes
            .iter()
            .map(|size| Ok((*size, limited(&plan.repository, model, *size)?)))
            .collect::<Result<Vec<_>>>()?;
        let learned = start(&plan.repository, &["executors.max_block=1s".to_owned()])?;
        // As long to learn as the others have to warm up.
        plan.capacity(&learned, model)?;
        let mut by_size: Vec<(usize, Rounds)> = sizes.iter().map(|size| (*size, Rounds::default())).collect();
        let mut chosen = Rounds::default();
        for _ in 0..plan.rounds {
            for ((_, copy), (_, rounds)) in copies.iter().zip(&mut by_size) {
                let server = start(copy.path(), &["executors.learned_batches=false".to_owned()])?;
                rounds.0.push(plan.capacity(&server, model)?);
            }
            chosen.0.push(plan.capacity(&learned, model)?);
        }
        let (best, fastest) =
            by_size.iter().max_by(|a, b| a.1.median().total_cmp(&b.1.median())).ok_or("no sizes")?;
        let part = chosen.with(fastest, |a, b| a / b);
        println!(
            "  {model:12} {:.0}/s of {:.0}/s with {best}: {:.3} ({:.3}..{:.3})   {}",
            chosen.median(),
            fastest.median(),
            part.median(),
            part.min(),
            part.max(),
            if part.median() >= 0.97 { "met" } else { "MISSED" }
        );
        rows.push(json!({
            "model": model, "learned": chosen.json(), "best_size": best, "of_best": part.json(),
            "fixed": by_size.iter().map(|(size, rounds)| json!({"size": size, "rate": rounds.json()})).collect::<Vec<_>>(),
        }));
    }
    Ok(rows.into())
}

fn start(repository: &Path, settings: &[String]) -> Result<Server> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(process::torchlane(repository, settings))
}

/// A repository with that model alone, in batches of at most `size`.
fn limited(repository: &Path, model: &str, size: usize) -> Result<tempfile::TempDir> {
    let copy = tempfile::tempdir()?;
    let (from, to) = (repository.join(model), copy.path().join(model));
    fs::create_dir_all(to.join("1"))?;
    std::os::unix::fs::symlink(fs::canonicalize(from.join("1/model.pt"))?, to.join("1/model.pt"))?;
    let text = fs::read_to_string(from.join("model.toml"))?;
    let mut table: toml::Table = text.parse()?;
    let limit = i64::try_from(size)?;
    table
        .entry("batching")
        .or_insert_with(|| toml::Table::new().into())
        .as_table_mut()
        .ok_or("batching is no table")?
        .insert("max_batch".into(), limit.into());
    // Shapes of larger batches would not fit.
    if let Some(warmup) = table.get_mut("warmup").and_then(toml::Value::as_table_mut) {
        warmup.remove("shapes");
    }
    fs::write(to.join("model.toml"), toml::to_string(&table)?)?;
    Ok(copy)
}
