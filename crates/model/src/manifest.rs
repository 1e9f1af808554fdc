//! `model.toml`: what a model's owner may say about it. Everything is optional; unknown keys are errors. Other descriptions of
//! a model (Triton's `config.pbtxt`) are brought into this form.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use thiserror::Error;

use super::{
    Lane, LoadMode,
    pad::{self, Cut, Pad},
    rollout::RolloutPlan,
    versions::Versions,
};
use crate::{
    plain,
    plan::{Plan, PlanError, Step},
    tensor::{self, DType, Tolerance},
};

/// The parsed and checked `model.toml`. The default is a model without one.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelManifest {
    /// For people.
    pub description: String,
    /// When it is loaded. `None`: as the server's settings say.
    pub load: Option<LoadMode>,
    /// Keep answers, and give them to the same requests again. Not for a model that keeps state.
    pub response_cache: bool,
    /// How requests are put together.
    pub batching: Batching,
    /// How the model shares the machine.
    pub scheduling: Scheduling,
    /// Names, datatypes and shapes of arguments.
    pub inputs: Vec<DeclaredTensor>,
    /// Names, datatypes and shapes of results, in order.
    pub outputs: Vec<DeclaredTensor>,
    /// An ensemble's: the models that it is made of. Its own inputs and outputs are declared, and it has no archive.
    pub steps: Vec<Step>,
    /// Results after the last of `outputs` are left out of answers. Otherwise they are an error, where `outputs` are declared.
    pub extra_outputs: bool,
    /// What to run before a version goes live.
    pub warmup: WarmupConfig,
    /// How weights are laid over an archive.
    pub weights: WeightsConfig,
    /// Which versions are loaded, and what they are called.
    pub versions: Versions,
    /// How a new version comes to be live.
    pub rollout: RolloutPlan,
    /// What must come out then.
    pub check: CheckConfig,
}

/// `[batching]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Batching {
    /// See [`Batching::max_batch`].
    max_batch: Option<usize>,
    /// How long a request may be kept waiting for others to share its batch, from when it entered the run queue.
    #[serde(with = "crate::human_duration")]
    pub max_delay: Duration,
    /// The only sizes of a batch, ascending: smaller ones are padded with rows of zeros. Empty: any size.
    pub buckets: Vec<usize>,
    /// The owner says that no row's answer depends on the other rows: answers of requests together and alone are not compared.
    pub independent_rows: bool,
}

impl Batching {
    /// Up to `max_batch` items in one pass, kept waiting for each other for at most `max_delay`. `None`: as where nothing is said.
    pub fn new(max_batch: Option<usize>, max_delay: Duration) -> Self {
        Self { max_batch, max_delay, ..Self::default() }
    }

    /// Whether anything is said of sizes, if only that batches hold one item.
    pub fn is_declared(&self) -> bool {
        self.max_batch.is_some() || !self.buckets.is_empty()
    }

    /// Most items along dimension 0 in one pass: as declared, else the largest bucket. 1: requests are never put together.
    pub fn max_batch(&self) -> usize {
        self.max_batch.or(self.buckets.last().copied()).unwrap_or(1)
    }

    /// The rows of a pass that must hold `rows`.
    pub fn padded_rows(&self, rows: usize) -> usize {
        self.buckets.iter().copied().find(|&bucket| bucket >= rows).unwrap_or(rows)
    }
}

/// Nobody gains from waiting longer for company.
const MAX_DELAY: Duration = Duration::from_secs(10);

/// `[scheduling]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scheduling {
    /// Lane of requests that name none.
    pub default_lane: Lane,
    /// Most executors that run this model at once. 0: all of them. A model that keeps state: always 1.
    pub max_concurrency: usize,
    /// Whether a pass may see what an earlier one left. `None`: as the archive's code shows.
    pub stateful: Option<bool>,
    /// Failed passes in a row after which requests are refused but for trials. 0: only while a pass
    /// is stuck.
    pub breaker_failures: u32,
}

impl Default for Scheduling {
    fn default() -> Self {
        Self { default_lane: Lane::Normal, max_concurrency: 0, stateful: None, breaker_failures: 10 }
    }
}

