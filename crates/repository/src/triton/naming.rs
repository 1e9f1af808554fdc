//! Which input is which argument, and which output which result: the rules of Triton's PyTorch backend.
//!
//! Inputs: by name where every one is named as an argument of `forward`; else by the number after `__` where every one has one
//! (`INPUT__0`); else in the order of the config. Of a model whose one argument is a `Dict[str, Tensor]` the names are its keys.
//! Outputs: by number where every one has one, else in the order of the config.

use torchlane_model::{ArgKind, Argument, DeclaredTensor};

use super::ConfigError;

/// More results than any model has.
const MOST_OUTPUTS: usize = 1024;

/// Says of each input which of `arguments` it stands for.
pub fn name_arguments(inputs: &mut [DeclaredTensor], arguments: &[Argument]) {
    if let [Argument { name, kind: ArgKind::Dict, .. }] = arguments {
        for input in inputs {
            input.argument = Some(name.to_string());
            input.key = Some(input.name.clone());
        }
        return;
    }
    let is_argument = |input: &DeclaredTensor| arguments.iter().any(|argument| *argument.name == *input.name);
    if inputs.iter().all(is_argument) {
        for input in inputs {
            input.argument = Some(input.name.clone());
        }
        return;
    }
    let numbers = numbers(inputs).unwrap_or_else(|| (0..inputs.len()).collect());
    for (input, number) in inputs.iter_mut().zip(numbers) {
        let argument = arguments.get(number).map(|argument| argument.name.to_string());
        // No argument is called like this: whoever looks for it says which ones there are.
        input.argument = Some(argument.unwrap_or_else(|| format!("number {number}")));
    }
}

/// The outputs in the order of the results. A result before the last that is not declared keeps the name that it has anyway.
///
/// # Errors
/// Two outputs for one result, or a number that no model reaches.
pub(super) fn in_order(outputs: Vec<DeclaredTensor>) -> Result<Vec<DeclaredTensor>, ConfigError> {
    let Some(numbers) = numbers(&outputs) else { return Ok(outputs) };
    let count = numbers.iter().max().map_or(0, |last| last.saturating_add(1));
    let mut ordered: Vec<Option<DeclaredTensor>> = vec![None; count.min(MOST_OUTPUTS)];
    for (at, (output, number)) in outputs.into_iter().zip(numbers).enumerate() {
        let refused = |why: String| ConfigError::refused(format!("output[{at}].name"), why);
        let name = output.name.clone();
        let Some(place) = ordered.get_mut(number) else {
            return Err(refused(format!(
                "'{name}' is beyond the {MOST_OUTPUTS} results that a model may have"
            )));
        };
        if let Some(other) = place.replace(output) {
            let other = other.name;
            return Err(refused(format!(
                "'{other}' and '{name}' both stand for result {number}: name it once"
            )));
        }
    }
    let undeclared =
        |number: usize| DeclaredTensor { name: format!("output_{number}"), ..DeclaredTensor::default() };
    let named = ordered.into_iter().enumerate();
    Ok(named.map(|(number, output)| output.unwrap_or_else(|| undeclared(number))).collect())
}

/// The number of each, where every one has one.
fn numbers(tensors: &[DeclaredTensor]) -> Option<Vec<usize>> {
    tensors.iter().map(|tensor| number(&tensor.name)).collect()
}

/// The number after the first `__`, and nothing but that.
fn number(name: &str) -> Option<usize> {
    let (_, digits) = name.split_once("__")?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| digits.parse().unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensors(names: &[&str]) -> Vec<DeclaredTensor> {
        names
            .iter()
            .map(|name| DeclaredTensor { name: (*name).to_owned(), ..DeclaredTensor::default() })
            .collect()
    }

    fn arguments(names: &[&str]) -> Vec<Argument> {
        let tensor = |name: &&str| Argument {
            name: (*name).into(),
            kind: ArgKind::Tensor,
            has_default: false,
            skips: 0,
        };
        names.iter().map(tensor).collect()
    }

    fn stands_for(inputs: &[&str], forward: &[&str]) -> Vec<String> {
        let mut inputs = tensors(inputs);
        name_arguments(&mut inputs, &arguments(forward));
        inputs.into_iter().map(|input| input.argument.unwrap()).collect()
    }

    #[test]
    fn inputs_go_by_name_then_by_number_then_by_order() {
        assert_eq!(stands_for(&["b", "a"], &["a", "b"]), ["b", "a"]);
        assert_eq!(stands_for(&["IN__1", "other__0"], &["a", "b"]), ["b", "a"]);
        assert_eq!(stands_for(&["b", "IN__1"], &["a", "b"]), ["a", "b"], "neither all names nor all numbers");
        assert_eq!(stands_for(&["IN__one", "IN__0"], &["a", "b"]), ["a", "b"]);
        assert_eq!(stands_for(&["x__1", "x__0"], &["x__0", "x__1"]), ["x__1", "x__0"], "names come first");
        assert_eq!(stands_for(&["IN__7"], &["a"]), ["number 7"]);
        assert_eq!(stands_for(&["IN__"], &["a"]), ["a"], "no number");
    }

    #[test]
    fn names_of_a_dict_are_its_keys() {
        let mut inputs = tensors(&["left", "right"]);
        let dict = Argument { name: "features".into(), kind: ArgKind::Dict, has_default: false, skips: 0 };
        name_arguments(&mut inputs, std::slice::from_ref(&dict));
        let found: Vec<_> = inputs.iter().map(|i| (i.argument.as_deref(), i.key.as_deref())).collect();
        assert_eq!(found, [(Some("features"), Some("left")), (Some("features"), Some("right"))]);
        let mut beside = tensors(&["left", "right"]);
        let other = Argument { name: "x".into(), kind: ArgKind::Tensor, has_default: false, skips: 0 };
        name_arguments(&mut beside, &[dict, other]);
        assert!(beside.iter().all(|input| input.key.is_none()), "only of a dict that stands alone");
    }

    #[test]
    fn outputs_stand_where_their_numbers_say() {
        let ordered = |names: &[&str]| {
            in_order(tensors(names)).map(|all| all.into_iter().map(|output| output.name).collect::<Vec<_>>())
        };
        assert_eq!(ordered(&["OUT__1", "OUT__0"]).unwrap(), ["OUT__0", "OUT__1"]);
        assert_eq!(ordered(&["OUT__2"]).unwrap(), ["output_0", "output_1", "OUT__2"]);
        assert_eq!(ordered(&["b", "OUT__0"]).unwrap(), ["b", "OUT__0"]);
        let twice = ordered(&["a__0", "b__0"]).unwrap_err().to_string();
        assert!(twice.contains("output[1].name: 'a__0' and 'b__0' both stand for result 0"), "{twice}");
        for far in ["OUT__1024", "OUT__99999999999999999999999999"] {
            assert!(ordered(&[far]).unwrap_err().to_string().contains("1024 results"), "{far}");
        }
        assert!(ordered(&[]).unwrap().is_empty());
    }
}
