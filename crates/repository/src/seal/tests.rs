use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use proptest::prelude::*;
use torchlane_model::error::Reason;

use super::*;
use crate::{Directory, VersionFiles};

/// Made by `openssl genpkey -algorithm ed25519`; signs nothing but tests.
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIL02mWve61/4G0l4lKvzu6efVi/Bm0GJ6ysffMOSTw6f
-----END PRIVATE KEY-----
";

/// By `openssl pkey -pubout`.
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA1s+8YJWszUDgAifG8Sbni292lHuU4X7JrS+i443qs5Y=
-----END PUBLIC KEY-----
";

fn key() -> PrivateKey {
    PrivateKey::from_pem("test", KEY).unwrap()
}

fn trusted() -> TrustedKey {
    TrustedKey::from_setting(PUBLIC).unwrap()
}

fn other() -> PrivateKey {
    let dir = tempfile::tempdir().unwrap();
    PrivateKey::create(&dir.path().join("key")).unwrap()
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

/// A model `m` with version 1 (an archive) and 2 (weights over it), both sealed and signed.
struct Repository(tempfile::TempDir);

impl Repository {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        for (file, text) in [
            ("1/model.pt", "code"),
            ("1/notes.txt", "hello"),
            ("2/weights.safetensors", "weights"),
            ("2/samples.safetensors", "s"),
        ] {
            this.put(file, text);
        }
        this.sign(1, &key());
        this.sign(2, &key());
        this
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.path().join("m").join(file)
    }

    fn put(&self, file: &str, text: &str) {
        fs::create_dir_all(self.path(file).parent().unwrap()).unwrap();
        fs::write(self.path(file), text).unwrap();
    }

    fn files(&self, version: u64) -> VersionFiles {
        let found = Directory::open(self.0.path()).unwrap().find(&"m".parse().unwrap()).unwrap().unwrap();
        found.versions.into_iter().find(|files| files.version.0 == version).unwrap()
    }

    fn place(version: u64) -> Place {
        Place::of(&"m".parse().unwrap(), Version(version))
    }

    fn make(&self, version: u64) -> Seal {
        let files = self.files(version);
        let directory = self.path(&version.to_string());
        let base = BaseArchive { path: files.archive.clone(), version: Some(Version(1)) };
        let base = (!files.archive.starts_with(&directory)).then_some(base);
        make(&directory, &Self::place(version), base.as_ref(), now()).unwrap()
    }

    fn sign(&self, version: u64, key: &PrivateKey) {
        let mut seal = self.make(version);
        seal.sign(key);
        write(&self.path(&version.to_string()), &seal).unwrap();
    }

    fn check(&self, version: u64, policy: Policy) -> Result<Checked, Violation> {
        let integrity = Integrity { policy, trusted: vec![trusted()] };
        check(&Self::place(version), &self.files(version), &integrity, &|_| None)
    }

    /// Under every policy.
    fn refused(&self, version: u64) -> Violation {
        let [off, digest, signed] = [Policy::Off, Policy::Digest, Policy::Signed]
            .map(|policy| self.check(version, policy).unwrap_err());
        assert_eq!(
            (&off, &digest),
            (&signed, &signed),
            "whatever the policy, a seal that is there must be true"
        );
        signed
    }
}

#[test]
fn what_was_sealed_is_accepted_and_its_archive_hashed_once() {
    let repository = Repository::new();
    for (version, policy) in [(1, Policy::Off), (1, Policy::Digest), (1, Policy::Signed), (2, Policy::Signed)]
    {
        let checked = repository.check(version, policy).unwrap();
        assert_eq!((checked.bytes, checked.changed()), (4, None));
        assert_eq!(checked.sha256, "5694d08a2e53ffcae0c3103e5ad6f6076abd960eb1f8a56577040bc1028f702b");
    }
}

