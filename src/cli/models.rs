//! `torchlane models`

use super::{
    Failure,
    client::{ServerArgs, block_on, refused, show_bytes, show_duration},
    print_table,
};
use crate::proto::{self, ModelState};

/// Without a name: all of them.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The model to show
    model: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// Show the last changes: what happened, who asked for it, how long it took
    #[arg(long, conflicts_with_all = ["watch", "profile"])]
    history: bool,
    /// Most changes that --history shows
    #[arg(long, value_name = "N", default_value_t = 30, requires = "history")]
    limit: u32,
    /// Print each change as it happens, until interrupted
    #[arg(long)]
    watch: bool,
    /// Show what passes of the model take, by rows, as learned so far
    #[arg(long, requires = "model", conflicts_with = "watch")]
    profile: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    block_on(async {
        let mut client = args.server.connect().await?;
        if args.watch {
            let request = proto::WatchModelsRequest { model: args.model.clone().unwrap_or_default() };
            let mut events = client.watch_models(request).await.map_err(refused)?.into_inner();
            while let Some(event) = events.message().await.map_err(refused)? {
                let model = event.model.unwrap_or_default();
                let at = event.at.map(|at| at.to_string()).unwrap_or_default();
                let error = if event.error.is_empty() { String::new() } else { format!(": {}", event.error) };
                println!(
                    "{at}  {}  {}  version {}{error}",
                    model.name,
                    event.change,
                    or_dash(&model.live_version)
                );
            }
            return Ok(());
        }
        if args.history {
            let model = args.model.clone().unwrap_or_default();
            let request = proto::ListChangesRequest { model, limit: args.limit };
            let answer = client.list_changes(request).await.map_err(refused)?;
            show_history(&answer.into_inner().changes);
            return Ok(());
        }
        if let Some(model) = &args.model {
            let request = proto::GetModelRequest { model: model.clone() };
            let model = client.get_model(request).await.map_err(refused)?.into_inner();
            if args.profile {
                show_profile(&model)
            } else {
                show(&model)
            }
            return Ok(());
        }
        let answer = client.list_models(proto::ListModelsRequest {}).await.map_err(refused)?;
        let rows: Vec<_> = answer
            .into_inner()
            .models
            .iter()
            .map(|model| {
                vec![
                    model.name.clone(),
                    state(model),
                    or_dash(&model.live_version),
                    or_dash(model.sha256.get(..12).unwrap_or_default()),
                    show_bytes(model.bytes),
                    resident(model),
                    or_dash(&model.live_since.map(since).unwrap_or_default()),
                    or_dash(&model.versions.join(", ")),
                    model.last_error.clone(),
                ]
            })
            .collect();
        print_table(
            &["MODEL", "STATE", "LIVE", "SHA256", "SIZE", "MEMORY", "SINCE (UTC)", "ON DISK", "LAST ERROR"],
            &rows,
        );
        Ok(())
    })
}

fn show_history(changes: &[proto::ModelChange]) {
    if changes.is_empty() {
        println!("nothing has changed yet");
        return;
    }
    let rows: Vec<_> = changes
        .iter()
        .map(|change| {
            let from = if change.previous_version.is_empty() || change.previous_version == change.version {
                String::new()
            } else {
                format!("{} -> ", change.previous_version)
            };
            let took = change.phase_seconds.get("total").map(|seconds| {
                let took = std::time::Duration::try_from_secs_f64(*seconds).unwrap_or_default();
                show_duration(took.try_into().ok())
            });
            // Only a failure is an error: others say why they came to be.
            let why = match change.change.as_str() {
                "failed" => format!("{}: {}", change.reason, change.error),
                _ => change.error.clone(),
            };
            vec![
                to_seconds(&change.at),
                change.model.clone(),
                change.change.clone(),
                format!("{from}{}", or_dash(&change.version)),
                or_dash(change.sha256.get(..12).unwrap_or_default()),
                or_dash(&took.unwrap_or_default()),
                change.asker.clone(),
                why,
            ]
        })
        .collect();
    print_table(&["AT (UTC)", "MODEL", "CHANGE", "VERSION", "SHA256", "TOOK", "ASKED BY", "WHY"], &rows);
}

