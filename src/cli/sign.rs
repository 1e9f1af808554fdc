//! `torchlane sign`

use std::{
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Serialize;

use super::{
    Failure,
    json::{JsonArgs, print_json},
    show::{counted, show_bytes},
    versions::{OnDisk, at},
};
use crate::{
    loader::seal::{self, BaseArchive, Place, PrivateKey, Seal},
    model::{ModelName, Version},
};

/// Writes the manifest.json of versions: size and sha256 of each file, and a signature if a key is named. Either all
/// versions get one or none does; ensembles have no files of their own and are skipped. Signatures by other keys stay as
/// long as nothing else changes.
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
    #[command(flatten)]
    output: JsonArgs,
}

/// A manifest that is ready to be written.
struct Made {
    directory: PathBuf,
    place: Place,
    seal: Seal,
}

#[derive(Debug, Serialize)]
struct Signed<'a> {
    path: String,
    /// None: any.
    model: Option<&'a str>,
    /// None: any.
    version: Option<u64>,
    files: usize,
    bytes: u64,
    signers: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Outcome<'a> {
    written: Vec<Signed<'a>>,
    /// Ensembles.
    skipped: Vec<String>,
}

#[derive(Debug, Serialize)]
struct NewKey {
    private: String,
    public: String,
    id: String,
    setting: String,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    if let Some(path) = &args.new_key {
        return new_key(path, args.output.json);
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
    let (ensembles, versions): (Vec<_>, Vec<_>) =
        versions.into_iter().partition(|on_disk| on_disk.files.is_ensemble());
    // Of an ensemble the path is that of its description.
    let model = |on_disk: &OnDisk| on_disk.path.parent().unwrap_or(&on_disk.path).display().to_string();
    let skipped: Vec<_> = ensembles.iter().map(model).collect();
    if versions.is_empty() {
        return Err(Failure::Failed(format!(
            "nothing to sign: {} only ensembles, which have no files of their own. Name the models of their steps",
            if skipped.len() == 1 { "the path holds" } else { "the paths hold" }
        )));
    }
    // All of them are made before the first is written: a problem with one leaves none changed.
    let made: Vec<_> =
        versions.iter().map(|on_disk| make(args, on_disk, key.as_ref())).collect::<Result<_, _>>()?;
    for Made { directory, seal, .. } in &made {
        let wrong = |error| Failure::Failed(format!("{}: {error}", directory.display()));
        seal::write(directory, seal).map_err(wrong)?;
    }
    let outcome = Outcome { written: made.iter().map(Signed::new).collect(), skipped };
    if args.output.json {
        return print_json(&outcome);
    }
    outcome.written.iter().for_each(Signed::print);
    for path in &outcome.skipped {
        println!("{path}: skipped, an ensemble has no files of its own to sign");
    }
    Ok(())
}

fn make(args: &Args, on_disk: &OnDisk, key: Option<&PrivateKey>) -> Result<Made, Failure> {
    let directory = on_disk.path.as_path();
    let wrong =
        |problem: &dyn std::fmt::Display| Failure::Failed(format!("{}: {problem}", directory.display()));
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
    Ok(Made { directory: directory.to_owned(), place, seal: made })
}

impl<'a> Signed<'a> {
    fn new(Made { directory, place, seal }: &'a Made) -> Self {
        Self {
            path: directory.join(seal::FILE).display().to_string(),
            model: place.model.as_ref().map(ModelName::as_str),
            version: place.version.map(|version| version.0),
            files: seal.files().len(),
            bytes: seal.files().values().map(|fact| fact.bytes).sum(),
            signers: seal.signers().map(|signer| signer.to_string()).collect(),
        }
    }

    fn print(&self) {
        let of = match (self.model, self.version) {
            (Some(model), Some(version)) => format!("as {model} version {version}"),
            (Some(model), None) => format!("as any version of {model}"),
            (None, Some(version)) => format!("as version {version} of any model"),
            (None, None) => "as any version of any model (--model, --version)".to_owned(),
        };
        let signed = if self.signers.is_empty() {
            "not signed".to_owned()
        } else {
            format!("signed by {}", self.signers.join(", "))
        };
        let (files, bytes) = (counted(self.files, "file"), show_bytes(self.bytes));
        println!("{}: {files} ({bytes}) {of}, {signed}", self.path);
    }
}

fn new_key(path: &Path, json: bool) -> Result<(), Failure> {
    let key = PrivateKey::create(path).map_err(Failure::failed)?;
    let made = NewKey {
        private: path.display().to_string(),
        public: format!("{}.pub", path.display()),
        id: key.public().id().to_string(),
        setting: key.public().to_setting(),
    };
    if json {
        return print_json(&made);
    }
    let NewKey { private, public, id, setting } = made;
    println!("{private}: private key {id}, to sign with. Keep it off servers");
    println!("{public}: its public half, for integrity.trusted_keys. Or write it there as");
    println!("{setting}");
    Ok(())
}
