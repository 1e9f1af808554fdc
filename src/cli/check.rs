//! `torchlane check`

use serde::Serialize;

use super::{
    Failure,
    json::{JsonArgs, print_json},
    serve::ConfigArgs,
    show::{Cell, Table, Tone, counted},
};
use crate::{
    app::{self, ModelCheck},
    backend,
    config::Provenance,
    model::Decision,
};

/// Prints the settings that are not defaults, then loads the newest version of each model. Exits with 1 if one does not load.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
    /// Only the settings: load nothing
    #[arg(long)]
    no_models: bool,
    /// All settings, with the defaults
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    output: JsonArgs,
}

#[derive(Debug, Serialize)]
struct Told<'a> {
    settings: Vec<SettingView<'a>>,
    models: Vec<ModelView<'a>>,
}

#[derive(Debug, Serialize)]
struct SettingView<'a> {
    key: &'a str,
    value: &'a str,
    source: &'a str,
}

#[derive(Debug, Serialize)]
struct ModelView<'a> {
    name: &'a str,
    version: Option<u64>,
    ok: bool,
    problem: Option<&'a str>,
    warnings: &'a [String],
    /// What torchlane decided about it.
    decisions: &'a [Decision],
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let layered = args.config.load()?;
    let is_told = |row: &&Provenance| args.all || row.source != "default";
    let settings: Vec<_> = layered.provenance.iter().filter(is_told).collect();
    if !args.output.json {
        show_settings(&settings, layered.provenance.len());
    }
    let checks = if args.no_models {
        Vec::new()
    } else {
        backend::report_crashes(false);
        app::check_models(&layered.settings).map_err(Failure::failed)?
    };
    if args.output.json {
        print_json(&told(&settings, &checks))?;
    } else if !args.no_models {
        show_models(&checks);
    }
    match checks.iter().filter(|check| check.problem.is_some()).count() {
        0 => Ok(()),
        bad => Err(Failure::Failed(format!("{bad} of {} would not load", counted(checks.len(), "model")))),
    }
}

fn told<'a>(settings: &[&'a Provenance], checks: &'a [ModelCheck]) -> Told<'a> {
    let setting =
        |row: &&'a Provenance| SettingView { key: &row.key, value: &row.value, source: &row.source };
    let model = |check: &'a ModelCheck| ModelView {
        name: &check.name,
        version: check.version,
        ok: check.problem.is_none(),
        problem: check.problem.as_deref(),
        warnings: &check.warnings,
        decisions: &check.decisions,
    };
    Told { settings: settings.iter().map(setting).collect(), models: checks.iter().map(model).collect() }
}

fn show_settings(settings: &[&Provenance], all: usize) {
    if settings.is_empty() {
        println!("settings: all {all} are defaults (--all lists them)");
        return;
    }
    let row = |row: &&Provenance| vec![row.key.clone(), row.value.clone(), row.source.clone()];
    Table::new(&["SETTING", "VALUE", "FROM"], settings.iter().map(row).collect()).print();
    match all - settings.len() {
        0 => {}
        defaults => println!("{}", Tone::Quiet.paint(&format!("{defaults} more are defaults (--all)"))),
    }
}

fn show_models(checks: &[ModelCheck]) {
    println!();
    let row = |check: &ModelCheck| {
        let result = match &check.problem {
            Some(problem) => Cell::toned(problem.clone(), Tone::Bad),
            None => Cell::toned("ok", Tone::Good),
        };
        let version = check.version.map_or_else(|| "-".to_owned(), |v| v.to_string());
        vec![check.name.clone().into(), version.into(), result]
    };
    // What is wrong stands last: it is what stays on the screen.
    let (bad, good): (Vec<_>, Vec<_>) = checks.iter().partition(|check| check.problem.is_some());
    let rows = good.into_iter().chain(bad).map(row).collect();
    Table::new(&["MODEL", "VERSION", "RESULT"], rows).print();
    let warnings: Vec<_> =
        checks.iter().flat_map(|check| check.warnings.iter().map(move |text| (&check.name, text))).collect();
    if !warnings.is_empty() {
        println!("\nIgnored, although the models load:");
        let row = |(name, text): (&String, &String)| {
            vec![Cell::from(name.clone()), Cell::toned(text.clone(), Tone::Warn)]
        };
        Table::new(&["MODEL", "WHAT"], warnings.into_iter().map(row).collect()).print();
    }
    let of = |check: &ModelCheck| {
        let row = |decision: &Decision| vec![check.name.clone(), decision.to_string()];
        check.decisions.iter().map(row).collect::<Vec<_>>()
    };
    let decided: Vec<_> = checks.iter().flat_map(of).collect();
    if !decided.is_empty() {
        println!("\nDecided by torchlane:");
        Table::new(&["MODEL", "WHAT"], decided).print();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_read_settings_and_results() {
        let setting = Provenance { key: "server.grace".into(), value: "5s".into(), source: "flag".into() };
        let checks = [ModelCheck {
            name: "m".into(),
            version: Some(2),
            problem: Some("load failed".into()),
            warnings: vec!["ignored".into()],
            decisions: vec![Decision::new("state", "kept")],
        }];
        let told = serde_json::to_value(told(&[&setting], &checks)).unwrap();
        assert_eq!(told["settings"][0]["source"], "flag");
        let model = &told["models"][0];
        assert_eq!((&model["ok"], &model["version"]), (&false.into(), &2.into()));
        assert_eq!((&model["problem"], &model["warnings"][0]), (&"load failed".into(), &"ignored".into()));
        assert_eq!(model["decisions"][0]["what"], "state");
    }
}
