//! `torchlane serve`

use std::path::PathBuf;

use super::Failure;
use crate::{app, backend, config, telemetry, threads};

/// Settings come from torchlane.toml, then the environment (TORCHLANE_SERVER__GRACE=5s), then these flags.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) config: ConfigArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct ConfigArgs {
    /// Configuration file [default: torchlane.toml, if it is there]
    #[arg(long, value_name = "FILE", env = "TORCHLANE_CONFIG")]
    config: Option<PathBuf>,
    /// Directory that holds models, or URL of an object store (s3://bucket/prefix); may be given several times
    /// [default: models]
    #[arg(long, value_name = "DIR|URL")]
    repository: Vec<PathBuf>,
    /// Address of the gRPC server [default: 127.0.0.1:50051]
    #[arg(long, value_name = "ADDR")]
    grpc_addr: Option<String>,
    /// Address of the REST routes (/v2), the console (/), /metrics, /livez and /readyz [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    http_addr: Option<String>,
    /// pretty or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// Start even if the repositories hold no model
    #[arg(long)]
    allow_empty: bool,
    /// Record so many requests of each model, with their answers, as samples for the check of later versions
    #[arg(long, value_name = "N")]
    record_samples: Option<usize>,
    /// Any other setting, as in --set server.grace=5s; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl ConfigArgs {
    pub(super) fn load(&self) -> Result<config::Layered, Failure> {
        let mut flags = Vec::new();
        for pair in &self.set {
            let (key, value) = pair.split_once('=').filter(|(key, _)| !key.is_empty()).ok_or_else(|| {
                Failure::Usage(format!("--set {pair}: write it as --set key=value, as in server.grace=5s"))
            })?;
            flags.push((key.to_owned(), value.to_owned()));
        }
        if !self.repository.is_empty() {
            let paths: Vec<String> = self.repository.iter().map(|path| path.display().to_string()).collect();
            let list = serde_json::to_string(&paths).map_err(Failure::failed)?;
            flags.push(("repositories".to_owned(), list));
        }
        let named = [
            ("server.grpc_addr", &self.grpc_addr),
            ("server.http_addr", &self.http_addr),
            ("log.format", &self.log_format),
        ];
        flags.extend(named.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value.clone()?))));
        flags.extend(self.record_samples.map(|count| ("samples.record".to_owned(), count.to_string())));
        if self.allow_empty {
            flags.push(("allow_empty".to_owned(), "true".to_owned()));
        }
        config::load(self.config.as_deref(), &flags).map_err(|error| Failure::Usage(error.to_string()))
    }
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    // Before anything that takes time: a signal that nobody listens for ends the process at once.
    let beginning = app::Beginning::now().map_err(Failure::failed)?;
    let settings = args.config.load()?.settings;
    threads::check().map_err(|error| {
        Failure::Failed(format!(
            "cannot start a thread ({error}): raise the limit on processes (pids.max, ulimit -u)"
        ))
    })?;
    let until_written =
        telemetry::init_logging(settings.log.format, &settings.log.level).map_err(Failure::Usage)?;
    backend::report_crashes(settings.log.format == config::LogFormat::Json);
    let outcome = app::serve(beginning, settings).map_err(Failure::failed);
    drop(until_written);
    if outcome.is_ok() && threads::left_behind() {
        exit_at_once();
    }
    outcome
}

/// Ends the process while threads may still be in the middle of a pass or a load.
fn exit_at_once() -> ! {
    #[cfg(feature = "torch")]
    torchlane_torch::exit_at_once(0);
    #[cfg(not(feature = "torch"))]
    std::process::exit(0)
}
