//! `torchlane rollout`

use std::{io::IsTerminal as _, time::Duration};

use super::{
    Failure,
    client::{ServerArgs, block_on, refused, with_spinner},
    json::{JsonArgs, print_line_of, print_message},
    show::{Tone, show_duration},
};
use crate::{
    client::Stub,
    proto::{self, RolloutAction, RolloutState, RolloutStrategy},
};

/// Without anything to change: how it stands.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model
    model: String,
    #[command(flatten)]
    server: ServerArgs,
    /// Version to roll out [default: the one that is, else the newest on disk]
    #[arg(long, conflicts_with_all = ["promote", "abort"])]
    version: Option<u64>,
    /// Send a percent of the callers to it; several, one after the other: --canary 1,10,50
    #[arg(long, value_name = "PERCENT", value_delimiter = ',', group = "how")]
    canary: Vec<f64>,
    /// Run a percent of the requests by it too, and compare; its answers are not sent
    #[arg(long, value_name = "PERCENT", group = "how")]
    shadow: Option<f64>,
    /// Send requests with this header to it, or with tenant=NAME those of that tenant
    #[arg(long, value_name = "HEADER=VALUE", group = "how")]
    ab: Option<String>,
    /// Good time until it goes live by itself; 0s: never
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, requires = "how")]
    promote_after: Option<Duration>,
    /// Largest difference of an output from the live version's
    #[arg(long, value_name = "NUMBER", requires = "how")]
    max_difference: Option<f64>,
    /// Put it live now
    #[arg(long, conflicts_with_all = ["how", "abort"])]
    promote: bool,
    /// Take it back; it is not tried again before its files change
    #[arg(long, conflicts_with = "how")]
    abort: bool,
    /// Show how it goes until it ends: exit status 0 if the version is promoted, else 1
    #[arg(long)]
    watch: bool,
    #[command(flatten)]
    output: JsonArgs,
}

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let request = request(args)?;
    block_on(async {
        let mut client = args.server.connect().await?;
        let now = match request {
            Some(request) => {
                let what = format!("changing the rollout of {}", args.model);
                with_spinner(what, client.set_rollout(request)).await
            }
            None => client.get_rollout(proto::GetRolloutRequest { model: args.model.clone() }).await,
        };
        let now = now.map_err(refused)?.into_inner();
        if args.watch && now.state() == RolloutState::Running {
            return watch(client, now, args.output.json).await;
        }
        if args.output.json {
            print_message("Rollout", &now)?;
        } else {
            lines(&now).iter().for_each(|line| println!("{line}"));
        }
        if args.watch { ending(&now) } else { Ok(()) }
    })
}

/// `None`: nothing is to be changed.
fn request(args: &Args) -> Result<Option<proto::SetRolloutRequest>, Failure> {
    let mut plan = proto::RolloutPlan {
        promote_after: args.promote_after.and_then(|after| after.try_into().ok()),
        max_difference: args.max_difference,
        ..proto::RolloutPlan::default()
    };
    let action = match (args.promote, args.abort) {
        (true, _) => RolloutAction::Promote,
        (_, true) => RolloutAction::Abort,
        _ => RolloutAction::Plan,
    };
    match (args.canary.as_slice(), args.shadow, &args.ab) {
        ([percent], _, _) => {
            plan.set_strategy(RolloutStrategy::Canary);
            plan.percent = Some(*percent);
        }
        ([_, ..], _, _) => {
            plan.set_strategy(RolloutStrategy::Canary);
            plan.steps = args.canary.clone();
        }
        ([], Some(percent), _) => {
            plan.set_strategy(RolloutStrategy::Shadow);
            plan.percent = Some(percent);
        }
        ([], None, Some(ab)) => {
            plan.set_strategy(RolloutStrategy::Ab);
            match ab.split_once('=') {
                Some(("tenant", tenant)) => plan.tenants = vec![tenant.to_owned()],
                Some((header, value)) => {
                    (plan.header, plan.value) = (header.to_lowercase(), value.to_owned())
                }
                None => {
                    let message = format!("--ab {ab}: write it as HEADER=VALUE, or tenant=NAME");
                    return Err(Failure::Usage(message));
                }
            }
        }
        ([], None, None) if action == RolloutAction::Plan && args.version.is_none() => return Ok(None),
        ([], None, None) => {}
    }
    Ok(Some(proto::SetRolloutRequest {
        model: args.model.clone(),
        action: action.into(),
        version: args.version.map(|version| version.to_string()).unwrap_or_default(),
        plan: Some(plan),
    }))
}

