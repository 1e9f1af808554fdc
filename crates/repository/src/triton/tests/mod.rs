//! Configs as people write them: what is read, what it comes to, and how errors read.

mod describe;
mod fields;

use proptest::prelude::*;
use torchlane_model::{Lane, ModelManifest, VersionPolicy, tensor::DType};

use super::*;

/// As Triton's own examples are written.
const LISTS: &str = r#"
# A classifier.
name: "classifier"
platform: "pytorch_libtorch"
max_batch_size: 8
input [
  {
    name: "INPUT__0"   # an image
    data_type: TYPE_FP32
    format: FORMAT_NCHW
    dims: [ 3, 224, 224 ]
  },
  {
    name: "INPUT__1"
    data_type: TYPE_INT64
    dims: [ -1 ]
  }
]
output [
  {
    name: "OUTPUT__0"
    data_type: TYPE_FP32
    dims: [ 2 ]
    label_filename: "labels.txt"
  }
]
version_policy: { specific: { versions: [ 1, 3 ] } }
instance_group [ { count: 2 kind: KIND_CPU } ]
dynamic_batching {
  max_queue_delay_microseconds: 500
  priority_levels: 2
  default_priority_level: 2
}
parameters: { key: "INFERENCE_MODE" value: { string_value: "true" } }
model_warmup [
  {
    name: "zeros"
    batch_size: 4
    inputs {
      key: "INPUT__0"
      value: { data_type: TYPE_FP32 dims: [ 3, 224, 224 ] zero_data: true }
    }
    inputs { key: "INPUT__1" value: { data_type: TYPE_INT64 dims: [ 7 ] random_data: true } }
  }
]
"#;

/// The same, in other words.
const BLOCKS: &str = r#"name: 'class' "ifier" platform: "pytorch_libtorch"; max_batch_size: 0x8
input { name: "INPUT__0", data_type: 11, format: FORMAT_NCHW, dims: 3 dims: 224 dims: 224 }
input < name: "INPUT__1" data_type: TYPE_INT64 dims: -1 >
output: { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [2] label_filename: "labels.txt" }
version_policy < specific { versions: 1 versions: 3 } >
instance_group { count: 2 kind: 2 }
dynamic_batching: { max_queue_delay_microseconds: 500, priority_levels: 2, default_priority_level: 2 }
parameters [ { key: "INFERENCE_MODE" value { string_value: "true" } } ]
model_warmup {
  name: "zeros" batch_size: 4
  inputs: [
    { key: "INPUT__1" value { data_type: TYPE_INT64 dims: 7 random_data: True } },
    { key: "INPUT__0" value { data_type: TYPE_FP32 dims: [3, 224, 224] zero_data: t } }
  ]
}"#;

fn labels(path: &str) -> Result<Vec<String>, String> {
    if path == "labels.txt" {
        Ok(vec!["cat".into(), "dog".into()])
    } else {
        Err(format!("{path}: no such file"))
    }
}

fn read(text: &str) -> Result<(ModelManifest, Vec<String>), String> {
    let read = TritonConfig::parse(text).and_then(|config| config.manifest("classifier", &labels));
    let (manifest, warnings) = read.map_err(|error| error.to_string())?;
    Ok((manifest, warnings.iter().map(ToString::to_string).collect()))
}

#[test]
fn every_way_to_write_a_config_is_read() {
    let (lists, blocks) = (TritonConfig::parse(LISTS).unwrap(), TritonConfig::parse(BLOCKS).unwrap());
    assert_eq!(lists.config(), blocks.config());
    assert_eq!(read(LISTS), read(BLOCKS));
}

#[test]
fn a_config_comes_to_what_a_model_toml_would_say() {
    let (manifest, warnings) = read(LISTS).unwrap();
    assert_eq!(warnings, [] as [String; 0]);
    let same = ModelManifest::parse(
        "extra_outputs = true\n\
         [batching]\nmax_batch = 8\nmax_delay = '500us'\n\
         [scheduling]\ndefault_lane = 'HIGH'\nmax_concurrency = 2\n\
         [versions]\nonly = [1, 3]\n\
         [warmup]\nshapes = [{ INPUT__0 = [4, 3, 224, 224], INPUT__1 = [4, 7] }]\n\
         [[inputs]]\nname = 'INPUT__0'\ndtype = 'FP32'\nshape = [-1, 3, 224, 224]\n\
         [[inputs]]\nname = 'INPUT__1'\ndtype = 'INT64'\nshape = [-1, -1]\n\
         [[outputs]]\nname = 'OUTPUT__0'\ndtype = 'FP32'\nshape = [-1, 2]\nlabels = ['cat', 'dog']\n",
    );
    assert_eq!(manifest, same.unwrap());
}

