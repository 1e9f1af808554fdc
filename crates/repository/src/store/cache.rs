//! Files from stores on the local disk, by what is in them.
//!
//! ```text
//! objects/sha256/ab/abcd...      contents, each once
//! repos/STORE/FINGERPRINT/...    a version: links to contents, under the names that they have in the store
//! parts/KEY.part, KEY.json       downloads that have not ended, and what they are of
//! ```
//!
//! **Invariant**: what has its final name is complete. A version appears by one rename; contents appear by one rename
//! after they have reached the disk. A content is never replaced by an equal one: a loader may be reading it. A version is in
//! use while a process holds a lock on its directory: such locks end with their process, however it ends.
//!
//! A content is used only after this process has hashed it, and again once its file has changed: disks lose bits, and people
//! edit files. A damaged content is removed and fetched anew.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use torchlane_archive::{FileIdentity, digest};
use torchlane_model::error::Reason;

use super::{
    error::FetchError,
    evict::{self, Contents, NoRoom, Tree, Unfinished},
    layout::Listed,
    part::{Part, PartNote, key},
};

/// In a version's directory: what it was made of. Hidden, so that it is no part of the repository.
const RECORD: &str = ".torchlane.json";

/// Begins the names of versions that are being put together.
const BUILDING: &str = ".new-";

/// The cache of one or more stores.
#[derive(Debug)]
pub(super) struct Cache {
    root: PathBuf,
    max_bytes: u64,
    /// Contents that were hashed and are what their names say, by sha256.
    whole: Mutex<HashMap<String, FileIdentity>>,
}

/// What a cache is made of.
const PARTS: [&str; 3] = ["objects/sha256", "repos", "parts"];

/// One file of a version that is here.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Recorded {
    listed: Listed,
    sha256: String,
}

/// Keeps a version's files from being removed.
#[derive(Debug)]
pub(super) struct Pin {
    _locked: File,
}

/// A version that is being put together. What it links to is safe.
#[derive(Debug)]
pub(super) struct Building {
    at: PathBuf,
    to: PathBuf,
    locked: File,
    records: Vec<Recorded>,
}

impl Cache {
    pub(super) fn open(root: &Path, max_bytes: u64) -> io::Result<Self> {
        fs::create_dir_all(root)?;
        let cache = Self { root: root.canonicalize()?, max_bytes, whole: Mutex::default() };
        cache.make()?;
        Ok(cache)
    }

    /// Makes its directories, which may have been removed while the server runs.
    fn make(&self) -> io::Result<()> {
        PARTS.iter().try_for_each(|part| fs::create_dir_all(self.root.join(part)))
    }

    /// Where the versions of a store are put together.
    pub(super) fn trees(&self, store: &str) -> PathBuf {
        self.root.join("repos").join(store)
    }

    fn object(&self, sha256: &str) -> PathBuf {
        let (begin, _) = sha256.split_at_checked(2).unwrap_or(("", ""));
        self.root.join("objects/sha256").join(begin).join(sha256)
    }

    fn part(&self, key: &str, extension: &str) -> PathBuf {
        self.root.join("parts").join(format!("{key}.{extension}"))
    }

    /// Keeps all processes that share the cache from changing what it holds. Short: no download runs under it.
    fn lock(&self) -> io::Result<File> {
        self.make()?;
        let file = File::options().create(true).append(true).open(self.root.join("lock"))?;
        flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }

    /// One fetch of a model at a time, over all processes. `None`: another is under way.
    pub(super) fn turn(&self, store: &str, model: &str) -> io::Result<Option<File>> {
        let trees = self.trees(store);
        fs::create_dir_all(&trees)?;
        let file = File::options().create(true).append(true).open(trees.join(format!(".turn-{model}")))?;
        Ok(flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok().then_some(file))
    }

    /// Holds a version that is here and whole. `None`: it is not.
    pub(super) fn pin(&self, tree: &Path) -> io::Result<Option<Pin>> {
        let locked = {
            let _lock = self.lock()?;
            let Ok(locked) = File::open(tree) else { return Ok(None) };
            flock(&locked, FlockOperation::LockShared)?;
            locked
        };
        let Some(records) = read_record(tree) else { return Ok(None) };
        for Recorded { listed, sha256 } in &records {
            // The name in the version must lead to the content that was recorded.
            let leads = fs::read_link(tree.join(&listed.path)).is_ok_and(|to| to == self.object(sha256));
            if !leads || !self.is_whole(sha256, listed)? {
                return Ok(None);
            }
        }
        // Its directory's time says when it was used last.
        let _not_ours = locked.set_modified(SystemTime::now());
        Ok(Some(Pin { _locked: locked }))
    }