/// On a terminal the lines are drawn again and again; else one line is printed for each change.
async fn watch(mut client: Stub, mut now: proto::Rollout, json: bool) -> Result<(), Failure> {
    let live = (!json && std::io::stdout().is_terminal()).then(|| {
        let target = indicatif::ProgressDrawTarget::stdout();
        let bar = indicatif::ProgressBar::with_draw_target(None, target);
        bar.with_style(indicatif::ProgressStyle::with_template("{msg}").unwrap_or_else(|_| {
            // The template is a constant that is tested.
            indicatif::ProgressStyle::default_spinner()
        }))
    });
    let mut said = String::new();
    let version = now.version.clone();
    loop {
        match &live {
            Some(bar) => bar.set_message(lines(&now).join("\n")),
            None => {
                let line = line(&now);
                if line != said && json {
                    print_line_of("Rollout", &now)?;
                } else if line != said {
                    println!("{line}");
                }
                said = line;
            }
        }
        let is_over = now.state() != RolloutState::Running || now.version != version;
        if is_over {
            if let Some(bar) = &live {
                bar.finish_and_clear();
                lines(&now).iter().for_each(|line| println!("{line}"));
            }
            return ending(&now);
        }
        tokio::time::sleep(LOOK).await;
        let request = proto::GetRolloutRequest { model: now.model.clone() };
        now = client.get_rollout(request).await.map_err(refused)?.into_inner();
    }
}

fn ending(now: &proto::Rollout) -> Result<(), Failure> {
    match now.state() {
        RolloutState::Promoted => Ok(()),
        RolloutState::RolledBack => {
            Err(Failure::Failed(format!("version {} was rolled back: {}", now.version, now.verdict)))
        }
        _ => Err(Failure::Failed(format!("version {} was not promoted: {}", now.version, now.verdict))),
    }
}

fn state(now: &proto::Rollout) -> &'static str {
    match now.state() {
        RolloutState::NoRollout => "no rollout",
        RolloutState::Running => "running",
        RolloutState::Promoted => "promoted",
        RolloutState::RolledBack => "rolled back",
        RolloutState::Aborted => "aborted",
    }
}

fn tone(now: &proto::Rollout) -> Tone {
    match now.state() {
        RolloutState::NoRollout => Tone::Quiet,
        RolloutState::Running => Tone::Plain,
        RolloutState::Promoted => Tone::Good,
        RolloutState::RolledBack => Tone::Bad,
        RolloutState::Aborted => Tone::Warn,
    }
}

fn how(now: &proto::Rollout) -> String {
    let plan = now.plan.clone().unwrap_or_default();
    let mirrored = plan.compare();
    match plan.strategy() {
        RolloutStrategy::Canary if now.state() == RolloutState::Running => {
            format!("canary, {} % of the callers", now.percent)
        }
        RolloutStrategy::Canary => "canary".to_owned(),
        RolloutStrategy::Shadow => format!("shadow of {mirrored} % of the requests"),
        RolloutStrategy::Ab if plan.header.is_empty() => format!("A/B for {}", plan.tenants.join(", ")),
        RolloutStrategy::Ab => format!("A/B for {}={}", plan.header, plan.value),
        RolloutStrategy::Unspecified => "-".to_owned(),
    }
}

