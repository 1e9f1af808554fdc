//! `torchlane verify`

use std::{convert::Infallible, ops::ControlFlow, path::PathBuf};

use serde::Serialize;

use super::{
    Failure,
    json::{JsonArgs, print_json},
    show::{Cell, Table, Tone, counted},
    versions::at,
};
use crate::loader::seal::{self, Integrity, Policy, TrustedKey};

/// Checks versions against their manifest.json as a server would, and lists everything that is wrong. Nothing is loaded.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory of a version, a model or a repository
    #[arg(value_name = "DIR", required = true)]
    paths: Vec<PathBuf>,
    /// A public key whose signatures count: a PEM file, or as in integrity.trusted_keys; may be given several times
    #[arg(long, value_name = "KEY")]
    trusted_key: Vec<String>,
    /// What versions must bring: off, digest or signed [default: signed with a trusted key, else digest]
    #[arg(long, value_parser = policy)]
    policy: Option<Policy>,
    #[command(flatten)]
    output: JsonArgs,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Examined {
    version: String,
    what: String,
    ok: bool,
    result: String,
}

fn policy(text: &str) -> Result<Policy, String> {
    let all = [Policy::Off, Policy::Digest, Policy::Signed];
    all.into_iter()
        .find(|policy| policy.as_str() == text)
        .ok_or_else(|| "use off, digest or signed".to_owned())
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let trusted: Vec<_> = args
        .trusted_key
        .iter()
        .map(|key| TrustedKey::from_setting(key))
        .collect::<Result<_, _>>()
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let by_keys = if trusted.is_empty() { Policy::Digest } else { Policy::Signed };
    let policy = args.policy.unwrap_or(by_keys);
    if policy == Policy::Signed && trusted.is_empty() {
        return Err(Failure::Usage(
            "--policy signed needs keys to trust: name them with --trusted-key".to_owned(),
        ));
    }
    let integrity = Integrity { policy, trusted };
    let mut versions = Vec::new();
    for path in &args.paths {
        versions.append(&mut at(path)?);
    }
    let mut all = Vec::new();
    for on_disk in &versions {
        let examined = seal::examine::<Infallible>(
            &on_disk.place,
            &on_disk.files,
            &integrity,
            None,
            &mut |what, found| {
                let ok = found.is_ok();
                let result = found.unwrap_or_else(|wrong| wrong.to_string());
                let version = on_disk.path.display().to_string();
                all.push(Examined { version, what: what.to_owned(), ok, result });
                ControlFlow::Continue(())
            },
        );
        let ControlFlow::Continue(_) = examined;
    }
    let problems = all.iter().filter(|examined| !examined.ok).count();
    if args.output.json {
        print_json(&all)?;
    } else {
        Table::new(&["VERSION", "WHAT", "RESULT"], all.iter().map(row).collect()).print();
    }
    match problems {
        0 => Ok(()),
        _ => {
            let (problems, versions) = (counted(problems, "problem"), counted(versions.len(), "version"));
            Err(Failure::Failed(format!("{problems} in {versions}: see the lines with WRONG")))
        }
    }
}

fn row(Examined { version, what, ok, result }: &Examined) -> Vec<Cell> {
    let result =
        if *ok { Cell::from(result.clone()) } else { Cell::toned(format!("WRONG: {result}"), Tone::Bad) };
    vec![version.clone().into(), what.clone().into(), result]
}
