//! `torchlane inspect`

use std::path::PathBuf;

use super::{
    Failure,
    json::{JsonArgs, print_json},
    show::{Table, Tone, show_bytes},
};
use crate::{
    lifecycle::{about_state, about_training},
    loader::archive::{
        self, TensorInfo,
        safety::{Finding, Policy, Safety, Severity, Verdict},
    },
    model::{Decision, ModelManifest},
};

/// Nothing in the file is run. Exits with 1 if a server with `safety.policy = "strict"` would refuse it as unsafe.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A TorchScript archive
    file: PathBuf,
    /// All parameters, buffers and operators, not only the first ten
    #[arg(long)]
    all: bool,
    /// A name that safety.allow would have; may be given several times
    #[arg(long, value_name = "NAME")]
    allow: Vec<String>,
    #[command(flatten)]
    output: JsonArgs,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    // The same checks as a server's before a load.
    let checked =
        archive::inspect(&args.file).and_then(|info| archive::check_entries(&args.file).map(|()| info));
    let info = checked.map_err(|error| Failure::Failed(error.of(&args.file)))?;
    let safety = Safety { policy: Policy::Strict, allow: args.allow.clone() };
    if let Some((value, allowed)) = safety.problem() {
        return Err(Failure::Usage(format!("--allow {value}: it takes {allowed}")));
    }
    let verdict = match safety.judge(&info.findings) {
        Verdict::Refuse(line) => Err(Failure::Failed(format!("{}: {line}", args.file.display()))),
        Verdict::Serve | Verdict::Warn(_) => Ok(()),
    };
    if args.output.json {
        print_json(&info)?;
        return verdict;
    }
    println!(
        "{}: {} ({}, {} entries)",
        args.file.display(),
        info.class_name,
        show_bytes(info.size_bytes),
        info.entries
    );
    let written = match (&info.torch_version, info.format_version) {
        (Some(torch), Some(format)) => format!("torch {torch} (archive format {format})"),
        (None, Some(format)) => format!("not recorded (archive format {format})"),
        _ => "not recorded".to_owned(),
    };
    println!("written by    {written}");
    println!("parameters    {} ({})", info.parameters.len(), show_bytes(info.parameter_bytes()));
    println!("buffers       {} ({})", info.buffers.len(), show_bytes(info.buffer_bytes()));
    let effects = [
        (info.effects.assigns_attributes, "assigns attributes"),
        (info.effects.mutates_in_place, "may write tensors in place"),
        (info.effects.mutates_containers, "changes lists or dicts"),
    ];
    let effects: Vec<_> = effects.iter().filter(|(is, _)| *is).map(|(_, what)| *what).collect();
    println!("effects       {}", if effects.is_empty() { "none".to_owned() } else { effects.join(", ") });
    let (_, mut decisions) = about_state(info.state.as_ref(), &ModelManifest::default());
    decisions.extend(about_training(info.trains.as_ref()));
    for Decision { what, text } in decisions {
        println!("{what:<13} {text}");
    }
    println!("safety        {}", summary(&info.findings));
    if let Some(forward) = &info.forward {
        println!("\nforward");
        let mut rows: Vec<_> = forward
            .arguments
            .iter()
            .map(|a| {
                vec![
                    a.name.clone(),
                    a.ty.to_string(),
                    if a.has_default { "has a default".to_owned() } else { String::new() },
                ]
            })
            .collect();
        rows.push(vec!["->".to_owned(), forward.returns.to_string(), String::new()]);
        Table::new(&["ARGUMENT", "TYPE", ""], rows).print();
    }
    tensors("PARAMETER", &info.parameters, args.all);
    tensors("BUFFER", &info.buffers, args.all);
    let mut operators: Vec<_> = info.operators.iter().collect();
    operators.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let rows: Vec<_> =
        operators.iter().map(|(name, count)| vec![(*name).clone(), count.to_string()]).collect();
    section(&["OPERATOR", "USES"], rows, args.all);
    findings(&info.findings, args.all);
    verdict
}

fn summary(findings: &[Finding]) -> String {
    match findings.len() {
        0 => Tone::Good.paint("nothing but ordinary operators, plain pickles"),
        n => match findings.iter().filter(|finding| finding.severity == Severity::Note).count() {
            notes if notes == n => Tone::Warn
                .paint(&format!("ordinary, but for some values {n} operators end the process, see the end")),
            notes => Tone::Bad.paint(&format!("{} not known to be safe, see the end", n - notes)),
        },
    }
}

/// The last section, so that it is what stays on the screen.
fn findings(findings: &[Finding], all: bool) {
    let row = |finding: &Finding| {
        vec![
            finding.what.clone(),
            finding.place.clone(),
            finding.count.to_string(),
            finding.danger.to_string(),
        ]
    };
    let (notes, bad): (Vec<&Finding>, Vec<_>) =
        findings.iter().partition(|finding| finding.severity == Severity::Note);
    for (title, some) in [("CAN END THE PROCESS", notes), ("NOT KNOWN TO BE SAFE", bad)] {
        section(&[title, "FIRST AT", "PLACES", "WHY"], some.into_iter().map(row).collect(), all);
    }
}

fn tensors(title: &'static str, tensors: &[TensorInfo], all: bool) {
    let rows = tensors
        .iter()
        .map(|t| vec![t.name.clone(), t.dtype.to_string(), format!("{:?}", t.shape), show_bytes(t.bytes)])
        .collect();
    section(&[title, "DATATYPE", "SHAPE", "SIZE"], rows, all);
}

fn section(header: &[&'static str], mut rows: Vec<Vec<String>>, all: bool) {
    if rows.is_empty() {
        return;
    }
    let more = if all { 0 } else { rows.len().saturating_sub(10) };
    rows.truncate(rows.len() - more);
    println!();
    Table::new(header, rows).print();
    if more > 0 {
        println!("and {more} more (--all)");
    }
}
