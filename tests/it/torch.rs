//! Real models through libtorch, held against what PyTorch answered.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use torchlane::{config::BackendKind, loader::archive::safety::Policy, proto};

use super::server::{Client, Server, f32s, floats, reason, refused, request, tensor};

struct Digits {
    images: Vec<[f32; 64]>,
    labels: Vec<u8>,
}

fn digits() -> Digits {
    let data = fs::read("tests/data/digits/heldout.bin").unwrap();
    let count = u32::from_le_bytes(data[..4].try_into().unwrap()) as usize;
    let records: Vec<_> = data[4..].chunks_exact(65).collect();
    assert_eq!(records.len(), count);
    Digits {
        images: records.iter().map(|r| std::array::from_fn(|i| f32::from(r[i]) / 16.0)).collect(),
        labels: records.iter().map(|r| r[64]).collect(),
    }
}

fn golden(version: u32) -> Vec<Vec<f32>> {
    let data = fs::read(format!("tests/data/digits/golden-{version}.bin")).unwrap();
    let values: Vec<f32> = data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    values.chunks_exact(10).map(<[f32]>::to_vec).collect()
}

fn near(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
}

fn start(repository: &Path) -> Server {
    Server::start(repository, BackendKind::Torch, |_| {})
}

/// A repository of single archives from `tests/data/models`.
fn archives(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in names {
        fs::copy(format!("tests/data/models/{name}.pt"), dir.path().join(format!("{name}.pt"))).unwrap();
    }
    dir
}

fn manifest(dir: &Path, name: &str, text: &str) {
    let version = dir.join(name).join("1");
    fs::create_dir_all(&version).unwrap();
    fs::rename(dir.join(format!("{name}.pt")), version.join("model.pt")).unwrap();
    fs::write(dir.join(name).join("model.toml"), text).unwrap();
}

async fn infer(client: &mut Client, model: &str, inputs: Vec<proto::Tensor>) -> proto::InferResponse {
    client
        .infer(request(model, inputs))
        .await
        .unwrap_or_else(|status| panic!("{model}: {status:?}"))
        .into_inner()
}

fn names(answer: &proto::InferResponse) -> Vec<&str> {
    answer.outputs.iter().map(|output| output.name.as_str()).collect()
}

#[tokio::test]
async fn models_of_a_triton_repository_get_tensors_by_their_names_there() {
    let dir = archives(&["add_two", "dict_io"]);
    let config = |name: &str, text: &str| {
        manifest(dir.path(), name, "");
        fs::rename(dir.path().join(name).join("model.toml"), dir.path().join(name).join("config.pbtxt"))
            .unwrap();
        fs::write(dir.path().join(name).join("config.pbtxt"), text).unwrap();
    };
    config(
        "add_two",
        "platform: 'pytorch_libtorch' max_batch_size: 4
         input [ { name: 'INPUT__0' data_type: TYPE_FP32 dims: 2 }, { name: 'INPUT__1' data_type: TYPE_FP32 dims: 2 } ]
         output [ { name: 'OUTPUT__0' data_type: TYPE_FP32 dims: 2 } ]",
    );
    config(
        "dict_io",
        "backend: 'pytorch'
         input [ { name: 'left' data_type: TYPE_FP32 dims: 1 }, { name: 'right' data_type: TYPE_FP32 dims: 1 } ]
         output { name: 'difference' data_type: TYPE_FP32 dims: 1 }",
    );
    let server = start(dir.path());
    let mut client = server.ready().await;
    let pair = vec![f32s("INPUT__1", &[1, 2], &[10.0, 20.0]), f32s("INPUT__0", &[1, 2], &[1.0, 2.0])];
    let answer = infer(&mut client, "add_two", pair).await;
    assert_eq!((names(&answer), floats(&answer.outputs[0])), (vec!["OUTPUT__0"], vec![11.0, 22.0]));
    let answer =
        infer(&mut client, "dict_io", vec![f32s("right", &[1], &[1.0]), f32s("left", &[1], &[3.0])]).await;
    assert_eq!(
        (names(&answer), floats(&answer.outputs[0])),
        (vec!["difference"], vec![2.0]),
        "the sum is not wanted"
    );
    let (reason, _) = refused(&mut client, request("dict_io", vec![f32s("left", &[1], &[3.0])])).await;
    assert_eq!(reason, "MISSING_INPUT");
}

