//! From names in a bucket to models and versions: the same layout as in a directory, without a look at any file.
//!
//! Objects come one by one, so a version counts as soon as its archive or its weights are there: whoever uploads puts
//! these last. Every object that lies directly in a version's folder belongs to it; deeper ones are not looked at.
//!
//! What a `config.pbtxt` names cannot be read here. So where there is one, small objects beside it are taken for labels. No file
//! can be looked into either: an archive that is not called `model.pt` is the only `.pt`, `.jit` or `.torchscript` of its version.
//! Whatever loads it holds it to what the config says, and to what it holds.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    fmt::Write as _,
    hash::{Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use torchlane_model::{ModelName, Version};

use crate::{
    Found, Kept, MOST_TEXT, VersionFiles,
    description::{ARCHIVE, CONFIG, MANIFEST},
    directory::{SAMPLES, WEIGHTS},
    inside::is_archive_by_name,
    seal::FILE as SEAL,
};

/// One object, as a listing has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(super) struct Listed {
    /// Below the repository's prefix: `digits/2/model.pt`.
    pub(super) path: String,
    /// Bytes.
    pub(super) size: u64,
    /// The store's word for "the same content": an ETag.
    pub(super) tag: Option<String>,
    /// Milliseconds since 1970; tells contents apart where there is no tag.
    pub(super) modified: i64,
    /// Where an index gives it.
    pub(super) sha256: Option<String>,
}

/// What one version is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    version: Version,
    /// Its own files, what describes the model, and the archive that its weights are laid over.
    pub(super) files: Vec<Listed>,
    archive: String,
    weights: Option<String>,
    samples: Option<String>,
    seal: Option<String>,
    manifest: Option<String>,
    /// What belongs to `manifest`: labels, or a `config.pbtxt` that is not read.
    beside: Vec<String>,
}

/// A model and what its versions are made of, oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) name: ModelName,
    pub(super) plans: Vec<Plan>,
}

impl Offer {
    /// As callers see it: `root` is where trees of files are put together.
    pub(super) fn found(&self, root: &Path) -> Found {
        Found::new(self.name.clone(), self.plans.iter().map(|plan| plan.paths(root)).collect())
    }
}

impl Plan {
    /// Changes with any byte of any file, as far as the store can tell.
    pub(super) fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        for Listed { path, size, tag, modified, sha256 } in &self.files {
            let same = sha256.clone().or_else(|| tag.clone()).unwrap_or_else(|| modified.to_string());
            hash.update(format!("{path}\n{size}\n{same}\n"));
        }
        hash.finalize().iter().take(12).fold(String::with_capacity(24), |mut text, byte| {
            let _infallible = write!(text, "{byte:02x}");
            text
        })
    }

    /// Where its files lie once they are here: a small repository of their own, named by what is in it.
    pub(super) fn paths(&self, root: &Path) -> VersionFiles {
        let tree = root.join(self.fingerprint());
        let at = |path: &String| -> PathBuf { tree.join(path) };
        VersionFiles {
            version: self.version,
            archive: at(&self.archive),
            weights: self.weights.as_ref().map(at),
            samples: self.samples.as_ref().map(at),
            seal: self.seal.as_ref().map(at),
            manifest: self.manifest.as_ref().map(at),
            stamp: self.stamp(|path| !self.describes(path)),
            manifest_stamp: self.stamp(|path| self.describes(path)),
            kept: Kept::default(),
            aside: Box::default(),
        }
    }

    fn describes(&self, path: &str) -> bool {
        self.manifest.as_deref() == Some(path) || self.beside.iter().any(|beside| beside == path)
    }

    /// Changes with the contents of some of its files.
    fn stamp(&self, of: impl Fn(&String) -> bool) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.files.iter().filter(|listed| of(&listed.path)).for_each(|listed| listed.hash(&mut hasher));
        hasher.finish()
    }
}

/// What lies in one model's folder.
#[derive(Default)]
struct Folder<'a> {
    toml: Option<&'a Listed>,
    config: Option<&'a Listed>,
    /// Other objects that are no version's.
    others: Vec<&'a Listed>,
    /// An archive that is no version's: a mistake that deserves a word.
    misplaced: bool,
    versions: BTreeMap<Version, Vec<&'a Listed>>,
}

