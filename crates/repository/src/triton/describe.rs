//! The way back: any model as a `ModelConfig`, Triton's or not. It is what the ModelConfig call and `/v2/models/NAME/config` answer.

use std::collections::{BTreeMap, HashMap};

use prost_reflect::{DynamicMessage, SerializeOptions, text_format::FormatOptions};
use torchlane_model::{
    ArgKind, Batching, Lane, ModelManifest, Signature, Step, TensorSpec, VersionPolicy, Versions,
    tensor::DType,
};
use torchlane_proto::inference::{
    DataType, ModelConfig, ModelDynamicBatching, ModelEnsembling, ModelInput, ModelInstanceGroup,
    ModelOutput, ModelResponseCache, ModelVersionPolicy, ModelWarmup,
    model_config::SchedulingChoice,
    model_ensembling,
    model_instance_group::Kind,
    model_version_policy::{All, Latest, PolicyChoice, Specific},
    model_warmup::{Input, input::InputDataType},
};

use super::{
    ConfigError,
    config::descriptor,
    dtype::data_type,
    manifest::{BACKEND, ENSEMBLE, PLATFORM},
    names::ARCHIVE,
    parameters,
};

/// Describes a loaded model; `max_batch` is the most rows in one pass. A model that a `config.pbtxt` describes keeps what is in that
/// `file`, and gets what the file leaves open.
///
/// As in Triton, `dims` lack the batch dimension where `max_batch_size` is above 0. That is so where batching is declared and every
/// declared shape begins with `-1`; else shapes are given in full and `max_batch_size` is 0, though requests may be put together all
/// the same. What is not known is `TYPE_INVALID`, or `[-1]`. Without a limit on passes at once there is no `instance_group`.
pub fn describe(
    name: &str,
    signature: &Signature,
    manifest: &ModelManifest,
    max_batch: usize,
    file: Option<&ModelConfig>,
) -> ModelConfig {
    match file {
        Some(file) => completed(file, name, signature, manifest, max_batch),
        None => made(name, signature, manifest, max_batch),
    }
}

/// What a file says, and what it leaves open.
fn completed(
    file: &ModelConfig,
    name: &str,
    signature: &Signature,
    manifest: &ModelManifest,
    max_batch: usize,
) -> ModelConfig {
    let batched = file.max_batch_size > 0;
    let mut config = file.clone();
    let made = made(name, signature, manifest, max_batch);
    config.name = made.name;
    if config.platform.is_empty() && config.backend.is_empty() {
        config.platform = made.platform;
    }
    for (text, made) in [
        (&mut config.backend, made.backend),
        (&mut config.default_model_filename, made.default_model_filename),
    ] {
        if text.is_empty() {
            *text = made;
        }
    }
    config.version_policy = config.version_policy.or(made.version_policy);
    // A model that keeps state runs one row at a time.
    config.max_batch_size = config.max_batch_size.min(int(max_batch.max(1)));
    for input in inputs(signature, batched) {
        match config.input.iter_mut().find(|known| known.name == input.name) {
            Some(known) => {
                complete(&mut known.data_type, &mut known.dims, (input.data_type, input.dims));
                known.optional |= input.optional;
            }
            None => config.input.push(input),
        }
    }
    for output in signature.outputs().iter().map(|spec| output(spec, batched)) {
        match config.output.iter_mut().find(|known| known.name == output.name) {
            Some(known) => complete(&mut known.data_type, &mut known.dims, (output.data_type, output.dims)),
            None => config.output.push(output),
        }
    }
    config
}

/// Fills in what a file does not say of a tensor.
fn complete(data_type: &mut i32, dims: &mut Vec<i64>, known: (i32, Vec<i64>)) {
    if *data_type == i32::from(DataType::TypeInvalid) {
        *data_type = known.0;
    }
    if dims.is_empty() {
        *dims = known.1;
    }
}

