//! `torchlane reload`, `rollback` and `unload`

use tonic::{Response, Status};

use super::{
    Failure,
    client::{ServerArgs, block_on, refused, with_spinner},
    json::{JsonArgs, print_message},
    show::{Table, Tone, show_bytes, show_duration},
};
use crate::proto;

/// The live version serves until the new one is warm; a failure leaves it serving.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    of: Of,
    /// Version to put live [default: the newest on disk]
    #[arg(long)]
    version: Option<u64>,
    /// Reject an archive with another sha256
    #[arg(long, value_name = "HEX")]
    sha256: Option<String>,
    /// Reject weights with another sha256
    #[arg(long, value_name = "HEX")]
    weights_sha256: Option<String>,
    /// Verify, load and warm up, but change nothing
    #[arg(long)]
    validate_only: bool,
    /// As `torchlane rollback`
    #[arg(long, hide = true, conflicts_with_all = ["version", "sha256", "weights_sha256", "validate_only"])]
    rollback: bool,
    /// As `torchlane unload`
    #[arg(long, hide = true, conflicts_with_all = ["version", "sha256", "weights_sha256", "validate_only", "rollback"])]
    unload: bool,
}

/// Goes back to the version that was live before. Its files must still be the same.
#[derive(Debug, clap::Args)]
pub(super) struct RollbackArgs {
    #[command(flatten)]
    of: Of,
}

/// Requests in flight end, new ones are rejected until the model is loaded again.
#[derive(Debug, clap::Args)]
pub(super) struct UnloadArgs {
    #[command(flatten)]
    of: Of,
}

/// Which model, where, and how the answer is printed.
#[derive(Debug, clap::Args)]
struct Of {
    /// The model
    model: String,
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    output: JsonArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if args.rollback {
        return go_back(&args.of);
    }
    if args.unload {
        return stop_serving(&args.of);
    }
    block_on(async {
        let mut client = args.of.server.connect().await?;
        let request = proto::ReloadModelRequest {
            model: args.of.model.clone(),
            version: args.version.map(|version| version.to_string()).unwrap_or_default(),
            expected_sha256: args.sha256.clone().unwrap_or_default(),
            expected_weights_sha256: args.weights_sha256.clone().unwrap_or_default(),
            validate_only: args.validate_only,
        };
        args.of.report("reloading", client.reload_model(request)).await
    })
}

pub(super) fn rollback(args: &RollbackArgs) -> Result<(), Failure> {
    go_back(&args.of)
}

pub(super) fn unload(args: &UnloadArgs) -> Result<(), Failure> {
    stop_serving(&args.of)
}

fn go_back(of: &Of) -> Result<(), Failure> {
    block_on(async {
        let mut client = of.server.connect().await?;
        let request = proto::RollbackModelRequest { model: of.model.clone() };
        of.report("rolling back", client.rollback_model(request)).await
    })
}

fn stop_serving(of: &Of) -> Result<(), Failure> {
    block_on(async {
        let mut client = of.server.connect().await?;
        let request = proto::UnloadModelRequest { model: of.model.clone() };
        let done = client.unload_model(request).await.map_err(refused)?.into_inner();
        if of.output.json {
            return print_message("UnloadModelResponse", &done);
        }
        println!("{}: version {} is unloaded", of.model, done.unloaded_version);
        Ok(())
    })
}

impl Of {
    /// Waits for a change and prints what came of it.
    async fn report(
        &self,
        doing: &str,
        change: impl Future<Output = Result<Response<proto::ReloadModelResponse>, Status>>,
    ) -> Result<(), Failure> {
        let report = with_spinner(format!("{doing} {}", self.model), change).await;
        let report = report.map_err(refused)?.into_inner();
        if self.output.json {
            return print_message("ReloadModelResponse", &report);
        }
        print(&report);
        Ok(())
    }
}

fn print(report: &proto::ReloadModelResponse) {
    let or_none = |version: &str| if version.is_empty() { "none".to_owned() } else { version.to_owned() };
    if report.validated_only {
        println!("{}: would load; version {} still serves", report.model, or_none(&report.live_version));
    } else {
        println!(
            "{}: version {} is {} (was {}), generation {}",
            report.model,
            report.live_version,
            Tone::Good.paint("live"),
            or_none(&report.previous_version),
            report.generation
        );
    }
    println!("sha256 {}  {}", report.sha256, show_bytes(report.bytes));
    if !report.weights_sha256.is_empty() {
        println!("weights {}", report.weights_sha256);
    }
    let phases = report.phases.unwrap_or_default();
    let rows: Vec<_> = [
        ("verify", phases.verify),
        ("load", phases.load),
        ("warm-up", phases.warm_up),
        ("check", phases.check),
        ("swap", phases.swap),
        ("drain", phases.drain),
        ("total", phases.total),
    ]
    .into_iter()
    .map(|(name, took)| vec![name.to_owned(), show_duration(took)])
    .collect();
    Table::new(&["PHASE", "TIME"], rows).print();
    if phases.rested.is_some_and(|rested| rested.seconds > 0 || rested.nanos >= 100_000_000) {
        let rested = show_duration(phases.rested);
        println!(
            "for {rested} of the total, the load rested or waited for a CPU so that requests go undisturbed (loader.patience)"
        );
    }
    let warmup = report.warmup.unwrap_or_default();
    if warmup.passes == 0 {
        println!(
            "warm-up: none, no shape is known; declare some in model.toml ([warmup] shapes) so that the first request is fast"
        );
    } else {
        println!(
            "warm-up: {} passes over {} shapes, slowest first pass {}, then {}{}",
            warmup.passes,
            warmup.shapes,
            show_duration(warmup.first_pass),
            show_duration(warmup.steady_pass),
            if warmup.steady { "" } else { " (not all shapes became steady)" }
        );
    }
    let check = report.check.unwrap_or_default();
    if check.samples > 0 {
        let from = |difference: Option<f64>, what: &str| {
            difference.map(|difference| format!(", at most {difference:.3e} from {what}")).unwrap_or_default()
        };
        let (expected, live) = (
            from(check.from_expected, "what they expect"),
            from(check.from_live, "the version that was live"),
        );
        println!("check: {} samples{expected}{live}", check.samples);
    }
}
