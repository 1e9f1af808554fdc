//! `torchlane bench`

use std::{
    io::IsTerminal as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    Failure,
    client::{ServerArgs, block_on},
    json::print_json,
    show::{Cell, Table, Tone},
};
use crate::{
    load::{self, LoadSpec, Pace, Protocol, Report, RunConfig},
    model::Lane,
};

/// Sends load to a server and shows how long answers take. With a rate, requests go out by plan whatever the server does
/// and time counts from when they were due; with callers, each sends its next request when it has its answer.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  torchlane bench digits --rate 200 --duration 10s\n  torchlane bench digits --callers 32\n  torchlane bench --load model=digits,rate=25,priority=critical,timeout=50ms --load model=digits,callers=64,priority=low\n  torchlane bench simple --protocol oip --addr 127.0.0.1:8001 --rate 100 --json out.json --svg out.svg"
)]
pub(super) struct Args {
    /// The model, for a single load; several are given with --load
    #[arg(required_unless_present = "load", conflicts_with = "load")]
    model: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// What the server speaks
    #[arg(long, value_enum, default_value_t)]
    protocol: Protocol,
    /// Open loop: requests a second
    #[arg(long, conflicts_with = "callers")]
    rate: Option<f64>,
    /// Closed loop: callers that each wait for their answers [default: 1]
    #[arg(long)]
    callers: Option<usize>,
    /// Rows in each request
    #[arg(long, default_value_t = 1)]
    rows: usize,
    /// critical, high, normal or low
    #[arg(long)]
    priority: Option<Lane>,
    /// Deadline of each request, as in 50ms
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// A load as key=value,...; may be given several times: all run at once
    #[arg(long, value_name = "SPEC", value_parser = clap::value_parser!(LoadSpec))]
    load: Vec<LoadSpec>,
    /// Time that is counted
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// Time before that
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = humantime::parse_duration)]
    warm_up: Duration,
    /// Connections for each load
    #[arg(long, default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1000))]
    connections: usize,
    /// Makes arrivals and tensors the same again
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write everything as JSON to a file; - prints it in place of the table
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// Write latency by percentile as a picture
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

impl Args {
    fn loads(&self) -> Result<Vec<LoadSpec>, Failure> {
        let Some(model) = &self.model else { return Ok(self.load.clone()) };
        // One way in: what holds for --load holds here.
        let mut text = format!("model={model},rows={}", self.rows);
        if let Some(rate) = self.rate {
            text.push_str(&format!(",rate={rate}"));
        }
        if let Some(callers) = self.callers {
            text.push_str(&format!(",callers={callers}"));
        }
        let spec: LoadSpec = text.parse().map_err(Failure::Usage)?;
        Ok(vec![LoadSpec { priority: self.priority, timeout: self.timeout, ..spec }])
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let loads = args.loads()?;
    if args.duration.is_zero() {
        return Err(Failure::Usage("--duration 0s: nothing would be counted".to_owned()));
    }
    if args.svg.as_deref() == Some(Path::new("-")) {
        return Err(Failure::Usage("--svg -: a picture goes to a file: name one".to_owned()));
    }
    let prints_json = args.json.as_deref() == Some(Path::new("-"));
    let json_file = args.json.as_ref().filter(|_| !prints_json);
    // Better now than after the run.
    for path in [json_file, args.svg.as_ref()].into_iter().flatten() {
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
        opened.map_err(|error| Failure::Usage(format!("{}: {error}", path.display())))?;
    }
    let config = RunConfig {
        addr: args.server.checked()?.to_owned(),
        protocol: args.protocol,
        warm_up: args.warm_up,
        duration: args.duration,
        connections: args.connections,
        seed: args.seed,
    };
    let report = block_on(async {
        let bar = indicatif::ProgressBar::new(1000);
        let style =
            indicatif::ProgressStyle::with_template("{bar:40} {percent:>3} %  {elapsed} of about {msg}");
        bar.set_style(style.unwrap_or_else(|_| indicatif::ProgressStyle::default_bar()));
        bar.set_message(humantime::format_duration(args.warm_up + args.duration).to_string());
        if !std::io::stderr().is_terminal() {
            bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        }
        let outcome = load::run(&config, &loads, |part| bar.set_position((part * 1000.0) as u64)).await;
        bar.finish_and_clear();
        outcome.map_err(Failure::failed)
    })?;
    if prints_json {
        print_json(&report)?;
    } else {
        show(&report, &loads);
    }
    let write = |path: &PathBuf, text: String| {
        std::fs::write(path, text).map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
    };
    if let Some(path) = json_file {
        write(path, serde_json::to_string_pretty(&report).map_err(Failure::failed)?)?;
    }
    if let Some(path) = &args.svg {
        write(path, load::svg(&format!("torchlane bench, {} s", report.seconds), &report))?;
    }
    if report.loads.iter().all(|load| load.ok == 0) {
        return Err(Failure::Failed("no request was answered well".to_owned()));
    }
    Ok(())
}

fn show(report: &Report, loads: &[LoadSpec]) {
    let ms = |value: f64| if value < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") };
    let rows: Vec<_> = report
        .loads
        .iter()
        .map(|load| {
            let l = &load.latency;
            let mut row: Vec<Cell> =
                [load.name.clone(), load.pace.clone(), load.ok.to_string(), format!("{:.0}", load.rate)]
                    .map(Cell::from)
                    .into();
            row.extend([l.p50, l.p90, l.p99, l.p999, l.max].map(ms).map(Cell::from));
            row.push(Cell::toned(load.errors_in_words(), Tone::Warn));
            row
        })
        .collect();
    let header = ["LOAD", "SENT AS", "OK", "OK/S", "P50 MS", "P90", "P99", "P99.9", "MAX", "NOT OK"];
    Table::new(&header, rows).spare(&["SENT AS", "P90"]).print();
    let plot = load::percentiles(report, 64, 14);
    if !plot.is_empty() {
        println!("\n{}", plot.trim_end());
    }
    for (load, spec) in report.loads.iter().zip(loads) {
        if matches!(spec.pace, Pace::Open { .. })
            && load.generator_lag_p99_ms > 0.2 * load.latency.p99.max(1.0)
        {
            println!(
                "\nnote: for '{}' the generator itself was late by {} ms at p99, which is part of its latencies",
                load.name,
                ms(load.generator_lag_p99_ms)
            );
        }
    }
}