/// All of it, for a person.
fn lines(now: &proto::Rollout) -> Vec<String> {
    if now.state() == RolloutState::NoRollout {
        return vec![format!("{}: no version has been rolled out since the server started", now.model)];
    }
    let mut lines = vec![
        format!(
            "{}: version {} beside {}: {} ({})",
            now.model,
            now.version,
            now.live_version,
            tone(now).paint(state(now)),
            how(now)
        ),
        now.verdict.clone(),
        String::new(),
        format!(
            "{:<9}{:>10}{:>8}{:>6}{:>11}{:>11}{:>11}{:>11}",
            "", "ANSWERED", "FAILED", "LATE", "P50", "P99", "PASS P50", "PASS P99"
        ),
    ];
    for (name, side) in [("live", now.live), ("candidate", now.candidate)] {
        let side = side.unwrap_or_default();
        lines.push(format!(
            "{name:<9}{:>10}{:>8}{:>6}{:>11}{:>11}{:>11}{:>11}",
            side.answered,
            side.failed,
            side.late,
            show_duration(side.p50),
            show_duration(side.p99),
            show_duration(side.compute_p50),
            show_duration(side.compute_p99)
        ));
    }
    lines.push(String::new());
    for check in &now.checks {
        let full = (check.evidence * 10.0).round() as usize;
        let bar = "█".repeat(full) + &"░".repeat(10_usize.saturating_sub(full));
        lines.push(format!("{:<8} {bar}  {}", check.name, check.text));
    }
    lines.push(format!(
        "{} answered by the live version instead; {} compared, {} not; largest difference {:.3e}, mean {:.3e}",
        now.fallbacks, now.compared, now.dropped, now.largest_difference, now.mean_difference
    ));
    lines
}

/// All of it, for a log.
fn line(now: &proto::Rollout) -> String {
    let candidate = now.candidate.unwrap_or_default();
    format!(
        "{} version {}: {}, {} %, {} answered, {} failed, {} late, {} of {} different: {}",
        now.model,
        now.version,
        state(now),
        now.percent,
        candidate.answered,
        candidate.failed,
        candidate.late,
        now.different,
        now.compared,
        now.verdict
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn asked(line: &str) -> Result<Option<proto::SetRolloutRequest>, Failure> {
        let words = std::iter::once("rollout").chain(line.split_whitespace());
        let command = Command::try_parse_from(words).map_err(|error| Failure::Usage(error.to_string()))?;
        request(&command.args)
    }

    #[test]
    fn arguments_become_a_request() {
        assert_eq!(asked("m").unwrap(), None);
        let plan = |line| asked(line).unwrap().unwrap().plan.unwrap();
        assert_eq!(plan("m --canary 10").percent, Some(10.0));
        let steps = plan("m --canary 1,10 --promote-after 5m");
        assert_eq!((steps.steps, steps.promote_after.unwrap().seconds), (vec![1.0, 10.0], 300));
        assert_eq!(plan("m --shadow 20").strategy(), RolloutStrategy::Shadow);
        let ab = plan("m --ab X-Experiment=b=c");
        assert_eq!((ab.header.as_str(), ab.value.as_str()), ("x-experiment", "b=c"));
        assert_eq!(plan("m --ab tenant=lab").tenants, ["lab"]);
        assert_eq!(asked("m --abort").unwrap().unwrap().action(), RolloutAction::Abort);
        for bad in ["m --canary 1 --shadow 2", "m --promote --abort", "m --ab b", "m --promote-after 5m"] {
            assert!(matches!(asked(bad), Err(Failure::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn every_ending_is_told() {
        let now = |state: RolloutState| proto::Rollout {
            state: state.into(),
            version: "2".to_owned(),
            verdict: "because".to_owned(),
            ..proto::Rollout::default()
        };
        assert!(ending(&now(RolloutState::Promoted)).is_ok());
        assert!(
            matches!(ending(&now(RolloutState::RolledBack)), Err(Failure::Failed(why)) if why.contains("because"))
        );
        assert!(
            lines(&now(RolloutState::RolledBack)).len() > 5
                && line(&now(RolloutState::Running)).contains("running")
        );
    }
}