#[tokio::test]
async fn digits_are_recognised_by_both_versions() {
    let server = start(Path::new("models"));
    let mut client = server.ready().await;
    let data = digits();
    for version in [2, 1] {
        let to = proto::ReloadModelRequest {
            model: "digits".into(),
            version: version.to_string(),
            ..Default::default()
        };
        let report = client.reload_model(to).await.unwrap().into_inner();
        let warmup = report.warmup.unwrap();
        assert!(warmup.passes >= 3 * warmup.shapes && warmup.shapes >= 2, "{warmup:?}");
        let expected = golden(version);
        let mut right = 0;
        // In batches of 16, and the last ones one by one.
        for (chunk, group) in data.images.chunks(16).enumerate() {
            let flat: Vec<f32> = group.iter().flatten().copied().collect();
            let answer =
                infer(&mut client, "digits", vec![f32s("image", &[group.len() as i64, 1, 8, 8], &flat)])
                    .await;
            assert_eq!(
                (answer.version.clone(), names(&answer)),
                (version.to_string(), vec!["probabilities"])
            );
            for (i, row) in floats(&answer.outputs[0]).chunks_exact(10).enumerate() {
                let place = chunk * 16 + i;
                assert!(near(row, &expected[place]), "image {place}: {row:?} is not {:?}", expected[place]);
                let best = (0..10).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap();
                right += usize::from(best == usize::from(data.labels[place]));
            }
        }
        assert!(right * 100 >= data.labels.len() * 97, "{right} of {} right", data.labels.len());
    }
    let (reason, status) =
        refused(&mut client, request("digits", vec![f32s("image", &[17, 1, 8, 8], &[0.0; 17 * 64])])).await;
    assert_eq!(reason, "WRONG_SHAPE");
    assert!(status.message().contains("at most 16"), "{}", status.message());
}

