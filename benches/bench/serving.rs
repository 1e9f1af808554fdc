//! `make bench`: torchlane beside a tonic echo of the same messages and a plain libtorch loop over the same archives.

use std::{path::PathBuf, time::Duration};

use prost::Message as _;
use serde_json::{Value, json};
use torchlane::proto;

use crate::{
    Result,
    load::{self, Caller},
    models::{MODELS, Model},
    process::{self, Plain, Server},
    stats::{self, Rounds, percentile},
};

/// A little more than a server takes to see that it is at rest.
const REST: Duration = Duration::from_secs(12);

pub struct Plan {
    pub repository: PathBuf,
    pub rounds: usize,
    pub seconds: f64,
    pub models: Vec<String>,
    pub callers: Vec<usize>,
    pub set: Vec<String>,
    pub json: PathBuf,
}

/// One subject under one model and one number of callers.
#[derive(Default)]
struct Cell {
    rate: Rounds,
    p50: Rounds,
    p99: Rounds,
    /// Microseconds a request.
    cpu: Rounds,
}

struct Row {
    model: &'static Model,
    callers: usize,
    echo: Cell,
    torchlane: Cell,
    /// Microseconds of the forward pass as the server times it, for one caller.
    forward: Rounds,
}

struct Loop {
    /// The size with the most items a second.
    batch: i64,
    /// Items a second at that size.
    rate: Rounds,
    /// Microseconds of a pass of one item.
    single: Rounds,
}

#[tokio::main(flavor = "current_thread")]
pub async fn run(plan: &Plan) -> Result<()> {
    let chosen: Vec<&'static Model> = MODELS
        .iter()
        .filter(|model| plan.models.is_empty() || plan.models.iter().any(|name| name == model.name))
        .collect();
    let cpus = torchlane::app::cpu_quota();

    let ready = time_to_ready(plan.rounds).await?;
    let echo = process::echo()?;
    let torchlane = process::torchlane(&plan.repository, &plan.set).await?;
    let resident_at_ready = torchlane.process.resident()?;
    let mut plain = Plain::start(&plan.repository, cpus)?;

    let mut loops = Vec::new();
    for model in &chosen {
        loops.push(best_batch(&mut plain, model, plan.seconds)?);
    }
    let most = plan.callers.iter().copied().max().unwrap_or(1);
    let (to_echo, to_torchlane) = (connect(&echo, most).await?, connect(&torchlane, most).await?);
    for model in &chosen {
        for caller in [&to_echo[0], &to_torchlane[0]] {
            model.check(&caller.clone().infer(model.request()).await?)?;
        }
    }

    let mut rows: Vec<Row> = Vec::new();
    for model in &chosen {
        for &callers in &plan.callers {
            rows.push(Row {
                model,
                callers,
                echo: Cell::default(),
                torchlane: Cell::default(),
                forward: Rounds::default(),
            });
        }
    }
    for round in 0..plan.rounds {
        eprintln!("round {} of {}", round + 1, plan.rounds);
        for row in &mut rows {
            let request = row.model.request();
            let long = Duration::from_secs_f64(plan.seconds * row.model.longer);
            let last = row.callers == most;
            // Each goes first every other time.
            for turn in 0..2 {
                if (turn + round) % 2 == 0 {
                    row.echo.measure(&echo, &to_echo[..row.callers], &request, long).await?;
                } else {
                    row.torchlane.measure(&torchlane, &to_torchlane[..row.callers], &request, long).await?;
                }
            }
            if row.callers == 1 {
                row.forward.0.push(forward(&to_torchlane[0], &request).await?);
            }
            // Next to the load that it is compared with.
            if let Some(Some(own)) =
                chosen.iter().position(|m| m.name == row.model.name).map(|i| loops[i].as_mut())
                && last
            {
                own.rate.0.push(plain.run(row.model.name, own.batch, long.as_secs_f64())?);
                own.single.0.push(1e6 * cpus as f64 / plain.run(row.model.name, 1, plan.seconds)?);
            }
        }
    }
    let memory = (torchlane.process.resident()?, plain.process.resident()?);
    // A server at rest gives back what the load took.
    tokio::time::sleep(REST).await;
    let at_rest = torchlane.process.resident()?;

    print_table(&rows);
    let loops: Vec<(&Model, Loop)> =
        chosen.iter().zip(loops).filter_map(|(model, own)| Some((*model, own?))).collect();
    print_loops(&rows, &loops, most);
    let mb = |bytes: u64| bytes as f64 / 1e6;
    println!(
        "\nReady {:.0} ms after its start (models/, {:.0} to {:.0} ms). Resident, all models: {:.0} MB when ready, {:.0} MB \
         after the load, {:.0} MB at rest; the plain loop {:.0} MB after its own.",
        ready.median(),
        ready.min(),
        ready.max(),
        mb(resident_at_ready),
        mb(memory.0),
        mb(at_rest),
        mb(memory.1),
    );
    let value = json!({
        "machine": stats::machine(),
        "seconds": plan.seconds,
        "settings": plan.set,
        "ready_ms": ready.json(),
        "resident_bytes": {"torchlane_ready": resident_at_ready, "torchlane": memory.0, "torchlane_at_rest": at_rest, "plain": memory.1},
        "serving": rows.iter().map(Row::json).collect::<Vec<_>>(),
        "plain": loops.iter().map(|(model, own)| json!({
            "model": model.name, "batch": own.batch, "threads": cpus, "items_per_second": own.rate.json(),
            "one_item_us": own.single.json(),
        })).collect::<Vec<_>>(),
    });
    stats::write_json(&plan.json, &value)
}