/// What a model without such a file comes to.
fn made(name: &str, signature: &Signature, manifest: &ModelManifest, max_batch: usize) -> ModelConfig {
    let batched = has_batch_dimension(signature, &manifest.batching);
    let is_ensemble = !manifest.steps.is_empty();
    let of_archives = |text: &str| if is_ensemble { String::new() } else { text.to_owned() };
    ModelConfig {
        name: name.to_owned(),
        platform: platform(manifest).to_owned(),
        backend: of_archives(BACKEND),
        version_policy: Some(version_policy(&manifest.versions)),
        max_batch_size: if batched { int(max_batch.max(1)) } else { 0 },
        input: inputs(signature, batched),
        output: signature.outputs().iter().map(|spec| output(spec, batched)).collect(),
        instance_group: instances(name, manifest.scheduling.max_concurrency),
        default_model_filename: of_archives(ARCHIVE),
        scheduling_choice: scheduling(manifest, batched),
        response_cache: manifest.response_cache.then_some(ModelResponseCache { enable: true }),
        parameters: parameters::of(&manifest.scheduling),
        model_warmup: warmup(signature, &manifest.warmup.shapes, batched),
        ..ModelConfig::default()
    }
}

/// What Triton calls models like this one.
pub fn platform(manifest: &ModelManifest) -> &'static str {
    if manifest.steps.is_empty() { PLATFORM } else { ENSEMBLE }
}

/// As Triton writes it for `GET /v2/models/NAME/config`: fields by the names that they have in the proto, also those that are
/// not set, enums by name, and 64-bit integers as numbers.
///
/// # Errors
/// The build's own descriptors are broken.
pub fn to_json(config: &ModelConfig) -> Result<serde_json::Value, ConfigError> {
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false)
        .stringify_64_bit_integers(false);
    let json = dynamic(config)?.serialize_with_options(serde_json::value::Serializer, &options);
    json.map_err(|error| ConfigError::Unreadable(error.to_string()))
}

/// As the text of a `config.pbtxt`.
///
/// # Errors
/// The build's own descriptors are broken.
pub fn to_text(config: &ModelConfig) -> Result<String, ConfigError> {
    Ok(dynamic(config)?.to_text_format_with_options(&FormatOptions::new().pretty(true)))
}

fn dynamic(config: &ModelConfig) -> Result<DynamicMessage, ConfigError> {
    let mut message = DynamicMessage::new(descriptor()?);
    message.transcode_from(config).map_err(|error| ConfigError::Unreadable(error.to_string()))?;
    Ok(message)
}

