//! From a config to what `model.toml` would say. Pure, but for the labels that it is given a way to read.
//!
//! `dims` have no batch dimension where `max_batch_size` is above 0; torchlane's shapes always have it, as `-1` in front.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use torchlane_model::{
    Batching, DeclaredTensor, Lane, ModelManifest, Scheduling, Step, VersionPolicy, Versions, WarmupConfig,
    tensor::DType,
};
use torchlane_proto::inference::{
    DataType, ModelConfig, ModelDynamicBatching, ModelInput, ModelInstanceGroup, ModelOutput,
    ModelTensorReshape, ModelWarmup, model_config::SchedulingChoice, model_ensembling,
    model_instance_group::Kind, model_version_policy::PolicyChoice,
};

use super::{
    ConfigError, TritonConfig,
    dtype::dtype,
    names::{ARCHIVE, is_below, is_plain},
    naming, parameters,
};

/// How Triton's clients and its own files call TorchScript archives.
pub(super) const PLATFORM: &str = "pytorch_libtorch";

/// The backend that runs them.
pub(super) const BACKEND: &str = "pytorch";

/// The platform of models that are made of others.
pub(super) const ENSEMBLE: &str = "ensemble";

impl TritonConfig {
    /// The name of the archive in each version's directory.
    pub fn archive(&self) -> &str {
        match self.config().default_model_filename.as_str() {
            "" => ARCHIVE,
            name => name,
        }
    }
}

/// Whether it is for a TorchScript model in the directory `model`.
pub(super) fn check_purpose(config: &ModelConfig, model: &str) -> Result<(), ConfigError> {
    let refused = |field: &str, why: String| Err(ConfigError::refused(field, why));
    let ModelConfig { name, platform, backend, runtime, default_model_filename: archive, .. } = config;
    if matches!(config.scheduling_choice, Some(SchedulingChoice::EnsembleScheduling(_))) {
        if !["", ENSEMBLE].contains(&platform.as_str()) {
            return refused(
                "platform",
                format!("'{platform}' is not {ENSEMBLE}, which has ensemble_scheduling"),
            );
        }
        if !backend.is_empty() {
            return refused("backend", "an ensemble has none".to_owned());
        }
    } else if platform == ENSEMBLE {
        return refused("platform", "an ensemble has ensemble_scheduling".to_owned());
    }
    // `libtorch` is Triton's other name for it.
    if !["", PLATFORM, "libtorch", ENSEMBLE].contains(&platform.as_str()) {
        return refused(
            "platform",
            format!("'{platform}' is not {PLATFORM}: torchlane serves TorchScript alone"),
        );
    }
    if !["", BACKEND].contains(&backend.as_str()) {
        return refused(
            "backend",
            format!("'{backend}' is not {BACKEND}: torchlane serves TorchScript alone"),
        );
    }
    if !["", "libtriton_pytorch.so"].contains(&runtime.as_str()) {
        return refused("runtime", format!("'{runtime}' is not run: no Python is, and no library of others"));
    }
    if !name.is_empty() && name != model {
        return refused("name", format!("it is '{name}', the directory is '{model}': make them the same"));
    }
    if !archive.is_empty() && !is_plain(archive) {
        return refused(
            "default_model_filename",
            format!("'{archive}' is not the name of a file in a version's directory"),
        );
    }
    Ok(())
}