/// An `[[inputs]]` or `[[outputs]]` entry.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeclaredTensor {
    /// Name on the wire.
    pub name: String,
    /// Inputs only: the argument of `forward` that it stands for. Default: the one of the same name, else the one
    /// at the same position.
    pub argument: Option<String>,
    /// Inputs only: where that argument is a `Dict[str, Tensor]`, the key that it stands for. Then all keys must be declared.
    pub key: Option<String>,
    /// Requests with another datatype are refused.
    pub dtype: Option<DType>,
    /// Requests with another shape are refused; `-1` is any size.
    pub shape: Option<Vec<i64>>,
    /// Outputs only: a text for each index of the last dimension, shown by `torchlane infer`.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Inputs only: the dimension along which requests are padded to share a batch.
    pub pad: Option<Pad>,
    /// Outputs only: the dimension along which what was added is taken off again.
    pub cut: Option<Cut>,
}

/// `[warmup]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WarmupConfig {
    /// Input shapes to run, by input name. Without any, shapes that the live version has served are used.
    pub shapes: Vec<BTreeMap<String, Vec<i64>>>,
    /// Most passes for each shape; fewer once two passes in a row agree within 10 % (but at least 3).
    pub max_passes: u32,
    /// Outputs of warm-up passes may hold NaN or infinities (inputs are zeros).
    pub allow_non_finite: bool,
    /// Longest time for the whole warm-up.
    #[serde(with = "crate::human_duration")]
    pub budget: Duration,
}

impl Default for WarmupConfig {
    fn default() -> Self {
        Self { shapes: Vec::new(), max_passes: 8, allow_non_finite: false, budget: Duration::from_secs(60) }
    }
}

/// `[weights]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WeightsConfig {
    /// What becomes of buffers of the archive that a file of weights lacks.
    pub missing_buffers: MissingBuffers,
}

/// Buffers that are registered with `persistent=False` are in no state dict of Python, though the archive has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MissingBuffers {
    /// The weights do not fit.
    #[default]
    Refuse,
    /// The archive's own stay.
    Keep,
}

/// `[check]`: how near a version's answers must be to what `samples.safetensors` expects, and to the live version's.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckConfig {
    /// Absolute tolerance of floating-point outputs. Default: by their datatype, see [`CheckConfig::tolerance`].
    pub atol: Option<f64>,
    /// Relative tolerance, likewise.
    pub rtol: Option<f64>,
    /// Run the samples on the live version too, and report the largest difference.
    pub compare_with_live: bool,
    /// A larger difference from the live version is a failure.
    pub max_difference: Option<f64>,
}

impl CheckConfig {
    /// What still counts as equal: for FP32 and FP64 1e-4 and 1e-3 of the expected value, more for the 16-bit types, whose
    /// own steps are about 1e-3 (FP16) and 8e-3 (BF16) of a value.
    pub fn tolerance(&self, dtype: DType) -> Tolerance {
        let (absolute, relative) = match dtype {
            DType::F16 => (1e-3, 1e-2),
            DType::BF16 => (1e-2, 2e-2),
            _ => (1e-4, 1e-3),
        };
        Tolerance { absolute: self.atol.unwrap_or(absolute), relative: self.rtol.unwrap_or(relative) }
    }

    fn check(&self) -> Result<(), ManifestError> {
        let numbers = [
            ("check.atol", self.atol),
            ("check.rtol", self.rtol),
            ("check.max_difference", self.max_difference),
        ];
        for (key, value) in numbers {
            if let Some(value) = value.filter(|value| !(value.is_finite() && *value >= 0.0)) {
                return Err(ManifestError::Range { key, value: value.to_string(), allowed: "0 or more" });
            }
        }
        match self.max_difference {
            Some(value) if !self.compare_with_live => Err(ManifestError::Range {
                key: "check.max_difference",
                value: value.to_string(),
                allowed: "only with check.compare_with_live = true",
            }),
            _ => Ok(()),
        }
    }
}

/// No warm-up is worth more.
const MAX_BUDGET: Duration = Duration::from_secs(3600);

