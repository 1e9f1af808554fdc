//! `parameters`: what the PyTorch backend of Triton can be told, and what becomes of it.

use std::collections::HashMap;

use super::Warning;
use crate::proto::inference::ModelParameter;

/// What a switch of the backend means here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Switch {
    /// Torchlane always does as if it were on, or off: the other value is warned of.
    Always(bool, &'static str),
    /// Either value comes to the same.
    Either,
}

use Switch::{Always, Either};

/// Passes run through libtorch's profiling executor with its fuser, as they do where nothing is said.
const EXECUTOR: &str =
    "libtorch's executor stays as it is by default: the warm-up takes its slow first passes";

/// Switches by name. What is not here is not heeded.
const SWITCHES: &[(&str, Switch)] = &[
    ("INFERENCE_MODE", Always(true, "passes always run without gradients")),
    ("DISABLE_OPTIMIZED_EXECUTION", Always(false, EXECUTOR)),
    ("ENABLE_JIT_EXECUTOR", Always(true, EXECUTOR)),
    ("ENABLE_JIT_PROFILING", Always(true, EXECUTOR)),
    ("ENABLE_TENSOR_FUSER", Always(true, EXECUTOR)),
    ("ENABLE_NVFUSER", Always(false, "it is for GPUs, and libtorch has it no more")),
    ("ENABLE_WEIGHT_SHARING", Always(true, "all executors share a version's weights; it is in memory once")),
    // Both are for GPUs.
    ("ENABLE_CACHE_CLEANING", Either),
    ("DISABLE_CUDNN", Either),
];

/// Numbers by name: they are the process's, not one model's, as they are in Triton too.
const NUMBERS: &[(&str, &str)] = &[
    ("INTRA_OP_THREAD_COUNT", "threads are the server's: executors.intra_op_threads"),
    (
        "INTER_OP_THREAD_COUNT",
        "a pass forks to one thread; what runs at once are executors: executors.threads",
    ),
];

/// Warns of each parameter that changes nothing, though it would in Triton.
pub(super) fn judge(parameters: &HashMap<String, ModelParameter>, warnings: &mut Vec<Warning>) {
    let mut parameters: Vec<_> = parameters.iter().collect();
    parameters.sort_unstable_by_key(|(name, _)| *name);
    for (name, ModelParameter { string_value }) in parameters {
        if let Some(why) = problem(name, string_value) {
            warnings.push(Warning::new(format!("parameters[{name:?}]"), why));
        }
    }
}

fn problem(name: &str, value: &str) -> Option<String> {
    let switch = SWITCHES.iter().find(|(known, _)| *known == name).map(|(_, switch)| *switch);
    if let Some(switch) = switch {
        return match (switch, truth(value)) {
            (_, None) => Some(format!("'{value}' is neither true nor false")),
            (Always(always, why), Some(wanted)) if wanted != always => Some(why.to_owned()),
            _ => None,
        };
    }
    let number = NUMBERS.iter().find(|(known, _)| *known == name);
    let why =
        number.map_or("the PyTorch backend has no such parameter; models do not see it", |(_, why)| *why);
    Some(why.to_owned())
}

/// As Triton reads it.
fn truth(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "1" => Some(true),
        "false" | "0" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned(name: &str, value: &str) -> Option<String> {
        let parameter = ModelParameter { string_value: value.to_owned() };
        let mut warnings = Vec::new();
        judge(&HashMap::from([(name.to_owned(), parameter)]), &mut warnings);
        warnings.pop().map(|warning| warning.to_string())
    }

    #[test]
    fn what_is_done_anyway_needs_no_word() {
        for (name, value) in [
            ("INFERENCE_MODE", "true"),
            ("DISABLE_OPTIMIZED_EXECUTION", "False"),
            ("ENABLE_WEIGHT_SHARING", "1"),
            ("ENABLE_CACHE_CLEANING", "true"),
            ("DISABLE_CUDNN", "0"),
        ] {
            assert_eq!(warned(name, value), None, "{name}");
        }
    }

    #[test]
    fn what_is_not_done_is_named_with_what_to_use_instead() {
        for (name, value, instead) in [
            ("INFERENCE_MODE", "false", "without gradients"),
            ("DISABLE_OPTIMIZED_EXECUTION", "true", "warm-up"),
            ("INTRA_OP_THREAD_COUNT", "4", "executors.intra_op_threads"),
            ("INTER_OP_THREAD_COUNT", "4", "executors.threads"),
            ("ENABLE_NVFUSER", "perhaps", "neither true nor false"),
            ("MY_OWN", "x", "no such parameter"),
        ] {
            let warning = warned(name, value).unwrap();
            assert!(warning.starts_with(&format!("config.pbtxt: parameters[\"{name}\"]: ")), "{warning}");
            assert!(warning.contains(instead), "{warning}");
        }
    }
}
