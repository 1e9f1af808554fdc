//! Versions whose files are not what their `manifest.json` says, over the wire: none goes live, the old one serves on,
//! and everyone who asks is told why.

use std::{fs, path::Path, time::SystemTime};

use torchlane::{
    config::Settings,
    loader::seal::{self, Place, Policy, PrivateKey, Seal},
    model::Version,
    proto,
};

use super::{
    fake::{reload, repository, version},
    server::{Client, Server, f32s, floats, reason, request},
};

/// Two keys, of which servers trust the first.
struct Keys {
    dir: tempfile::TempDir,
    trusted: PrivateKey,
    stranger: PrivateKey,
}

impl Keys {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [trusted, stranger] =
            ["trusted", "stranger"].map(|name| PrivateKey::create(&dir.path().join(name)).unwrap());
        Self { dir, trusted, stranger }
    }

    fn demand(&self, policy: Policy) -> impl FnOnce(&mut Settings) {
        let key = self.dir.path().join("trusted.pub").display().to_string();
        move |settings| {
            settings.integrity.policy = policy;
            settings.integrity.trusted_keys = vec![key];
        }
    }
}

fn sign(repository: &Path, number: u64, key: Option<&PrivateKey>) {
    let place = Place::of(&"m".parse().unwrap(), Version(number));
    let directory = repository.join("m").join(number.to_string());
    let mut seal: Seal = seal::make(&directory, &place, None, SystemTime::now()).unwrap();
    if let Some(key) = key {
        seal.sign(key);
    }
    seal::write(&directory, &seal).unwrap();
}

async fn answer(client: &mut Client) -> f32 {
    let answer = client.infer(request("m", vec![f32s("x", &[1], &[3.0])])).await.unwrap();
    floats(&answer.into_inner().outputs[0])[0]
}

#[tokio::test]
async fn what_is_not_as_sealed_does_not_go_live_and_says_so_everywhere() {
    const SCRIPT: &str = "scale = 2.0";
    let keys = Keys::new();
    let dir = repository(&[("m", "scale = 1.0")]);
    sign(dir.path(), 1, Some(&keys.trusted));
    let server = Server::fake(dir.path(), keys.demand(Policy::Signed));
    let mut client = server.ready().await;
    let watch = proto::WatchModelsRequest { model: "m".into() };
    let mut events = client.watch_models(watch).await.unwrap().into_inner();
    assert_eq!(events.message().await.unwrap().unwrap().change, "snapshot");

    let at = |file: &str| dir.path().join("m/2").join(file);
    let signed = || sign(dir.path(), 2, Some(&keys.trusted));
    let edit = |file: &str, from: &str, to: &str| {
        let text = fs::read_to_string(at(file)).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(at(file), text.replacen(from, to, 1)).unwrap();
    };
    let trusted_id = keys.trusted.public().id().to_owned();
    type Case<'a> = (&'a str, Box<dyn Fn() + 'a>, &'a str, &'a str);
    let cases: Vec<Case<'_>> = vec![
        ("no seal", Box::new(|| ()), "NOT_SIGNED", "torchlane sign"),
        ("no signature", Box::new(|| sign(dir.path(), 2, None)), "NOT_SIGNED", "no signature"),
        (
            "a stranger's signature",
            Box::new(|| sign(dir.path(), 2, Some(&keys.stranger))),
            "SIGNATURE_INVALID",
            "signed by no trusted key",
        ),
        (
            "a stranger's signature under a trusted name",
            Box::new(|| {
                sign(dir.path(), 2, Some(&keys.stranger));
                edit("manifest.json", keys.stranger.public().id(), &trusted_id);
            }),
            "SIGNATURE_INVALID",
            "is not of this manifest.json",
        ),
        (
            "a number exchanged in what was signed",
            Box::new(|| {
                signed();
                edit("manifest.json", "\"bytes\": 11", "\"bytes\": 12");
            }),
            "SIGNATURE_INVALID",
            "is not of this manifest.json",
        ),
        (
            "a flipped byte",
            Box::new(|| {
                signed();
                edit("model.pt", "2.0", "3.0");
            }),
            "DIGEST_MISMATCH",
            "sha256 of model.pt",
        ),
        (
            "cut short",
            Box::new(|| {
                signed();
                edit("model.pt", ".0", "");
            }),
            "DIGEST_MISMATCH",
            "model.pt has 9 bytes, manifest.json says 11",
        ),
        (
            "a listed file missing",
            Box::new(|| {
                fs::write(at("labels.txt"), "a b").unwrap();
                signed();
                fs::remove_file(at("labels.txt")).unwrap();
            }),
            "DIGEST_MISMATCH",
            "labels.txt is listed in manifest.json but not there",
        ),
        (
            "weights slipped in",
            Box::new(|| {
                signed();
                fs::write(at("weights.safetensors"), "evil").unwrap();
            }),
            "DIGEST_MISMATCH",
            "weights.safetensors is not listed",
        ),
        (
            "another version's files",
            Box::new(|| {
                for file in ["model.pt", "manifest.json"] {
                    fs::copy(dir.path().join("m/1").join(file), at(file)).unwrap();
                }
            }),
            "DIGEST_MISMATCH",
            "manifest.json is of version 1, not of version 2",
        ),
        (
            "half a manifest",
            Box::new(|| {
                signed();
                let text = fs::read(at("manifest.json")).unwrap();
                fs::write(at("manifest.json"), &text[..text.len() / 2]).unwrap();
            }),
            "LOAD_FAILED",
            "manifest.json",
        ),
        // Not TOML: whoever parsed it before the check would say so.
        (
            "bytes that no parser may see",
            Box::new(|| {
                signed();
                fs::write(at("model.pt"), "[[[ = ] [[[").unwrap();
            }),
            "DIGEST_MISMATCH",
            "sha256 of model.pt",
        ),
    ];
    let count = cases.len();
    for (what, tamper, expected, said) in cases {
        let _none = fs::remove_dir_all(dir.path().join("m/2"));
        version(dir.path(), "m", 2, SCRIPT);
        tamper();
        let status = client.reload_model(reload("m", 2)).await.unwrap_err();
        let message = status.message();
        assert_eq!(
            (reason(&status).as_str(), status.code()),
            (expected, tonic::Code::FailedPrecondition),
            "{what}: {message}"
        );
        assert!(message.starts_with("verify failed: ") && message.contains(said), "{what}: {message}");
        assert_eq!(answer(&mut client).await, 3.0, "{what}: version 1 serves on");
        let model =
            client.get_model(proto::GetModelRequest { model: "m".into() }).await.unwrap().into_inner();
        assert_eq!((model.live_version.as_str(), model.last_error.as_str()), ("1", message), "{what}");
        assert_eq!(events.message().await.unwrap().unwrap().change, "reloading", "{what}");
        let event = events.message().await.unwrap().unwrap();
        assert_eq!((event.change.as_str(), event.error.as_str()), ("failed", message), "{what}");
    }
    let (_, metrics) = server.get("/metrics").await;
    let line = format!("torchlane_reloads_total{{model=\"m\",result=\"failed\"}} {count}");
    assert!(metrics.contains(&line), "{line} is not in\n{metrics}");

    let _none = fs::remove_dir_all(dir.path().join("m/2"));
    version(dir.path(), "m", 2, SCRIPT);
    signed();
    client.reload_model(reload("m", 2)).await.unwrap();
    assert_eq!(answer(&mut client).await, 6.0);
}

