//! Makes a version's `manifest.json`.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::{Map, Value, json};
use thiserror::Error;
use torchlane_archive::digest;
use torchlane_model::Version;

use super::{Base, FILE, Fact, Place, Seal, check, manifest::is_plain, violation::quoted};

/// A directory that cannot be sealed. One line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}: {problem}", directory.display())]
pub struct MakeError {
    directory: PathBuf,
    problem: String,
}

/// The archive that weights without one lie over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseArchive {
    /// Where it lies now.
    pub path: PathBuf,
    /// The version that it is of.
    pub version: Option<Version>,
}

/// Describes a version's directory as it is now. Where its `manifest.json` says the same already, that one is given back
/// with its signatures; otherwise its signatures are gone, and fields that torchlane does not know stay.
///
/// # Errors
/// There is nothing to seal, a file cannot be read or listed, or an old `manifest.json` cannot be understood.
pub fn make(
    directory: &Path,
    place: &Place,
    base: Option<&BaseArchive>,
    now: SystemTime,
) -> Result<Seal, MakeError> {
    let wrong = |problem: &dyn std::fmt::Display| MakeError {
        directory: directory.to_owned(),
        problem: problem.to_string(),
    };
    let files = describe(directory).map_err(|error| wrong(&error))?;
    if files.is_empty() {
        return Err(wrong(&"no files to list: name the directory that holds a version's files"));
    }
    let path = directory.join(FILE);
    let old = match path.symlink_metadata() {
        Ok(_) => {
            let again = |error| wrong(&format_args!("{error}; remove it to have a new one made"));
            Some(check::read(&path).map_err(again)?)
        }
        Err(_) => None,
    };
    let mut body = old.as_ref().map_or_else(Map::new, |old| old.body().clone());
    let mut set = |key: &str, value: Option<Value>| match value {
        Some(value) => drop(body.insert(key.to_owned(), value)),
        None => drop(body.remove(key)),
    };
    set("format", Some(json!(1)));
    set("model", place.model.as_ref().map(|model| json!(model.as_str())));
    set("version", place.version.map(|version| json!(version.0)));
    set("files", Some(json!(files)));
    let base = base.map(|base| {
        let fact = describe_file(&base.path)?;
        Ok(json!(Base { version: base.version.map(|version| version.0), fact }))
    });
    set("base", base.transpose().map_err(|error: io::Error| wrong(&error))?);
    if let Some(old) = old.filter(|old| *old.body() == body) {
        return Ok(old);
    }
    let created = humantime::format_rfc3339_seconds(now).to_string();
    body.insert("created".to_owned(), created.into());
    // By the reader's own rules: what is written here must be accepted there.
    let text = Value::Object(body).to_string();
    Seal::parse(text.as_bytes()).map_err(|error| wrong(&error))
}

/// Writes `manifest.json`: a reader sees the old one or the new one, and a crash leaves either.
///
/// # Errors
/// The directory cannot be written to.
pub fn write(directory: &Path, seal: &Seal) -> io::Result<()> {
    let aside = directory.join(format!(".{FILE}.{}", std::process::id()));
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&aside)?;
        file.write_all(seal.to_text().as_bytes())?;
        file.sync_all()?;
        fs::rename(&aside, directory.join(FILE))?;
        File::open(directory)?.sync_all()
    })();
    if written.is_err() {
        let _never_there = fs::remove_file(&aside);
    }
    written
}

/// Every file in the directory that can be listed: hidden ones cannot, and directories are not looked into.
fn describe(directory: &Path) -> io::Result<BTreeMap<String, Fact>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with('.') || name == FILE || !fs::metadata(entry.path())?.is_file() {
            continue;
        }
        if !is_plain(&name) || entry.file_name().to_str().is_none() {
            let problem = format!("{} cannot be listed: rename or remove it", quoted(&name));
            return Err(io::Error::other(problem));
        }
        files.insert(name, describe_file(&entry.path())?);
    }
    Ok(files)
}

fn describe_file(path: &Path) -> io::Result<Fact> {
    let named = |error: io::Error| io::Error::other(format!("{}: {error}", path.display()));
    Ok(Fact { bytes: fs::metadata(path).map_err(named)?.len(), sha256: digest(path).map_err(named)? })
}
