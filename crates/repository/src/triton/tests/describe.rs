//! The way back: what is described reads as it was.

use std::{collections::BTreeMap, time::Duration};

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::json;
use torchlane_model::{
    ArgKind, Argument, Batching, DeclaredTensor, Lane, ModelManifest, Scheduling, Signature, VersionPolicy,
    Versions, WarmupConfig, tensor::DType,
};
use torchlane_proto::inference::ModelConfig;

use super::super::*;

fn signature(kinds: Vec<(&str, ArgKind)>, manifest: &ModelManifest) -> Signature {
    let argument =
        |(name, kind): (&str, ArgKind)| Argument { name: name.into(), kind, has_default: false, skips: 0 };
    Signature::new(kinds.into_iter().map(argument).collect(), &["y".to_owned()], manifest).unwrap()
}

/// Datatype, and dimensions without a batch.
type Tensor = (DType, Vec<i64>);

fn tensor() -> impl Strategy<Value = Tensor> {
    (select(DType::ALL.to_vec()), vec(prop_oneof![Just(-1_i64), 1..100_i64], 1..4))
}

fn policy() -> impl Strategy<Value = VersionPolicy> {
    prop_oneof![
        (1..=100_usize).prop_map(VersionPolicy::Latest),
        Just(VersionPolicy::All),
        vec(0..1000_u64, 1..4).prop_map(VersionPolicy::Only),
    ]
}

/// A manifest that a config can say all of.
fn manifest() -> impl Strategy<Value = ModelManifest> {
    let sizes =
        (proptest::option::of(1..=64_usize), 0..10_000_000_u64, select(Lane::ALL.to_vec()), 0..9_usize);
    let tensors = (vec(tensor(), 1..4), vec(tensor(), 1..4), vec(1..9_i64, 0..3));
    let all = (sizes, tensors, policy(), any::<bool>());
    all.prop_map(|((max_batch, delay, lane, at_once), (inputs, outputs, warm), policy, response_cache)| {
        let front = |rows: i64| max_batch.is_some().then_some(rows);
        let declared = |name: &str, tensors: &[Tensor]| {
            let tensor = |(at, (dtype, dims)): (usize, &Tensor)| DeclaredTensor {
                name: format!("{name}{at}"),
                dtype: Some(*dtype),
                shape: Some(front(-1).into_iter().chain(dims.iter().copied()).collect()),
                ..DeclaredTensor::default()
            };
            tensors.iter().enumerate().map(tensor).collect::<Vec<_>>()
        };
        let shapes = |rows: i64| -> BTreeMap<String, Vec<i64>> {
            let filled = |(at, (_, dims)): (usize, &Tensor)| {
                let dims = dims.iter().map(|dim| if *dim == -1 { 5 } else { *dim });
                (format!("x{at}"), front(rows).into_iter().chain(dims).collect())
            };
            inputs.iter().enumerate().map(filled).collect()
        };
        // Without a batch there is nothing to wait for.
        let max_delay = Duration::from_micros(if max_batch.is_some() { delay } else { 0 });
        ModelManifest {
            response_cache,
            batching: Batching::new(max_batch, max_delay),
            scheduling: Scheduling { default_lane: lane, max_concurrency: at_once, ..Scheduling::default() },
            inputs: declared("x", &inputs),
            outputs: declared("y", &outputs),
            extra_outputs: true,
            versions: Versions::new(policy),
            warmup: WarmupConfig {
                shapes: warm.into_iter().map(shapes).collect(),
                ..WarmupConfig::default()
            },
            ..ModelManifest::default()
        }
    })
}

proptest! {
    #[test]
    fn what_is_described_reads_as_it_was(manifest in manifest()) {
        let names: Vec<_> = manifest.inputs.iter().map(|input| (input.name.as_str(), ArgKind::Tensor)).collect();
        let signature = signature(names, &manifest);
        let config = describe("m", &signature, &manifest, manifest.batching.max_batch(), None);
        let read = TritonConfig::parse(&to_text(&config).unwrap()).unwrap();
        prop_assert_eq!(read.config(), &config);
        // A caller may send back what it was told, and it is written down as text.
        let sent = TritonConfig::from_json(&to_json(&config).unwrap().to_string()).unwrap();
        prop_assert_eq!(sent.config(), &config);
        let read = TritonConfig::parse(&sent.to_text()).unwrap();
        prop_assert_eq!(read.config(), &config);
        let (again, warnings) = read.manifest("m", &|path| Err(path.to_owned())).unwrap();
        let described = describe("m", &signature, &again, again.batching.max_batch(), Some(read.config()));
        prop_assert_eq!(described, config);
        prop_assert_eq!(again, manifest);
        prop_assert_eq!(warnings, Vec::new());
    }
}

