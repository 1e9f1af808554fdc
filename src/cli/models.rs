//! `torchlane models`

mod show;

use super::{
    Failure,
    client::{ServerArgs, block_on, refused},
    json::{JsonArgs, print_line_of, print_message},
};
use crate::proto;

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
    #[command(flatten)]
    output: JsonArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let json = args.output.json;
    block_on(async {
        let mut client = args.server.connect().await?;
        if args.watch {
            let request = proto::WatchModelsRequest { model: args.model.clone().unwrap_or_default() };
            let mut events = client.watch_models(request).await.map_err(refused)?.into_inner();
            while let Some(event) = events.message().await.map_err(refused)? {
                if json {
                    print_line_of("ModelEvent", &event)?;
                } else {
                    show::event(&event);
                }
            }
            return Ok(());
        }
        if args.history {
            let model = args.model.clone().unwrap_or_default();
            let request = proto::ListChangesRequest { model, limit: args.limit };
            let answer = client.list_changes(request).await.map_err(refused)?.into_inner();
            if json {
                return print_message("ListChangesResponse", &answer);
            }
            show::history(&answer.changes);
            return Ok(());
        }
        if let Some(model) = &args.model {
            let request = proto::GetModelRequest { model: model.clone() };
            let model = client.get_model(request).await.map_err(refused)?.into_inner();
            match (json, args.profile) {
                (true, _) => print_message("Model", &model)?,
                (false, true) => show::profile(&model),
                (false, false) => show::model(&model),
            }
            return Ok(());
        }
        let answer = client.list_models(proto::ListModelsRequest {}).await.map_err(refused)?.into_inner();
        if json {
            return print_message("ListModelsResponse", &answer);
        }
        show::list(&answer.models);
        Ok(())
    })
}
