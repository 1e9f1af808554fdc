//! Holds a version's files to their `manifest.json`, before anything else reads them.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    ops::ControlFlow,
    path::{Path, PathBuf},
};

use torchlane_archive::{FileIdentity, digest};

use super::{Base, FILE, Fact, Integrity, MOST_BYTES, Place, Policy, Seal, Violation};
use crate::VersionFiles;

/// Files that may be loaded.
#[derive(Debug)]
pub struct Checked {
    /// sha256 of the archive, hexadecimal.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
    /// Which file it is.
    pub archive: FileIdentity,
    /// What is read of the version, and which file stood there when it was checked.
    read: Vec<(PathBuf, FileIdentity)>,
    /// A seal names what they must be.
    sealed: bool,
}

impl Checked {
    /// A file that is not the one that was checked any more. To be asked once everything has been read.
    pub fn changed(&self) -> Option<&Path> {
        self.read.iter().find(|(path, before)| !self.stands(path, before)).map(|(path, _)| path.as_path())
    }

    fn stands(&self, path: &Path, before: &FileIdentity) -> bool {
        let Ok(now) = FileIdentity::of(path) else { return false };
        if now == *before {
            return true;
        }
        // A link to the file was made, or its rights were changed: its content says whether it is the same.
        let content = || digest(path).is_ok_and(|sha256| sha256 == self.sha256);
        // Weights and samples are read once, as a whole: only a seal must hold for them to the end.
        now.may_be(before) && if *before == self.archive { content() } else { !self.sealed }
    }
}

/// Checks what torchlane reads of a version, and what its seal lists. An archive whose sha256 is `known` is not hashed.
///
/// # Errors
/// The first thing that is wrong; nothing is hashed where that needs no hash to see.
pub fn check(
    place: &Place,
    files: &VersionFiles,
    integrity: &Integrity,
    known: &dyn Fn(&FileIdentity) -> Option<String>,
) -> Result<Checked, Violation> {
    // Identities come before digests: a file that is exchanged between the two is seen as changed.
    let read = read_of(files)
        .map(|path| {
            let identity = FileIdentity::of(path).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound if path == files.archive => no_archive(files),
                _ => unreadable(path, &error),
            });
            Ok((path.to_owned(), identity?))
        })
        .collect::<Result<Vec<_>, Violation>>()?;
    // It is the first of those that are read.
    let Some(archive) = read.first().map(|(_, identity)| *identity) else {
        return Err(Violation::Missing(files.archive.display().to_string()));
    };
    let known = known(&archive);
    let examined = examine(place, files, integrity, known.as_deref(), &mut |_, result| match result {
        Ok(_) => ControlFlow::Continue(()),
        Err(wrong) => ControlFlow::Break(wrong),
    });
    let sha256 = match examined {
        ControlFlow::Break(wrong) => return Err(wrong),
        ControlFlow::Continue(Some(sha256)) => sha256,
        ControlFlow::Continue(None) => match known {
            Some(sha256) => sha256,
            None => digest(&files.archive).map_err(|error| unreadable(&files.archive, &error))?,
        },
    };
    let sealed = files.seal.is_some();
    Ok(Checked { sha256, bytes: archive.size, archive, read, sealed })
}

/// Told of each thing that was looked at: its name, and what is said of it or wrong with it. Breaks off if it wants.
pub type Tell<'a, B> = dyn FnMut(&str, Result<String, Violation>) -> ControlFlow<B> + 'a;