#[test]
fn json_is_as_triton_writes_it() {
    let manifest = ModelManifest::parse(
        "[batching]\nmax_batch = 8\nmax_delay = '500us'\nbuckets = [4, 8]\n[scheduling]\nmax_concurrency = 2\n\
         [[inputs]]\nname = 'x'\ndtype = 'FP32'\nshape = [-1, 3]\n\
         [[outputs]]\nname = 'y'\nshape = [-1]\n[warmup]\nshapes = [{ x = [2, 3] }]",
    )
    .unwrap();
    let signature = signature(vec![("x", ArgKind::Tensor)], &manifest);
    let json = to_json(&describe("m", &signature, &manifest, 8, None)).unwrap();
    assert_eq!(
        (&json["name"], &json["platform"], &json["backend"]),
        (&json!("m"), &json!("pytorch_libtorch"), &json!("pytorch"))
    );
    assert_eq!(json["max_batch_size"], 8);
    assert_eq!(json["version_policy"], json!({ "latest": { "num_versions": 1 } }));
    assert_eq!(
        json["input"],
        json!([{
            "name": "x", "data_type": "TYPE_FP32", "format": "FORMAT_NONE", "dims": [3], "is_shape_tensor": false,
            "allow_ragged_batch": false, "optional": false, "is_non_linear_format_io": false,
        }])
    );
    assert_eq!(
        (&json["output"][0]["data_type"], &json["output"][0]["dims"]),
        (&json!("TYPE_INVALID"), &json!([]))
    );
    let batching = &json["dynamic_batching"];
    assert_eq!(batching["max_queue_delay_microseconds"], 500, "a number, as Triton has it, and not a string");
    assert_eq!(batching["preferred_batch_size"], json!([4, 8]));
    assert_eq!((&batching["priority_levels"], &batching["default_priority_level"]), (&json!(4), &json!(3)));
    let group = &json["instance_group"][0];
    assert_eq!(
        (&group["kind"], &group["count"], &group["gpus"]),
        (&json!("KIND_CPU"), &json!(2), &json!([]))
    );
    assert_eq!(
        json["model_warmup"][0]["inputs"]["x"],
        json!({ "data_type": "TYPE_FP32", "dims": [3], "zero_data": true })
    );
    assert_eq!((&json["batch_input"], &json["parameters"]), (&json!([]), &json!({})), "empty ones are there");
    assert!(json.get("sequence_batching").is_none() && json.get("optimization").is_none());
}

#[test]
fn what_a_file_says_comes_back_and_what_it_leaves_open_is_filled_in() {
    let described = |text: &str, max_batch: usize| {
        let read = TritonConfig::parse(text).unwrap();
        let (manifest, _) = read.manifest("m", &|_| Ok(Vec::new())).unwrap();
        let signature = signature(vec![("x", ArgKind::Tensor), ("n", ArgKind::Int)], &manifest);
        (describe("m", &signature, &manifest, max_batch, Some(read.config())), read.config().clone())
    };
    let full = "platform: 'pytorch_libtorch' max_batch_size: 8 default_model_filename: 'net.pt'
        input { name: 'x' data_type: TYPE_FP32 format: FORMAT_NCHW dims: [3, 2, 2] }
        input { name: 'n' data_type: TYPE_INT64 dims: [1] }
        output { name: 'y' data_type: TYPE_FP32 dims: [10] label_filename: 'labels.txt' }
        version_policy { latest { num_versions: 1 } }
        parameters { key: 'INFERENCE_MODE' value { string_value: 'true' } } metric_tags { key: 'team' value: 'a' }
        dynamic_batching { preferred_batch_size: [4, 8] preserve_ordering: true }
        instance_group { count: 2 kind: KIND_GPU gpus: [0] } optimization { input_pinned_memory { enable: true } }";
    let (config, file) = described(full, 8);
    assert_eq!(config, ModelConfig { name: "m".into(), backend: "pytorch".into(), ..file });
    // It keeps state, as the archive shows: that is all that is different.
    assert_eq!(described(full, 1).0, ModelConfig { max_batch_size: 1, ..config });
    let (open, _) = described("max_batch_size: 4 input { name: 'x' format: FORMAT_NHWC }", 4);
    assert_eq!((open.platform.as_str(), open.backend.as_str()), ("pytorch_libtorch", "pytorch"));
    assert_eq!((open.scheduling_choice, open.max_batch_size), (None, 4));
    let inputs: Vec<_> = open
        .input
        .iter()
        .map(|input| (input.name.as_str(), input.data_type().as_str_name(), input.dims.clone()))
        .collect();
    assert_eq!(inputs, [("x", "TYPE_INVALID", vec![-1]), ("n", "TYPE_INT64", vec![1])]);
    assert_eq!(open.input[0].format().as_str_name(), "FORMAT_NHWC");
}

