//! Answers that depend on what is done around `forward`: which rows are whose, what a thread remembers, what a result is.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use torchlane::{
    config::{BackendKind, Settings},
    loader::archive::safety::Policy,
    proto,
};

use super::{
    fake::reload,
    server::{Client, Server, f32s, floats, reason, refused, request, tensor},
};

fn place(dir: &Path, model: &str, version: u64, archive: &str, manifest: &str) {
    let folder = dir.join(model).join(version.to_string());
    fs::create_dir_all(&folder).unwrap();
    fs::copy(format!("tests/data/boundary/{archive}.pt"), folder.join("model.pt")).unwrap();
    fs::write(dir.join(model).join("model.toml"), manifest).unwrap();
}

/// A repository of those archives, each with that `model.toml`.
fn models(models: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (model, manifest) in models {
        place(dir.path(), model, 1, model, manifest);
    }
    dir
}

fn start(dir: &tempfile::TempDir, change: impl FnOnce(&mut Settings)) -> Server {
    Server::start(dir.path(), BackendKind::Torch, |settings| {
        // What these do is not what ordinary exports do.
        settings.safety.policy = Policy::Off;
        settings.executors.threads = 1;
        // What passes take here is noise: a batch of one would sometimes look as good as one of eight.
        settings.executors.learned_batches = false;
        change(settings);
    })
}

async fn infer(client: &Client, model: &str, inputs: Vec<proto::Tensor>) -> proto::InferResponse {
    let answer = client.clone().infer(request(model, inputs)).await;
    answer.unwrap_or_else(|status| panic!("{model}: {status:?}")).into_inner()
}

async fn max_batch(client: &Client, model: &str) -> u32 {
    let get = proto::GetModelRequest { model: model.into() };
    client.clone().get_model(get).await.unwrap().into_inner().max_batch
}

/// Answers to the rows `[i, 2 i]` of `callers`, again and again, all callers at once.
async fn rows(client: &Client, model: &str, callers: i32, rounds: i32) -> Vec<(f32, proto::InferResponse)> {
    let mut all = Vec::new();
    for round in 0..rounds {
        let calls = (0..callers).map(|caller| {
            let value = (round * callers + caller) as f32;
            async move { (value, infer(client, model, vec![f32s("x", &[1, 2], &[value, 2.0 * value])]).await) }
        });
        all.extend(join_all(calls).await);
    }
    all
}

const EIGHT: &str = "[batching]\nmax_batch = 8\nmax_delay = '20ms'\n";

#[tokio::test]
async fn an_output_that_does_not_follow_the_rows_is_whole_for_each_request() {
    let shapes = format!("{EIGHT}[warmup]\nshapes = [{{ x = [1, 2] }}]\n");
    let declared = format!("{EIGHT}[[outputs]]\nname = 'y'\n[[outputs]]\nname = 'sizes'\nshape = [3]\n");
    for manifest in [EIGHT, &shapes, &declared] {
        let dir = models(&[("fixed_output", manifest)]);
        let server = start(&dir, |_| {});
        let client = server.ready().await;
        let answers = rows(&client, "fixed_output", 24, 6).await;
        for (value, answer) in &answers {
            let [doubled, fixed] = answer.outputs.as_slice() else { panic!("{answer:?}") };
            assert_eq!(
                (doubled.shape.as_slice(), floats(doubled)),
                (&[1, 2][..], vec![2.0 * value, 4.0 * value])
            );
            assert_eq!((fixed.shape.as_slice(), floats(fixed)), (&[3][..], vec![8.0, 16.0, 32.0]));
        }
        let shared = answers.iter().filter(|(_, answer)| answer.timing.unwrap().batch_size > 1).count();
        assert!(shared > 24, "requests share passes once that is known: {shared}");
    }
}

#[tokio::test]
async fn models_that_mix_rows_are_not_batched_unless_their_owner_insists() {
    let known = format!("{EIGHT}[warmup]\nshapes = [{{ x = [1, 2] }}]\n");
    let insists = known.replace("[warmup]", "independent_rows = true\n[warmup]");
    for (archive, manifest) in
        [("minus_mean", EIGHT), ("sorted_rows", EIGHT), ("minus_mean", &known), ("sorted_rows", &known)]
    {
        let dir = models(&[(archive, manifest)]);
        let server = start(&dir, |_| {});
        let client = server.ready().await;
        for (value, answer) in rows(&client, archive, 12, 3).await {
            let alone = if archive == "minus_mean" { vec![0.0, 0.0] } else { vec![value, 2.0 * value] };
            assert_eq!(floats(&answer.outputs[0]), alone, "{archive}");
        }
        assert_eq!(max_batch(&client, archive).await, 1, "{archive}");
    }
    let dir = models(&[("minus_mean", &insists), ("dropping", &known)]);
    let server = start(&dir, |_| {});
    let client = server.ready().await;
    assert_eq!(max_batch(&client, "minus_mean").await, 8);
    assert!(
        rows(&client, "minus_mean", 12, 3).await.iter().any(|(_, a)| floats(&a.outputs[0]) != [0.0, 0.0])
    );
    assert_eq!(max_batch(&client, "dropping").await, 8, "what is random is judged by its shape");
}

