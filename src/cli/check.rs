//! `torchlane check`

use super::{Failure, print_table, serve::ConfigArgs};
use crate::{
    app::{self, ModelCheck},
    telemetry,
};

/// Exits with 1 if a version that a server would load does not load. Warnings of the loads go to standard error.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only the configuration: load nothing
    #[arg(long)]
    no_models: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let layered = args.config.load()?;
    let rows: Vec<_> =
        layered.provenance.into_iter().map(|row| vec![row.key, row.value, row.source]).collect();
    print_table(&["SETTING", "VALUE", "FROM"], &rows);
    if args.no_models {
        return Ok(());
    }
    println!();
    let format = layered.settings.log.format;
    let until_written = telemetry::init_logging(format, "warn").map_err(Failure::Usage)?;
    let checks = app::check_models(&layered.settings).map_err(Failure::failed);
    drop(until_written);
    let checks = checks?;
    let bad = checks.iter().filter(|check| check.problem.is_some()).count();
    let warned = |ModelCheck { name, warnings, .. }: &ModelCheck| -> Vec<String> {
        warnings.iter().map(|warning| format!("{name}: {warning}")).collect()
    };
    let warnings: Vec<String> = checks.iter().flat_map(warned).collect();
    let rows: Vec<_> = checks
        .into_iter()
        .map(|check| {
            let version = check.version.map_or_else(|| "-".to_owned(), |v| v.to_string());
            vec![check.name, version, check.problem.unwrap_or_else(|| "ok".to_owned())]
        })
        .collect();
    print_table(&["MODEL", "VERSION", "RESULT"], &rows);
    if !warnings.is_empty() {
        println!("\nWarnings:");
        warnings.iter().for_each(|warning| println!("{warning}"));
    }
    if bad > 0 {
        return Err(Failure::Failed(format!("{bad} of {} would not load", rows.len())));
    }
    Ok(())
}