    /// Whether a content is here and is what its name says. A damaged one is removed.
    fn is_whole(&self, sha256: &str, listed: &Listed) -> io::Result<bool> {
        let path = self.object(sha256);
        let Ok(before) = FileIdentity::of(&path) else { return Ok(false) };
        if self.whole.lock().get(sha256) == Some(&before) {
            return Ok(before.size == listed.size);
        }
        if before.size == listed.size && digest(&path).is_ok_and(|found| found == sha256) {
            self.whole.lock().insert(sha256.to_owned(), before);
            return Ok(true);
        }
        let _lock = self.lock()?;
        // Another process may have replaced it meanwhile.
        if FileIdentity::of(&path).is_ok_and(|now| now == before) {
            tracing::warn!(
                target: "torchlane::store", file = listed.path, content = %path.display(),
                "a file in the cache is damaged: its bytes are not those that were downloaded. It is downloaded again"
            );
            fs::remove_file(&path)?;
        }
        Ok(false)
    }

    /// Digests of files of a store that other versions have brought here.
    pub(super) fn known(&self, store: &str) -> BTreeMap<Listed, String> {
        let entries = fs::read_dir(self.trees(store)).into_iter().flatten().flatten();
        let records = entries.filter_map(|entry| read_record(&entry.path())).flatten();
        records.map(|recorded| (recorded.listed, recorded.sha256)).collect()
    }

    pub(super) fn build(&self, tree: &Path) -> io::Result<Building> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (Some(trees), Some(name)) = (tree.parent(), tree.file_name()) else {
            return Err(io::Error::other("a version without a name"));
        };
        let _lock = self.lock()?;
        let unique = format!("{BUILDING}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let at = trees.join(format!("{unique}-{}", name.to_string_lossy()));
        fs::create_dir_all(&at)?;
        let locked = File::open(&at)?;
        flock(&locked, FlockOperation::LockShared)?;
        Ok(Building { at, to: tree.to_owned(), locked, records: Vec::new() })
    }

    /// Uses a content that is here already. False: it is not.
    pub(super) fn link_known(
        &self,
        building: &mut Building,
        listed: &Listed,
        sha256: &str,
    ) -> io::Result<bool> {
        if !self.is_whole(sha256, listed)? {
            return Ok(false);
        }
        let _lock = self.lock()?;
        let here = self.object(sha256).exists();
        if here {
            self.link(building, listed, sha256)?;
        }
        Ok(here)
    }

    /// Takes a complete download in.
    pub(super) fn adopt(&self, building: &mut Building, part: Part, sha256: &str) -> io::Result<()> {
        let object = self.object(sha256);
        let listed = part.sync()?;
        // Another model may have brought the same content, and its loader may be reading it.
        let equal = self.is_whole(sha256, &listed)?;
        let _lock = self.lock()?;
        if let Some(directory) = object.parent() {
            fs::create_dir_all(directory)?;
        }
        if equal && object.exists() {
            part.remove();
        } else {
            let key = part.key().to_owned();
            fs::rename(self.part(&key, "part"), &object)?;
            let _gone_already = fs::remove_file(self.part(&key, "json"));
            // It was hashed as it came.
            self.whole.lock().insert(sha256.to_owned(), FileIdentity::of(&object)?);
        }
        self.link(building, &listed, sha256)
    }

    fn link(&self, building: &mut Building, listed: &Listed, sha256: &str) -> io::Result<()> {
        let path = building.at.join(&listed.path);
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        // A symbolic link: a hard one would change the content's own times, by which a loader sees that it was written to.
        std::os::unix::fs::symlink(self.object(sha256), path)?;
        building.records.push(Recorded { listed: listed.clone(), sha256: sha256.to_owned() });
        Ok(())
    }

    /// Gives a version its final name.
    pub(super) fn finish(&self, building: Building) -> io::Result<Pin> {
        let Building { at, to, locked, records } = building;
        let text = serde_json::to_vec(&records).map_err(io::Error::other)?;
        fs::write(at.join(RECORD), text)?;
        let _lock = self.lock()?;
        // What stands there is not whole: else it would have been used.
        let _nothing_there = fs::remove_dir_all(&to);
        fs::rename(&at, &to)?;
        Ok(Pin { _locked: locked })
    }

    /// Throws a version away that was not completed. What it had brought stays until room is needed.
    pub(super) fn give_up(building: Building) {
        let _gone_already = fs::remove_dir_all(building.at);
    }

