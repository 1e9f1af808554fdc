//! `parameters`: what the PyTorch backend of Triton can be told, and what becomes of it. Two are torchlane's own: `STATEFUL`,
//! which is `scheduling.stateful`, and `DECIDED`, which says what torchlane decided and is not read.

use std::collections::HashMap;

use torchlane_model::{Decision, Scheduling};
use torchlane_proto::inference::ModelParameter;

use super::{ConfigError, Warning};

/// Overrides what torchlane sees in the code.
const STATEFUL: &str = "TORCHLANE_STATEFUL";
/// Begins the names under which a served model's decisions are told.
const DECIDED: &str = "TORCHLANE_DECIDED_";

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

/// `scheduling.stateful`, where it is set.
///
/// # Errors
/// It is neither true nor false.
pub(super) fn stateful(parameters: &HashMap<String, ModelParameter>) -> Result<Option<bool>, ConfigError> {
    let Some(ModelParameter { string_value }) = parameters.get(STATEFUL) else { return Ok(None) };
    let wrong = || {
        ConfigError::refused(
            format!("parameters[{STATEFUL:?}]"),
            format!("'{string_value}' is neither true nor false"),
        )
    };
    truth(string_value).map(Some).ok_or_else(wrong)
}

/// What [`stateful`] reads.
pub(super) fn of(scheduling: &Scheduling) -> HashMap<String, ModelParameter> {
    let parameter =
        |stateful: bool| (STATEFUL.to_owned(), ModelParameter { string_value: stateful.to_string() });
    scheduling.stateful.map(parameter).into_iter().collect()
}

/// What torchlane decided about a version, by subject.
pub fn decided(decisions: Vec<Decision>) -> HashMap<String, ModelParameter> {
    let mut all: HashMap<String, ModelParameter> = HashMap::new();
    for Decision { what, text } in decisions {
        let said =
            all.entry(format!("{DECIDED}{}", what.to_ascii_uppercase().replace(' ', "_"))).or_default();
        let gap = if said.string_value.is_empty() { "" } else { "\n" };
        said.string_value.extend([gap, &text]);
    }
    all
}

fn problem(name: &str, value: &str) -> Option<String> {
    // One is read elsewhere, the others come from a server that was asked for its configuration.
    if name == STATEFUL || name.starts_with(DECIDED) {
        return None;
    }
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
    fn state_is_declared_and_decisions_are_only_told() {
        let read = |value: &str| {
            let parameter = ModelParameter { string_value: value.to_owned() };
            stateful(&HashMap::from([(STATEFUL.to_owned(), parameter)]))
        };
        assert_eq!((read("true").unwrap(), read("0").unwrap()), (Some(true), Some(false)));
        assert!(read("perhaps").unwrap_err().to_string().contains(STATEFUL));
        assert_eq!(stateful(&HashMap::new()).unwrap(), None);
        let scheduling = Scheduling { stateful: Some(true), ..Scheduling::default() };
        assert_eq!(stateful(&of(&scheduling)).unwrap(), Some(true));
        let decisions = [("state", "a"), ("state", "b"), ("response_cache", "c")];
        let told = decided(decisions.map(|(what, text)| Decision::new(what, text)).into());
        assert_eq!(told["TORCHLANE_DECIDED_STATE"].string_value, "a\nb");
        assert_eq!(told["TORCHLANE_DECIDED_RESPONSE_CACHE"].string_value, "c");
        assert_eq!((warned("TORCHLANE_DECIDED_STATE", "a"), warned(STATEFUL, "true")), (None, None));
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