#[test]
fn whatever_a_model_takes_is_described() {
    let plain = ModelManifest::default();
    let kinds = vec![
        ("x", ArgKind::Tensor),
        ("n", ArgKind::Int),
        ("flag", ArgKind::Optional(Box::new(ArgKind::Bool))),
        ("all", ArgKind::List),
    ];
    let config = describe("bare", &signature(kinds, &plain), &plain, 1, None);
    let inputs: Vec<_> = config
        .input
        .iter()
        .map(|i| (i.name.as_str(), i.data_type().as_str_name(), i.dims.clone(), i.optional))
        .collect();
    let expected = [
        ("x", "TYPE_INVALID", vec![-1], false),
        ("n", "TYPE_INT64", vec![1], false),
        ("flag", "TYPE_BOOL", vec![1], true),
        ("all", "TYPE_INVALID", vec![-1], false),
    ];
    assert_eq!(inputs, expected);
    assert_eq!((config.max_batch_size, config.scheduling_choice.as_ref()), (0, None));
    assert_eq!((config.output[0].name.as_str(), config.instance_group.len()), ("y", 0));
    // Keys of a dict are inputs of their own.
    let keys =
        ModelManifest::parse("[[inputs]]\nname='u'\nkey='u'\n[[inputs]]\nname='v'\nkey='v'\ndtype='FP16'")
            .unwrap();
    let config = describe("dict", &signature(vec![("d", ArgKind::Dict)], &keys), &keys, 1, None);
    let named: Vec<_> = config.input.iter().map(|i| (i.name.as_str(), i.data_type().as_str_name())).collect();
    assert_eq!(named, [("u", "TYPE_INVALID"), ("v", "TYPE_FP16")]);
}

#[test]
fn an_ensemble_is_described_by_its_steps() {
    let manifest = ModelManifest::parse(
        "[[inputs]]\nname = 'x'\n[[outputs]]\nname = 'y'\n\
         [[steps]]\nmodel = 'a'\ninputs = { i = 'x' }\noutputs = { o = 'z' }\n\
         [[steps]]\nmodel = 'b'\nversion = '7'\ninputs = { i = 'z' }\noutputs = { o = 'y' }",
    )
    .unwrap();
    let config = describe("both", &signature(vec![("x", ArgKind::Tensor)], &manifest), &manifest, 1, None);
    assert_eq!((config.platform.as_str(), config.backend.as_str()), ("ensemble", ""));
    let text = to_text(&config).unwrap();
    let (again, _) = TritonConfig::parse(&text).unwrap().manifest("both", &|_| Ok(Vec::new())).unwrap();
    assert_eq!(again.steps, manifest.steps);
    let steps = &to_json(&config).unwrap()["ensemble_scheduling"]["step"];
    assert_eq!((&steps[0]["model_version"], &steps[1]["model_version"]), (&json!(-1), &json!(7)));
    assert_eq!(steps[1]["input_map"], json!({ "i": "z" }));
}

#[test]
fn a_batch_dimension_is_left_out_only_where_all_shapes_have_it() {
    let sizes = |text: &str, max_batch: usize| {
        let manifest = ModelManifest::parse(text).unwrap();
        let signature = signature(vec![("x", ArgKind::Tensor)], &manifest);
        let config = describe("m", &signature, &manifest, max_batch, None);
        (config.max_batch_size, config.input[0].dims.clone())
    };
    let shape = |shape: &str| format!("[batching]\nmax_batch = 8\n[[inputs]]\nname = 'x'\nshape = {shape}");
    assert_eq!(sizes(&shape("[-1, 3]"), 8), (8, vec![3]));
    assert_eq!(sizes(&shape("[-1, 3]"), 1), (1, vec![3]), "it keeps state: one row at a time");
    assert_eq!(sizes(&shape("[4, 3]"), 8), (0, vec![4, 3]));
    assert_eq!(
        sizes("[[inputs]]\nname = 'x'\nshape = [-1, 3]", 1),
        (0, vec![-1, 3]),
        "no batching is declared"
    );
}