/// What can be wrong with a `model.toml`, or with what was brought into its form. Which file it is, its reader says.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ManifestError {
    /// Not TOML, an unknown key, or a value of the wrong type.
    #[error("{0}")]
    Parse(String),
    /// A number out of its range.
    #[error("{key} = {value} is out of range: {allowed}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What is allowed.
        allowed: &'static str,
    },
    /// An `[[inputs]]` entry that stands for no argument of forward.
    #[error("input '{input}' stands for argument {argument}, but forward takes ({known})")]
    NoSuchArgument {
        /// The input.
        input: String,
        /// What it was said to stand for.
        argument: String,
        /// The arguments there are.
        known: String,
    },
    /// Two `[[inputs]]` entries for one argument.
    #[error("input '{input}' stands for an argument that another input stands for already")]
    ArgumentTwice {
        /// The second input.
        input: String,
    },
    /// An `[[inputs]]` entry with a key for an argument that has none.
    #[error(
        "input '{input}' has a key, but argument '{argument}' is a {kind}: only Dict[str, Tensor] has keys"
    )]
    NoKeys {
        /// The input.
        input: String,
        /// What it stands for.
        argument: String,
        /// What that is.
        kind: String,
    },
    /// The same name twice.
    #[error("the name '{0}' is used twice")]
    DuplicateName(String),
    /// A `pad` or `cut` that cannot be kept.
    #[error("padding of '{name}': {why}")]
    Padding {
        /// The input or output.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// Steps that cannot run.
    #[error("{0}")]
    Steps(PlanError),
    /// A warm-up shape for an input that does not exist, or that contradicts the declared shape.
    #[error("warm-up shape of '{input}': {why}")]
    WarmupShape {
        /// The input.
        input: String,
        /// What is wrong.
        why: String,
    },
}