/// What it comes to. Ranges are left to [`ModelManifest::check`].
pub(super) fn map(
    config: &ModelConfig,
    labels: &dyn Fn(&str) -> Result<Vec<String>, String>,
) -> Result<ModelManifest, ConfigError> {
    let batched = config.max_batch_size > 0;
    let nothing_said = ModelDynamicBatching::default();
    let batching = match &config.scheduling_choice {
        Some(SchedulingChoice::DynamicBatching(batching)) => batching,
        _ => &nothing_said,
    };
    let steps = steps(config)?;
    let inputs = config.input.iter().enumerate().map(|(at, tensor)| input(at, tensor, batched));
    let outputs = config.output.iter().enumerate().map(|(at, tensor)| output(at, tensor, batched, labels));
    let outputs = outputs.collect::<Result<Vec<_>, _>>()?;
    Ok(ModelManifest {
        response_cache: config.response_cache.as_ref().is_some_and(|cache| cache.enable),
        batching: Batching::new(
            max_batch(config.max_batch_size)?,
            Duration::from_micros(batching.max_queue_delay_microseconds),
        ),
        scheduling: Scheduling {
            default_lane: default_lane(batching)?,
            max_concurrency: instances(&config.instance_group),
            stateful: parameters::stateful(&config.parameters)?,
            ..Scheduling::default()
        },
        inputs: inputs.collect::<Result<_, _>>()?,
        // An ensemble's are tensors by their names, whatever numbers these end in.
        outputs: if steps.is_empty() { naming::in_order(outputs)? } else { outputs },
        extra_outputs: steps.is_empty(),
        steps,
        warmup: WarmupConfig {
            shapes: config.model_warmup.iter().filter_map(|sample| warmup(sample, batched)).collect(),
            ..WarmupConfig::default()
        },
        versions: versions(config)?,
        ..ModelManifest::default()
    })
}

/// `None`: requests are not put together.
fn max_batch(max_batch_size: i32) -> Result<Option<usize>, ConfigError> {
    match usize::try_from(max_batch_size) {
        Ok(0) => Ok(None),
        Ok(size) => Ok(Some(size)),
        Err(_) => {
            let why =
                format!("{max_batch_size} is below 0: requests are either put together or they are not");
            Err(ConfigError::refused("max_batch_size", why))
        }
    }
}

/// The lane of requests that name no priority.
fn default_lane(batching: &ModelDynamicBatching) -> Result<Lane, ConfigError> {
    let ModelDynamicBatching { priority_levels: levels, default_priority_level: level, .. } = *batching;
    if levels > 0 && !(1..=levels).contains(&level) {
        let why = format!("{level} is not one of the levels 1 to {levels}");
        return Err(ConfigError::refused("dynamic_batching.default_priority_level", why));
    }
    let level = if levels > 0 { level } else { 0 };
    Ok(Lane::from_number(level).unwrap_or(Lane::Normal))
}

/// Passes that may run at once. 0: as many as there are executors, where no group says how many; those for GPUs speak of other
/// machines.
fn instances(groups: &[ModelInstanceGroup]) -> usize {
    let counted = groups.iter().filter(|group| !group.passive && group.kind() != Kind::Gpu);
    counted.map(|group| usize::try_from(group.count).unwrap_or(0).max(1)).sum()
}

/// Of an ensemble.
fn steps(config: &ModelConfig) -> Result<Vec<Step>, ConfigError> {
    let Some(SchedulingChoice::EnsembleScheduling(ensemble)) = &config.scheduling_choice else {
        return Ok(Vec::new());
    };
    if ensemble.step.is_empty() {
        return Err(ConfigError::refused("ensemble_scheduling.step", "there is none"));
    }
    let step = |(at, step): (usize, &model_ensembling::Step)| -> Result<Step, ConfigError> {
        let version = match step.model_version {
            -1 => Ok(String::new()),
            number if number >= 0 => Ok(number.to_string()),
            number => Err(ConfigError::refused(
                format!("ensemble_scheduling.step[{at}].model_version"),
                format!("{number} is no version, and not -1 for the newest"),
            )),
        };
        let names = |map: &HashMap<String, String>| map.clone().into_iter().collect();
        let (inputs, outputs) = (names(&step.input_map), names(&step.output_map));
        Ok(Step { model: step.model_name.clone(), version: version?, inputs, outputs })
    };
    ensemble.step.iter().enumerate().map(step).collect()
}

