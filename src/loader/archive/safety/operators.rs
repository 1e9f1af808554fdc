//! The operators of torch, each ordinary or not.

use std::collections::HashMap;
use std::sync::LazyLock;

use super::Danger;

/// `None`: any model may call it. By the name without `aten::`.
static OPERATORS: LazyLock<HashMap<&'static str, Option<Danger>>> = LazyLock::new(|| {
    let mut all = HashMap::new();
    // A line before the first heading, or under one that is not known, would be of no use to anybody.
    let mut heading = Some(Danger::Unknown);
    for line in include_str!("operators.txt").lines().filter(|line| !line.starts_with('#')) {
        match line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            Some("ordinary") => heading = None,
            Some(name) => heading = Some(Danger::of_heading(name).unwrap_or(Danger::Unknown)),
            None => all.extend(line.split_whitespace().map(|name| (name, heading))),
        }
    }
    all
});

/// What is wrong with an operator: `None` for an ordinary one.
pub(super) fn danger(namespace: &str, name: &str) -> Option<Danger> {
    match namespace {
        "aten" => of(name),
        "prim" => of(&format!("prim::{name}")),
        "quantized" | "_quantized" | "quantization" | "onednn" => Some(Danger::Quantized),
        "c10d" | "_c10d_functional" | "_c10d_functional_autograd" | "symm_mem" | "_dtensor" => {
            Some(Danger::Distributed)
        }
        "mkldnn" | "mkldnn_prepacked" | "mkl" | "cuda" => Some(Danger::Vendor),
        "sparse" => Some(Danger::Sparse),
        "inductor" => Some(Danger::Memory),
        "debugprims" => Some(Danger::Files),
        "profiler" => Some(Danger::Process),
        _ => Some(Danger::Namespace),
    }
}

fn of(name: &str) -> Option<Danger> {
    OPERATORS.get(name).copied().unwrap_or(Some(Danger::Unknown))
}

/// What is wrong with a member `.name` of a value. libtorch takes one for an operator of `aten` or a property of `prim`;
/// `None` where it is ordinary, `Some(Unknown)` where it is neither.
pub(super) fn member_danger(name: &str) -> Option<Danger> {
    match of(name) {
        Some(Danger::Unknown) => danger("prim", name),
        known => known,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_heading_is_known_and_every_operator_is_sorted_once() {
        let text = include_str!("operators.txt");
        let headings: Vec<_> = text.lines().filter(|line| line.starts_with('[')).collect();
        for heading in &headings {
            let name = heading.trim_matches(['[', ']']);
            assert!(name == "ordinary" || Danger::of_heading(name).is_some(), "{heading}");
        }
        let lines = text.lines().filter(|line| !line.starts_with(['[', '#']));
        let names: Vec<_> = lines.flat_map(str::split_whitespace).collect();
        assert_eq!(OPERATORS.len(), names.len(), "one stands under two headings");
        assert!(names.len() > 1800, "{}", names.len());
    }

    #[test]
    fn what_can_do_harm_is_named() {
        for (namespace, name, why) in [
            ("aten", "from_file", Danger::Files),
            ("aten", "save", Danger::Files),
            ("debugprims", "load_tensor", Danger::Files),
            ("prim", "PythonOp", Danger::Python),
            ("prim", "rpc_async", Danger::Distributed),
            ("aten", "get_gradients", Danger::Distributed),
            ("c10d", "send", Danger::Distributed),
            ("aten", "wait", Danger::Tasks),
            ("aten", "manual_seed", Danger::Process),
            ("profiler", "_record_function_enter", Danger::Process),
            ("aten", "as_strided", Danger::Memory),
            ("aten", "set_", Danger::Memory),
            ("aten", "_unsafe_index", Danger::Memory),
            ("aten", "sparse_coo_tensor", Danger::Sparse),
            ("aten", "quantize_per_tensor", Danger::Quantized),
            ("quantized", "linear", Danger::Quantized),
            ("aten", "max_pool2d_with_indices_backward", Danger::Training),
            ("aten", "mkldnn_linear", Danger::Vendor),
            ("prim", "mkldnn_convolution", Danger::Vendor),
            ("aten", "_foobar", Danger::Internal),
            ("aten", "no_such_operator", Danger::Unknown),
            ("mycompany", "run", Danger::Namespace),
        ] {
            assert_eq!(danger(namespace, name), Some(why), "{namespace}::{name}");
        }
    }

    #[test]
    fn what_models_are_made_of_is_ordinary() {
        for name in
            ["add", "add_", "linear", "conv2d", "batch_norm", "embedding_bag", "lstm", "append", "format"]
        {
            assert_eq!(danger("aten", name), None, "{name}");
        }
        for member in ["shape", "dtype", "T", "size", "values", "is_cuda"] {
            assert_eq!(member_danger(member), None, "{member}");
        }
        assert_eq!(member_danger("from_file"), Some(Danger::Files));
        assert_eq!(member_danger("weight"), Some(Danger::Unknown));
    }
}
