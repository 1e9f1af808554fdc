//! From names in a bucket to models and versions: the same layout as in a directory, without a look at any file.
//!
//! Objects come one by one, so a version counts as soon as its archive or its weights are there: whoever uploads puts
//! these last. Every object that lies directly in a version's folder belongs to it; deeper ones are not looked at.

use std::{
    collections::{BTreeMap, hash_map::DefaultHasher},
    fmt::Write as _,
    hash::{Hash as _, Hasher as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    loader::seal::FILE as SEAL,
    model::{ModelName, Version},
    repository::{
        Found, Kept, VersionFiles,
        directory::{ARCHIVE, MANIFEST, SAMPLES, WEIGHTS},
    },
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
    /// Its own files, the model's `model.toml`, and the archive that its weights are laid over.
    pub(super) files: Vec<Listed>,
    archive: String,
    weights: Option<String>,
    samples: Option<String>,
    seal: Option<String>,
    manifest: Option<String>,
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
        Found { name: self.name.clone(), versions: self.plans.iter().map(|plan| plan.paths(root)).collect() }
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
            stamp: self.stamp(|path| Some(path) != self.manifest.as_ref()),
            manifest_stamp: self.stamp(|path| Some(path) == self.manifest.as_ref()),
            kept: Kept::default(),
        }
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
    manifest: Option<&'a Listed>,
    /// An archive that is no version's: a mistake that deserves a word.
    misplaced: bool,
    versions: BTreeMap<Version, Vec<&'a Listed>>,
}

/// Every model of a listing, by name. What fits nowhere is left out.
pub(super) fn offers(listed: &[Listed]) -> Vec<Offer> {
    let mut folders: BTreeMap<ModelName, Folder<'_>> = BTreeMap::new();
    let mut bare = BTreeMap::new();
    for object in listed {
        let mut parts = object.path.split('/');
        let place = (parts.next(), parts.next(), parts.next(), parts.next());
        match place {
            (Some(file), None, ..) => {
                if let Some(Ok(name)) = file.strip_suffix(".pt").map(str::parse::<ModelName>) {
                    bare.insert(name, object);
                }
            }
            (Some(model), Some(file), None, _) => {
                let Ok(name) = model.parse::<ModelName>() else { continue };
                match file {
                    MANIFEST => folders.entry(name).or_default().manifest = Some(object),
                    ARCHIVE => folders.entry(name).or_default().misplaced = true,
                    _ => {}
                }
            }
            (Some(model), Some(version), Some(file), None) => {
                let (Ok(name), Ok(version)) = (model.parse::<ModelName>(), version.parse::<Version>()) else {
                    continue;
                };
                // The name becomes a local one: nothing hidden, nothing that leads elsewhere.
                if !file.is_empty() && !file.starts_with('.') && !file.contains(['\\', '\0']) {
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
        };
        offers.insert(name.clone(), Offer { name, plans: vec![plan] });
    }
    // A folder wins over a bare file of the same name.
    for (name, folder) in folders {
        let plans = plans(&name, &folder);
        if !plans.is_empty() || folder.manifest.is_some() || folder.misplaced {
            offers.insert(name.clone(), Offer { name, plans });
        }
    }
    offers.into_values().collect()
}

fn plans(name: &ModelName, folder: &Folder<'_>) -> Vec<Plan> {
    let mut plans = Vec::new();
    let mut older: Option<&Listed> = None;
    for (version, objects) in &folder.versions {
        let find = |file: &str| {
            let path = format!("{name}/{version}/{file}");
            objects.iter().copied().find(|object| object.path == path)
        };
        let weights = WEIGHTS.into_iter().find_map(find);
        let archive = find(ARCHIVE);
        if archive.is_none() && weights.is_none() {
            continue;
        }
        let mut files: Vec<Listed> = objects.iter().copied().cloned().collect();
        files.extend(folder.manifest.cloned());
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
            manifest: own(folder.manifest),
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
    use crate::repository::Directory;

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
            picks in proptest::collection::btree_set((0..3_usize, 0..4_usize, 0..6_usize), 0..20),
        ) {
            let files = ["model.pt", "weights.safetensors", "weights.pth", "samples.safetensors", "manifest.json", "x.txt"];
            let mut paths = Vec::new();
            for (model, version, file) in picks {
                let model = ["a", "b.c", "d"][model];
                match (version, file) {
                    (0, 0) => paths.push(format!("{model}.pt")),
                    (0, 1) => paths.push(format!("{model}/model.toml")),
                    (0, 2) => paths.push(format!("{model}/model.pt")),
                    (0, 3) => paths.push(format!("{model}/notes/1/model.pt")),
                    (0, 4) => paths.push(format!("{model}/007/model.pt")),
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
    fn weights_bring_the_archive_that_they_lie_over() {
        let objects = ["m/1/model.pt", "m/2/weights.pth", "m/model.toml"].map(listed);
        let offer = offers(&objects).remove(0);
        let paths: Vec<_> = offer.plans[1].files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["m/1/model.pt", "m/2/weights.pth", "m/model.toml"]);
    }
}
