//! Against a store in memory: what is listed, fetched, kept and refused.

use std::fs;

use object_store::{ObjectStoreExt as _, memory::InMemory, path::Path as Location};

use super::*;
use crate::Directory;

struct Bucket {
    client: Arc<InMemory>,
    cache: tempfile::TempDir,
}

impl Bucket {
    fn new() -> Self {
        Self { client: Arc::default(), cache: tempfile::tempdir().unwrap() }
    }

    async fn put(&self, path: &str, bytes: &[u8]) {
        self.client.put(&Location::from(format!("models/{path}")), bytes.to_vec().into()).await.unwrap();
    }

    fn mirror(&self, max_bytes: u64) -> Mirror {
        let config = MirrorConfig {
            cache: self.cache.path().to_owned(),
            max_bytes,
            patience: Duration::from_secs(1),
            list_every: Duration::ZERO,
            options: StoreOptions::new(),
        };
        let address = Address {
            client: Box::new(self.client.clone()),
            pages: None,
            prefix: Location::from("models"),
            shown: "memory://bucket/models".to_owned(),
            scheme: "s3",
        };
        Mirror::at(address, &config, StoreMetrics::default()).unwrap()
    }

    /// Contents in the cache.
    fn objects(&self) -> usize {
        let directories = fs::read_dir(self.cache.path().join("objects/sha256")).unwrap();
        directories.map(|directory| fs::read_dir(directory.unwrap().path()).unwrap().count()).sum()
    }
}

async fn newest(mirror: &Mirror, model: &str) -> VersionFiles {
    let found = mirror.find(&model.parse().unwrap()).await.unwrap().unwrap();
    found.versions.last().unwrap().clone()
}

#[tokio::test]
async fn only_what_is_wanted_comes_and_lies_as_in_a_directory() {
    let bucket = Bucket::new();
    for (path, bytes) in [
        ("m/model.toml", "description = 'm'"),
        ("m/1/model.pt", "one"),
        ("m/2/weights.pth", "two"),
        ("m/2/samples.safetensors", "two"),
        ("other.pt", "other"),
    ] {
        bucket.put(path, bytes.as_bytes()).await;
    }
    let mirror = bucket.mirror(1 << 20);
    let names: Vec<_> = mirror
        .scan()
        .await
        .unwrap()
        .into_iter()
        .map(|found| (found.name.to_string(), found.versions.len()))
        .collect();
    assert_eq!(names, [("m".to_owned(), 2), ("other".to_owned(), 1)]);
    assert_eq!(bucket.objects(), 0, "a listing downloads nothing");
    let files = mirror.fetch(newest(&mirror, "m").await).await.unwrap();
    assert_eq!(fs::read(&files.archive).unwrap(), b"one", "the archive that the weights lie over");
    assert_eq!(fs::read(files.weights.as_ref().unwrap()).unwrap(), b"two");
    assert_eq!(bucket.objects(), 3, "equal contents once, the other model not at all");
    // The same by the eyes of a directory.
    let tree = mirror.shared.tree_of(&files.archive).unwrap();
    let found = Directory::open(&tree).unwrap().find(&"m".parse().unwrap()).unwrap().unwrap();
    let seen = VersionFiles { stamp: 0, manifest_stamp: 0, ..found.versions.last().unwrap().clone() };
    assert_eq!(seen, VersionFiles { stamp: 0, manifest_stamp: 0, ..files.clone() });
    let bare = mirror.fetch(newest(&mirror, "other").await).await.unwrap();
    assert_eq!(fs::read(bare.archive).unwrap(), b"other");
    let elsewhere = VersionFiles { archive: "/elsewhere/model.pt".into(), ..files };
    assert_eq!(mirror.fetch(elsewhere.clone()).await.unwrap(), elsewhere, "another source's");
}

#[tokio::test]
async fn a_model_of_triton_comes_with_what_its_config_names() {
    let bucket = Bucket::new();
    for (path, bytes) in [
        (
            "m/config.pbtxt",
            "default_model_filename: 'net.pt' output { name: 'y' label_filename: 'labels.txt' }",
        ),
        ("m/labels.txt", "cat"),
        ("m/1/net.pt", "one"),
    ] {
        bucket.put(path, bytes.as_bytes()).await;
    }
    let mirror = bucket.mirror(1 << 20);
    let files = mirror.fetch(newest(&mirror, "m").await).await.unwrap();
    assert_eq!(fs::read(&files.archive).unwrap(), b"one");
    assert_eq!(fs::read(files.manifest.as_ref().unwrap().with_file_name("labels.txt")).unwrap(), b"cat");
    let tree = mirror.shared.tree_of(&files.archive).unwrap();
    let found = Directory::open(&tree).unwrap().find(&"m".parse().unwrap()).unwrap().unwrap();
    let unstamped = |files: &VersionFiles| VersionFiles { stamp: 0, manifest_stamp: 0, ..files.clone() };
    assert_eq!(
        unstamped(found.versions.last().unwrap()),
        unstamped(&files),
        "the same by the eyes of a directory"
    );
}

