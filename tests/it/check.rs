//! What a version must show before it serves: samples, the version that serves now, an end.

use std::{fs, path::Path, time::Duration};

use torchlane::{
    model::{NamedTensor, Sample, read_samples, write_samples},
    proto,
    tensor::{DType, HostTensor},
};

use super::{
    fake::{reload, repository, version},
    server::{Client, Server, f32s, floats, reason, request},
};

fn named(name: &str, values: &[f32]) -> NamedTensor {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let tensor = HostTensor::new(DType::F32, vec![values.len() as i64].into(), bytes.into()).unwrap();
    NamedTensor { name: name.into(), tensor }
}

/// Samples that expect twice what goes in.
fn expect_doubled(repository: &Path, version: u64, inputs: &[&[f32]]) {
    let samples: Vec<_> = inputs
        .iter()
        .map(|values| Sample {
            inputs: vec![named("x", values)],
            outputs: vec![named("output_0", &values.iter().map(|value| value * 2.0).collect::<Vec<_>>())],
        })
        .collect();
    let path = repository.join(format!("m/{version}/samples.safetensors"));
    fs::write(path, write_samples(&samples).unwrap()).unwrap();
}

async fn times(client: &mut Client) -> f32 {
    let answer = client.infer(request("m", vec![f32s("x", &[1], &[1.0])])).await.unwrap().into_inner();
    floats(&answer.outputs[0])[0]
}

async fn model(client: &mut Client) -> proto::Model {
    client.get_model(proto::GetModelRequest { model: "m".into() }).await.unwrap().into_inner()
}

