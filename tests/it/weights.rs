//! Versions of weights alone: newer numbers over an archive that is already there.

use std::{fs, path::Path};

use torchlane::proto;

use super::{
    fake::{reload, repository, version},
    server::{Client, Server, f32s, floats, reason, request},
};

/// A safetensors file with these numbers, each of shape `[]`.
fn numbers(path: &Path, numbers: &[(&str, f32)]) {
    let views: Vec<_> = numbers.iter().map(|(name, number)| (*name, number.to_le_bytes())).collect();
    let views = views.iter().map(|(name, bytes)| {
        (*name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![], bytes).unwrap())
    });
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

async fn doubled(client: &mut Client) -> f32 {
    let answer = client.infer(request("m", vec![f32s("x", &[1], &[10.0])])).await.unwrap().into_inner();
    floats(&answer.outputs[0])[0]
}

#[tokio::test]
async fn weights_alone_go_live_and_back_by_both_digests() {
    let dir = repository(&[("m", "scale = 1.0")]);
    let weights = dir.path().join("m/2/weights.safetensors");
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    assert_eq!(doubled(&mut client).await, 10.0);
    numbers(&weights, &[("scale", 2.0)]);

    let wrong = proto::ReloadModelRequest { expected_weights_sha256: "0".repeat(64), ..reload("m", 2) };
    let status = client.reload_model(wrong).await.unwrap_err();
    assert_eq!(reason(&status), "DIGEST_MISMATCH");
    assert!(status.message().contains("weights.safetensors is "), "{status}");
    let none = proto::ReloadModelRequest { expected_weights_sha256: "0".repeat(64), ..reload("m", 1) };
    let status = client.reload_model(none).await.unwrap_err();
    assert!(status.message().contains("version 1 has no weights"), "{status}");

    let first = client.reload_model(reload("m", 2)).await.unwrap().into_inner();
    assert_eq!(doubled(&mut client).await, 20.0);
    assert_eq!((first.sha256.len(), first.weights_sha256.len()), (64, 64));
    let model = client.get_model(proto::GetModelRequest { model: "m".into() }).await.unwrap().into_inner();
    assert_eq!((&model.sha256, &model.weights_sha256), (&first.sha256, &first.weights_sha256));

    // The same archive with yet other weights; back to those before, and not to what has taken their place.
    numbers(&dir.path().join("m/3/weights.safetensors"), &[("scale", 3.0)]);
    let second = client.reload_model(reload("m", 3)).await.unwrap().into_inner();
    assert_eq!((&second.sha256, second.weights_sha256 == first.weights_sha256), (&first.sha256, false));
    let rollback = || proto::RollbackModelRequest { model: "m".into() };
    let back = client.rollback_model(rollback()).await.unwrap().into_inner();
    assert_eq!((back.live_version.as_str(), back.weights_sha256), ("2", first.weights_sha256));
    assert_eq!(doubled(&mut client).await, 20.0);
    numbers(&dir.path().join("m/3/weights.safetensors"), &[("scale", 4.0)]);
    let status = client.rollback_model(rollback()).await.unwrap_err();
    assert_eq!(reason(&status), "DIGEST_MISMATCH");
    assert_eq!(doubled(&mut client).await, 20.0);
}