impl<'a> Folder<'a> {
    /// What describes the model.
    fn manifest(&self) -> Option<&'a Listed> {
        self.toml.or(self.config)
    }

    /// What belongs to that.
    fn beside(&self) -> Vec<&'a Listed> {
        match (self.toml, self.config) {
            (Some(_), config) => config.into_iter().collect(),
            (None, Some(_)) => {
                self.others.iter().copied().filter(|object| object.size <= MOST_TEXT).collect()
            }
            (None, None) => Vec::new(),
        }
    }

    /// The archive among a version's objects.
    fn archive(&self, version: &[&'a Listed]) -> Option<&'a Listed> {
        let called = |object: &&'a Listed, end: &str| object.path.ends_with(end);
        let usual = format!("/{ARCHIVE}");
        if let Some(archive) = version.iter().copied().find(|object| called(object, &usual)) {
            return Some(archive);
        }
        let mut others = version.iter().copied().filter(|object| is_archive_by_name(&object.path));
        others.next().filter(|_| others.next().is_none())
    }
}

/// Every model of a listing, by name. What fits nowhere is left out.
pub(super) fn offers(listed: &[Listed]) -> Vec<Offer> {
    let mut folders: BTreeMap<ModelName, Folder<'_>> = BTreeMap::new();
    let mut bare = BTreeMap::new();
    for object in listed.iter().filter(|object| !is_marker(object)) {
        let mut parts = object.path.split('/');
        let place = (parts.next(), parts.next(), parts.next(), parts.next());
        match place {
            (Some(file), None, ..) => {
                let stem = file.rsplit_once('.').map(|(stem, _)| stem).filter(|_| is_archive_by_name(file));
                if let Some(Ok(name)) = stem.map(str::parse::<ModelName>) {
                    // The usual name comes first.
                    let other = bare.entry(name).or_insert(object);
                    if file.ends_with(".pt") {
                        *other = object;
                    }
                }
            }
            (Some(model), Some(file), None, _) => {
                let Ok(name) = model.parse::<ModelName>() else { continue };
                let folder = folders.entry(name).or_default();
                match file {
                    MANIFEST => folder.toml = Some(object),
                    CONFIG => folder.config = Some(object),
                    ARCHIVE => folder.misplaced = true,
                    // Versions are directories.
                    _ if is_local(file) && file.parse::<Version>().is_err() => folder.others.push(object),
                    _ => {}
                }
            }
            (Some(model), Some(version), Some(file), None) => {
                let (Ok(name), Ok(version)) = (model.parse::<ModelName>(), version.parse::<Version>()) else {
                    continue;
                };
                if is_local(file) {
                    folders.entry(name).or_default().versions.entry(version).or_default().push(object);
                }
            }
            _ => {}
        }
    }
    let mut offers = BTreeMap::new();
    for (name, object) in bare {
        let plan = Plan {
            version: Version(1),
            archive: object.path.clone(),
            files: vec![object.clone()],
            weights: None,
            samples: None,
            seal: None,
            manifest: None,
            beside: Vec::new(),
        };
        offers.insert(name.clone(), Offer { name, plans: vec![plan] });
    }
    // A folder wins over a bare file of the same name.
    for (name, folder) in folders {
        let plans = plans(&name, &folder);
        if !plans.is_empty() || folder.manifest().is_some() || folder.misplaced {
            offers.insert(name.clone(), Offer { name, plans });
        }
    }
    offers.into_values().collect()
}

/// Whether it only marks a folder, as consoles and copying programs leave them: an empty object that is named like the folder.
/// Of empty objects only those with a meaning count.
fn is_marker(object: &Listed) -> bool {
    let name = object.path.rsplit('/').next().unwrap_or_default();
    let has_meaning =
        [MANIFEST, CONFIG, SAMPLES, SEAL].contains(&name) || WEIGHTS.contains(&name) || name.ends_with(".pt");
    object.size == 0 && !has_meaning
}

/// Longest name of a file, in bytes.
const LONGEST: usize = 255;

/// Whether a name may become that of a file here: nothing hidden, nothing that leads elsewhere.
fn is_local(file: &str) -> bool {
    !file.is_empty() && file.len() <= LONGEST && !file.starts_with('.') && !file.contains(['\\', '\0'])
}

fn plans(name: &ModelName, folder: &Folder<'_>) -> Vec<Plan> {
    let (manifest, beside) = (folder.manifest(), folder.beside());
    let mut plans = Vec::new();
    let mut older: Option<&Listed> = None;
    for (version, objects) in &folder.versions {
        let find = |file: &str| {
            let path = format!("{name}/{version}/{file}");
            objects.iter().copied().find(|object| object.path == path)
        };
        let weights = WEIGHTS.into_iter().find_map(find);
        let archive = folder.archive(objects);
        if archive.is_none() && weights.is_none() {
            continue;
        }
        let mut files: Vec<Listed> = objects.iter().copied().cloned().collect();
        files.extend(manifest.into_iter().chain(beside.iter().copied()).cloned());
        if archive.is_none() {
            files.extend(older.cloned());
        }
        older = archive.or(older);
        files.sort();
        let own = |object: Option<&Listed>| object.map(|object| object.path.clone());
        plans.push(Plan {
            version: *version,
            archive: own(older).unwrap_or_else(|| format!("{name}/{version}/{ARCHIVE}")),
            weights: own(weights),
            samples: own(find(SAMPLES)),
            seal: own(find(SEAL)),
            manifest: own(manifest),
            beside: beside.iter().map(|object| object.path.clone()).collect(),
            files,
        });
    }
    plans
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;
    use crate::Directory;

    fn listed(path: &str) -> Listed {
        Listed { path: path.into(), size: 1, tag: Some("\"a\"".into()), modified: 0, sha256: None }
    }

    /// With other paths, and without stamps: they tell of what is in the files, and are made of other things in a store and in
    /// a directory.
    fn paths_alone(files: VersionFiles, path: impl Fn(PathBuf) -> PathBuf + Copy) -> VersionFiles {
        VersionFiles {
            archive: path(files.archive),
            weights: files.weights.map(path),
            samples: files.samples.map(path),
            seal: files.seal.map(path),
            manifest: files.manifest.map(path),
            stamp: 0,
            manifest_stamp: 0,
            ..files
        }
    }

    /// What a directory with the same files offers, with paths below `root`.
    fn in_a_directory(paths: &[String]) -> Vec<(String, Vec<VersionFiles>)> {
        let dir = tempfile::tempdir().unwrap();
        for path in paths {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"x").unwrap();
        }
        let below = |path: PathBuf| path.strip_prefix(dir.path()).unwrap().to_owned();
        let found = Directory::open(dir.path()).unwrap().scan().unwrap();
        found
            .into_iter()
            .map(|found| {
                let versions = found.versions.into_iter().map(|files| paths_alone(files, below));
                (found.name.to_string(), versions.collect())
            })
            .collect()
    }

    fn in_a_store(paths: &[String]) -> Vec<(String, Vec<VersionFiles>)> {
        let listed: Vec<_> = paths.iter().map(|path| listed(path)).collect();
        let below = |path: PathBuf| path.components().skip(1).collect::<PathBuf>();
        offers(&listed)
            .into_iter()
            .map(|offer| {
                let versions =
                    offer.found(Path::new("")).versions.into_iter().map(|files| paths_alone(files, below));
                (offer.name.to_string(), versions.collect())
            })
            .collect()
    }

    proptest! {
        #[test]
        fn a_store_offers_what_a_directory_would(
            picks in proptest::collection::btree_set((0..3_usize, 0..4_usize, 0..8_usize), 0..20),
        ) {
            let files = [
                "model.pt", "weights.safetensors", "weights.pth", "samples.safetensors", "manifest.json", "x.txt", "y.txt",
                ".hidden",
            ];
            let mut paths = Vec::new();
            for (model, version, file) in picks {
                let model = ["a", "b.c", "d"][model];
                match (version, file) {
                    (0, 0) => paths.push(format!("{model}.pt")),
                    (0, 1) => paths.push(format!("{model}/model.toml")),
                    (0, 2) => paths.push(format!("{model}/model.pt")),
                    (0, 3) => paths.push(format!("{model}/notes/1/model.pt")),
                    (0, 4) => paths.push(format!("{model}/007/model.pt")),
                    (0, 5) => paths.push(format!("{model}/config.pbtxt")),
                    (0, 6) => paths.push(format!("{model}/labels.txt")),
                    (0, _) => paths.push(".hidden/1/model.pt".to_owned()),
                    (version, file) => paths.push(format!("{model}/{version}/{}", files[file])),
                }
            }
            // The one difference: what has neither archive nor weights is still being uploaded, and not looked at.
            let is_done = |path: &&String| {
                let mut parts = path.split('/');
                let (Some(model), Some(version), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next())
                else { return true };
                let has = |file: &str| paths.contains(&format!("{model}/{version}/{file}"));
                ["model.pt", "weights.safetensors", "weights.pth"].into_iter().any(has)
            };
            let finished: Vec<_> = paths.iter().filter(is_done).cloned().collect();
            // Weights without any archive below them fail when they are loaded, whatever path they are said to lack.
            let settled = |mut found: Vec<(String, Vec<VersionFiles>)>| {
                for version in found.iter_mut().flat_map(|(_, versions)| versions) {
                    if !paths.iter().any(|path| version.archive == Path::new(path)) {
                        version.archive = PathBuf::new();
                    }
                }
                found
            };
            let (offered, expected) = (settled(in_a_store(&paths)), settled(in_a_directory(&finished)));
            prop_assert_eq!(offered, expected);
        }
    }

    #[test]
    fn a_fingerprint_is_of_the_content() {
        let one = |object: Listed| offers(&[object]).remove(0).plans.remove(0).fingerprint();
        let base = listed("m/1/model.pt");
        let same = Listed { modified: 7, ..base.clone() };
        let other = Listed { tag: Some("\"b\"".into()), ..base.clone() };
        assert_eq!(one(base.clone()), one(same), "with a tag, the time says nothing");
        assert_ne!(one(base.clone()), one(other));
        let untagged = |modified| one(Listed { tag: None, modified, ..base.clone() });
        assert_ne!(untagged(1), untagged(2));
    }

    #[test]
    fn a_config_brings_its_labels_and_an_archive_of_another_name() {
        let large = Listed { size: MOST_TEXT + 1, ..listed("m/large.bin") };
        let objects = |names: &[&str]| -> Vec<Listed> {
            names.iter().map(|name| listed(name)).chain([large.clone()]).collect()
        };
        let plan = |names: &[&str]| offers(&objects(names)).remove(0).plans.pop();
        let found = plan(&["m/config.pbtxt", "m/labels.txt", "m/1/net.pt", "m/1/notes.txt"]).unwrap();
        assert_eq!(
            (found.archive.as_str(), found.manifest.as_deref()),
            ("m/1/net.pt", Some("m/config.pbtxt"))
        );
        let paths: Vec<_> = found.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(
            paths,
            ["m/1/net.pt", "m/1/notes.txt", "m/config.pbtxt", "m/labels.txt"],
            "but nothing large"
        );
        let stamps = |files: VersionFiles| (files.stamp, files.manifest_stamp);
        let before = stamps(found.paths(Path::new("")));
        let mut changed = found;
        changed.files.iter_mut().filter(|file| file.path == "m/labels.txt").for_each(|file| file.size = 2);
        let after = stamps(changed.paths(Path::new("")));
        assert!(before.0 == after.0 && before.1 != after.1, "labels are part of what is said of the model");
        // Of several none is known to be the one.
        assert_eq!(plan(&["m/config.pbtxt", "m/1/a.pt", "m/1/b.pt"]), None);
        assert_eq!(plan(&["m/config.pbtxt", "m/1/a.pt", "m/1/model.pt"]).unwrap().archive, "m/1/model.pt");
        assert_eq!(plan(&["m/1/a.PT"]).unwrap().archive, "m/1/a.PT");
        assert!(offers(&objects(&["m/1/a.pth", "b.pth", "c.ts"])).is_empty(), "these may be anything");
        let bare: Vec<_> = offers(&objects(&["a.jit", "a.pt", "b.torchscript"]))
            .into_iter()
            .map(|offer| offer.plans[0].archive.clone())
            .collect();
        assert_eq!(bare, ["a.pt", "b.torchscript"]);
        let both = plan(&["m/config.pbtxt", "m/model.toml", "m/labels.txt", "m/1/model.pt"]).unwrap();
        assert_eq!(
            (both.manifest.as_deref(), both.beside.as_slice()),
            (Some("m/model.toml"), &["m/config.pbtxt".to_owned()][..])
        );
    }

    #[test]
    fn weights_bring_the_archive_that_they_lie_over() {
        let objects = ["m/1/model.pt", "m/2/weights.pth", "m/model.toml"].map(listed);
        let offer = offers(&objects).remove(0);
        let paths: Vec<_> = offer.plans[1].files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["m/1/model.pt", "m/2/weights.pth", "m/model.toml"]);
    }
}