#[tokio::test]
async fn every_pass_begins_with_the_same_state_of_its_thread() {
    let dir = models(&[("grad_on", ""), ("sees_grad", ""), ("seeds", ""), ("dropping", "")]);
    let server = start(&dir, |_| {});
    let client = server.ready().await;
    let x = || vec![f32s("x", &[1], &[1.0])];
    for _ in 0..20 {
        infer(&client, "grad_on", x()).await;
        assert_eq!(floats(&infer(&client, "sees_grad", x()).await.outputs[0]), [0.0]);
    }
    let mut drawn = Vec::new();
    for _ in 0..3 {
        infer(&client, "seeds", x()).await;
        let many = vec![f32s("x", &[64], &[1.0; 64])];
        drawn.push(floats(&infer(&client, "dropping", many).await.outputs[0]));
    }
    assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2], "another model's seed");
}

#[tokio::test]
async fn what_is_left_out_is_the_models_own_default() {
    let dir = models(&[("defaults", "[batching]\nmax_batch = 4\n")]);
    let server = start(&dir, |_| {});
    let client = server.ready().await;
    let x = || f32s("x", &[1], &[2.0]);
    let number = |name: &str, value: f64| tensor(name, "FP64", &[], value.to_le_bytes().into());
    let cases = [
        (vec![x()], 10.5),
        (vec![x(), f32s("mask", &[1], &[2.0])], 21.0),
        (vec![x(), number("shift", 0.25)], 12.25),
        (vec![x(), number("scale", 0.5)], 1.5),
        (vec![x(), tensor("keep", "BOOL", &[], vec![0])], -10.5),
        (
            vec![x(), tensor("k", "INT64", &[], (-1_i64).to_le_bytes().into()), f32s("mask", &[1], &[2.0])],
            -11.0,
        ),
    ];
    for (inputs, expected) in cases {
        let names: Vec<_> = inputs.iter().map(|input| input.name.clone()).collect();
        assert_eq!(floats(&infer(&client, "defaults", inputs).await.outputs[0]), [expected], "{names:?}");
    }
}

#[tokio::test]
async fn hooks_of_the_top_module_run() {
    let dir = models(&[("hooked", "[batching]\nmax_batch = 4\n")]);
    let server = start(&dir, |_| {});
    let client = server.ready().await;
    assert_eq!(floats(&infer(&client, "hooked", vec![f32s("x", &[1], &[2.0])]).await.outputs[0]), [1025.0]);
}