impl ModelManifest {
    /// Parses and checks the text of a `model.toml`.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let one_line = |error: toml::de::Error| {
            let line =
                error.span().map_or(1, |span| text.get(..span.start).unwrap_or("").matches('\n').count() + 1);
            let what = plain::error(error.message(), plain::Form::Toml);
            ManifestError::Parse(format!("line {line}: {}", what.replace('\n', " ")))
        };
        let manifest: Self = toml::from_str(text).map_err(one_line)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The plan of its steps, where it is an ensemble.
    ///
    /// # Errors
    /// They cannot run.
    pub fn plan(&self) -> Result<Option<Plan>, ManifestError> {
        if self.steps.is_empty() {
            return Ok(None);
        }
        let inputs = self.inputs.iter().map(|input| input.name.as_str());
        let outputs = self.outputs.iter().map(|output| output.name.as_str());
        let plan = Plan::new(&self.steps, inputs, outputs);
        plan.map(Some).map_err(ManifestError::Steps)
    }

    /// Checks what types alone do not.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn check(&self) -> Result<(), ManifestError> {
        self.plan()?;
        let range =
            |key, value: usize, allowed| ManifestError::Range { key, value: value.to_string(), allowed };
        let Batching { max_delay, buckets, .. } = &self.batching;
        let max_batch = self.batching.max_batch();
        let ascend = buckets.first() != Some(&0) && buckets.is_sorted_by(|a, b| a < b);
        if !ascend || buckets.last().is_some_and(|&last| last != max_batch) {
            let allowed = "sizes that ascend from 1 or more, the last one max_batch";
            let value = format!("{buckets:?}");
            return Err(ManifestError::Range { key: "batching.buckets", value, allowed });
        }
        if !(1..=65_536).contains(&max_batch) {
            return Err(range("batching.max_batch", max_batch, "1 to 65536"));
        }
        if *max_delay > MAX_DELAY {
            let value = humantime::format_duration(*max_delay).to_string();
            return Err(ManifestError::Range { key: "batching.max_delay", value, allowed: "up to 10s" });
        }
        if !(3..=1000).contains(&self.warmup.max_passes) {
            return Err(range("warmup.max_passes", self.warmup.max_passes as usize, "3 to 1000"));
        }
        if self.warmup.budget > MAX_BUDGET {
            let value = humantime::format_duration(self.warmup.budget).to_string();
            return Err(ManifestError::Range { key: "warmup.budget", value, allowed: "up to 1h" });
        }
        self.check.check()?;
        if let Some(key) = self.outputs.iter().find_map(|output| output.key.clone()) {
            return Err(ManifestError::Range { key: "outputs.key", value: key, allowed: "for inputs alone" });
        }
        for list in [&self.inputs, &self.outputs] {
            for (i, entry) in list.iter().enumerate() {
                if list.iter().take(i).any(|other| other.name == entry.name) {
                    return Err(ManifestError::DuplicateName(entry.name.clone()));
                }
                if let Some(bad) = entry.shape.iter().flatten().find(|&&d| d < -1) {
                    return Err(ManifestError::Range {
                        key: "shape",
                        value: bad.to_string(),
                        allowed: "-1 (any) or a size",
                    });
                }
            }
        }
        pad::check(self)?;
        self.versions.check()?;
        self.rollout.check()?;
        for (input, shape) in self.warmup.shapes.iter().flatten() {
            let wrong = |why: String| ManifestError::WarmupShape { input: input.clone(), why };
            tensor::byte_len(DType::F64, shape).map_err(|error| wrong(error.to_string()))?;
            if !self.inputs.is_empty() && !self.inputs.iter().any(|declared| declared.name == *input) {
                return Err(wrong("no such input is declared".to_owned()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_named_with_their_line() {
        let error = ModelManifest::parse("description = 'x'\n[batching]\nmax_bach = 3\n").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("line 3") && text.contains("max_bach"), "{text}");
    }

    #[test]
    fn ranges_are_checked() {
        assert!(ModelManifest::parse("[batching]\nmax_batch = 0").is_err());
        assert!(ModelManifest::parse("[warmup]\nmax_passes = 1").is_err());
        assert!(ModelManifest::parse("[warmup]\nbudget = '2h'").is_err());
        for bad in ["atol = -1.0", "rtol = nan", "max_difference = 1.0"] {
            let error = ModelManifest::parse(&format!("[check]\n{bad}")).unwrap_err().to_string();
            assert!(error.starts_with("check."), "{error}");
        }
        assert!(ModelManifest::parse("[[inputs]]\nname='x'\nshape=[-2]").is_err());
        assert!(ModelManifest::parse("[[inputs]]\nname='x'\n[[inputs]]\nname='x'").is_err());
        assert!(ModelManifest::parse("[[inputs]]\nname='x'\n[warmup]\nshapes=[{y=[1]}]").is_err());
        assert!(ModelManifest::parse("[[outputs]]\nname='x'\nkey='y'").is_err());
    }

    #[test]
    fn buckets_ascend_to_the_largest_batch() {
        let batching = |text: &str| ModelManifest::parse(&format!("[batching]\n{text}")).map(|m| m.batching);
        let sizes = batching("buckets = [1, 4, 8]").unwrap();
        assert_eq!((sizes.max_batch(), sizes.padded_rows(2), sizes.padded_rows(8)), (8, 4, 8));
        assert!(batching("buckets = [2, 8]\nmax_batch = 8\nmax_delay = '2ms'").is_ok());
        for bad in ["[1, 8]\nmax_batch = 16", "[1, 8]\nmax_batch = 1", "[0, 8]", "[8, 4]", "[4, 4]"] {
            let error = batching(&format!("buckets = {bad}")).unwrap_err().to_string();
            assert!(error.contains("batching.buckets = ["), "{error}");
        }
        assert!(batching("max_delay = '1h'").is_err() && batching("max_delay = 2").is_err());
        assert_eq!(batching("").unwrap().padded_rows(3), 3);
    }

    #[test]
    fn when_it_is_loaded_is_one_of_three_words() {
        let load = |text: &str| ModelManifest::parse(text).map(|manifest| manifest.load);
        assert_eq!((load(""), load("load = 'pinned'")), (Ok(None), Ok(Some(LoadMode::Pinned))));
        assert!(load("load = 'never'").unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn missing_buffers_are_refused_or_kept() {
        let of = |text: &str| ModelManifest::parse(text).map(|manifest| manifest.weights.missing_buffers);
        assert_eq!(of(""), Ok(MissingBuffers::Refuse));
        assert_eq!(of("[weights]\nmissing_buffers = 'keep'"), Ok(MissingBuffers::Keep));
        assert!(of("[weights]\nmissing_buffers = 'zero'").unwrap_err().to_string().contains("line 2"));
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(ModelManifest::parse("").unwrap(), ModelManifest::default());
    }
}
