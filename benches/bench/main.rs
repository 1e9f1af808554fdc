//! torchlane measured: `make bench`, `make bench-isolation` and `make bench-reload`.
//!
//! Everything runs on this machine and over loopback. The subjects are processes of their own (the shipped binary, a
//! tonic echo, a plain libtorch loop), so that their CPU time and memory can be told from the load generator's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    missing_docs,
    unreachable_pub
)]

mod echo;
mod fenced;
mod isolation;
mod load;
mod models;
mod plain;
mod process;
mod reload;
mod sched;
mod serving;
mod stats;

use std::path::PathBuf;

use clap::Parser;

pub type Error = Box<dyn std::error::Error + Send + Sync>;
pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Parser)]
#[command(about = "Measures torchlane on this machine")]
struct Args {
    /// Cargo passes this to every benchmark
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Throughput, latency and CPU time beside a tonic echo and a plain libtorch loop
    Serving {
        /// Repository that tools/models/bench_models.py made
        #[arg(long, default_value = "bench-models")]
        repository: PathBuf,
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Length of each measurement, in seconds
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// Only these models
        #[arg(long, value_delimiter = ',')]
        models: Vec<String>,
        /// Only these numbers of callers
        #[arg(long, value_delimiter = ',', default_value = "1,8,32")]
        callers: Vec<usize>,
        /// Settings of the server, as in `torchlane serve --set`
        #[arg(long)]
        set: Vec<String>,
        /// Where the JSON goes
        #[arg(long, default_value = "target/bench/serving.json")]
        json: PathBuf,
    },
    /// What the scheduler costs without a model: jobs a second on one CPU, and the run queue at a million jobs
    Scheduler {
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        #[arg(long, default_value = "target/bench/scheduler.json")]
        json: PathBuf,
    },
    /// Priorities, tenants, deadlines and batch sizes under floods
    Isolation {
        /// Repository that tools/models/bench_models.py made
        #[arg(long, default_value = "bench-models")]
        repository: PathBuf,
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Length of each measurement, in seconds
        #[arg(long, default_value_t = 4.0)]
        seconds: f64,
        /// Only these scenarios: same, other, tenants, deadlines, batches
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        #[arg(long, default_value = "target/bench/isolation.json")]
        json: PathBuf,
        /// Where the picture goes
        #[arg(long, default_value = "target/bench/isolation.svg")]
        svg: PathBuf,
    },
    /// Reloads between two versions while clients send without pause: every answer checked, memory watched
    Reload {
        #[arg(long, default_value_t = 100)]
        reloads: usize,
        #[arg(long, default_value_t = 4)]
        callers: usize,
        #[arg(long, default_value = "target/bench/reload.json")]
        json: PathBuf,
    },
    /// A steady load, and reloads of a model of 45 MB back to back: what those who are served notice of them
    Fenced {
        /// Repository that tools/models/bench_models.py made
        #[arg(long, default_value = "bench-models")]
        repository: PathBuf,
        #[arg(long, default_value_t = 1000)]
        reloads: usize,
        /// Length of each window with or without reloads, in seconds
        #[arg(long, default_value_t = 20.0)]
        seconds: f64,
        /// Part of capacity that is sent
        #[arg(long, default_value_t = 0.7)]
        load: f64,
        /// Only these scenarios: same, other
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        #[arg(long, default_value = "target/bench/fenced.json")]
        json: PathBuf,
        /// Where the picture goes
        #[arg(long, default_value = "target/bench/fenced.svg")]
        svg: PathBuf,
    },
    /// A tonic server that answers without a model
    #[command(hide = true)]
    Echo,
    /// Forward passes without a server
    #[command(hide = true)]
    Plain {
        repository: PathBuf,
        #[arg(long)]
        threads: usize,
    },
}

fn main() -> Result<()> {
    match Args::parse().what {
        What::Serving { repository, rounds, seconds, models, callers, set, json } => {
            serving::run(&serving::Plan { repository, rounds, seconds, models, callers, set, json })
        }
        What::Scheduler { rounds, json } => sched::run(rounds, &json),
        What::Isolation { repository, rounds, seconds, only, json, svg } => {
            isolation::run(&isolation::Plan { repository, rounds, seconds, only, json, svg })
        }
        What::Reload { reloads, callers, json } => reload::run(reloads, callers, &json),
        What::Fenced { repository, reloads, seconds, load, only, json, svg } => {
            fenced::run(&fenced::Plan { repository, reloads, seconds, load, only, json, svg })
        }
        What::Echo => echo::serve(),
        What::Plain { repository, threads } => plain::obey(&repository, threads),
    }
}
