//! Which operators, names and keyword arguments are known to do harm, or known to do none.

use std::collections::HashSet;
use std::sync::LazyLock;

/// Operators that change lists and dicts; some of these names have harmless overloads for tensors too.
pub(super) const CONTAINER_OPERATORS: &[&str] = &[
    "Delete",
    "_set_item",
    "append",
    "clear",
    "extend",
    "insert",
    "pop",
    "popitem",
    "remove",
    "reverse",
    "setdefault",
    "sort",
    "update",
    "__delitem__",
    "__setitem__",
];

/// Keyword-only arguments that some overload of some operator writes to (torch 2.13, made like `pure_operators.txt`).
pub(super) const WRITTEN_KEYWORDS: &[&str] = &[
    "L",
    "LD",
    "LU",
    "M",
    "P",
    "Q",
    "R",
    "S",
    "U",
    "V",
    "Vh",
    "X",
    "a",
    "bin_edges",
    "buffer",
    "eigenvalues",
    "eigenvectors",
    "eigvals",
    "eigvecs",
    "exponent",
    "grad_bias",
    "grad_input",
    "grad_weight",
    "hist",
    "indices",
    "info",
    "inverse",
    "is_target",
    "logabsdet",
    "mantissa",
    "max",
    "max_values",
    "min",
    "min_indices",
    "output",
    "pivots",
    "rank",
    "reserve",
    "residuals",
    "result",
    "save_invstd",
    "save_mean",
    "sign",
    "singular_values",
    "solution",
    "tau",
    "total_weight",
    "values",
];

/// Calls of a plain name that change nothing: TorchScript's builtins, and keywords that may stand before a bracket.
pub(super) const HARMLESS_NAMES: &[&str] = &[
    "abs",
    "annotate",
    "bool",
    "chr",
    "complex",
    "divmod",
    "enumerate",
    "float",
    "getattr",
    "hasattr",
    "hash",
    "hex",
    "int",
    "isinstance",
    "len",
    "list",
    "dict",
    "max",
    "min",
    "oct",
    "ord",
    "pow",
    "print",
    "range",
    "round",
    "sorted",
    "str",
    "sum",
    "tuple",
    "unchecked_cast",
    "uninitialized",
    "zip",
    // Keywords.
    "and",
    "assert",
    "elif",
    "else",
    "if",
    "in",
    "is",
    "not",
    "or",
    "raise",
    "return",
    "while",
];

/// Plain names whose mention alone is too much: tasks outlive the call, and attributes get names at run time.
pub(super) const HARMFUL_NAMES: &[&str] = &["fork", "awaitable", "setattr"];

/// Operators that write the running statistics they are given while training, which their schemas do not say.
pub(super) const NORMS: &[&str] = &["batch_norm", "instance_norm"];

pub(super) static PURE_OPERATORS: LazyLock<HashSet<&'static str>> = LazyLock::new(|| {
    let lines = include_str!("pure_operators.txt").lines().filter(|line| !line.starts_with('#'));
    lines.flat_map(str::split_whitespace).collect()
});

/// Whether the name alone says that the operator writes to what it is given.
pub(super) fn harmful(name: &str) -> bool {
    CONTAINER_OPERATORS.contains(&name) || NORMS.contains(&name) || is_in_place(name)
}

/// `add_` and `__iadd__`, but not `__add__` and `__init__`.
fn is_in_place(name: &str) -> bool {
    let special = name.starts_with("__") && name.ends_with("__");
    let augmented = name.starts_with("__i") && !matches!(name, "__init__" | "__int__" | "__index__");
    let in_place = if special { augmented } else { name.ends_with('_') };
    in_place && !PURE_OPERATORS.contains(name)
}

pub(super) fn is_augmented(symbol: &str) -> bool {
    matches!(
        symbol,
        "+=" | "-=" | "*=" | "/=" | "//=" | "%=" | "**=" | "&=" | "|=" | "^=" | "<<=" | ">>=" | "@=" | ":="
    )
}