fn int(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn has_batch_dimension(signature: &Signature, batching: &Batching) -> bool {
    let mut shapes = signature.tensors().chain(signature.outputs()).filter_map(|spec| spec.shape.as_ref());
    batching.is_declared() && shapes.all(|shape| shape.first() == Some(&-1))
}

fn instances(name: &str, max_concurrency: usize) -> Vec<ModelInstanceGroup> {
    let group = || ModelInstanceGroup {
        name: name.to_owned(),
        count: int(max_concurrency),
        kind: Kind::Cpu.into(),
        ..ModelInstanceGroup::default()
    };
    (max_concurrency > 0).then(group).into_iter().collect()
}

fn scheduling(manifest: &ModelManifest, batched: bool) -> Option<SchedulingChoice> {
    if !manifest.steps.is_empty() {
        let step = manifest.steps.iter().map(step).collect();
        let ensemble = ModelEnsembling { step, ..ModelEnsembling::default() };
        return Some(SchedulingChoice::EnsembleScheduling(ensemble));
    }
    let lane = manifest.scheduling.default_lane;
    (batched || lane != Lane::Normal)
        .then(|| SchedulingChoice::DynamicBatching(dynamic_batching(&manifest.batching, lane)))
}

/// A label is no number: such a step is described as one that takes the newest version.
fn step(step: &Step) -> model_ensembling::Step {
    let map = |names: &BTreeMap<String, String>| names.clone().into_iter().collect();
    model_ensembling::Step {
        model_name: step.model.clone(),
        model_version: step.version.parse().unwrap_or(-1),
        input_map: map(&step.inputs),
        output_map: map(&step.outputs),
        ..model_ensembling::Step::default()
    }
}

fn dynamic_batching(batching: &Batching, default_lane: Lane) -> ModelDynamicBatching {
    ModelDynamicBatching {
        preferred_batch_size: batching.buckets.iter().copied().map(int).collect(),
        max_queue_delay_microseconds: u64::try_from(batching.max_delay.as_micros()).unwrap_or(u64::MAX),
        priority_levels: Lane::ALL.len() as u64,
        default_priority_level: default_lane.index() as u64 + 1,
        ..ModelDynamicBatching::default()
    }
}

fn version_policy(versions: &Versions) -> ModelVersionPolicy {
    let choice = match versions.policy() {
        VersionPolicy::Latest(count) => {
            PolicyChoice::Latest(Latest { num_versions: u32::try_from(count).unwrap_or(u32::MAX) })
        }
        VersionPolicy::All => PolicyChoice::All(All {}),
        VersionPolicy::Only(only) => {
            let number = |version: u64| i64::try_from(version).unwrap_or(i64::MAX);
            PolicyChoice::Specific(Specific { versions: only.into_iter().map(number).collect() })
        }
    };
    ModelVersionPolicy { policy_choice: Some(choice) }
}

fn inputs(signature: &Signature, batched: bool) -> Vec<ModelInput> {
    let mut inputs = Vec::with_capacity(signature.inputs().len());
    for (argument, spec) in signature.arguments().iter().zip(signature.inputs()) {
        let tensors =
            if spec.keys.is_empty() { vec![spec] } else { spec.keys.iter().map(|key| &key.tensor).collect() };
        for tensor in tensors {
            // A number is sent as a tensor of one element, batched or not.
            let scalar = scalar(&argument.kind);
            inputs.push(ModelInput {
                name: tensor.name.to_string(),
                data_type: named(tensor.dtype.or(scalar)),
                dims: if scalar.is_some() { vec![1] } else { dims(tensor, batched) },
                optional: tensor.optional,
                ..ModelInput::default()
            });
        }
    }
    inputs
}

fn output(spec: &TensorSpec, batched: bool) -> ModelOutput {
    ModelOutput {
        name: spec.name.to_string(),
        data_type: named(spec.dtype),
        dims: dims(spec, batched),
        ..ModelOutput::default()
    }
}

/// The datatype that a number is best sent as. `None`: it is no number.
fn scalar(kind: &ArgKind) -> Option<DType> {
    match kind {
        ArgKind::Int => Some(DType::I64),
        ArgKind::Float => Some(DType::F64),
        ArgKind::Bool => Some(DType::Bool),
        ArgKind::Optional(inner) => scalar(inner),
        ArgKind::Tensor | ArgKind::List | ArgKind::Dict | ArgKind::Tuple(_) => None,
    }
}

fn named(dtype: Option<DType>) -> i32 {
    dtype.map_or(DataType::TypeInvalid, data_type).into()
}

fn dims(spec: &TensorSpec, batched: bool) -> Vec<i64> {
    match &spec.shape {
        Some(shape) => shape.iter().skip(usize::from(batched)).copied().collect(),
        None => vec![-1],
    }
}

/// Shapes whose inputs have unlike numbers of rows cannot be written this way: they are left out.
fn warmup(signature: &Signature, shapes: &[BTreeMap<String, Vec<i64>>], batched: bool) -> Vec<ModelWarmup> {
    let sample = |(at, shapes): (usize, &BTreeMap<String, Vec<i64>>)| {
        let mut rows = None;
        let mut inputs = HashMap::with_capacity(shapes.len());
        for (name, shape) in shapes {
            let dims = match shape.split_first() {
                Some((first, rest)) if batched => {
                    if *rows.get_or_insert(*first) != *first {
                        return None;
                    }
                    rest
                }
                None if batched => return None,
                _ => shape.as_slice(),
            };
            let spec = signature.tensors().find(|spec| *spec.name == **name);
            let input = Input {
                data_type: named(spec.and_then(|spec| spec.dtype)),
                dims: dims.to_vec(),
                input_data_type: Some(InputDataType::ZeroData(true)),
            };
            inputs.insert(name.clone(), input);
        }
        let batch_size = u32::try_from(rows.unwrap_or(1)).ok()?;
        Some(ModelWarmup { name: format!("shapes_{at}"), batch_size, inputs, count: 0 })
    };
    shapes.iter().enumerate().filter_map(sample).collect()
}
