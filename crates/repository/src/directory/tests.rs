//! Against directories that are made for each test.

use super::*;

#[test]
fn finds_versions_and_bare_files() {
    let dir = tempfile::tempdir().unwrap();
    for path in ["a/10", "a/9", "a/.11", "a/007", "a/tmp", "a/12", ".hidden/1", "empty"] {
        fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    for path in ["a/10/model.pt", "a/9/weights.pth", "a/12/.model.pt.Xq3d"] {
        fs::write(dir.path().join(path), b"").unwrap();
    }
    fs::create_dir_all(dir.path().join("docs/pictures")).unwrap();
    fs::write(dir.path().join("empty/model.pt"), b"").unwrap();
    fs::write(dir.path().join("vad.pt"), b"").unwrap();
    fs::write(dir.path().join("notes.txt"), b"").unwrap();
    let repository = Directory::open(dir.path()).unwrap();
    let found: Vec<_> = repository
        .scan()
        .unwrap()
        .into_iter()
        .map(|found| (found.name.to_string(), found.versions.iter().map(|v| v.version.0).collect::<Vec<_>>()))
        .collect();
    assert_eq!(found, [("a".into(), vec![9, 10]), ("empty".into(), vec![]), ("vad".into(), vec![1])]);
    let a = repository.find(&"a".parse().unwrap()).unwrap().unwrap();
    assert_eq!((a.versions.len(), a.unfinished), (2, vec![Version(12)]));
    assert!(repository.told.lock().is_empty(), "a copy that is under way is no mistake");
    assert_eq!(repository.find(&"docs".parse().unwrap()).unwrap(), None);
}

#[test]
fn what_is_left_out_for_its_name_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    for file in [
        "a/1/model.pt",
        "a/v2/model.pt",
        "a/007/weights.pth",
        "a/notes/x",
        "a/.3/model.pt",
        "my model/1/model.pt",
    ] {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"").unwrap();
    }
    fs::write(dir.path().join("naïve.pt"), b"").unwrap();
    let repository = Directory::open(dir.path()).unwrap();
    for _ in 0..2 {
        assert_eq!(repository.scan().unwrap().len(), 1);
    }
    let mut told: Vec<_> =
        repository.told.lock().iter().map(|path| path.strip_prefix(dir.path()).unwrap().to_owned()).collect();
    told.sort();
    assert_eq!(told, ["a/007", "a/v2", "my model", "naïve.pt"].map(PathBuf::from));
}

#[test]
fn archives_are_known_by_their_content_where_their_name_is_not_enough() {
    let dir = tempfile::tempdir().unwrap();
    let put = |from: &str, to: &str| {
        let to = dir.path().join(to);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(Path::new("../archive/src/weights/testdata").join(from), to).unwrap();
    };
    for name in ["a.jit", "b.torchscript", "c.ts", "d.pth", "e.PT", "f.pt", "f.jit"] {
        put("old.pt", name);
    }
    for name in ["m/1/model.jit", "m/2/resnet.pt", "m/3/pytorch_model.bin", "m/4/a.pt", "m/4/b.pt"] {
        put("old.pt", name);
    }
    put("old.pt", "m/v5/net.pt");
    for name in ["g.pth", "m/6/pytorch_model.bin", "m/7/weights.pth", "m/8/weights.pth", "m/8/net.TS"] {
        put("new.pth", name);
    }
    fs::write(dir.path().join("script.ts"), "let x = 1;").unwrap();
    let repository = Directory::open(dir.path()).unwrap();
    let found = repository.scan().unwrap();
    let names: Vec<_> = found.iter().map(|found| found.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e", "f", "m"]);
    for found in &found {
        assert_eq!(repository.find(&found.name).unwrap().as_ref(), Some(found));
    }
    let below = |path: &Path| path.strip_prefix(dir.path()).unwrap().display().to_string();
    assert_eq!(below(&found[5].versions[0].archive), "f.pt");
    let versions: Vec<_> =
        found[6].versions.iter().map(|files| (files.version.0, below(&files.archive))).collect();
    let expected = [
        (1, "m/1/model.jit"),
        (2, "m/2/resnet.pt"),
        (3, "m/3/pytorch_model.bin"),
        (7, "m/3/pytorch_model.bin"),
        (8, "m/3/pytorch_model.bin"),
    ];
    assert_eq!(versions, expected.map(|(version, path)| (version, path.to_owned())));
    assert_eq!(found[6].unfinished, [4, 6].map(Version));
    let bases: Vec<_> = found[6].versions[3].aside.below.iter().map(|path| below(path)).collect();
    assert_eq!(bases, ["m/2/resnet.pt", "m/1/model.jit"], "the nearest first");
    let mut told: Vec<_> = repository.told.lock().iter().map(|path| below(path)).collect();
    told.sort();
    assert_eq!(told, ["f.jit", "g.pth", "m/4", "m/6", "m/v5"]);
    let renamed = Misnamed("v05", InvalidVersion).to_string();
    assert!(renamed.ends_with("Rename it to 5"), "{renamed}");
}

#[test]
fn weights_alone_lie_over_the_archive_before_them() {
    let dir = tempfile::tempdir().unwrap();
    for file in
        ["1/model.pt", "2/weights.pth", "3/model.pt", "3/samples.safetensors", "7/weights.safetensors"]
    {
        let path = dir.path().join("m").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, b"").unwrap();
    }
    let found = Directory::open(dir.path()).unwrap().find(&"m".parse().unwrap()).unwrap().unwrap();
    let below = |path: &Path| path.strip_prefix(dir.path().join("m")).unwrap().display().to_string();
    let all: Vec<_> = found
        .versions
        .iter()
        .map(|files| (below(&files.archive), files.weights.as_deref().map(below), files.samples.is_some()))
        .collect();
    let expected = [
        ("1/model.pt", None, false),
        ("1/model.pt", Some("2/weights.pth"), false),
        ("3/model.pt", None, true),
        ("3/model.pt", Some("7/weights.safetensors"), false),
    ];
    assert_eq!(
        all,
        expected.map(|(archive, weights, samples)| (archive.into(), weights.map(Into::into), samples))
    );
}

#[test]
fn a_config_of_triton_describes_a_model_and_names_its_archives() {
    let dir = tempfile::tempdir().unwrap();
    for (file, text) in [
        ("m/config.pbtxt", "default_model_filename: \"net.ts\""),
        ("m/1/net.ts", ""),
        ("m/2/weights.pth", ""),
        ("m/3/model.pt", ""),
        ("m/3/net.ts", ""),
        ("none/config.pbtxt", ""),
    ] {
        let path = dir.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let repository = Directory::open(dir.path()).unwrap();
    let names: Vec<_> = repository.scan().unwrap().into_iter().map(|found| found.name.to_string()).collect();
    assert_eq!(names, ["m", "none"]);
    let found = repository.find(&"m".parse().unwrap()).unwrap().unwrap();
    let archives = ["m/1/net.ts", "m/1/net.ts", "m/3/net.ts"].map(|path| dir.path().join(path));
    assert_eq!(found.versions.iter().map(|files| files.archive.clone()).collect::<Vec<_>>(), archives);
    assert!(found.versions.iter().all(|files| files.manifest == Some(dir.path().join("m/config.pbtxt"))));
    let alone = VersionFiles::in_directory(Version(1), &dir.path().join("m/1"));
    assert_eq!(alone.archive, archives[0]);
}

#[test]
fn a_missing_repository_says_what_to_do() {
    let error = Directory::open(Path::new("no/such/dir")).unwrap_err().to_string();
    assert!(error.contains("no/such/dir") && error.contains("--repository"), "{error}");
}
