//! Models that keep something between calls, and what torchlane decides about them.

use std::fs;

use torchlane::{
    app,
    config::{BackendKind, Settings},
    proto,
};

use super::{
    fake::repository,
    oip::call,
    server::{Client, Server},
};

async fn decided(client: &mut Client, model: &str) -> Vec<(String, String)> {
    let request = proto::GetModelRequest { model: model.into() };
    let model = client.get_model(request).await.unwrap().into_inner();
    model.decisions.into_iter().map(|decision| (decision.what, decision.text)).collect()
}

#[tokio::test]
async fn a_decision_has_the_same_words_everywhere() {
    let dir = repository(&[("m", "stateful = true"), ("plain", ""), ("overridden", "stateful = true")]);
    fs::write(
        dir.path().join("m/model.toml"),
        "response_cache = true\n[batching]\nmax_batch = 8\n[scheduling]\nmax_concurrency = 4\n",
    )
    .unwrap();
    fs::write(dir.path().join("overridden/model.toml"), "[scheduling]\nstateful = false\n").unwrap();
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;

    let told = decided(&mut client, "m").await;
    let whats: Vec<_> = told.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(whats, ["state", "batching", "concurrency", "response_cache"]);
    assert!(
        told[0].1.contains("ALL callers") && told[0].1.contains("scheduling.stateful = false"),
        "{told:?}"
    );
    assert!(told[1].1.contains("8 rows") && told[2].1.contains("max_concurrency = 4"), "{told:?}");
    assert_eq!(decided(&mut client, "plain").await, []);
    let overridden = decided(&mut client, "overridden").await;
    assert!(overridden.len() == 1 && overridden[0].1.contains("overrides"), "{overridden:?}");

    let console = call(&server, "GET", "/console/models/m", &[], b"").await.json();
    let config = call(&server, "GET", "/v2/models/m/config", &[], b"").await.json();
    for (at, (what, text)) in told.iter().enumerate() {
        assert_eq!(
            (&console["decisions"][at]["what"], &console["decisions"][at]["text"]),
            (&(**what).into(), &(**text).into())
        );
        let parameter = format!("TORCHLANE_DECIDED_{}", what.to_ascii_uppercase());
        assert_eq!(config["parameters"][&parameter]["string_value"], **text);
    }

    let settings = Settings {
        repositories: vec![dir.path().to_owned()],
        backend: BackendKind::Fake,
        ..Settings::default()
    };
    let checks = tokio::task::spawn_blocking(move || app::check_models(&settings).unwrap()).await.unwrap();
    let of = |name: &str| {
        let check = checks.iter().find(|check| check.name == name).unwrap();
        check.decisions.iter().map(|d| (d.what.to_owned(), d.text.clone())).collect::<Vec<_>>()
    };
    assert_eq!((of("m"), of("plain"), of("overridden")), (told, vec![], overridden));
}

#[cfg(feature = "torch")]
mod with_libtorch {
    use super::{
        super::server::{f32s, floats, request},
        *,
    };

    fn archives(models: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, manifest) in models {
            let version = dir.path().join(name).join("1");
            fs::create_dir_all(&version).unwrap();
            fs::copy(format!("tests/data/models/{name}.pt"), version.join("model.pt")).unwrap();
            fs::write(dir.path().join(name).join("model.toml"), manifest).unwrap();
        }
        dir
    }

    #[tokio::test]
    async fn a_buffer_that_is_written_in_place_never_mixes_callers() {
        let dir = archives(&[("keeps", "")]);
        let server = Server::start(dir.path(), BackendKind::Torch, |_| {});
        let mut client = server.ready().await;
        let told = decided(&mut client, "keeps").await;
        assert_eq!(told[0].0, "state");
        assert!(told[0].1.contains("torch.copy_ writes to self.b (code/__torch__"), "{told:?}");
        let calls = (0..384).map(|number| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let sent = number as f32;
                let answer = client.infer(request("keeps", vec![f32s("x", &[1], &[sent])])).await.unwrap();
                (sent, floats(&answer.get_ref().outputs[0])[0])
            })
        });
        for call in calls.collect::<Vec<_>>() {
            let (sent, got) = call.await.unwrap();
            assert_eq!(sent, got, "an answer of another caller");
        }
    }

    #[tokio::test]
    async fn a_voice_detector_remembers_and_is_neither_batched_nor_cached() {
        let dir = archives(&[("voice", "response_cache = true\n[batching]\nmax_batch = 8\n")]);
        let server = Server::start(dir.path(), BackendKind::Torch, |_| {});
        let mut client = server.ready().await;
        let told = decided(&mut client, "voice").await;
        let whats: Vec<_> = told.iter().map(|(what, _)| what.as_str()).collect();
        assert_eq!(whats, ["state", "batching", "response_cache"]);
        assert!(told[0].1.contains("assigns self._state"), "{told:?}");
        let mut answers = Vec::new();
        for _ in 0..3 {
            let frame = f32s("x", &[1, 4], &[1.0, 0.5, -0.5, 0.25]);
            let answer = client.infer(request("voice", vec![frame])).await.unwrap().into_inner();
            answers.push(floats(&answer.outputs[0]));
        }
        assert!(answers[0] != answers[1] && answers[1] != answers[2], "{answers:?}");
    }

    #[tokio::test]
    async fn what_a_call_makes_for_itself_takes_nothing_from_a_model() {
        const BATCHED: &str = "response_cache = true\n[batching]\nmax_batch = 8\n[[inputs]]\nname = 'x'\ndtype = 'FP32'\nshape = [-1, 2]\n";
        let dir = archives(&[("gathers", BATCHED), ("trains", "")]);
        let server = Server::start(dir.path(), BackendKind::Torch, |_| {});
        let mut client = server.ready().await;
        assert_eq!(decided(&mut client, "gathers").await, []);
        let of = proto::GetModelRequest { model: "gathers".into() };
        assert_eq!(client.get_model(of).await.unwrap().into_inner().max_batch, 8);
        let calls = (0..64).map(|number| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let x = number as f32;
                let answer =
                    client.infer(request("gathers", vec![f32s("x", &[1, 2], &[x, -x])])).await.unwrap();
                assert_eq!(
                    floats(&answer.get_ref().outputs[0]),
                    [x, -x, 2.0 * x, -2.0 * x, 3.0 * x, -3.0 * x]
                );
            })
        });
        for call in calls.collect::<Vec<_>>() {
            call.await.unwrap();
        }
        let told = decided(&mut client, "trains").await;
        assert!(
            told.iter().any(|(what, text)| what == "training" && text.contains("torch.dropout")),
            "{told:?}"
        );
    }
}