#[tokio::test]
async fn what_is_here_needs_no_store_and_outlives_the_process() {
    let bucket = Bucket::new();
    bucket.put("m/1/model.pt", b"one").await;
    let mirror = bucket.mirror(1 << 20);
    let files = newest(&mirror, "m").await;
    let kept = mirror.fetch(files.clone()).await.unwrap();
    // The object is replaced: the old version is still the one that was fetched.
    bucket.put("m/1/model.pt", b"another").await;
    assert_eq!(fs::read(mirror.fetch(files.clone()).await.unwrap().archive).unwrap(), b"one");
    let new = newest(&mirror, "m").await;
    assert_ne!(new.archive, files.archive);
    drop((kept, mirror));
    let mirror = bucket.mirror(1 << 20);
    assert_eq!(fs::read(mirror.fetch(files).await.unwrap().archive).unwrap(), b"one", "after a restart");
    let error = mirror.fetch(new).await.unwrap_err();
    assert!(error.to_string().contains("changed"), "it was not listed in this life: {error}");
}

#[tokio::test]
async fn an_object_that_changes_after_the_listing_is_not_taken() {
    let bucket = Bucket::new();
    bucket.put("m/1/model.pt", b"one").await;
    let mirror = bucket.mirror(1 << 20);
    let files = newest(&mirror, "m").await;
    bucket.put("m/1/model.pt", b"two").await;
    let error = mirror.fetch(files).await.unwrap_err();
    assert!(error.to_string().contains("models/m/1/model.pt changed"), "{error}");
    assert_eq!(bucket.objects(), 0);
    let files = mirror.fetch(newest(&mirror, "m").await).await.unwrap();
    assert_eq!(fs::read(files.archive).unwrap(), b"two");
}

#[tokio::test]
async fn room_is_made_of_what_is_not_in_use_and_a_refusal_removes_nothing() {
    let bucket = Bucket::new();
    for version in 1..=4_u8 {
        bucket.put(&format!("m/{version}/model.pt"), &[version; 100]).await;
    }
    bucket.put("big.pt", &[9; 250]).await;
    // Another process shares the cache: what it holds counts too.
    let (mirror, beside) = (bucket.mirror(250), bucket.mirror(250));
    let versions = mirror.find(&"m".parse().unwrap()).await.unwrap().unwrap().versions;
    beside.scan().await.unwrap();
    let [one, two, three, four] = [0, 1, 2, 3].map(|i| versions[i].clone());
    let live = beside.fetch(one).await.unwrap();
    let second = mirror.fetch(two.clone()).await.unwrap();
    let error = mirror.fetch(three.clone()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::CacheFull);
    assert!(error.to_string().contains("cache.max_bytes"), "{error}");
    assert!(live.archive.exists() && second.archive.exists(), "what is in use stays");
    drop(second);
    let third = mirror.fetch(three).await.unwrap();
    assert!(!two.archive.exists() && live.archive.exists(), "the one that nobody uses left");
    drop(third);
    let big = newest(&mirror, "big").await;
    assert_eq!(mirror.fetch(big).await.unwrap_err().reason(), Reason::CacheFull);
    assert_eq!(bucket.objects(), 2, "nothing left for what does not fit all the same");
    mirror.fetch(four).await.unwrap();
    assert!(mirror.shared.cache.bytes().unwrap() <= 250);
}

#[tokio::test]
async fn a_disk_that_is_full_is_told_apart_and_leaves_no_half_file() {
    let bucket = Bucket::new();
    bucket.put("m/1/model.pt", &[1; 5000]).await;
    let mirror = bucket.mirror(1 << 20);
    // Every write to this device fails with ENOSPC.
    let key = super::super::part::key(&mirror.shared.id, "m/1/model.pt");
    let part = bucket.cache.path().join(format!("parts/{key}.part"));
    std::os::unix::fs::symlink("/dev/full", &part).unwrap();
    let files = newest(&mirror, "m").await;
    let error = mirror.fetch(files.clone()).await.unwrap_err();
    assert_eq!(error.reason(), Reason::CacheFull);
    assert!(
        error.to_string().contains("No space left") && error.to_string().contains("cache.directory"),
        "{error}"
    );
    assert!(!files.archive.exists() && bucket.objects() == 0 && part.symlink_metadata().is_err());
    // Once there is room, it goes on as if nothing had been.
    assert_eq!(fs::read(mirror.fetch(files).await.unwrap().archive).unwrap().len(), 5000);
}

#[tokio::test]
async fn two_who_want_the_same_download_it_once() {
    let bucket = Bucket::new();
    bucket.put("m/1/model.pt", &[1; 100_000]).await;
    let (mirror, beside) = (bucket.mirror(1 << 20), bucket.mirror(1 << 20));
    let (files, same) = (newest(&mirror, "m").await, newest(&beside, "m").await);
    let (a, b) = tokio::join!(mirror.fetch(files), beside.fetch(same));
    assert_eq!(a.unwrap(), b.unwrap());
    assert_eq!(bucket.objects(), 1);
}

