use super::*;

/// An open directory with a model `m` in it.
fn uploads() -> (tempfile::TempDir, Uploads) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("m/1")).unwrap();
    fs::write(dir.path().join("m/1/model.pt"), "old").unwrap();
    fs::write(dir.path().join("m/model.toml"), "description = 'old'").unwrap();
    let uploads = Uploads::open(dir.path()).unwrap();
    (dir, uploads)
}

fn upload(version: u64) -> Upload {
    let files = [(format!("{version}/model.pt"), "new"), ("config.pbtxt".to_owned(), "")];
    Upload::Whole(files.map(|(path, content)| (path, Bytes::from_static(content.as_bytes()))).into())
}

fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

/// Every file below a directory with its content.
fn all(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else {
                let below = path.strip_prefix(root).unwrap().display().to_string();
                found.insert(below, fs::read_to_string(path).unwrap());
            }
        }
    }
    found
}

fn files(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(path, content)| ((*path).to_owned(), (*content).to_owned())).collect()
}

/// What was there before all of these tests.
fn before() -> BTreeMap<String, String> {
    files(&[("m/1/model.pt", "old"), ("m/model.toml", "description = 'old'")])
}

fn names(root: &Path) -> Vec<String> {
    let names = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn what_comes_replaces_all_that_was_there_once_it_is_proven() {
    let (dir, uploads) = uploads();
    let staged = uploads.put(&name("m"), &upload(2)).unwrap();
    assert!(staged.replaces());
    let found = uploads.directory().find(&name("m")).unwrap().unwrap();
    assert_eq!(found.numbers(), [torchlane_model::Version(2)]);
    assert_eq!(names(dir.path()), [".upload-m", "m"]);
    assert_eq!(uploads.directory().scan().unwrap().len(), 1, "the old one is not looked at");
    staged.prove().unwrap();
    assert_eq!(all(dir.path()), files(&[("m/2/model.pt", "new"), ("m/config.pbtxt", "")]));
    let first = uploads.put(&name("n"), &upload(1)).unwrap();
    assert!(!first.replaces());
    first.prove().unwrap();
    assert_eq!(names(dir.path()), ["m", "n"]);
}

#[test]
fn what_does_not_load_leaves_what_was_there() {
    let (dir, uploads) = uploads();
    let stamp = || uploads.directory().find(&name("m")).unwrap();
    let old = stamp();
    for model in ["m", "n"] {
        let staged = uploads.put(&name(model), &upload(2)).unwrap();
        staged.put_back().unwrap();
        assert_eq!((all(dir.path()), names(dir.path())), (before(), vec!["m".to_owned()]), "{model}");
    }
    assert_eq!(stamp(), old, "they are the very same files");
}

#[test]
fn what_cannot_be_written_leaves_nothing_behind() {
    let (dir, uploads) = uploads();
    // A name that no file system takes, after another file.
    let long = format!("z{}", "x".repeat(300));
    let upload = Upload::Whole([("1/model.pt".to_owned(), Bytes::new()), (long, Bytes::new())].into());
    let error = uploads.put(&name("m"), &upload).unwrap_err();
    assert_eq!(error.reason(), Reason::LoadFailed);
    assert!(error.message().contains("oip.uploads"), "{error}");
    assert_eq!((all(dir.path()), names(dir.path())), (before(), vec!["m".to_owned()]));
    let full = failed(dir.path(), &io::Error::from(io::ErrorKind::StorageFull));
    assert_eq!(full.reason(), Reason::DiskFull);
}

#[test]
fn a_configuration_alone_takes_the_place_of_what_describes_a_model() {
    let (dir, uploads) = uploads();
    fs::write(dir.path().join("m/labels.txt"), "cat").unwrap();
    fs::write(dir.path().join("m/.hidden"), "").unwrap();
    let config = Upload::Config("max_batch_size: 4".to_owned());
    uploads.put(&name("m"), &config).unwrap().prove().unwrap();
    let expected =
        [("m/1/model.pt", "old"), ("m/config.pbtxt", "max_batch_size: 4"), ("m/labels.txt", "cat")];
    assert_eq!(all(dir.path()), files(&expected));
    assert!(uploads.put(&name("none"), &config).is_err(), "there is nothing to describe");
    assert_eq!(names(dir.path()), ["m"]);
}

/// A process that is killed at some point, and the next start.
#[test]
fn a_killed_process_leaves_what_was_there_before() {
    type Kill = fn(&Staged);
    let put = |uploads: &Uploads, model: &str| drop(uploads.put(&name(model), &upload(2)).unwrap());
    let killed: [(&str, &str, Kill); 4] = [
        ("while it is written", "m", |_| {}),
        ("while the first of its name is written", "n", |_| {}),
        // Where the two cannot change places at once.
        ("between renames", "m", |staged| fs::rename(&staged.place, staged.room.join(OLD)).unwrap()),
        ("after two of three renames", "m", |staged| {
            fs::rename(&staged.place, staged.room.join(OLD)).unwrap();
            fs::rename(staged.model(), &staged.place).unwrap();
        }),
    ];
    for (when, model, kill) in killed {
        let (dir, _) = uploads();
        let staged = Staged::new(dir.path(), &name(model)).unwrap().unwrap();
        let Upload::Whole(files) = upload(2) else { unreachable!() };
        staged.write(&files).unwrap();
        kill(&staged);
        drop(staged);
        Uploads::open(dir.path()).unwrap();
        assert_eq!((all(dir.path()), names(dir.path())), (before(), vec!["m".to_owned()]), "{when}");
    }
    for model in ["m", "n"] {
        let (dir, uploads) = uploads();
        put(&uploads, model);
        Uploads::open(dir.path()).unwrap();
        assert_eq!((all(dir.path()), names(dir.path())), (before(), vec!["m".to_owned()]), "loading {model}");
    }
    // It had been loaded: only the old one had not been removed yet.
    let (dir, uploads) = uploads();
    put(&uploads, "m");
    fs::remove_file(dir.path().join("m").join(UNPROVEN)).unwrap();
    Uploads::open(dir.path()).unwrap();
    assert_eq!(all(dir.path()), files(&[("m/2/model.pt", "new"), ("m/config.pbtxt", "")]));
}

#[test]
fn what_another_process_is_at_is_left_alone() {
    let (dir, uploads) = uploads();
    // A lock is an open file's: another one, in this process or not, does not have it.
    let staged = uploads.put(&name("m"), &upload(2)).unwrap();
    let other = Uploads::open(dir.path()).unwrap();
    assert_eq!(names(dir.path()), [".upload-m", "m"]);
    assert_eq!(other.put(&name("m"), &upload(3)).unwrap_err().reason(), Reason::Superseded);
    staged.prove().unwrap();
    other.put(&name("m"), &upload(3)).unwrap().prove().unwrap();
    assert!(dir.path().join("m/3").exists());
}

#[tokio::test]
async fn uploads_of_one_model_come_one_after_the_other() {
    let (_dir, uploads) = uploads();
    let (m, n) = (name("m"), name("n"));
    let first = uploads.turn(&m).await;
    let mut second = Box::pin(uploads.turn(&m));
    assert!(futures::poll!(&mut second).is_pending());
    let _of_another = uploads.turn(&n).await;
    drop(first);
    drop(second.await);
    let _of_a_third = uploads.turn(&name("k")).await;
    assert_eq!(uploads.turns.lock().len(), 2, "those that nobody has or waits for are forgotten");
}
