//! `torchlane sign`

use std::{path::PathBuf, time::SystemTime};

use super::{
    Failure,
    client::show_bytes,
    counted,
    versions::{OnDisk, at},
};
use crate::{
    loader::seal::{self, BaseArchive, Place, PrivateKey},
    model::{ModelName, Version},
};

/// Writes the manifest.json of versions: size and sha256 of each file, and a signature where there is a key. Signatures by
/// other keys stay as long as nothing else changes.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory of a version or a model
    #[arg(value_name = "DIR", required_unless_present = "new_key")]
    paths: Vec<PathBuf>,
    /// Sign with this private key (ed25519, PEM); without one only digests are written
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Make a key: the private half in FILE, the public one in FILE.pub
    #[arg(long, value_name = "FILE", conflicts_with_all = ["paths", "key", "model", "version", "anywhere", "base"])]
    new_key: Option<PathBuf>,
    /// The model that the files are for [default: by the path]
    #[arg(long, value_name = "NAME")]
    model: Option<ModelName>,
    /// The version that the files are for [default: by the path]
    #[arg(long, value_name = "NUMBER")]
    version: Option<Version>,
    /// Let the files count under any model and number
    #[arg(long, conflicts_with_all = ["model", "version"])]
    anywhere: bool,
    /// The archive under weights that come without one [default: that of the version before]
    #[arg(long, value_name = "FILE")]
    base: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(path) = &args.new_key {
        return new_key(path);
    }
    let key = args.key.as_deref().map(PrivateKey::read).transpose().map_err(Failure::failed)?;
    let mut versions = Vec::new();
    for path in &args.paths {
        versions.append(&mut at(path)?);
    }
    let of_one = args.version.is_some() || args.base.is_some();
    if of_one && versions.len() > 1 {
        let problem = format!(
            "--version and --base are for one version, not for {}: name its directory",
            versions.len()
        );
        return Err(Failure::Usage(problem));
    }
    for on_disk in &versions {
        sign(args, on_disk, key.as_ref())?;
    }
    Ok(())
}

fn sign(args: &Args, on_disk: &OnDisk, key: Option<&PrivateKey>) -> Result<(), Failure> {
    let directory = on_disk.path.as_path();
    let wrong =
        |problem: &dyn std::fmt::Display| Failure::Failed(format!("{}: {problem}", directory.display()));
    if on_disk.files.is_ensemble() {
        return Err(wrong(&"an ensemble has no files of its own to sign: name the models of its steps"));
    }
    if !directory.is_dir() {
        let name = on_disk.place.model.as_ref().map_or("MODEL", ModelName::as_str);
        return Err(wrong(&format_args!(
            "a bare file has no place for a manifest.json: put it at {name}/1/model.pt"
        )));
    }
    let by_path = &on_disk.place;
    let place = Place {
        model: args.model.clone().or_else(|| by_path.model.clone()).filter(|_| !args.anywhere),
        version: args.version.or(by_path.version).filter(|_| !args.anywhere),
    };
    let files = &on_disk.files;
    let base = if files.archive.starts_with(directory) && !files.archive.exists() && files.weights.is_some() {
        let missing = "weights without an archive: name the one that they belong to (--base FILE)";
        let path = args.base.clone().ok_or_else(|| wrong(&missing))?;
        let version = None;
        Some(BaseArchive { path, version })
    } else if files.archive.starts_with(directory) {
        if args.base.is_some() {
            return Err(wrong(&"it has an archive of its own: leave --base out"));
        }
        None
    } else {
        let number = files.archive.parent().and_then(|of| of.file_name()?.to_str()?.parse().ok());
        let own = || BaseArchive { path: files.archive.clone(), version: number };
        Some(args.base.clone().map_or_else(own, |path| BaseArchive { path, version: None }))
    };
    let mut made =
        seal::make(directory, &place, base.as_ref(), SystemTime::now()).map_err(Failure::failed)?;
    if let Some(key) = key {
        made.sign(key);
    }
    seal::write(directory, &made).map_err(|error| wrong(&error))?;
    let bytes = made.files().values().map(|fact| fact.bytes).sum();
    let of = match (&place.model, place.version) {
        (Some(model), Some(version)) => format!("as {model} version {version}"),
        (Some(model), None) => format!("as any version of {model}"),
        (None, Some(version)) => format!("as version {version} of any model"),
        (None, None) => "as any version of any model (--model, --version)".to_owned(),
    };
    let signers: Vec<_> = made.signers().collect();
    let signed = if signers.is_empty() {
        "not signed".to_owned()
    } else {
        format!("signed by {}", signers.join(", "))
    };
    println!(
        "{}: {} ({}) {of}, {signed}",
        directory.join(seal::FILE).display(),
        counted(made.files().len(), "file"),
        show_bytes(bytes)
    );
    Ok(())
}

fn new_key(path: &std::path::Path) -> Result<(), Failure> {
    let key = PrivateKey::create(path).map_err(Failure::failed)?;
    println!("{}: private key {}, to sign with: keep it off servers", path.display(), key.public().id());
    println!("{}.pub: its public half, for integrity.trusted_keys; or write it there as", path.display());
    println!("{}", key.public().to_setting());
    Ok(())
}