#[test]
fn nothing_but_what_is_said_is_asked_for() {
    let (manifest, warnings) = read("backend: 'pytorch' input { name: 'x' } output { name: 'y' }").unwrap();
    assert_eq!((manifest.batching.max_batch(), manifest.scheduling.max_concurrency), (1, 0));
    assert_eq!((manifest.inputs[0].dtype, manifest.inputs[0].shape.as_ref()), (None, None));
    assert_eq!(
        (manifest.scheduling.default_lane, manifest.versions.policy()),
        (Lane::Normal, VersionPolicy::Latest(1))
    );
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(read("").unwrap().0, ModelManifest { extra_outputs: true, ..ModelManifest::default() });
    // Without a batch dimension shapes are as they are written.
    let (manifest, _) = read("input { name: 'x' data_type: TYPE_BF16 dims: [ 1, 5 ] }").unwrap();
    assert_eq!(manifest.inputs[0].shape, Some(vec![1, 5]));
    assert_eq!(manifest.inputs[0].dtype, Some(DType::BF16));
    // Groups count together, one where they do not say; those for GPUs do not.
    let groups = "instance_group [ { kind: KIND_GPU count: 8 }, { count: 2 }, { kind: KIND_MODEL } ]";
    let (manifest, warnings) = read(groups).unwrap();
    assert_eq!(manifest.scheduling.max_concurrency, 3);
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].starts_with("config.pbtxt: instance_group[0].kind: there is no GPU"), "{warnings:?}");
}

#[test]
fn mistakes_have_a_line_and_a_column() {
    for (text, error) in [
        (
            "name: 'm'\nmax_bach_size: 8",
            "2:1: field 'max_bach_size' not found for message 'inference.ModelConfig'",
        ),
        ("input [\n { name: 3 } ]", "2:10: expected a string, but found '3'"),
        ("input { data_type: FP32 }", "1:20: value 'FP32' was not found for enum 'inference.DataType'"),
        ("max_batch_size: 3000000000", "1:17: expected value to be a signed 32-bit integer"),
        ("input {\n", "1:8: expected '}' or a field name, but reached end of input"),
        ("version_policy { all {} latest {} }", "1:32: a value is already set for oneof 'policy_choice'"),
    ] {
        let found = read(text).unwrap_err();
        assert!(found.starts_with(&format!("config.pbtxt:{error}")), "{text}: {found}");
        assert!(!found.contains('\n'));
    }
    let long = " ".repeat(usize::try_from(MOST_BYTES).unwrap() + 1);
    assert_eq!(read(&long).unwrap_err(), "config.pbtxt: it is over 1048576 bytes");
}

#[test]
fn what_cannot_be_done_is_refused_with_its_name() {
    for (text, error) in [
        ("name: 'other'", "name: it is 'other', the directory is 'classifier'"),
        ("platform: 'onnxruntime_onnx'", "platform: 'onnxruntime_onnx' is not pytorch_libtorch"),
        ("platform: 'torch_aoti' backend: 'pytorch'", "platform: 'torch_aoti' is not pytorch_libtorch"),
        ("backend: 'python'", "backend: 'python' is not pytorch"),
        ("platform: 'ensemble' ensemble_scheduling {}", "ensemble_scheduling.step: there is none"),
        ("platform: 'libtorch' ensemble_scheduling { step {} }", "platform: 'libtorch' is not ensemble"),
        ("backend: 'pytorch' ensemble_scheduling { step {} }", "backend: an ensemble has none"),
        (
            "ensemble_scheduling { step { model_name: 'a' model_version: -2 } }",
            "ensemble_scheduling.step[0].model_version: -2 is no version",
        ),
        ("ensemble_scheduling { step { model_name: 'a' } }", "step 0 (a) has no outputs"),
        ("platform: 'ensemble'", "platform: an ensemble has ensemble_scheduling"),
        ("max_batch_size: -1", "max_batch_size: -1 is below 0"),
        ("max_batch_size: 100000", "batching.max_batch = 100000 is out of range"),
        ("input { dims: 1 }", "input[0].name: it has no name"),
        ("input { name: 'x' data_type: TYPE_STRING }", "input[0].data_type: TYPE_STRING is not a type"),
        ("output { name: 'y' data_type: TYPE_UINT64 }", "output[0].data_type: TYPE_UINT64 is not a type"),
        ("input { name: 'x' data_type: 99 }", "input[0].data_type: there is no type with the number 99"),
        ("input { name: 'x' dims: -2 }", "shape = -2 is out of range"),
        ("input { name: 'x' } input { name: 'x' }", "the name 'x' is used twice"),
        (
            "input { name: 'x' dims: 1 reshape { shape: [] } }",
            "input[0].reshape: from [1] to []: tensors are passed on",
        ),
        (
            "output { name: 'y' label_filename: '../l' }",
            "output[0].label_filename: '../l' does not lie below",
        ),
        ("output { name: 'y' label_filename: 'l' }", "output[0].label_filename: l: no such file"),
        ("version_policy { specific {} }", "version_policy.specific.versions: it names none"),
        (
            "version_policy { specific { versions: -3 } }",
            "version_policy.specific.versions: -3 is no version",
        ),
        (
            "dynamic_batching { priority_levels: 2 }",
            "dynamic_batching.default_priority_level: 0 is not one of",
        ),
        (
            "dynamic_batching { max_queue_delay_microseconds: 60000000 }",
            "batching.max_delay = 1m is out of range",
        ),
        ("input { name: 'x' } model_warmup { inputs { key: 'z' } }", "warm-up shape of 'z': no such input"),
        ("default_model_filename: '../x.pt'", "default_model_filename: '../x.pt' is not the name of a file"),
        (
            "input [ { name: 'x' }, { name: 'z' is_shape_tensor: true } ]",
            "input[1].is_shape_tensor: it is for",
        ),
        ("sequence_batching { oldest {} }", "sequence_batching: nothing is kept"),
        (
            "model_transaction_policy { decoupled: true }",
            "model_transaction_policy.decoupled: a request has one",
        ),
    ] {
        let found = read(text).unwrap_err();
        assert!(found.starts_with(&format!("config.pbtxt: {error}")), "{text}: {found}");
    }
    // What is set to what it is anyway asks for nothing.
    let (_, warnings) = read(
        "model_transaction_policy { decoupled: false } response_cache { enable: false } model_operations {}",
    )
    .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
}

