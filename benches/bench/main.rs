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

mod canary;
mod echo;
mod fenced;
mod isolation;
mod load;
mod lookup;
mod models;
mod picture;
mod plain;
mod process;
mod reload;
mod residency;
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
        /// Windows with reloads for each without
        #[arg(long, default_value_t = 3)]
        busy: usize,
        /// End after so many minutes in each scenario, with fewer reloads
        #[arg(long)]
        minutes: Option<f64>,
        /// Only these scenarios: same, other
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        #[arg(long, default_value = "target/bench/fenced.json")]
        json: PathBuf,
        /// Where the picture goes
        #[arg(long, default_value = "target/bench/fenced.svg")]
        svg: PathBuf,
    },
    /// Bad versions rolled out beside a sound one under a steady load: how soon they are rolled back
    Canary {
        /// Repository that tools/models/bench_models.py made
        #[arg(long, default_value = "bench-models")]
        repository: PathBuf,
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Requests a second
        #[arg(long, default_value_t = 100.0)]
        rate: f64,
        /// Only these scenarios: throws, slow, drifts, sound, sound-shadow
        #[arg(long, value_delimiter = ',')]
        only: Vec<String>,
        #[arg(long, default_value = "target/bench/canary.json")]
        json: PathBuf,
        /// Where the picture goes
        #[arg(long, default_value = "target/bench/canary.svg")]
        svg: PathBuf,
    },
    /// A thousand lazy models with room for fifty: how many requests find theirs in memory, and what the others wait
    Residency {
        #[arg(long, default_value_t = 1000)]
        models: usize,
        /// Models that the budget has room for
        #[arg(long, default_value_t = 50)]
        room: usize,
        #[arg(long, default_value_t = 4)]
        callers: usize,
        /// Length of each measurement, in seconds
        #[arg(long, default_value_t = 90.0)]
        seconds: f64,
        /// Exponents of Zipf's law that the traffic follows
        #[arg(long, value_delimiter = ',', default_value = "1.0,1.2")]
        exponents: Vec<f64>,
        #[arg(long, default_value = "target/bench/residency.json")]
        json: PathBuf,
        /// Where the picture goes
        #[arg(long, default_value = "target/bench/residency.svg")]
        svg: PathBuf,
    },
    /// What it costs to find a model among 10 to 10,000
    Lookup {
        #[arg(long, default_value_t = 9)]
        rounds: usize,
        /// Numbers of models
        #[arg(long, value_delimiter = ',', default_value = "10,100,1000,10000")]
        models: Vec<usize>,
        /// Length of each measurement over the wire, in seconds
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        #[arg(long, default_value = "target/bench/lookup.json")]
        json: PathBuf,
        /// Where the picture goes
        #[arg(long, default_value = "target/bench/lookup.svg")]
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
        What::Fenced { repository, reloads, seconds, busy, minutes, load, only, json, svg } => {
            fenced::run(&fenced::Plan { repository, reloads, seconds, busy, minutes, load, only, json, svg })
        }
        What::Canary { repository, rounds, rate, only, json, svg } => {
            canary::run(&canary::Plan { repository, rounds, rate, only, json, svg })
        }
        What::Residency { models, room, callers, seconds, exponents, json, svg } => {
            residency::run(&residency::Plan { models, room, callers, seconds, exponents, json, svg })
        }
        What::Lookup { rounds, models, seconds, json, svg } => {
            lookup::run(&lookup::Plan { rounds, models, seconds, json, svg })
        }
        What::Echo => echo::serve(),
        What::Plain { repository, threads } => plain::obey(&repository, threads),
    }
}