#[tokio::test]
async fn weights_that_do_not_fit_leave_the_old_version_and_say_why() {
    let dir = repository(&[("m", "scale = 1.0")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    numbers(&dir.path().join("m/2/weights.safetensors"), &[("scale", 2.0), ("bias", 1.0)]);
    let status = client.reload_model(reload("m", 2)).await.unwrap_err();
    assert_eq!(reason(&status), "LOAD_FAILED");
    let text = status.message();
    assert!(
        text.starts_with("verify failed: ") && text.contains("1 unknown to the archive (bias)"),
        "{text}"
    );
    fs::write(dir.path().join("m/2/weights.safetensors"), b"not weights").unwrap();
    let status = client.reload_model(reload("m", 2)).await.unwrap_err();
    assert!(status.message().contains("not a safetensors file"), "{status}");
    assert_eq!(doubled(&mut client).await, 10.0);
    // A whole archive in the same version wins over the one before it, with its own weights laid over.
    version(dir.path(), "m", 2, "scale = 5.0");
    numbers(&dir.path().join("m/2/weights.safetensors"), &[("scale", 7.0)]);
    client.reload_model(reload("m", 2)).await.unwrap();
    assert_eq!(doubled(&mut client).await, 70.0);
}

#[cfg(target_os = "linux")]
mod reads {
    use std::{any::Any, fs, io::Cursor, path::Path, sync::Arc, time::Duration};

    use torchlane::{
        backend::{ArchiveSummary, Backend, BackendError, Module, Pass, ThreadRole, summary},
        lifecycle::{Preparation, Rules, prepare},
        loader::{Known, weights::Overlay},
        model::{NamedTensor, Version},
        repository::VersionFiles,
    };

    /// All that the real backend reads, and nothing that it runs.
    #[derive(Debug)]
    struct Reader;

    struct Loaded;

    impl Backend for Reader {
        fn name(&self) -> &'static str {
            "reader"
        }

        fn enter_thread(&self, _: ThreadRole) -> Box<dyn Any> {
            Box::new(())
        }

        fn glance(&self, archive: &Path) -> Result<(), BackendError> {
            summary::glance(archive)
        }

        fn inspect(&self, archive: &Path) -> Result<ArchiveSummary, BackendError> {
            summary::of_archive(archive)
        }

        fn load(
            &self,
            archive: &Path,
            overlay: Option<&Overlay<'_>>,
        ) -> Result<Box<dyn Module>, BackendError> {
            let mut copy = Cursor::new(fs::read(archive).unwrap());
            if let Some(overlay) = overlay {
                overlay.write_into(&mut copy).map_err(|error| BackendError::new(error.to_string()))?;
            }
            Ok(Box::new(Loaded))
        }
    }

    impl Module for Loaded {
        fn forward(&self, _: Pass<'_>) -> Result<Vec<NamedTensor>, BackendError> {
            Err(BackendError::new("nothing runs here"))
        }
    }

    /// Bytes that this thread has read so far, as the kernel counts them.
    fn read_so_far() -> Option<u64> {
        let text = fs::read_to_string("/proc/thread-self/io").ok()?;
        text.lines().find_map(|line| line.strip_prefix("rchar: "))?.parse().ok()
    }

    #[test]
    fn newer_weights_read_the_archive_beneath_them_once() {
        if read_so_far().is_none() {
            return;
        }
        let data = Path::new("crates/archive/src/weights/testdata");
        let files = |version, weights: Option<&str>| VersionFiles {
            version: Version(version),
            archive: data.join("old.pt"),
            weights: weights.map(|name| data.join(name)),
            samples: None,
            seal: None,
            manifest: None,
            stamp: 0,
            manifest_stamp: 0,
            kept: Default::default(),
            aside: Default::default(),
        };
        let name = "m".parse().unwrap();
        let rules = Rules { known: Arc::new(Known::after(Duration::ZERO)), ..Rules::default() };
        let size = |name: &str| fs::metadata(data.join(name)).unwrap().len();
        let reads = |files: &VersionFiles, rules: &Rules| {
            let before = read_so_far().unwrap();
            let prepared = prepare(&Reader, &Preparation::alone(&name, files, rules)).unwrap();
            (read_so_far().unwrap() - before, prepared.servable.sha256.clone())
        };
        let (whole, sha256) = reads(&files(1, None), &rules);
        assert!(whole > 2 * size("old.pt"), "hashed, checked and loaded: {whole}");
        let update = files(2, Some("new.pth"));
        let (newer, same) = reads(&update, &rules);
        let least = size("old.pt") + size("new.pth");
        // Beside them only what the process asks of itself: /proc is read as files are.
        assert!((least..least + size("old.pt") / 2).contains(&newer), "{newer} bytes, {least} are needed");
        assert_eq!(same, sha256);
        let (unknown, _) = reads(&update, &Rules::default());
        assert!(unknown > newer + size("old.pt"), "what is not known is read through: {unknown}");
    }
}

#[cfg(feature = "torch")]
mod torch {
    use std::{fs, path::Path};

    use torchlane::config::BackendKind;

    use super::super::{
        fake::reload,
        server::{Client, Server, f32s, floats, reason, request},
    };

    async fn answer(client: &mut Client, model: &str) -> Vec<f32> {
        let x: Vec<f32> = (0..32).map(|i| (i as f32 * 0.37).sin()).collect();
        let answer =
            client.infer(request(model, vec![f32s("x", &[1, 2, 4, 4], &x)])).await.unwrap().into_inner();
        floats(&answer.outputs[0])
    }

    #[tokio::test]
    async fn libtorch_answers_as_if_the_archive_had_been_exported_with_the_weights() {
        let dir = tempfile::tempdir().unwrap();
        let data = Path::new("crates/archive/src/weights/testdata");
        let put = |file: &str, to: &str| {
            let to = dir.path().join(to);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(data.join(file), to).unwrap();
        };
        put("old.pt", "m/1/model.pt");
        put("new.pt", "exported/1/model.pt");
        let server = Server::start(dir.path(), BackendKind::Torch, |_| {});
        let mut client = server.ready().await;
        let (old, expected) = (answer(&mut client, "m").await, answer(&mut client, "exported").await);
        assert_ne!(old, expected);
        for (version, file, to) in [
            (2, "new.pth", "weights.pth"),
            (3, "new.safetensors", "weights.safetensors"),
            (4, "parameters.pth", "weights.pth"),
        ] {
            put(file, &format!("m/{version}/{to}"));
            client.reload_model(reload("m", version)).await.unwrap();
            assert_eq!(answer(&mut client, "m").await, expected, "{file}");
            client.reload_model(reload("m", 1)).await.unwrap();
            assert_eq!(answer(&mut client, "m").await, old);
        }
        // A buffer that no state dict has may stay; an archive that is broken does not stop weights above it.
        put("eager.pth", "m/5/weights.pth");
        let status = client.reload_model(reload("m", 5)).await.unwrap_err();
        assert!(status.message().contains("missing_buffers = \"keep\""), "{status}");
        fs::write(dir.path().join("m/model.toml"), "[weights]\nmissing_buffers = 'keep'").unwrap();
        client.reload_model(reload("m", 5)).await.unwrap();
        assert_ne!(answer(&mut client, "m").await, old);
        let half = fs::read(data.join("old.pt")).unwrap();
        for broken in [&half[..half.len() / 2], b"", b"not an archive"] {
            fs::create_dir_all(dir.path().join("m/6")).unwrap();
            fs::write(dir.path().join("m/6/model.pt"), broken).unwrap();
            put("new.pth", "m/7/weights.pth");
            client.reload_model(reload("m", 6)).await.unwrap_err();
            client.reload_model(reload("m", 7)).await.unwrap();
            assert_eq!(answer(&mut client, "m").await, expected);
            client.reload_model(reload("m", 1)).await.unwrap();
        }
        put("wrapped.pth", "m/9/weights.pth");
        let status = client.reload_model(reload("m", 9)).await.unwrap_err();
        assert_eq!(reason(&status), "LOAD_FAILED");
        assert!(status.message().contains("the module within the wrapper"), "{status}");
        assert_eq!(answer(&mut client, "m").await, old);
    }
}