#[test]
fn an_ensemble_is_its_steps() {
    let (manifest, warnings) = read(
        "platform: 'ensemble'
         input { name: 'pixels' data_type: TYPE_UINT8 dims: -1 }
         output { name: 'OUTPUT__1' data_type: TYPE_FP32 dims: 10 }
         ensemble_scheduling {
           step [
             {
               model_name: 'scale' model_version: -1
               input_map { key: 'INPUT__0' value: 'pixels' }
               output_map { key: 'OUTPUT__0' value: 'scaled' }
             },
             {
               model_name: 'digits' model_version: 3
               input_map: { key: 'image' value: 'scaled' }
               output_map: { key: 'probabilities' value: 'OUTPUT__1' }
             }
           ]
         }",
    )
    .unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let same = ModelManifest::parse(
        "[[inputs]]\nname = 'pixels'\ndtype = 'UINT8'\nshape = [-1]\n\
         [[outputs]]\nname = 'OUTPUT__1'\ndtype = 'FP32'\nshape = [10]\n\
         [[steps]]\nmodel = 'scale'\ninputs = { INPUT__0 = 'pixels' }\noutputs = { OUTPUT__0 = 'scaled' }\n\
         [[steps]]\nmodel = 'digits'\nversion = '3'\ninputs = { image = 'scaled' }\n\
         outputs = { probabilities = 'OUTPUT__1' }\n",
    );
    assert_eq!(manifest, same.unwrap());
}

#[test]
fn levels_are_lanes_in_their_order() {
    let lane = |levels: u64, level: u64| {
        let text =
            format!("dynamic_batching {{ priority_levels: {levels} default_priority_level: {level} }}");
        let (manifest, warnings) = read(&text).unwrap();
        (manifest.scheduling.default_lane, warnings.len())
    };
    assert_eq!(lane(0, 0), (Lane::Normal, 0));
    assert_eq!(lane(0, 1), (Lane::Normal, 0), "without levels there is none that could be the default");
    assert_eq!(lane(4, 1), (Lane::Critical, 0));
    assert_eq!(lane(4, 4), (Lane::Low, 0));
    assert_eq!(lane(10, 7), (Lane::Low, 1), "it is said that 4 to 10 are one");
}

proptest! {
    #[test]
    fn any_text_gives_a_config_or_an_error_of_one_line(
        text in r#"([a-z_]{1,9}|input|dims|name|\[|\]|\{|\}|<|>|:|,|;|'|"|#|\\|-?[0-9.]{1,4}|[ \n]|/|é){0,60}"#,
    ) {
        if let Err(error) = TritonConfig::parse(&text) {
            let error = error.to_string();
            prop_assert!(error.starts_with("config.pbtxt:") && !error.contains('\n'), "{}", error);
        }
    }
}
