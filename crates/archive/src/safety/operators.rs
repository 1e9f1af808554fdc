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
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

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

    /// The names in a text of headings and names, those below headings that `wanted` wants.
    fn below(text: &str, wanted: impl Fn(&str) -> bool) -> BTreeSet<&str> {
        let (mut names, mut takes) = (BTreeSet::new(), false);
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            match line.strip_prefix('[').and_then(|line| line.split_once(']')) {
                Some((heading, _)) => takes = wanted(heading),
                None if takes => names.extend(line.split_whitespace()),
                None => {}
            }
        }
        names
    }

    /// Nothing is ordinary by its name alone.
    #[test]
    fn what_is_ordinary_is_what_exports_call_and_what_was_looked_at() {
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/operators");
        let by_hand = fs::read_to_string(tools.join("by_hand.txt")).unwrap();
        let refused = below(&by_hand, |heading| heading == "refused");
        let mut corpus = String::new();
        for file in fs::read_dir(tools.join("corpus")).unwrap() {
            corpus += &fs::read_to_string(file.unwrap().path()).unwrap();
        }
        let lines = corpus.lines().filter(|line| !line.starts_with('#'));
        let called: BTreeSet<&str> = lines.filter_map(|line| line.split_whitespace().next()).collect();
        assert!(called.len() > 300, "{}", called.len());
        // Operators of other libraries and what is no operator's name (`torch.device`) are in no list.
        let text = include_str!("operators.txt");
        let all = below(text, |_| true);
        let expected: BTreeSet<&str> = called
            .union(&below(&by_hand, |heading| heading != "refused"))
            .filter(|name| all.contains(*name) && !refused.contains(*name))
            .copied()
            .collect();
        let ordinary = below(text, |heading| matches!(heading, "ordinary" | "values"));
        let extra: Vec<_> = ordinary.difference(&expected).collect();
        let missing: Vec<_> = expected.difference(&ordinary).collect();
        assert!(
            extra.is_empty() && missing.is_empty(),
            "ordinary without a reason: {extra:?}; left out: {missing:?}"
        );
    }

    /// What is served with a warning is explained.
    #[test]
    fn the_page_has_a_row_for_each_operator_that_can_end_the_process() {
        let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/operators.md"))
            .unwrap();
        for name in below(include_str!("operators.txt"), |heading| heading == "values") {
            assert!(page.contains(&format!("\n| `{name}` |")), "docs/operators.md has no row for {name}");
        }
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
            ("aten", "lu_unpack", Danger::Memory),
            ("aten", "native_batch_norm", Danger::Memory),
            ("aten", "_stack", Danger::Memory),
            ("aten", "binomial", Danger::Rare),
            ("aten", "remainder", Danger::Values),
            ("aten", "no_such_operator", Danger::Unknown),
            ("mycompany", "run", Danger::Namespace),
        ] {
            assert_eq!(danger(namespace, name), Some(why), "{namespace}::{name}");
        }
    }

    #[test]
    fn what_models_are_made_of_is_ordinary() {
        for name in ["add", "add_", "linear", "conv2d", "batch_norm", "embedding", "lstm", "append", "format"]
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