#[tokio::test]
async fn the_tagger_answers_texts_of_any_length() {
    let server = start(Path::new("models"));
    let mut client = server.ready().await;
    let cases: serde_json::Value =
        serde_json::from_str(&fs::read_to_string("tests/data/tagger/golden.json").unwrap()).unwrap();
    for case in cases.as_array().unwrap() {
        let ints = |key: &str| -> Vec<i64> {
            case[key].as_array().unwrap().iter().map(|v| v.as_i64().unwrap()).collect()
        };
        let tokens = ints("tokens");
        let weights: Vec<f32> =
            case["weights"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        let n = tokens.len() as i64;
        let raw = tokens.iter().flat_map(|v| v.to_le_bytes()).collect();
        let answer = infer(
            &mut client,
            "tagger",
            vec![tensor("tokens", "INT64", &[n], raw), f32s("weights", &[n], &weights)],
        )
        .await;
        assert_eq!(names(&answer), ["tags", "scores", "total"]);
        let tags: Vec<i64> = answer.outputs[0]
            .raw
            .chunks_exact(8)
            .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
            .collect();
        assert_eq!(tags, ints("tags"), "{}", case["text"]);
        assert_eq!(answer.outputs[1].shape, [n, 5]);
        let total = case["total"].as_f64().unwrap() as f32;
        assert!(near(&floats(&answer.outputs[2]), &[total]), "{}", case["text"]);
    }
}

#[tokio::test]
async fn every_datatype_goes_through_unchanged() {
    let dir = archives(&["identity", "dtype_out"]);
    let server = start(dir.path());
    let mut client = server.ready().await;
    for (datatype, size) in [
        ("BOOL", 1),
        ("UINT8", 1),
        ("INT8", 1),
        ("INT16", 2),
        ("INT32", 4),
        ("INT64", 8),
        ("FP16", 2),
        ("BF16", 2),
        ("FP32", 4),
        ("FP64", 8),
    ] {
        // Small (copied), and large enough that memory may be shared both ways.
        for elements in [6, 60_000] {
            let raw: Vec<u8> = (0..elements * size)
                .map(|i| if datatype == "BOOL" { (i % 2) as u8 } else { (i % 120) as u8 })
                .collect();
            let answer = infer(
                &mut client,
                "identity",
                vec![tensor("x", datatype, &[2, elements as i64 / 2], raw.clone())],
            )
            .await;
            let output = &answer.outputs[0];
            assert_eq!((output.name.as_str(), output.datatype.as_str()), ("output_0", datatype));
            assert_eq!(output.shape, [2, elements as i64 / 2]);
            assert!(output.raw == raw, "{datatype} of {elements}");
        }
        let empty = infer(&mut client, "identity", vec![tensor("x", datatype, &[0, 3], vec![])]).await;
        assert_eq!((empty.outputs[0].shape.as_slice(), empty.outputs[0].raw.len()), ([0, 3].as_slice(), 0));
    }
    let typed = proto::InferRequest {
        parameters: [("typed".to_owned(), "true".to_owned())].into(),
        ..request(
            "identity",
            vec![proto::Tensor { float_data: vec![1.5, -2.0], ..tensor("", "BF16", &[2], vec![]) }],
        )
    };
    let answer = client.infer(typed).await.unwrap().into_inner();
    assert_eq!(answer.outputs[0].float_data, [1.5, -2.0]);
    let answer = infer(&mut client, "dtype_out", vec![f32s("x", &[2], &[0.0, 1.0])]).await;
    let types: Vec<_> = answer.outputs.iter().map(|o| o.datatype.as_str()).collect();
    assert_eq!(types, ["BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "BF16", "FP32", "FP64"]);
}

#[tokio::test]
async fn tuples_lists_dicts_optionals_and_scalars() {
    let dir = archives(&[
        "add_two",
        "tuple_io",
        "list_io",
        "dict_io",
        "optional_io",
        "named_out",
        "scalar_args",
        "strided",
        "no_arguments",
        "returns_number",
        "returns_nothing",
        "traced",
        "bn",
    ]);
    let server = start(dir.path());
    let mut client = server.ready().await;
    let x = |name: &str, values: &[f32]| f32s(name, &[values.len() as i64], values);
    let outputs = |answer: &proto::InferResponse| -> Vec<(String, Vec<f32>)> {
        answer.outputs.iter().map(|o| (o.name.clone(), floats(o))).collect()
    };
    let named = |pairs: &[(&str, &[f32])]| -> Vec<(String, Vec<f32>)> {
        pairs.iter().map(|(name, values)| ((*name).to_owned(), values.to_vec())).collect()
    };
    let answer = infer(&mut client, "add_two", vec![x("b", &[10.0]), x("a", &[1.0])]).await;
    assert_eq!(outputs(&answer), named(&[("output_0", &[11.0])]));
    let answer = infer(&mut client, "tuple_io", vec![x("pair.0", &[3.0]), x("pair.1", &[1.0])]).await;
    assert_eq!(outputs(&answer), named(&[("output_0", &[4.0]), ("output_1", &[2.0])]));
    let answer =
        infer(&mut client, "list_io", vec![x("xs.0", &[1.0]), x("xs.1", &[1.0]), x("xs.2", &[1.0])]).await;
    assert_eq!(outputs(&answer), named(&[("output_0", &[1.0]), ("output_1", &[2.0]), ("output_2", &[3.0])]));
    let answer = infer(&mut client, "dict_io", vec![x("left", &[3.0]), x("features.right", &[1.0])]).await;
    assert_eq!(outputs(&answer), named(&[("sum", &[4.0]), ("difference", &[2.0])]));
    let answer = infer(&mut client, "optional_io", vec![x("x", &[1.0])]).await;
    assert_eq!(outputs(&answer), named(&[("output_0", &[1.0])]));
    let answer = infer(&mut client, "optional_io", vec![x("x", &[1.0]), x("bias", &[2.0])]).await;
    assert_eq!(outputs(&answer), named(&[("output_0", &[3.0]), ("output_1", &[2.0])]));
    let answer = infer(&mut client, "named_out", vec![x("x", &[3.0, -1.0])]).await;
    assert_eq!(outputs(&answer), named(&[("smallest", &[-1.0]), ("largest", &[3.0])]));
    let scale = || tensor("scale", "FP64", &[], 0.5_f64.to_le_bytes().to_vec());
    let answer = infer(&mut client, "scalar_args", vec![x("x", &[4.0]), scale()]).await;
    assert_eq!(outputs(&answer), named(&[("output_0", &[4.0])]), "n defaults to 2");
    let n = tensor("n", "INT64", &[1], 3_i64.to_le_bytes().to_vec());
    let flag = tensor("flag", "BOOL", &[], vec![1]);
    let answer = infer(&mut client, "scalar_args", vec![x("x", &[4.0]), scale(), n, flag]).await;
    assert_eq!(outputs(&answer), named(&[("output_0", &[-6.0])]));
    let answer =
        infer(&mut client, "strided", vec![f32s("x", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])]).await;
    assert_eq!(
        (answer.outputs[0].shape.as_slice(), floats(&answer.outputs[0])),
        ([3, 2].as_slice(), vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0])
    );
    assert_eq!(outputs(&infer(&mut client, "no_arguments", vec![]).await), named(&[("output_0", &[3.5])]));
    let answer = infer(&mut client, "returns_number", vec![x("x", &[1.0, 2.0])]).await;
    assert_eq!(
        (answer.outputs[0].datatype.as_str(), answer.outputs[0].raw.to_vec()),
        ("INT64", 2_i64.to_le_bytes().to_vec())
    );
    assert!(infer(&mut client, "returns_nothing", vec![x("x", &[1.0])]).await.outputs.is_empty());
    assert_eq!(infer(&mut client, "bn", vec![f32s("x", &[1, 4], &[0.0; 4])]).await.outputs[0].shape, [1, 4]);
    // A single unnamed tensor will do for one input, whatever the trace called it.
    assert_eq!(
        infer(&mut client, "traced", vec![f32s("", &[1, 4], &[0.0; 4])]).await.outputs[0].shape,
        [1, 3]
    );
    let some = proto::InferRequest {
        outputs: vec!["largest".into()],
        ..request("named_out", vec![x("x", &[3.0, -1.0])])
    };
    assert_eq!(outputs(&client.infer(some).await.unwrap().into_inner()), named(&[("largest", &[3.0])]));
}

#[tokio::test]
async fn memory_is_never_shared_where_the_model_writes() {
    let dir = archives(&["inplace", "returns_buffer", "stateful"]);
    let server = start(dir.path());
    let mut client = server.ready().await;
    let large = vec![1.0; 100_000];
    for _ in 0..3 {
        let answer = infer(&mut client, "inplace", vec![f32s("x", &[100_000], &large)]).await;
        assert!(floats(&answer.outputs[0]).iter().all(|v| *v == 2.0));
    }
    for _ in 0..2 {
        let answer = infer(&mut client, "returns_buffer", vec![f32s("x", &[1], &[0.0])]).await;
        assert_eq!(floats(&answer.outputs[0]), [0.0, 1.0, 2.0, 3.0]);
    }
    for expected in 1..4_i64 {
        let answer = infer(&mut client, "stateful", vec![f32s("x", &[1], &[0.0])]).await;
        assert_eq!(answer.outputs[0].raw.to_vec(), expected.to_le_bytes());
    }
}

#[tokio::test]
async fn a_model_that_throws_fails_shortly_and_serves_the_next() {
    let dir = archives(&["throws", "embedding", "complex"]);
    let server = start(dir.path());
    let mut client = server.ready().await;
    let (why, status) = refused(&mut client, request("throws", vec![f32s("x", &[1], &[-1.0])])).await;
    assert_eq!((why.as_str(), status.code()), ("FORWARD_FAILED", tonic::Code::Internal));
    assert!(status.message().contains("refused:") && status.message().len() <= 1024, "{}", status.message());
    assert!(!status.message().contains("frame #"));
    assert_eq!(floats(&infer(&mut client, "throws", vec![f32s("x", &[1], &[1.0])]).await.outputs[0]), [1.0]);
    let (why, status) = refused(&mut client, request("complex", vec![f32s("x", &[1], &[1.0])])).await;
    assert_eq!(why, "FORWARD_FAILED");
    assert!(status.message().contains("cannot be sent"), "{}", status.message());
}

#[tokio::test]
async fn one_bad_request_in_a_batch_fails_alone() {
    let dir = archives(&["embedding", "batch_fixed"]);
    let ids = "[batching]\nmax_batch = 16\n[[inputs]]\nname='ids'\ndtype='INT64'\nshape=[-1, 2]\n";
    manifest(dir.path(), "embedding", ids);
    manifest(dir.path(), "batch_fixed", "[batching]\nmax_batch = 8\n[warmup]\nshapes=[{x=[1,3]}]\n");
    let server = Server::start(dir.path(), BackendKind::Torch, |settings| settings.executors.threads = 1);
    let client = server.ready().await;
    let row = |value: i64| {
        tensor("ids", "INT64", &[1, 2], [value, 1].iter().flat_map(|v| v.to_le_bytes()).collect())
    };
    let calls: Vec<_> = (0..40_i64)
        .map(|i| {
            let mut client = client.clone();
            let value = if i % 10 == 3 { 1000 } else { i % 32 };
            tokio::spawn(async move { (value, client.infer(request("embedding", vec![row(value)])).await) })
        })
        .collect();
    for call in calls {
        let (value, answer) = call.await.unwrap();
        assert_eq!(answer.is_ok(), value != 1000, "{value}: {answer:?}");
    }
    // Warm-up found that its results do not follow the batch, so requests are run one by one.
    let mut client = client;
    let model =
        client.get_model(proto::GetModelRequest { model: "batch_fixed".into() }).await.unwrap().into_inner();
    assert_eq!(model.max_batch, 1);
}

#[tokio::test]
async fn broken_archives_are_refused_with_their_own_words() {
    let names = [
        "flipped_bit",
        "empty",
        "not_a_zip",
        "truncated",
        "state_dict",
        "no_forward",
        "nan",
        "identity",
        "nested",
    ];
    let dir = archives(&names);
    // A hole of a terabyte takes no room, and an hour to read.
    fs::File::create(dir.path().join("hole.pt")).unwrap().set_len(1 << 40).unwrap();
    manifest(dir.path(), "nan", "[[inputs]]\nname='x'\ndtype='FP32'\nshape=[1]\n");
    let server = start(dir.path());
    let mut client = server.ready().await;
    for (model, phase, expect) in [
        ("flipped_bit", "verify", "damaged"),
        ("empty", "verify", "empty"),
        ("not_a_zip", "verify", ""),
        ("truncated", "verify", "truncated"),
        ("hole", "verify", "zeros"),
        ("state_dict", "verify", "torch.jit.save"),
        ("no_forward", "verify", "forward"),
        ("nested", "verify", "Dict[str, List[Tensor]]"),
        ("nan", "warm-up", "NaN"),
    ] {
        let reload = proto::ReloadModelRequest { model: model.into(), ..Default::default() };
        let status = client.reload_model(reload).await.unwrap_err();
        let text = status.message();
        assert_eq!(reason(&status), "LOAD_FAILED", "{text}");
        assert!(text.starts_with(&format!("{phase} failed: ")) && text.contains(expect), "{model}: {text}");
        let model =
            client.get_model(proto::GetModelRequest { model: model.into() }).await.unwrap().into_inner();
        assert_eq!(model.state(), proto::ModelState::Failed);
    }
    assert_eq!(
        floats(&infer(&mut client, "identity", vec![f32s("x", &[1], &[1.0])]).await.outputs[0]),
        [1.0]
    );
    fs::remove_file(dir.path().join("identity.pt")).unwrap();
    let gone = proto::ReloadModelRequest { model: "identity".into(), ..Default::default() };
    assert_eq!(reason(&client.reload_model(gone).await.unwrap_err()), "UNKNOWN_MODEL");
    assert!(
        client.infer(request("identity", vec![f32s("x", &[1], &[1.0])])).await.is_ok(),
        "what is live stays so"
    );
}

#[tokio::test]
async fn a_model_that_reads_files_is_refused_unless_it_may() {
    let dir = archives(&["identity", "reads_file"]);
    for (allow, policy) in
        [(vec![], "strict"), (vec!["aten::from_file".to_owned()], "strict"), (vec![], "warn")]
    {
        let refuses = allow.is_empty() && policy == "strict";
        let server = Server::start(dir.path(), BackendKind::Torch, |settings| {
            settings.safety.allow = allow;
            settings.safety.policy = if policy == "warn" { Policy::Warn } else { Policy::Strict };
        });
        let mut client = server.ready().await;
        let reload = proto::ReloadModelRequest { model: "reads_file".into(), ..Default::default() };
        let answer = client.reload_model(reload).await;
        if refuses {
            let status = answer.unwrap_err();
            assert_eq!(
                (reason(&status).as_str(), status.code()),
                ("UNSAFE_MODEL", tonic::Code::FailedPrecondition)
            );
            let says = "aten::from_file (code/__torch__.py:8) reads, maps or writes files";
            assert!(status.message().contains(says), "{}", status.message());
        } else {
            answer.unwrap();
            let answer = infer(&mut client, "reads_file", vec![f32s("x", &[1], &[0.0])]).await;
            assert_eq!(floats(&answer.outputs[0]), [f32::from(b'[')]);
        }
    }
}

/// Resident memory of this process in KiB.
fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_under_load_lose_and_mix_nothing() {
    let server = start(Path::new("models"));
    let client = server.ready().await;
    let data = Arc::new(digits());
    let golden = Arc::new([golden(1), golden(2)]);
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let callers: Vec<_> = (0..4_usize)
        .map(|caller| {
            let (mut client, data, golden) = (client.clone(), data.clone(), golden.clone());
            let (stop, answered) = (stop.clone(), answered.clone());
            tokio::spawn(async move {
                let mut versions = [0_usize; 2];
                for i in (caller..).step_by(4) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let place = (i * 3) % (data.images.len() - 2);
                    let flat: Vec<f32> = data.images[place..place + 2].iter().flatten().copied().collect();
                    let answer =
                        infer(&mut client, "digits", vec![f32s("image", &[2, 1, 8, 8], &flat)]).await;
                    let version: usize = answer.version.parse().unwrap();
                    let expected = &golden[version - 1][place..place + 2].concat();
                    assert!(near(&floats(&answer.outputs[0]), expected), "not version {version}'s answer");
                    versions[version - 1] += 1;
                    answered.fetch_add(1, Ordering::Relaxed);
                }
                versions
            })
        })
        .collect();
    let mut admin = client.clone();
    let mut after_ten = 0;
    for round in 0..30_u32 {
        let version = (round % 2 + 1).to_string();
        let before = answered.load(Ordering::Relaxed);
        let to = proto::ReloadModelRequest {
            model: "digits".into(),
            version: version.clone(),
            ..Default::default()
        };
        let report = admin.reload_model(to).await.unwrap().into_inner();
        assert_eq!(report.live_version, version);
        // Each version answers something before the next is asked for.
        while answered.load(Ordering::Relaxed) < before + 8 {
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        }
        if round == 9 {
            after_ten = resident();
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut versions = [0; 2];
    for caller in callers {
        let seen = caller.await.unwrap();
        versions = [versions[0] + seen[0], versions[1] + seen[1]];
    }
    assert!(versions[0] >= 50 && versions[1] >= 50, "{versions:?}");
    // Other tests of this binary load models at the same time: a leak of whole models would still stand out.
    assert!(resident() < after_ten + 400 * 1024, "{after_ten} KiB grew to {} KiB", resident());
}

#[tokio::test]
async fn ready_within_two_seconds() {
    let began = tokio::time::Instant::now();
    let server = start(&PathBuf::from("models"));
    server.ready().await;
    assert!(
        began.elapsed().as_secs_f64() < 10.0,
        "{:?}: the release build takes well under two",
        began.elapsed()
    );
}
