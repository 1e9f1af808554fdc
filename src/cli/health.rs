//! `torchlane health`

use std::time::Duration;

use serde::Serialize;
use tonic::{Code, Request};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    Failure,
    client::{ServerArgs, block_on, refused},
    json::{JsonArgs, print_json},
    show::Tone,
};
use crate::api::health::API;

/// Asks grpc.health.v1.Health. The exit status is 0 if the answer is SERVING and 1 otherwise, so the command suits probes.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  torchlane health                 # ready for requests?\n  torchlane health --live          # alive, though perhaps still loading?\n  torchlane health digits          # does this model answer?\n  HEALTHCHECK CMD [\"torchlane\", \"health\", \"--live\"]"
)]
pub(super) struct Args {
    /// The model to ask about [default: the server]
    #[arg(conflicts_with = "live")]
    model: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// Ask whether the process is alive, as a liveness probe does
    #[arg(long)]
    live: bool,
    /// Longest wait for the answer
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    #[command(flatten)]
    output: JsonArgs,
}

#[derive(Debug, Serialize)]
struct Answer<'a> {
    addr: &'a str,
    /// As in the health protocol: empty is the server.
    service: &'a str,
    status: &'static str,
    serving: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let service = if args.live { API } else { args.model.as_deref().unwrap_or_default() };
    let ask = async {
        let mut client = HealthClient::new(args.server.channel().await?);
        let asked = Request::new(HealthCheckRequest { service: service.to_owned() });
        match client.check(asked).await {
            Ok(answer) => Ok(answer.into_inner().status()),
            Err(status) if status.code() == Code::NotFound => Ok(ServingStatus::ServiceUnknown),
            Err(status) => Err(refused(status)),
        }
    };
    let status = block_on(async {
        tokio::time::timeout(args.timeout, ask).await.unwrap_or_else(|_| {
            let waited = humantime::format_duration(args.timeout);
            Err(Failure::Failed(format!("no answer from {} within {waited} (--timeout)", args.server.addr())))
        })
    })?;
    let serving = status == ServingStatus::Serving;
    let answer = Answer { addr: args.server.addr(), service, status: status.as_str_name(), serving };
    let what = match (&args.model, args.live) {
        (Some(model), _) => format!("model '{model}'"),
        (None, true) => format!("the process at {}", answer.addr),
        (None, false) => format!("the server at {}", answer.addr),
    };
    if args.output.json {
        print_json(&answer)?;
    } else if serving {
        println!("{what}: {}", Tone::Good.paint(answer.status));
    }
    match (serving, status) {
        (true, _) => Ok(()),
        (false, ServingStatus::ServiceUnknown) => {
            Err(Failure::Failed(format!("{what}: the server has none of that name: see `torchlane models`")))
        }
        (false, _) => Err(Failure::Failed(format!("{what}: {}", answer.status))),
    }
}
