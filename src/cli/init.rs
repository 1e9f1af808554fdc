//! `torchlane init`

use std::{
    fmt::Write as _,
    io::Write as _,
    path::{Path, PathBuf},
};

use serde::Serialize;

use super::{
    Failure,
    json::{JsonArgs, print_json},
};
use crate::loader::archive::{self, ArchiveInfo};

const SETTINGS: &str = include_str!("init/torchlane.toml");

/// Writes commented files to start from: torchlane.toml here, or a model.toml with the arguments that the model's newest
/// archive has.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  torchlane init                  # ./torchlane.toml\n  torchlane init models/digits    # models/digits/model.toml"
)]
pub(super) struct Args {
    /// Directory of a model [default: none, write ./torchlane.toml]
    #[arg(value_name = "DIR")]
    model: Option<PathBuf>,
    /// Print the file instead of writing it
    #[arg(long)]
    stdout: bool,
    /// Replace a file that is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    output: JsonArgs,
}

#[derive(Debug, Serialize)]
struct Written {
    path: String,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let (path, text) = match &args.model {
        None => (PathBuf::from("torchlane.toml"), SETTINGS.to_owned()),
        Some(directory) => (directory.join("model.toml"), model(directory)?),
    };
    if args.stdout {
        println!("{}", text.trim_end());
        return Ok(());
    }
    let wrong = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => {
            Failure::Failed(format!("{} exists already: --force replaces it", path.display()))
        }
        _ => Failure::Failed(format!("{}: {error}", path.display())),
    };
    let mut options = std::fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).create_new(!args.force);
    options.open(&path).and_then(|mut file| file.write_all(text.as_bytes())).map_err(wrong)?;
    if args.output.json {
        return print_json(&Written { path: path.display().to_string() });
    }
    println!("{}: written. `torchlane check` says what it comes to", path.display());
    Ok(())
}

/// By the newest archive in the model's directory.
fn model(directory: &Path) -> Result<String, Failure> {
    let wrong = |problem: &str| Failure::Usage(format!("{}: {problem}", directory.display()));
    if !directory.is_dir() {
        return Err(wrong("not a directory: name the one that holds the model's versions"));
    }
    let archive = super::versions::at(directory)?
        .into_iter()
        .rev()
        .map(|on_disk| on_disk.files.archive)
        .find(|archive| archive.is_file())
        .ok_or_else(|| wrong("no version has an archive: put one at 1/model.pt"))?;
    let info = archive::inspect(&archive).map_err(|error| Failure::Failed(error.of(&archive)))?;
    Ok(described(&info))
}

fn described(info: &ArchiveInfo) -> String {
    let mut text = String::from(
        "# What torchlane should know of this model. Everything is optional: without this file the archive speaks for itself.\n\
         # docs/reference/model-toml.md explains every key. `torchlane check` says whether the model loads with it.\n\n\
         # description = \"for people\"\n\n\
         [batching]\n\
         # Rows of several requests in one pass. Without it each request runs alone.\n\
         # max_batch = 16\n\n\
         # Names, datatypes and shapes that requests are held to; -1 is any size.\n",
    );
    let arguments = info.forward.iter().flat_map(|forward| &forward.arguments);
    for argument in arguments.filter(|argument| argument.ty.to_string().contains("Tensor")) {
        let _infallible = write!(
            text,
            "# [[inputs]]\n# name = \"{0}\"\n# argument = \"{0}\"\n# dtype = \"FP32\"\n# shape = [-1, 3, 224, 224]\n",
            argument.name
        );
    }
    text.push_str(
        "# [[outputs]]\n# name = \"output_0\"\n# dtype = \"FP32\"\n# shape = [-1, 1000]\n\n\
         # How a new version comes to serve: a share of the callers sees it first.\n\
         # [rollout]\n# strategy = \"canary\"\n# steps = [1, 10, 50]\n# promote_after = \"10m\"\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{Settings, load},
        model::ModelManifest,
    };

    /// With every setting that is commented out in force.
    fn uncommented(text: &str) -> String {
        let is_setting = |line: &str| line.starts_with('[') || line.contains(" = ");
        let line =
            |line: &str| line.strip_prefix("# ").filter(|rest| is_setting(rest)).unwrap_or(line).to_owned();
        text.lines().map(line).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_settings_that_are_shown_are_the_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("torchlane.toml");
        std::fs::write(&path, SETTINGS).unwrap();
        assert_eq!(load(Some(&path), &[]).unwrap().settings, Settings::default());
        let all = uncommented(SETTINGS);
        assert!(all.contains("\ndrain_delay = "), "{all}");
        std::fs::write(&path, all).unwrap();
        let mut shown = load(Some(&path), &[]).unwrap().settings;
        assert_eq!(shown.tenants.remove("default").unwrap().max_in_flight, 64, "an example");
        assert_eq!(shown, Settings::default());
    }

    #[test]
    fn a_model_is_described_by_its_archive() {
        let info = archive::inspect(Path::new("models/tagger/1/model.pt")).unwrap();
        let text = described(&info);
        assert!(ModelManifest::parse(&text).unwrap().inputs.is_empty(), "it changes nothing as it is");
        let all = ModelManifest::parse(&uncommented(&text)).unwrap();
        let names: Vec<_> = all.inputs.iter().map(|input| input.name.to_string()).collect();
        assert_eq!(names, ["tokens", "weights"]);
    }

    #[test]
    fn a_file_that_is_there_is_not_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        let version = dir.path().join("m/1");
        std::fs::create_dir_all(&version).unwrap();
        std::fs::copy("models/tagger/1/model.pt", version.join("model.pt")).unwrap();
        let args = |force| Args {
            model: Some(dir.path().join("m")),
            stdout: false,
            force,
            output: JsonArgs { json: false },
        };
        run(&args(false)).unwrap();
        assert!(matches!(run(&args(false)), Err(Failure::Failed(why)) if why.contains("--force")));
        run(&args(true)).unwrap();
        assert!(matches!(model(&dir.path().join("none")), Err(Failure::Usage(_))));
    }
}