    /// Room for what is to be downloaded, with its files. What nobody uses leaves for it.
    ///
    /// # Errors
    /// It does not fit within the cache's limit.
    pub(super) fn reserve(&self, store: &str, wanted: &[&Listed]) -> Result<Vec<Part>, FetchError> {
        let unusable = |error: io::Error| FetchError::cache("another download", &error);
        let _lock = self.lock().map_err(unusable)?;
        let keys: BTreeSet<_> = wanted.iter().map(|listed| key(store, &listed.path)).collect();
        let contents = self.contents(&keys).map_err(unusable)?;
        let need = wanted.iter().map(|listed| listed.size).fold(0, u64::saturating_add);
        let leaving = evict::room(&contents, need, self.max_bytes).map_err(|NoRoom { in_use }| {
            let size = |bytes| bytesize::ByteSize::b(bytes);
            let (need, in_use, most) = (size(need), size(in_use), size(self.max_bytes));
            let message = format!(
                "the cache has no room for {need} more: {in_use} of its {most} are in use; raise cache.max_bytes, or unload a model"
            );
            FetchError::new(Reason::CacheFull, message)
        })?;
        for tree in &leaving.trees {
            tracing::info!(target: "torchlane::store", version = %tree.display(), "removed from the cache: room is needed");
            fs::remove_dir_all(tree).map_err(unusable)?;
        }
        for part in &leaving.unfinished {
            let _gone_already = fs::remove_file(part.with_extension("json"));
            fs::remove_file(part).map_err(unusable)?;
        }
        for object in &leaving.objects {
            fs::remove_file(self.object(object)).map_err(unusable)?;
        }
        wanted
            .iter()
            .map(|listed| {
                let key = key(store, &listed.path);
                let (file, note) = (self.part(&key, "part"), self.part(&key, "json"));
                Part::open(key, file, note, listed).map_err(|error| FetchError::cache(&listed.path, &error))
            })
            .collect()
    }

    /// Bytes that it takes, and will take once what is under way is complete.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        let _lock = self.lock()?;
        Ok(evict::total(&self.contents(&BTreeSet::new())?))
    }

    /// All that is here but the downloads in `mine`.
    fn contents(&self, mine: &BTreeSet<String>) -> io::Result<Contents<PathBuf>> {
        let mut objects = BTreeMap::new();
        for directory in list(&self.root.join("objects/sha256"))? {
            for object in list(&directory)? {
                let name = object.file_name().unwrap_or_default().to_string_lossy().into_owned();
                objects.insert(name, fs::metadata(&object)?.len());
            }
        }
        let mut trees = Vec::new();
        for store in list(&self.root.join("repos"))? {
            for tree in list(&store)? {
                let Ok(file) = File::open(&tree) else { continue };
                let meta = file.metadata()?;
                if !meta.is_dir() {
                    continue;
                }
                let held = flock(&file, FlockOperation::NonBlockingLockExclusive).is_err();
                let mut links = BTreeSet::new();
                targets(&tree, &mut links)?;
                trees.push(Tree { key: tree, used: meta.modified()?, held, objects: links });
            }
        }
        let mut unfinished = Vec::new();
        for path in list(&self.root.join("parts"))? {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if path.extension().is_none_or(|extension| extension != "part") || mine.contains(&name) {
                continue;
            }
            let file = File::open(&path)?;
            let meta = file.metadata()?;
            let held = flock(&file, FlockOperation::NonBlockingLockExclusive).is_err();
            let whole = PartNote::read(&path.with_extension("json")).map_or(0, |note| note.listed.size);
            // One that nobody works on takes what it has so far.
            let bytes = if held { meta.len().max(whole) } else { meta.len() };
            unfinished.push(Unfinished { key: path, used: meta.modified()?, held, bytes });
        }
        Ok(Contents { trees, unfinished, objects })
    }
}

fn read_record(tree: &Path) -> Option<Vec<Recorded>> {
    serde_json::from_slice(&fs::read(tree.join(RECORD)).ok()?).ok()
}

fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        // What another process has just removed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The contents that a version links to.
fn targets(directory: &Path, into: &mut BTreeSet<String>) -> io::Result<()> {
    for path in list(directory)? {
        let kind = path.symlink_metadata()?.file_type();
        if kind.is_dir() {
            targets(&path, into)?;
        } else if kind.is_symlink() {
            let target = fs::read_link(&path)?;
            into.extend(target.file_name().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    Ok(())
}