#[tokio::test]
async fn samples_warm_a_version_up_and_say_what_must_come_out() {
    let dir = repository(&[("m", "scale = 1.0")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let none = client.reload_model(reload("m", 1)).await.unwrap().into_inner().check.unwrap();
    assert_eq!((none.samples, none.from_expected, none.from_live), (0, None, None));

    version(dir.path(), "m", 2, "scale = 2.00001");
    expect_doubled(dir.path(), 2, &[&[1.0, 2.0], &[3.0]]);
    let good = client.reload_model(reload("m", 2)).await.unwrap().into_inner();
    let check = good.check.unwrap();
    assert_eq!((check.samples, good.warmup.unwrap().shapes), (2, 2));
    assert!((1e-6..1e-4).contains(&check.from_expected.unwrap()), "{check:?}");

    version(dir.path(), "m", 3, "scale = 2.1");
    expect_doubled(dir.path(), 3, &[&[0.0], &[1.0, 10.0], &[-3.0]]);
    let status = client.reload_model(reload("m", 3)).await.unwrap_err();
    assert_eq!(reason(&status), "LOAD_FAILED");
    let text = status.message();
    assert!(
        text.starts_with("check failed: 2 of 3 samples") && text.contains("of sample 1 is farthest"),
        "{text}"
    );
    assert!(text.contains("21 instead of 20 at element 1"), "{text}");
    assert_eq!((times(&mut client).await, model(&mut client).await.last_error.as_str()), (2.00001, text));

    // A tolerance is the model's to widen.
    fs::write(dir.path().join("m/model.toml"), "[check]\nrtol = 0.1").unwrap();
    client.reload_model(reload("m", 3)).await.unwrap();
    fs::write(dir.path().join("m/3/samples.safetensors"), b"?").unwrap();
    let status = client.reload_model(reload("m", 3)).await.unwrap_err();
    assert!(status.message().contains("samples.safetensors: not a safetensors file"), "{status}");
    assert_eq!(times(&mut client).await, 2.1);
}

#[tokio::test]
async fn values_of_samples_are_used_where_zeros_would_not_do() {
    let dir = repository(&[("m", "nan_at_zero = true")]);
    version(dir.path(), "m", 2, "nan_at_zero = true\nscale = 2.0");
    fs::write(dir.path().join("m/model.toml"), "[warmup]\nshapes = [{x = [5]}]\nmax_passes = 3").unwrap();
    expect_doubled(dir.path(), 2, &[&[1.0, 2.0]]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let report = client.reload_model(reload("m", 2)).await.unwrap().into_inner();
    assert_eq!(report.warmup.unwrap().shapes, 2, "the declared shape and the sample's");
    expect_doubled(dir.path(), 2, &[&[1.0, 0.0]]);
    let status = client.reload_model(reload("m", 2)).await.unwrap_err();
    assert!(status.message().contains("NaN instead of 0 at element 1"), "{status}");
}

#[tokio::test]
async fn sizes_of_batches_that_ran_are_warmed_up() {
    let dir = repository(&[("m", "scale = 1.0")]);
    fs::write(dir.path().join("m/model.toml"), "[batching]\nmax_batch = 8").unwrap();
    version(dir.path(), "m", 2, "scale = 2.0");
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    client.reload_model(reload("m", 1)).await.unwrap();
    client.infer(request("m", vec![f32s("x", &[3, 1], &[1.0; 3])])).await.unwrap();
    let report = client.reload_model(reload("m", 2)).await.unwrap().into_inner();
    assert_eq!(report.warmup.unwrap().shapes, 5, "1, 2, 4, 8 and the 3 that ran");
}

#[tokio::test]
async fn the_live_version_is_compared_with_and_may_set_a_limit() {
    let dir = repository(&[("m", "scale = 1.0")]);
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let toml = |text: &str| fs::write(dir.path().join("m/model.toml"), text).unwrap();
    version(dir.path(), "m", 2, "scale = 2.0");
    expect_doubled(dir.path(), 2, &[&[1.0, 4.0]]);
    toml("[check]\ncompare_with_live = true");
    let valid = proto::ReloadModelRequest { validate_only: true, ..reload("m", 2) };
    let check = client.reload_model(valid).await.unwrap().into_inner().check.unwrap();
    assert_eq!((check.from_expected, check.from_live), (Some(0.0), Some(4.0)));
    toml("[check]\ncompare_with_live = true\nmax_difference = 3.5");
    let status = client.reload_model(reload("m", 2)).await.unwrap_err();
    assert!(
        status.message().contains("check failed: it differs by 4 from live version 1, 3.5 is allowed"),
        "{status}"
    );
    assert_eq!(times(&mut client).await, 1.0);
    toml("[check]\nmax_difference = 3.5");
    let status = client.reload_model(reload("m", 2)).await.unwrap_err();
    assert!(status.message().contains("only with check.compare_with_live"), "{status}");
    // One that keeps state is not run beside its traffic.
    version(dir.path(), "m", 3, "scale = 3.0\nstateful = true");
    toml("[check]\ncompare_with_live = true");
    client.reload_model(reload("m", 3)).await.unwrap();
    let check = client.reload_model(reload("m", 2)).await.unwrap().into_inner().check.unwrap();
    assert_eq!((check.from_live, times(&mut client).await), (None, 2.0));
}

#[tokio::test]
async fn whatever_fails_in_a_warm_up_the_old_version_serves_and_all_say_why() {
    let dir = repository(&[("m", "scale = 2.0")]);
    let cases = [
        ("fail = 'out of range'\nfail_always = true", "out of range"),
        ("nan = true", "holds NaN or infinity"),
        ("inputs = ['x', 'y']", "output 'z' has shape [2]"),
    ];
    let server = Server::fake(dir.path(), |_| {});
    let mut client = server.ready().await;
    let mut events =
        client.watch_models(proto::WatchModelsRequest { model: "m".into() }).await.unwrap().into_inner();
    events.message().await.unwrap();
    for (index, (script, expected)) in cases.into_iter().enumerate() {
        let number = index as u64 + 2;
        version(dir.path(), "m", number, script);
        let second = if script.contains("'y'") { "y = [2], " } else { "" };
        let outputs = if second.is_empty() {
            ""
        } else {
            "[[outputs]]\nname = 'a'\n[[outputs]]\nname = 'z'\nshape = [3]"
        };
        let toml = format!("{outputs}\n[warmup]\nshapes = [{{{second}x = [1]}}]");
        fs::write(dir.path().join("m/model.toml"), toml).unwrap();
        let status = client.reload_model(reload("m", number)).await.unwrap_err();
        assert_eq!(reason(&status), "LOAD_FAILED", "{status}");
        let text = status.message();
        assert!(text.starts_with("warm-up failed: ") && text.contains(expected), "{text}");
        assert_eq!((times(&mut client).await, model(&mut client).await.last_error.as_str()), (2.0, text));
        assert_eq!(events.message().await.unwrap().unwrap().change, "reloading");
        let event = events.message().await.unwrap().unwrap();
        assert_eq!((event.change.as_str(), event.error.as_str()), ("failed", text));
        let line = format!("torchlane_reloads_total{{model=\"m\",result=\"failed\"}} {}", index + 1);
        let metrics = server.get("/metrics").await.1;
        assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test]
async fn a_load_that_does_not_end_is_left_behind() {
    let dir = repository(&[("m", "scale = 2.0")]);
    let hangs = dir.path().join("hangs");
    fs::write(&hangs, b"").unwrap();
    version(dir.path(), "m", 2, &format!("scale = 3.0\nhang_while = '{}'", hangs.display()));
    fs::rename(dir.path().join("m/2"), dir.path().join("later")).unwrap();
    fs::write(dir.path().join("m/model.toml"), "[warmup]\nshapes = [{x = [1]}]").unwrap();
    let server = Server::fake(dir.path(), |settings| {
        // Enough for a load that ends, also where the machine has other work.
        settings.loader.time_limit = Duration::from_secs(1);
        settings.loader.patience = Duration::ZERO;
        settings.loader.spare = 1;
    });
    let mut client = server.ready().await;
    fs::rename(dir.path().join("later"), dir.path().join("m/2")).unwrap();
    let status = client.reload_model(reload("m", 2)).await.unwrap_err();
    assert_eq!(reason(&status), "LOAD_FAILED");
    let text = status.message();
    assert!(text.starts_with("warm-up failed: it did not end within 1s (loader.time_limit)"), "{text}");
    assert_eq!((times(&mut client).await, model(&mut client).await.last_error.as_str()), (2.0, text));
    let stuck = |count: u32| format!("torchlane_loader_threads_stuck {count}\n");
    assert!(server.get("/metrics").await.1.contains(&stuck(1)));
    // The spare does what is asked of it, until it is stuck too.
    client.reload_model(reload("m", 1)).await.unwrap();
    client.reload_model(reload("m", 2)).await.unwrap_err();
    let status = client.reload_model(reload("m", 1)).await.unwrap_err();
    assert!(status.message().contains("every loader thread is held"), "{status}");
    assert_eq!(times(&mut client).await, 2.0);
    fs::remove_file(&hangs).unwrap();
    while !server.get("/metrics").await.1.contains(&stuck(0)) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.reload_model(reload("m", 2)).await.unwrap();
    assert_eq!(times(&mut client).await, 3.0);
}

#[tokio::test]
async fn what_is_recorded_can_be_checked_against() {
    let dir = repository(&[("m", "scale = 2.0"), ("other", "")]);
    let records = tempfile::tempdir().unwrap();
    let file = records.path().join("m/samples.safetensors");
    let server = Server::fake(dir.path(), |settings| {
        settings.samples.record = 2;
        settings.samples.directory = records.path().to_owned();
        settings.samples.max_bytes = bytesize::ByteSize::b(64);
        let forbids = torchlane::admission::TenantSettings { record: false, ..Default::default() };
        settings.tenants.insert("private".into(), forbids);
    });
    let mut client = server.ready().await;
    let mut private = tonic::Request::new(request("m", vec![f32s("x", &[1], &[99.0])]));
    private.metadata_mut().insert("x-tenant", "private".parse().unwrap());
    client.infer(private).await.unwrap();
    // Too large with its answer; refused; answered in part.
    client.infer(request("m", vec![f32s("x", &[10], &[98.0; 10])])).await.unwrap();
    client.infer(request("m", vec![f32s("y", &[1], &[97.0])])).await.unwrap_err();
    for value in [1.0, 2.0, 3.0] {
        client.infer(request("m", vec![f32s("x", &[1], &[value])])).await.unwrap();
    }
    let samples = loop {
        match read_samples(&file) {
            Ok(samples) if samples.len() == 2 => break samples,
            _ => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    let expected = |value: f32| Sample {
        inputs: vec![named("x", &[value])],
        outputs: vec![named("output_0", &[value * 2.0])],
    };
    assert_eq!(samples, [expected(1.0), expected(2.0)]);
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!records.path().join("other").exists());
    version(dir.path(), "m", 2, "scale = 2.5");
    fs::copy(&file, dir.path().join("m/2/samples.safetensors")).unwrap();
    let status = client.reload_model(reload("m", 2)).await.unwrap_err();
    assert!(status.message().contains("check failed: 2 of 2 samples"), "{status}");
}