async fn connect(server: &Server, callers: usize) -> Result<Vec<Caller>> {
    let mut all = Vec::new();
    for _ in 0..callers {
        all.push(Caller::connect(server.grpc).await?);
    }
    Ok(all)
}

/// The median of what the server says of its forward passes, in microseconds.
async fn forward(caller: &Caller, request: &bytes::Bytes) -> Result<f64> {
    let mut passes = Rounds::default();
    for _ in 0..200 {
        let answer = proto::InferResponse::decode(caller.clone().infer(request.clone()).await?)?;
        let compute = answer.timing.and_then(|timing| timing.compute).unwrap_or_default();
        passes.0.push(f64::from(compute.nanos) / 1e3);
    }
    Ok(passes.median())
}

/// Of the sample models, as `make run` starts them. Milliseconds.
async fn time_to_ready(times: usize) -> Result<Rounds> {
    let mut ready = Rounds::default();
    for _ in 0..times {
        let server = process::torchlane("models".as_ref(), &[]).await?;
        ready.0.push(server.ready.as_secs_f64() * 1e3);
    }
    Ok(ready)
}

/// The batch size with the most items a second, by the median of three interleaved tries: sizes are often close.
/// `None` where there is nothing to compute.
fn best_batch(plain: &mut Plain, model: &Model, seconds: f64) -> Result<Option<Loop>> {
    let mut tried: Vec<(i64, Rounds)> =
        model.batches.iter().map(|batch| (*batch, Rounds::default())).collect();
    for _ in 0..3 {
        for (batch, rate) in &mut tried {
            rate.0.push(plain.run(model.name, *batch, seconds)?);
        }
    }
    let best = tried.into_iter().max_by(|(_, a), (_, b)| a.median().total_cmp(&b.median()));
    Ok(best.map(|(batch, _)| Loop { batch, rate: Rounds::default(), single: Rounds::default() }))
}

impl Cell {
    async fn measure(
        &mut self,
        server: &Server,
        callers: &[Caller],
        request: &bytes::Bytes,
        long: Duration,
    ) -> Result<()> {
        let seen =
            load::closed_loop(callers, request, long.mul_f64(0.3), long, || server.process.cpu()).await?;
        if seen.failed > 0 || seen.latencies.is_empty() {
            return Err(format!("{} requests failed", seen.failed).into());
        }
        let count = seen.latencies.len() as f64;
        self.rate.0.push(seen.rate);
        self.p50.0.push(percentile(&seen.latencies, 0.5));
        self.p99.0.push(percentile(&seen.latencies, 0.99));
        self.cpu.0.push(seen.cpu.as_secs_f64() * 1e6 / count);
        Ok(())
    }

    fn json(&self) -> Value {
        json!({
            "requests_per_second": self.rate.json(),
            "p50_us": self.p50.json(),
            "p99_us": self.p99.json(),
            "cpu_us_per_request": self.cpu.json(),
        })
    }
}

impl Row {
    /// torchlane's throughput in echoes.
    fn ratio(&self) -> Rounds {
        self.torchlane.rate.with(&self.echo.rate, |own, echo| own / echo)
    }

    /// What the median request takes over an echo's, in microseconds.
    fn over_echo(&self) -> Rounds {
        self.torchlane.p50.with(&self.echo.p50, |own, echo| own - echo)
    }

    fn json(&self) -> Value {
        json!({
            "model": self.model.name,
            "callers": self.callers,
            "echo": self.echo.json(),
            "torchlane": self.torchlane.json(),
            "rate_over_echo": self.ratio().json(),
            "p50_over_echo_us": self.over_echo().json(),
            "forward_us": (self.callers == 1).then(|| self.forward.json()),
        })
    }
}

fn print_table(rows: &[Row]) {
    println!(
        "\n| model | callers | requests/s | of echo | p50 µs | over echo | of it forward | p99 µs | echo's | CPU µs/request | echo's |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for row in rows {
        let forward = if row.callers == 1 { format!("{:.0}", row.forward.median()) } else { String::new() };
        let (own, echo, ratio, over) = (&row.torchlane, &row.echo, row.ratio(), row.over_echo());
        println!(
            "| {} | {} | {:.0} ({:.0} to {:.0}) | {:.2} ({:.2} to {:.2}) | {:.0} | {:+.0} ({:+.0} to {:+.0}) | {forward} | {:.0} | {:.0} | {:.0} | {:.0} |",
            row.model.name,
            row.callers,
            own.rate.median(),
            own.rate.min(),
            own.rate.max(),
            ratio.median(),
            ratio.min(),
            ratio.max(),
            own.p50.median(),
            over.median(),
            over.min(),
            over.max(),
            own.p99.median(),
            echo.p99.median(),
            own.cpu.median(),
            echo.cpu.median(),
        );
    }
}

fn print_loops(rows: &[Row], loops: &[(&Model, Loop)], most: usize) {
    println!(
        "\n| model | plain loop, items/s | best batch | torchlane, {most} callers | of the loop | a pass of one item, µs |"
    );
    println!("|---|--:|--:|--:|--:|--:|");
    for (model, own) in loops {
        let Some(row) = rows.iter().find(|row| row.model.name == model.name && row.callers == most) else {
            continue;
        };
        let ratio = row.torchlane.rate.with(&own.rate, |served, plain| served / plain);
        println!(
            "| {} | {:.1} ({:.1} to {:.1}) | {} | {:.1} | {:.3} ({:.3} to {:.3}) | {:.0} |",
            model.name,
            own.rate.median(),
            own.rate.min(),
            own.rate.max(),
            own.batch,
            row.torchlane.rate.median(),
            ratio.median(),
            ratio.min(),
            ratio.max(),
            own.single.median(),
        );
    }
}