/// Passes by size, and which size gives the most rows a second.
fn show_profile(model: &proto::Model) {
    if model.profile.is_empty() {
        println!("nothing has run yet");
        return;
    }
    let seconds = |d: Option<prost_types::Duration>| {
        d.and_then(|d| std::time::Duration::try_from(d).ok()).unwrap_or_default().as_secs_f64()
    };
    let speed = |point: &proto::ProfilePoint| f64::from(point.rows) / seconds(point.mean).max(1e-9);
    let fastest = |row_bytes| {
        let same = model.profile.iter().filter(|point| point.row_bytes == row_bytes);
        same.map(speed).fold(1e-9, f64::max)
    };
    let rows: Vec<_> = model
        .profile
        .iter()
        .map(|point| {
            let speed = speed(point);
            let bar = "█".repeat((speed / fastest(point.row_bytes) * 24.0).round() as usize);
            vec![
                show_bytes(point.row_bytes),
                point.rows.to_string(),
                show_duration(point.mean),
                format!("± {}", show_duration(point.deviation)),
                point.passes.to_string(),
                format!("{speed:.0}"),
                bar,
            ]
        })
        .collect();
    print_table(&["ROW", "ROWS", "PASS", "", "PASSES", "ROWS/S", ""], &rows);
}

fn since(at: prost_types::Timestamp) -> String {
    to_seconds(&at.to_string())
}

/// A time as people read it, of which RFC 3339 is the beginning.
fn to_seconds(at: &str) -> String {
    at.split(['.', 'Z']).next().unwrap_or_default().replace('T', " ")
}

fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// What it takes, where it is in memory.
fn resident(model: &proto::Model) -> String {
    if model.live_version.is_empty() { "-".to_owned() } else { show_bytes(model.resident_bytes) }
}

fn state(model: &proto::Model) -> String {
    match model.state() {
        ModelState::Unspecified => "unknown",
        ModelState::Unloaded => "unloaded",
        ModelState::Loading => "loading",
        ModelState::Ready => "ready",
        ModelState::Reloading => "reloading",
        ModelState::Failed => "failed",
        ModelState::OnDemand => "on demand",
    }
    .to_owned()
}

fn show(model: &proto::Model) {
    println!("{}: {}", model.name, state(model));
    println!("live version  {} (generation {})", or_dash(&model.live_version), model.generation);
    println!("before it     {}", or_dash(&model.previous_version));
    println!("on disk       {}", or_dash(&model.versions.join(", ")));
    println!("sha256        {}", or_dash(&model.sha256));
    if !model.weights_sha256.is_empty() {
        println!("weights       {}", model.weights_sha256);
    }
    println!("size          {}", show_bytes(model.bytes));
    println!("memory        {} ({})", resident(model), or_dash(&model.load));
    println!("max batch     {}", model.max_batch);
    if !model.last_error.is_empty() {
        println!("last error    {}", model.last_error);
    }
    if let Some(phases) = model.last_phases {
        println!("last reload   {} ({} warm-up)", show_duration(phases.total), show_duration(phases.warm_up));
    }
    let Some(signature) = &model.signature else { return };
    let rows = |specs: &[proto::TensorSpec], kind: &str| -> Vec<Vec<String>> {
        specs
            .iter()
            .map(|spec| {
                let shape = if spec.any_shape { "any".to_owned() } else { format!("{:?}", spec.shape) };
                let datatype =
                    if spec.datatype.is_empty() { "any".to_owned() } else { spec.datatype.clone() };
                let optional = if spec.optional { ", optional" } else { "" };
                vec![
                    kind.to_owned(),
                    spec.name.clone(),
                    datatype,
                    shape,
                    format!("{}{optional}", spec.script_type),
                ]
            })
            .collect()
    };
    println!();
    let mut all = rows(&signature.inputs, "input");
    all.extend(rows(&signature.outputs, "output"));
    print_table(&["", "NAME", "DATATYPE", "SHAPE", "TYPE"], &all);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_end_with_their_seconds() {
        let at = prost_types::Timestamp { seconds: 1_700_000_000, nanos: 123_456_789 };
        assert_eq!(since(at), "2023-11-14 22:13:20");
        assert_eq!(since(prost_types::Timestamp { nanos: 0, ..at }), "2023-11-14 22:13:20");
    }
}