/// Looks at everything, cheapest first, and tells of each thing. Gives the archive's sha256 if it was hashed, or was known.
pub fn examine<B>(
    place: &Place,
    files: &VersionFiles,
    integrity: &Integrity,
    known_sha256: Option<&str>,
    tell: &mut Tell<'_, B>,
) -> ControlFlow<B, Option<String>> {
    let Some(path) = &files.seal else {
        let without = match integrity.policy {
            Policy::Off => Ok("none, and none is asked for".to_owned()),
            policy if files.is_ensemble() => Err(Violation::Ensemble(files.archive.clone(), policy)),
            policy => Err(Violation::Unsealed(files.archive.clone(), policy)),
        };
        tell(FILE, without)?;
        return ControlFlow::Continue(None);
    };
    let seal = match read(path) {
        Ok(seal) => seal,
        Err(wrong) => {
            tell(FILE, Err(wrong))?;
            return ControlFlow::Continue(None);
        }
    };
    if integrity.policy == Policy::Signed {
        tell(
            "signature",
            seal.authenticate(&integrity.trusted).map(|key| format!("by the trusted key {key}")),
        )?;
    }
    if let Err(wrong) = seal.belongs(place) {
        tell(FILE, Err(wrong))?;
    }
    let directory = path.parent().unwrap_or(Path::new(""));
    for name in unlisted(&seal, directory, files) {
        tell(&name, Err(Violation::Unlisted(name.clone())))?;
    }
    let mut listed: Vec<_> =
        seal.files().iter().map(|(name, fact)| (name.clone(), directory.join(name), fact)).collect();
    if !files.archive.starts_with(directory) {
        match seal.base() {
            Some(base) => listed.push((base_name(base), files.archive.clone(), &base.fact)),
            None => tell("base archive", Err(Violation::NoBase))?,
        }
    } else if let Some(base) = seal.base().filter(|_| !files.archive.exists()) {
        // Weights that lie apart from the archive below them: half of what was sealed.
        tell(&base_name(base), Err(Violation::Missing(base_name(base))))?;
    }
    // Sizes of all, then digests: a copy that was cut short is found without reading gigabytes.
    let mut to_hash = Vec::new();
    for (name, path, fact) in listed {
        match of_size(&name, &path, fact) {
            Ok(()) => to_hash.push((name, path, fact)),
            Err(wrong) => tell(&name, Err(wrong))?,
        }
    }
    let mut archive = None;
    for (name, path, fact) in to_hash {
        let hashed = match known_sha256.filter(|_| path == files.archive) {
            Some(known) => Ok(known.to_owned()),
            None => digest(&path).map_err(|error| unreadable(&path, &error)),
        };
        if path == files.archive {
            archive = hashed.as_ref().ok().cloned();
        }
        tell(&name, hashed.and_then(|sha256| of_digest(&name, &sha256, fact)))?;
    }
    ControlFlow::Continue(archive)
}

/// What torchlane reads of a version, `model.toml` apart.
fn read_of(files: &VersionFiles) -> impl Iterator<Item = &Path> {
    [Some(&files.archive), files.weights.as_ref(), files.samples.as_ref()]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
}

/// Files that would be read though the seal beside them does not list them.
fn unlisted(seal: &Seal, directory: &Path, files: &VersionFiles) -> Vec<String> {
    let elsewhere = |path: &Path| seal.base().is_some() && path == files.archive && !path.exists();
    read_of(files)
        .filter(|path| !elsewhere(path))
        .filter_map(|path| path.strip_prefix(directory).ok()?.to_str())
        .filter(|name| !seal.files().contains_key(*name))
        .map(str::to_owned)
        .collect()
}

fn base_name(base: &Base) -> String {
    let of = base.version.map_or_else(String::new, |version| format!(" (version {version})"));
    format!("base archive{of}")
}

fn of_size(name: &str, path: &Path, fact: &Fact) -> Result<(), Violation> {
    match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => {
            Err(Violation::Unreadable(format!("{} is not a file", path.display())))
        }
        Ok(meta) if meta.len() != fact.bytes => {
            Err(Violation::Size { name: name.to_owned(), listed: fact.bytes, found: meta.len() })
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Violation::Missing(name.to_owned())),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn of_digest(name: &str, sha256: &str, fact: &Fact) -> Result<String, Violation> {
    if sha256 == fact.sha256 {
        return Ok(format!("{} bytes, sha256 as listed", fact.bytes));
    }
    let (name, listed, found) = (name.to_owned(), fact.sha256.clone(), sha256.to_owned());
    Err(Violation::Digest { name, listed, found })
}

/// Reads a seal.
pub(super) fn read(path: &Path) -> Result<Seal, Violation> {
    let wrong =
        |problem: &dyn std::fmt::Display| Violation::Unreadable(format!("{}: {problem}", path.display()));
    // What is no file may keep its reader waiting for ever.
    if !fs::metadata(path).map_err(|error| wrong(&error))?.is_file() {
        return Err(Violation::Unreadable(format!("{} is not a file", path.display())));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| wrong(&error))?;
    file.take(MOST_BYTES + 1).read_to_end(&mut bytes).map_err(|error| wrong(&error))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(wrong(&format_args!("over {MOST_BYTES} bytes")));
    }
    Seal::parse(&bytes).map_err(|problem| wrong(&problem))
}

fn unreadable(path: &Path, error: &io::Error) -> Violation {
    Violation::Unreadable(format!("{}: {error}", path.display()))
}

fn no_archive(files: &VersionFiles) -> Violation {
    let archive = files.archive.display();
    Violation::Unreadable(match &files.weights {
        Some(weights) => format!(
            "{} lies over no archive: neither {archive} nor an older version's is there; put one there",
            weights.display()
        ),
        None => format!("{archive} is not there: the version is empty; put the model's archive there"),
    })
}