fn versions(config: &ModelConfig) -> Result<Versions, ConfigError> {
    let choice = config.version_policy.as_ref().and_then(|policy| policy.policy_choice.as_ref());
    let policy = match choice {
        None => VersionPolicy::Latest(1),
        Some(PolicyChoice::Latest(latest)) => {
            VersionPolicy::Latest(usize::try_from(latest.num_versions).unwrap_or(usize::MAX).max(1))
        }
        Some(PolicyChoice::All(_)) => VersionPolicy::All,
        Some(PolicyChoice::Specific(specific)) => {
            let field = "version_policy.specific.versions";
            let number = |version: &i64| {
                let why = || ConfigError::refused(field, format!("{version} is no version: they begin at 0"));
                u64::try_from(*version).map_err(|_| why())
            };
            let only: Vec<u64> = specific.versions.iter().map(number).collect::<Result<_, _>>()?;
            if only.is_empty() {
                return Err(ConfigError::refused(field, "it names none: name one, or use latest"));
            }
            VersionPolicy::Only(only)
        }
    };
    Ok(Versions::new(policy))
}

fn input(at: usize, input: &ModelInput, batched: bool) -> Result<DeclaredTensor, ConfigError> {
    let field = format!("input[{at}]");
    Ok(DeclaredTensor {
        name: name(&field, &input.name)?,
        dtype: element(&field, input.data_type)?,
        shape: shape(&field, &input.dims, input.reshape.as_ref(), batched)?,
        ..DeclaredTensor::default()
    })
}

fn output(
    at: usize,
    output: &ModelOutput,
    batched: bool,
    labels: &dyn Fn(&str) -> Result<Vec<String>, String>,
) -> Result<DeclaredTensor, ConfigError> {
    let field = format!("output[{at}]");
    let labels = match output.label_filename.as_str() {
        "" => Vec::new(),
        path => {
            let refused = |why| ConfigError::refused(format!("{field}.label_filename"), why);
            if !is_below(path) {
                return Err(refused(format!("'{path}' does not lie below the model's directory")));
            }
            labels(path).map_err(refused)?
        }
    };
    Ok(DeclaredTensor {
        name: name(&field, &output.name)?,
        dtype: element(&field, output.data_type)?,
        shape: shape(&field, &output.dims, output.reshape.as_ref(), batched)?,
        labels,
        ..DeclaredTensor::default()
    })
}

fn name(field: &str, name: &str) -> Result<String, ConfigError> {
    if name.is_empty() {
        return Err(ConfigError::refused(format!("{field}.name"), "it has no name"));
    }
    Ok(name.to_owned())
}

/// `None`: nothing is said of it, and any will do.
fn element(field: &str, number: i32) -> Result<Option<DType>, ConfigError> {
    let refused = |why: String| Err(ConfigError::refused(format!("{field}.data_type"), why));
    match DataType::try_from(number) {
        Ok(DataType::TypeInvalid) => Ok(None),
        Ok(named) => match dtype(named) {
            Some(dtype) => Ok(Some(dtype)),
            None => {
                refused(format!("{} is not a type that torchlane passes to TorchScript", named.as_str_name()))
            }
        },
        Err(_) => refused(format!("there is no type with the number {number}")),
    }
}

/// `None`: nothing is said of it, and any will do.
fn shape(
    field: &str,
    dims: &[i64],
    reshape: Option<&ModelTensorReshape>,
    batched: bool,
) -> Result<Option<Vec<i64>>, ConfigError> {
    if let Some(other) = reshape.filter(|reshape| reshape.shape != dims) {
        let why = format!(
            "from {dims:?} to {:?}: tensors are passed on in the shape that they have; reshape them in forward",
            other.shape
        );
        return Err(ConfigError::refused(format!("{field}.reshape"), why));
    }
    if dims.is_empty() {
        return Ok(None);
    }
    Ok(Some(batched.then_some(-1).into_iter().chain(dims.iter().copied()).collect()))
}

/// The shapes of one sample. `None`: it has none.
fn warmup(sample: &ModelWarmup, batched: bool) -> Option<BTreeMap<String, Vec<i64>>> {
    let rows = batched.then_some(i64::from(sample.batch_size.max(1)));
    let shape = |dims: &[i64]| rows.into_iter().chain(dims.iter().copied()).collect::<Vec<i64>>();
    let shapes: BTreeMap<_, _> =
        sample.inputs.iter().map(|(name, input)| (name.clone(), shape(&input.dims))).collect();
    (!shapes.is_empty()).then_some(shapes)
}
