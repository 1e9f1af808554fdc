//! `torchlane verify`

use std::{convert::Infallible, ops::ControlFlow, path::PathBuf};

use super::{Failure, counted, print_table, versions::at};
use crate::loader::seal::{self, Integrity, Policy, TrustedKey};

/// Checks versions against their manifest.json as a server would, and tells all that is wrong. Nothing is loaded.
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
    let (mut rows, mut problems) = (Vec::new(), 0);
    for on_disk in &versions {
        let examined = seal::examine::<Infallible>(
            &on_disk.place,
            &on_disk.files,
            &integrity,
            None,
            &mut |what, found| {
                problems += usize::from(found.is_err());
                let said = found.unwrap_or_else(|wrong| format!("WRONG: {wrong}"));
                rows.push(vec![on_disk.path.display().to_string(), what.to_owned(), said]);
                ControlFlow::Continue(())
            },
        );
        let ControlFlow::Continue(_) = examined;
    }
    print_table(&["VERSION", "WHAT", "RESULT"], &rows);
    match problems {
        0 => Ok(()),
        _ => {
            let (problems, versions) = (counted(problems, "problem"), counted(versions.len(), "version"));
            Err(Failure::Failed(format!("{problems} in {versions}: see the lines with WRONG")))
        }
    }
}