/// Name, shape and values of an output.
type Expected = (&'static str, &'static [i64], &'static [f32]);

#[tokio::test]
async fn what_is_not_plain_memory_is_read_right_or_refused_by_name() {
    let dir = models(&[("odd", ""), ("names_device", "")]);
    let server = start(&dir, |_| {});
    let mut client = server.ready().await;
    let ask = |kind: i64| {
        let kind = tensor("kind", "INT64", &[], kind.to_le_bytes().into());
        request("odd", vec![f32s("x", &[2], &[2.0, 3.0]), kind])
    };
    let good: [(i64, &[Expected]); 7] = [
        (0, &[("output_0", &[2], &[-2.0, -3.0])]),
        (8, &[("output_0", &[3, 2], &[2.0, 3.0, 2.0, 3.0, 2.0, 3.0])]),
        (9, &[("output_0", &[1], &[3.0])]),
        (10, &[("output_0", &[0, 3], &[])]),
        (11, &[("output_0", &[], &[5.0])]),
        (
            14,
            &[
                ("output_0.0", &[2], &[2.0, 3.0]),
                ("output_0.1", &[2], &[3.0, 4.0]),
                ("output_1.0", &[2], &[4.0, 5.0]),
            ],
        ),
        (17, &[("output_0", &[2], &[2.0, 3.0])]),
    ];
    for (kind, expected) in good {
        let answer = client.infer(ask(kind)).await.unwrap_or_else(|s| panic!("{kind}: {s:?}")).into_inner();
        let got: Vec<_> =
            answer.outputs.iter().map(|o| (o.name.as_str(), o.shape.as_slice(), floats(o))).collect();
        let expected: Vec<_> =
            expected.iter().map(|(name, shape, values)| (*name, *shape, values.to_vec())).collect();
        assert_eq!(got, expected, "{kind}");
    }
    let answer = client.infer(ask(12)).await.unwrap().into_inner();
    let three: Vec<u8> = [1_i64, 2, 3].iter().flat_map(|i| i.to_le_bytes()).collect();
    assert_eq!((answer.outputs[0].datatype.as_str(), &answer.outputs[0].raw[..]), ("INT64", &three[..]));
    let answer = client.infer(ask(15)).await.unwrap().into_inner();
    let named: Vec<_> = answer.outputs.iter().map(|o| (o.name.as_str(), o.datatype.as_str())).collect();
    assert_eq!(named, [("a.0", "FP32"), ("a.1", "INT64"), ("b.0", "FP32"), ("b.1", "BOOL")]);
    let refusals = [
        (1, "output 'output_0' is of complex numbers (ComplexFloat), which cannot be sent"),
        (2, "output 'output_0' is of datatype UInt16, which cannot be sent"),
        (3, "Float8_e4m3fn"),
        (4, "output 'output_0' is a sparse tensor"),
        (5, "output 'output_0' is a quantized tensor: call dequantize()"),
        (6, "device 'meta', which holds no values"),
        (7, "output 'output_0' is a nested tensor"),
        (13, "a value of type str as output_0"),
        (16, "oneDNN"),
        (18, "two outputs named 'output_0'"),
        (19, "two outputs named 'a.b'"),
        (3000, "nested more than 64 deep"),
    ];
    for (kind, words) in refusals {
        let (why, status) = refused(&mut client, ask(kind)).await;
        assert_eq!(why, "FORWARD_FAILED", "{kind}");
        assert!(status.message().contains(words), "{kind}: {}", status.message());
    }
    let (_, status) = refused(&mut client, request("names_device", vec![f32s("x", &[1], &[1.0])])).await;
    assert!(status.message().contains("its code names device 'cuda:0'"), "{}", status.message());
}

#[tokio::test]
async fn no_callers_shapes_or_values_take_a_model_from_others() {
    let dir = models(&[("tokens", "")]);
    place(dir.path(), "wide", 1, "wide/4", "");
    let server = start(&dir, |_| {});
    let client = server.ready().await;
    let ids = |value: i64| tensor("ids", "INT64", &[1], value.to_le_bytes().into());
    let wide = |n: usize| f32s("x", &[1, n as i64], &vec![1.0; n]);
    for (model, good, bad) in [("wide", wide(4), wide(5)), ("tokens", ids(3), ids(99))] {
        let done = Arc::new(AtomicBool::new(false));
        let others: Vec<_> = (0..4)
            .map(|_| {
                let (mut client, done, bad) = (client.clone(), done.clone(), bad.clone());
                tokio::spawn(async move {
                    let mut failed = 0;
                    while !done.load(Ordering::Relaxed) {
                        let status = client.infer(request(model, vec![bad.clone()])).await.unwrap_err();
                        failed += u32::from(reason(&status) == "FORWARD_FAILED");
                    }
                    failed
                })
            })
            .collect();
        // The others begin: nothing has ever gone well.
        tokio::time::sleep(Duration::from_millis(300)).await;
        for _ in 0..30 {
            infer(&client, model, vec![good.clone()]).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        done.store(true, Ordering::Relaxed);
        let failed: u32 = join_all(others).await.into_iter().map(Result::unwrap).sum();
        assert!(failed > 20, "{model}: {failed}");
    }
}

#[tokio::test]
async fn remembered_shapes_that_do_not_fit_stop_no_load() {
    let dir = tempfile::tempdir().unwrap();
    place(dir.path(), "wide", 1, "wide/4", "");
    let server = start(&dir, |_| {});
    let mut client = server.ready().await;
    let wide = |n: usize| vec![f32s("x", &[1, n as i64], &vec![1.0; n])];
    infer(&client, "wide", wide(4)).await;
    let narrow = "[[inputs]]\nname = 'x'\nshape = [-1, -1, 4]\n";
    place(dir.path(), "wide", 1, "wide/4", narrow);
    client.reload_model(reload("wide", 1)).await.expect("another rank is declared now");
    infer(&client, "wide", vec![f32s("x", &[1, 1, 4], &[1.0; 4])]).await;
    place(dir.path(), "wide", 2, "wide/6", "");
    client.reload_model(reload("wide", 2)).await.expect("version 2 takes six features");
    infer(&client, "wide", wide(6)).await;
    client.reload_model(reload("wide", 2)).await.unwrap();
}