#[tokio::test]
async fn a_policy_of_digests_asks_for_a_seal_and_no_policy_for_none() {
    let dir = repository(&[("m", "scale = 1.0")]);
    version(dir.path(), "m", 2, "scale = 2.0");
    sign(dir.path(), 1, None);
    fs::write(dir.path().join("bare.pt"), "").unwrap();
    let server = Server::fake(dir.path(), |settings| settings.integrity.policy = Policy::Digest);
    let mut client = server.ready().await;
    assert_eq!(answer(&mut client).await, 3.0, "version 1 is the newest with a manifest.json");
    let status = client.reload_model(reload("m", 2)).await.unwrap_err();
    assert_eq!(reason(&status), "NOT_SIGNED", "{status}");
    let status = client.reload_model(reload("bare", 1)).await.unwrap_err();
    assert_eq!(reason(&status), "NOT_SIGNED", "a bare file has no manifest.json: {status}");
    drop(server);

    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    assert_eq!(answer(&mut client).await, 6.0, "nothing is asked for");
    version(dir.path(), "m", 1, "scale = 9.0");
    let status = client.reload_model(reload("m", 1)).await.unwrap_err();
    assert_eq!(
        reason(&status),
        "DIGEST_MISMATCH",
        "but a manifest.json that is there must be true: {status}"
    );
}

#[test]
fn a_server_does_not_start_with_keys_that_are_none() {
    let dir = repository(&[("m", "")]);
    let mut settings = Settings {
        repositories: vec![dir.path().to_owned()],
        backend: torchlane::config::BackendKind::Fake,
        ..Settings::default()
    };
    settings.server.grpc_addr = ([127, 0, 0, 1], 0).into();
    settings.server.http_addr = ([127, 0, 0, 1], 0).into();
    settings.integrity.policy = Policy::Signed;
    assert_eq!(settings.validate().unwrap_err().0, "integrity.trusted_keys");
    settings.integrity.trusted_keys = vec!["no/such/key.pub".to_owned()];
    let error = torchlane::app::serve_until(settings, Default::default(), |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("integrity.trusted_keys: key no/such/key.pub"), "{error}");
}

#[tokio::test]
async fn an_ensemble_has_nothing_to_sign_and_says_so() {
    let keys = Keys::new();
    let dir = repository(&[("m", "")]);
    sign(dir.path(), 1, Some(&keys.trusted));
    fs::create_dir(dir.path().join("pair")).unwrap();
    let described = "[[inputs]]\nname = 'in'\ndtype = 'FP32'\nshape = [-1]\n[[outputs]]\nname = 'out'\n\
                     [[steps]]\nmodel = 'm'\ninputs = { x = 'in' }\noutputs = { output_0 = 'out' }\n";
    fs::write(dir.path().join("pair/model.toml"), described).unwrap();
    let server = Server::fake(dir.path(), keys.demand(Policy::Signed));
    let mut client = server.ready().await;
    let refused = client.reload_model(reload("pair", 1)).await.unwrap_err();
    assert_eq!(reason(&refused), "NOT_SIGNED", "{refused}");
    assert!(refused.message().contains("describes an ensemble"), "{refused}");
    assert_eq!(answer(&mut client).await, 3.0, "its step serves by itself");
}
