//! `torchlane reload`

use super::{
    Failure,
    client::{ServerArgs, block_on, refused, show_bytes, show_duration, with_spinner},
    print_table,
};
use crate::proto;

/// The live version serves until the new one is warm; a failure leaves it serving.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model
    model: String,
    #[command(flatten)]
    server: ServerArgs,
    /// Version to put live [default: the newest on disk]
    #[arg(long, conflicts_with_all = ["rollback", "unload"])]
    version: Option<u64>,
    /// Refuse an archive with another sha256
    #[arg(long, value_name = "HEX", conflicts_with_all = ["rollback", "unload"])]
    sha256: Option<String>,
    /// Refuse weights with another sha256
    #[arg(long, value_name = "HEX", conflicts_with_all = ["rollback", "unload"])]
    weights_sha256: Option<String>,
    /// Verify, load and warm up, but change nothing
    #[arg(long, conflicts_with_all = ["rollback", "unload"])]
    validate_only: bool,
    /// Go back to the version that was live before
    #[arg(long, conflicts_with = "unload")]
    rollback: bool,
    /// Stop serving the model
    #[arg(long)]
    unload: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    block_on(async {
        let mut client = args.server.connect().await?;
        let model = args.model.clone();
        if args.unload {
            let request = proto::UnloadModelRequest { model: model.clone() };
            let done = client.unload_model(request).await.map_err(refused)?.into_inner();
            println!("{model}: version {} unloaded", done.unloaded_version);
            return Ok(());
        }
        let what = format!("{} {model}", if args.rollback { "rolling back" } else { "reloading" });
        let change = async {
            if args.rollback {
                return client.rollback_model(proto::RollbackModelRequest { model: model.clone() }).await;
            }
            let request = proto::ReloadModelRequest {
                model: model.clone(),
                version: args.version.map(|version| version.to_string()).unwrap_or_default(),
                expected_sha256: args.sha256.clone().unwrap_or_default(),
                expected_weights_sha256: args.weights_sha256.clone().unwrap_or_default(),
                validate_only: args.validate_only,
            };
            client.reload_model(request).await
        };
        let report = with_spinner(what, change).await.map_err(refused)?.into_inner();
        print(&report);
        Ok(())
    })
}

fn print(report: &proto::ReloadModelResponse) {
    let or_none = |version: &str| if version.is_empty() { "none".to_owned() } else { version.to_owned() };
    if report.validated_only {
        println!("{}: would load; version {} still serves", report.model, or_none(&report.live_version));
    } else {
        println!(
            "{}: version {} is live (was {}), generation {}",
            report.model,
            report.live_version,
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
    print_table(&["PHASE", "TIME"], &rows);
    if phases.rested.is_some_and(|rested| rested.seconds > 0 || rested.nanos >= 100_000_000) {
        let rested = show_duration(phases.rested);
        println!(
            "{rested} of the total at rest, or waiting for a CPU, so that others do not notice (loader.patience)"
        );
    }
    let warmup = report.warmup.unwrap_or_default();
    if warmup.passes == 0 {
        println!(
            "warm-up: no shape is known; declare some in model.toml ([warmup] shapes) to spare the first request"
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
