//! Whether weights are those of an archive: the same names, shapes and datatypes, one to one.

use std::collections::{HashMap, HashSet};

use super::{Weight, Weights};
use crate::{TensorInfo, error::shown};

/// More of a kind than this are counted, not named.
const NAMED: usize = 3;

/// Prefixes that wrappers of modules put before every name, and how to do without.
const WRAPPED: [(&str, &str); 2] = [
    ("module.", "every name begins with 'module.': save the state_dict() of the module within the wrapper"),
    (
        "_orig_mod.",
        "every name begins with '_orig_mod.': save the state_dict() of the module before torch.compile",
    ),
];

/// What keeps `weights` from taking the place of the tensors in `slots`: the first few differences of each kind, and how
/// many there are.
///
/// Tensors of the archive that are one memory (tied weights) are one parameter with several names: any of these will do,
/// and all that are given must be equal.
pub(super) fn differences(slots: &[TensorInfo], weights: &Weights, kept: &[String]) -> Option<String> {
    if weights.tensors.is_empty() {
        return Some("the file holds no tensors: save the state_dict() of the trained module".to_owned());
    }
    if slots.is_empty() {
        return Some(
            "the archive has no parameters and no buffers (torch.jit.freeze makes them constants): \
             deliver a whole archive, or export it without freezing"
                .to_owned(),
        );
    }
    let names: HashSet<&str> = slots.iter().map(|slot| slot.name.as_str()).collect();
    // The first of those given for one memory.
    let mut given: HashMap<&str, (&str, &Weight)> = HashMap::new();
    let (mut shapes, mut dtypes, mut unlike) = (Vec::new(), Vec::new(), Vec::new());
    for slot in slots {
        let Some(weight) = weights.get(&slot.name) else { continue };
        let name = shown(&slot.name);
        if weight.shape != slot.shape {
            shapes.push(format!("{name} has {:?}, the archive {:?}", weight.shape, slot.shape));
        } else if weight.dtype != slot.dtype {
            dtypes.push(format!("{name} is {}, in the archive {}", weight.dtype, shown(&slot.dtype)));
        } else {
            let (first, other) = *given.entry(memory(slot)).or_insert((&slot.name, weight));
            if other.data != weight.data {
                unlike.push(format!("{} and {name}", shown(first)));
            }
        }
    }
    let mut absent = absent(slots, weights);
    absent.retain(|slot| !kept.contains(&slot.name));
    let missing = absent.iter().map(|slot| shown(&slot.name)).collect();
    let unknown: Vec<String> = weights
        .tensors
        .keys()
        .filter(|name| !names.contains(name.as_str()))
        .map(|name| shown(name))
        .collect();
    let all_unknown = unknown.len() == weights.tensors.len();
    let kinds = [
        ("missing", missing),
        ("unknown to the archive", unknown),
        ("of another shape", shapes),
        ("of another datatype", dtypes),
        ("one memory in the archive but unlike here", unlike),
    ];
    let mut said: Vec<String> = kinds
        .iter()
        .filter(|(_, found): &&(&str, Vec<String>)| !found.is_empty())
        .map(|(kind, found)| {
            let more = if found.len() > NAMED { ", ..." } else { "" };
            let first: Vec<&str> = found.iter().take(NAMED).map(String::as_str).collect();
            format!("{} {kind} ({}{more})", found.len(), first.join(", "))
        })
        .collect();
    if said.is_empty() {
        return None;
    }
    let begins = |prefix: &str| all_unknown && weights.tensors.keys().all(|name| name.starts_with(prefix));
    if let Some((_, advice)) = WRAPPED.iter().find(|(prefix, _)| begins(prefix)) {
        said.push((*advice).to_owned());
    } else if said.len() == 1 && !absent.is_empty() {
        said.push(
            "buffers with persistent=False are in no state dict of Python: take that of the scripted module, or keep the \
             archive's own with missing_buffers = \"keep\" under [weights] in model.toml"
                .to_owned(),
        );
    }
    Some(format!("the weights do not fit the archive: {}", said.join("; ")))
}

/// Tensors of the archive whose memory has no name among the weights.
pub(super) fn absent<'a>(slots: &'a [TensorInfo], weights: &Weights) -> Vec<&'a TensorInfo> {
    let present: HashSet<&str> =
        slots.iter().filter(|slot| weights.get(&slot.name).is_some()).map(memory).collect();
    slots.iter().filter(|slot| !present.contains(memory(slot))).collect()
}

/// The name of the first tensor that is the same memory.
fn memory(slot: &TensorInfo) -> &str {
    slot.shared_with.as_deref().unwrap_or(&slot.name)
}