#[test]
fn whatever_is_done_to_the_files_is_seen() {
    type Case = (&'static str, u64, fn(&Repository), fn(&Violation) -> bool);
    let tampering: [Case; 8] = [
        ("a flipped bit", 1, |r| r.put("1/model.pt", "codf"), |v| matches!(v, Violation::Digest { .. })),
        (
            "cut short",
            1,
            |r| r.put("1/model.pt", "cod"),
            |v| matches!(v, Violation::Size { listed: 4, found: 3, .. }),
        ),
        (
            "a file that is not read",
            1,
            |r| r.put("1/notes.txt", "jello"),
            |v| matches!(v, Violation::Digest { .. }),
        ),
        (
            "a missing file",
            1,
            |r| fs::remove_file(r.path("1/notes.txt")).unwrap(),
            |v| matches!(v, Violation::Missing(_)),
        ),
        (
            "weights slipped in",
            1,
            |r| r.put("1/weights.pth", "w"),
            |v| *v == Violation::Unlisted("weights.pth".into()),
        ),
        (
            "weights before weights",
            2,
            |r| r.put("2/model.pt", "code"),
            |v| *v == Violation::Unlisted("model.pt".into()),
        ),
        (
            "another archive below",
            2,
            |r| r.put("1/model.pt", "evil"),
            |v| matches!(v, Violation::Digest { .. }),
        ),
        (
            "a directory in its place",
            1,
            |r| {
                fs::remove_file(r.path("1/notes.txt")).unwrap();
                fs::create_dir(r.path("1/notes.txt")).unwrap();
            },
            |v| matches!(v, Violation::Unreadable(_)),
        ),
    ];
    for (what, version, tamper, expected) in tampering {
        let repository = Repository::new();
        tamper(&repository);
        let violation = repository.refused(version);
        assert!(expected(&violation), "{what}: {violation}");
    }
}

#[test]
fn an_old_version_does_not_come_back_under_a_new_number() {
    let repository = Repository::new();
    fs::rename(repository.path("1"), repository.path("9")).unwrap();
    assert_eq!(repository.refused(9), Violation::Elsewhere("version 1".into(), "version 9".into()));
    let mut seal = make(&repository.path("9"), &Place::default(), None, now()).unwrap();
    seal.sign(&key());
    write(&repository.path("9"), &seal).unwrap();
    assert!(repository.check(9, Policy::Signed).is_ok(), "unless it was signed for any place");
}

#[test]
fn weights_apart_from_their_archive_are_half_of_what_was_sealed() {
    let repository = Repository::new();
    fs::rename(repository.path("2"), repository.path("staged")).unwrap();
    let files = VersionFiles::in_directory(Version(2), &repository.path("staged"));
    let mut told = Vec::new();
    let examined =
        examine::<()>(&Repository::place(2), &files, &Integrity::default(), None, &mut |what, found| {
            told.push((what.to_owned(), found.err()));
            std::ops::ControlFlow::Continue(())
        });
    assert!(examined.is_continue());
    let base = "base archive (version 1)".to_owned();
    let expected = [
        (base.clone(), Some(Violation::Missing(base))),
        ("samples.safetensors".into(), None),
        ("weights.safetensors".into(), None),
    ];
    assert_eq!(told, expected);
    // A server reads the archive first, so it does not come so far.
    assert!(matches!(
        check(&Place::default(), &files, &Integrity::default(), &|_| None),
        Err(Violation::Unreadable(_))
    ));
}

#[test]
fn what_a_policy_asks_for() {
    let repository = Repository::new();
    fs::remove_file(repository.path("1/manifest.json")).unwrap();
    assert!(repository.check(1, Policy::Off).is_ok());
    for policy in [Policy::Digest, Policy::Signed] {
        let wrong = repository.check(1, policy).unwrap_err();
        assert_eq!(wrong.reason(), Reason::NotSigned, "{wrong}");
    }
    write(&repository.path("1"), &repository.make(1)).unwrap();
    assert!(repository.check(1, Policy::Digest).is_ok());
    assert_eq!(repository.check(1, Policy::Signed).unwrap_err(), Violation::Unsigned);
    let stranger = other();
    repository.sign(1, &stranger);
    let wrong = repository.check(1, Policy::Signed).unwrap_err();
    assert_eq!(wrong, Violation::Untrusted(format!("'{}'", stranger.public().id())));
    assert_eq!(wrong.reason(), Reason::SignatureInvalid);
    repository.sign(1, &key());
    assert!(repository.check(1, Policy::Signed).is_ok(), "one trusted signature is enough");
    // The stranger's signature under the trusted key's name.
    let text = fs::read_to_string(repository.path("1/manifest.json")).unwrap();
    let text = text.replace(trusted().id(), "0").replace(stranger.public().id(), trusted().id());
    repository.put("1/manifest.json", &text);
    assert_eq!(
        repository.check(1, Policy::Signed).unwrap_err(),
        Violation::Forged(trusted().id().to_owned())
    );
    // A broken one is no reason to look away, and may not be long.
    repository.put("1/manifest.json", "{");
    assert_eq!(repository.refused(1).reason(), Reason::LoadFailed);
    repository.put("1/manifest.json", &" ".repeat(MOST_BYTES as usize + 1));
    assert!(repository.refused(1).to_string().contains("over 1048576 bytes"));
}

#[test]
fn a_seal_that_was_signed_again_keeps_what_it_may() {
    let repository = Repository::new();
    let path = repository.path("1/manifest.json");
    let mut value: serde_json::Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    value["torch"] = "2.13.0".into();
    value["signatures"] = serde_json::json!([]);
    repository.put("1/manifest.json", &value.to_string());
    let second = other();
    repository.sign(1, &key());
    repository.sign(1, &second);
    repository.sign(1, &second);
    let seal = check::read(&path).unwrap();
    assert_eq!(seal.signers().collect::<Vec<_>>(), [trusted().id(), second.public().id()]);
    assert!(seal.authenticate(&[trusted()]).is_ok() && seal.authenticate(&[second.public().clone()]).is_ok());
    repository.put("1/notes.txt", "something else");
    repository.sign(1, &second);
    let seal = check::read(&path).unwrap();
    assert_eq!(
        seal.signers().collect::<Vec<_>>(),
        [second.public().id()],
        "the others signed something else"
    );
    assert!(seal.to_text().contains("\"torch\": \"2.13.0\""), "what others wrote stays");
    let left: Vec<_> = fs::read_dir(repository.path("1")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn a_file_that_is_exchanged_after_the_check_is_seen() {
    for file in ["1/model.pt", "2/weights.safetensors", "2/samples.safetensors"] {
        let repository = Repository::new();
        let checked = repository.check(2, Policy::Off).unwrap();
        let text = fs::read_to_string(repository.path(file)).unwrap();
        repository.put("new", &text);
        fs::rename(repository.path("new"), repository.path(file)).unwrap();
        assert_eq!(checked.changed(), Some(repository.path(file).as_path()));
    }
}

#[test]
fn openssl_signs_the_same() {
    let mut seal = Seal::parse(b"{\"format\": 1, \"files\": {}}").unwrap();
    assert_eq!(seal.signed_bytes(), b"torchlane manifest.json 1\n{\"files\":{},\"format\":1}");
    seal.sign(&key());
    // openssl pkeyutl -sign -rawin, of those bytes; and the id by openssl pkey -pubin -outform DER | sha256sum.
    let by_openssl =
        "8+5sMhoMtyuZByKvZ+6G5UeTUPnclUTXnx1+z6il8ORW8K6wkFpcosrRHdn6r82dQfJuym5afzPFgz+yQxjsCw==";
    assert!(seal.to_text().contains(by_openssl), "{}", seal.to_text());
    assert_eq!(seal.authenticate(&[trusted()]).unwrap(), "d606aae9c6cb61c6");
}

#[test]
fn what_cannot_be_a_seal_is_refused_in_a_short_line() {
    let sha = "a".repeat(64);
    let file =
        |name: &str| format!("{{\"format\":1,\"files\":{{{name:?}:{{\"bytes\":1,\"sha256\":\"{sha}\"}}}}}}");
    assert!(Seal::parse(file("größe.txt").as_bytes()).is_ok());
    let mut bad: Vec<String> = [
        "../x",
        "a/b",
        "/etc/passwd",
        "",
        ".",
        "..",
        ".hidden",
        "manifest.json",
        "a\\b",
        "a\nb",
        "a\u{202e}b",
    ]
    .map(file)
    .into();
    bad.push(file(&"x".repeat(256)));
    bad.extend([
        "[]".to_owned(),
        "null".to_owned(),
        "{}".to_owned(),
        "{\"format\":2,\"files\":{}}".to_owned(),
        "{\"format\":1}".to_owned(),
        "{\"format\":1,\"files\":{},\"model\":7}".to_owned(),
        "{\"format\":1,\"files\":{},\"version\":-1}".to_owned(),
        "{\"format\":1,\"files\":{},\"base\":{\"bytes\":1}}".to_owned(),
        "{\"format\":1,\"files\":{},\"signatures\":{}}".to_owned(),
        format!("{{\"format\":1,\"files\":{{\"a\":{{\"bytes\":1,\"sha256\":\"{}\"}}}}}}", sha.to_uppercase()),
        format!("{{\"format\":1,\"files\":{{}},\"x\":{:?},\"x\":1}}", "y".repeat(5000)),
        format!("{{\"format\":{:?},\"files\":{{}}}}", "y".repeat(5000)),
        format!("{{\"format\":1,\"files\":{:?}}}", "y".repeat(5000)),
    ]);
    for text in bad {
        let problem = Seal::parse(text.as_bytes()).expect_err(&text);
        assert!(problem.len() < 400 && !problem.contains('\n'), "{problem}");
    }
}

#[test]
fn keys_are_written_once_and_for_their_owner() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("release.pem");
    let made = PrivateKey::create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(PrivateKey::read(&path).unwrap().public(), made.public());
    let public = dir.path().join("release.pem.pub");
    let by_path = TrustedKey::from_setting(public.to_str().unwrap()).unwrap();
    let inline = TrustedKey::from_setting(&by_path.to_setting()).unwrap();
    assert_eq!((&by_path, &inline), (made.public(), made.public()));
    assert_ne!(made.public().id(), other().public().id());

    let before = fs::read(&path).unwrap();
    assert!(PrivateKey::create(&path).unwrap_err().to_string().contains("overwritten"));
    fs::remove_file(&public).unwrap();
    assert!(PrivateKey::create(&path).unwrap_err().to_string().contains("overwritten"));
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(!public.exists(), "half a pair is not left behind");
}

#[test]
fn what_is_no_key_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let encrypted = KEY.replace("PRIVATE", "ENCRYPTED PRIVATE");
    assert!(PrivateKey::from_pem("x", &encrypted).unwrap_err().to_string().contains("encrypted"));
    assert!(PrivateKey::from_pem("x", PUBLIC).unwrap_err().to_string().contains("--new-key"));
    let weak = format!("ed25519:{}A=", "A".repeat(42));
    let missing = dir.path().join("none").display().to_string();
    for (setting, expected) in [
        (KEY, "a private key"),
        (weak.as_str(), "weak"),
        ("ed25519:AAAA", "32 bytes"),
        ("-----BEGIN PUBLIC KEY-----\nMCow\n-----END PUBLIC KEY-----", "not an ed25519 public key"),
        (missing.as_str(), "No such file"),
    ] {
        let problem = TrustedKey::from_setting(setting).unwrap_err().to_string();
        assert!(problem.contains(expected) && !problem.contains('\n'), "{problem}");
    }
}

proptest! {
    /// Whatever byte of a signed manifest is changed: what is accepted says what was signed.
    #[test]
    fn no_changed_byte_gets_another_meaning(at in any::<prop::sample::Index>(), to in any::<u8>()) {
        let mut seal = Seal::parse(
            br#"{"format":1,"created":"x","model":"m","version":3,"files":{"model.pt":{"bytes":4,"sha256":"5694d08a2e53ffcae0c3103e5ad6f6076abd960eb1f8a56577040bc1028f702b"}},"torch":"2.13"}"#,
        ).unwrap();
        seal.sign(&key());
        let mut text = seal.to_text().into_bytes();
        let at = at.index(text.len());
        text[at] = to;
        if let Ok(read) = Seal::parse(&text) && read.authenticate(&[trusted()]).is_ok() {
            prop_assert_eq!(read.signed_bytes(), seal.signed_bytes());
            prop_assert_eq!(read.files(), seal.files());
        }
    }

    #[test]
    fn any_bytes_give_a_seal_or_a_short_line(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(problem) = Seal::parse(&bytes) {
            prop_assert!(problem.len() < 400 && !problem.contains('\n'));
        }
    }
}

#[test]
fn a_directory_that_cannot_be_sealed_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let problem = |dir: &Path| make(dir, &Place::default(), None, now()).unwrap_err().to_string();
    assert!(problem(dir.path()).contains("no files"));
    fs::write(dir.path().join("a\nb"), "").unwrap();
    assert!(problem(dir.path()).contains("'a\\nb' cannot be listed"), "{}", problem(dir.path()));
    fs::remove_file(dir.path().join("a\nb")).unwrap();
    fs::write(dir.path().join("model.pt"), "x").unwrap();
    fs::write(dir.path().join(FILE), "not ours").unwrap();
    assert!(problem(dir.path()).contains("remove it"), "{}", problem(dir.path()));
}

#[test]
fn a_link_to_a_file_is_no_change_of_it_and_a_write_is_one_whatever_its_time_says() {
    let repository = Repository::new();
    for version in [1, 2] {
        for file in ["1/manifest.json", "2/manifest.json"] {
            let _gone = fs::remove_file(repository.path(file));
        }
        let files = repository.files(version);
        let checked =
            || check(&Repository::place(version), &files, &Integrity::default(), &|_| None).unwrap();
        let before = checked();
        assert_eq!(before.changed(), None);
        // As backups do.
        let link = repository.path("link");
        fs::hard_link(&files.archive, &link).unwrap();
        fs::remove_file(&link).unwrap();
        fs::set_permissions(&files.archive, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(before.changed(), None);
        // The same size, and the old time of writing.
        let written = fs::metadata(&files.archive).unwrap().modified().unwrap();
        fs::write(&files.archive, "edoc").unwrap();
        fs::File::options().write(true).open(&files.archive).unwrap().set_modified(written).unwrap();
        assert_eq!(before.changed(), Some(files.archive.as_path()));
        fs::write(&files.archive, "code").unwrap();
    }
}