#[tokio::test]
async fn the_same_content_of_several_models_stays_one_file_while_it_is_read() {
    let bucket = Bucket::new();
    let names: Vec<_> = (0..8).map(|number| format!("m{number}")).collect();
    for name in &names {
        bucket.put(&format!("{name}/1/model.pt"), &[7; 50_000]).await;
    }
    let mirror = bucket.mirror(1 << 20);
    mirror.scan().await.unwrap();
    let wanted = futures::future::join_all(names.iter().map(|name| newest(&mirror, name))).await;
    // A loader opens the first that comes, and looks at the others after it.
    let first = mirror.fetch(wanted[0].clone()).await.unwrap();
    let before = torchlane_archive::FileIdentity::of(&first.archive).unwrap();
    let all = futures::future::join_all(wanted.iter().map(|files| mirror.fetch(files.clone()))).await;
    for files in all {
        let now = torchlane_archive::FileIdentity::of(&files.unwrap().archive).unwrap();
        assert_eq!(now, before, "another model must not touch the file");
    }
    assert_eq!(bucket.objects(), 1);
}

#[tokio::test]
async fn a_damaged_file_in_the_cache_is_fetched_anew() {
    let bucket = Bucket::new();
    let files = [
        ("m/model.toml", "description = 'm'"),
        ("m/1/model.pt", "the archive"),
        ("m/1/weights.pth", "the weights"),
        ("m/1/samples.safetensors", "the samples"),
        ("other/1/model.pt", "the archive"),
    ];
    for (path, bytes) in files {
        bucket.put(path, bytes.as_bytes()).await;
    }
    let mirror = bucket.mirror(1 << 20);
    let (wanted, other) = (newest(&mirror, "m").await, newest(&mirror, "other").await);
    mirror.fetch(wanted.clone()).await.unwrap();
    mirror.fetch(other.clone()).await.unwrap();
    let damaged = [&wanted.archive, wanted.weights.as_ref().unwrap(), wanted.samples.as_ref().unwrap()];
    for path in damaged.into_iter().chain([wanted.manifest.as_ref().unwrap()]) {
        let whole = fs::read(path).unwrap();
        let mut bytes = whole.clone();
        bytes[3] ^= 4;
        fs::write(path, &bytes).unwrap();
        // In this process and in the next.
        for mirror in [&mirror, &bucket.mirror(1 << 20)] {
            mirror.scan().await.unwrap();
            mirror.fetch(wanted.clone()).await.unwrap();
            assert_eq!(fs::read(path).unwrap(), whole, "{}", path.display());
        }
        fs::write(path, b"").unwrap();
        mirror.fetch(wanted.clone()).await.unwrap();
        assert_eq!(fs::read(path).unwrap(), whole, "cut short: {}", path.display());
    }
    // What another version leads to is the same file.
    fs::write(&wanted.archive, b"the Archive").unwrap();
    mirror.fetch(other.clone()).await.unwrap();
    assert_eq!(fs::read(&wanted.archive).unwrap(), b"the archive");
    // A version whose own links were turned to another content is none.
    fs::remove_file(&other.archive).unwrap();
    fs::write(&other.archive, b"the archivE").unwrap();
    mirror.fetch(other.clone()).await.unwrap();
    assert_eq!(fs::read(&other.archive).unwrap(), b"the archive");
}

#[tokio::test]
async fn a_cache_that_is_removed_comes_back() {
    let bucket = Bucket::new();
    bucket.put("m/1/model.pt", b"one").await;
    let mirror = bucket.mirror(1 << 20);
    let files = mirror.fetch(newest(&mirror, "m").await).await.unwrap();
    fs::remove_dir_all(bucket.cache.path()).unwrap();
    let again = mirror.fetch(newest(&mirror, "m").await).await.unwrap();
    assert_eq!(fs::read(again.archive).unwrap(), b"one");
    fs::remove_dir_all(bucket.cache.path()).unwrap();
    mirror.scan().await.unwrap();
    bucket.put("m/2/model.pt", b"two").await;
    let two = mirror.fetch(newest(&mirror, "m").await).await.unwrap();
    assert_eq!(fs::read(two.archive).unwrap(), b"two");
    drop(files);
}

#[tokio::test]
async fn empty_objects_only_mark_folders() {
    let bucket = Bucket::new();
    for (path, bytes) in
        [("m/1/model.pt", "one"), ("m/1", ""), ("m/1/extra", ""), ("m", ""), ("m/config.pbtxt", "")]
    {
        bucket.put(path, bytes.as_bytes()).await;
    }
    let mirror = bucket.mirror(1 << 20);
    let files = mirror.fetch(newest(&mirror, "m").await).await.unwrap();
    assert_eq!(fs::read(files.archive).unwrap(), b"one");
    assert!(files.manifest.is_some(), "an empty description is one");
}
