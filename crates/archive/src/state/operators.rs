//! What operators do to what they are given, and what their results may share memory with.

use std::collections::HashSet;
use std::sync::LazyLock;

use super::super::operators::{CONTAINER_OPERATORS, NORMS, PURE_OPERATORS, WRITTEN_KEYWORDS, harmful};
use super::ast::Site;
use super::run::{Arguments, Outcome, Run};
use super::value::{Kind, Known, Value};

/// `aliases.txt`, by its headings.
struct Aliases {
    fresh: HashSet<&'static str>,
    first: HashSet<&'static str>,
    more: HashSet<&'static str>,
}

static ALIASES: LazyLock<Aliases> = LazyLock::new(|| {
    let under = |title: &str| {
        let lines =
            include_str!("aliases.txt").lines().skip_while(move |line| line.strip_suffix(':') != Some(title));
        lines.skip(1).take_while(|line| !line.ends_with(':')).flat_map(str::split_whitespace).collect()
    };
    Aliases { fresh: under("fresh"), first: under("first"), more: under("more") }
});

/// Results are new, and hold what the arguments hold: lists that are joined, copied or made of dicts.
const COPIES: &[&str] = &["add", "mul", "copy", "list", "dict", "sorted", "items", "keys", "values"];
/// Results are what the first argument holds, or a view of it.
const PARTS: &[&str] = &[
    "__getitem__",
    "select",
    "get",
    "prim::TupleIndex",
    "prim::TupleUnpack",
    "pop",
    "popitem",
    "setdefault",
];
/// Of a tensor, these make one tensor. `add` and `mul` must know: of lists they would make one that holds what both hold.
const TENSOR_OF_TENSOR: &[&str] = &[
    "select",
    "slice",
    "narrow",
    "view",
    "reshape",
    "flatten",
    "squeeze",
    "unsqueeze",
    "transpose",
    "permute",
    "t",
    "expand",
    "detach",
    "contiguous",
    "to",
    "index",
    "embedding",
];
/// Not in `pure_operators.txt`: they compute with numbers, or are known elsewhere than in libtorch. Results are new.
const ALSO_FRESH: &[&str] = &[
    "__range_length",
    "__derive_index",
    "__round_to_zero_floordiv",
    "prim::tolist",
    "torchvision::nms",
    "torchvision::roi_align",
    "torchvision::roi_pool",
    "torchvision::deform_conv2d",
];

impl<'a> Run<'_, 'a> {
    /// A call of an operator. `several`: what comes back is taken apart at once.
    pub(super) fn operator(
        &mut self,
        namespace: &str,
        name: &str,
        arguments: Arguments<'a>,
        site: Site,
        several: bool,
    ) -> Outcome<Value<'a>> {
        // `x.tolist()` is an operator of another namespace.
        let key = match namespace {
            "aten" if name != "tolist" => name.to_owned(),
            "aten" => format!("prim::{name}"),
            _ => format!("{namespace}::{name}"),
        };
        let key = key.as_str();
        let spoken = if namespace == "aten" { format!("torch.{name}") } else { key.to_owned() };
        if let Some(known) = decided(key, &arguments) {
            return Ok(Value::of(Known::Bool(known)));
        }
        self.trains(name, &arguments);
        let all: Vec<Value<'a>> = arguments.iter().map(|(_, value)| value.clone()).collect();
        let none = Value::default();
        let first = all.first().unwrap_or(&none);
        let mut given = Vec::new();
        for (name, value) in &arguments {
            if name.is_some_and(|name| is_written(name, key)) {
                self.write(value, &spoken);
                given.push(value.clone());
            }
        }
        if !given.is_empty() {
            return Ok(self.around(Value::made(site), &given));
        }
        if NORMS.contains(&name) {
            let is = |at: usize, known: Known| all.get(at).is_some_and(|value| value.known == known);
            if !is(5, Known::Bool(false)) {
                for statistics in all.get(3..5).unwrap_or_default() {
                    self.write(statistics, &spoken);
                }
            }
            return Ok(Value::of(Known::NotNone));
        }
        // `values, indices, = torch.sort(x)` is that of tensors.
        let of_tensor = name == "sort" && (several || first.kind == Kind::Tensor);
        if CONTAINER_OPERATORS.contains(&name) && !of_tensor {
            self.write(first, &spoken);
            let part = self.heap.part(first, None);
            self.heap.put(first, &none);
            for value in all.iter().skip(1) {
                // `extend` and `update` put in what another one holds.
                let inner = self.heap.part(value, None);
                self.heap.put(first, value);
                self.heap.put(first, &inner);
            }
            // `pop` and `setdefault` may return what they are given for a key that is not there.
            let mut result = part;
            all.iter().skip(1).for_each(|value| {
                result.join(&value.memory());
            });
            return Ok(result);
        }
        if harmful(name) && !of_tensor {
            let written =
                if name.starts_with("_foreach_") || name.starts_with("set_") || ALIASES.more.contains(key) {
                    all.iter().map(|value| self.heap.all(value)).collect()
                } else {
                    vec![first.memory()]
                };
            for value in &written {
                self.write(value, &spoken);
            }
            return Ok(if name.starts_with("set_") {
                self.around(Value::made(site), &all)
            } else {
                Value { known: Known::NotNone, ..first.memory() }
            });
        }
        let fresh = of_tensor || ALIASES.fresh.contains(key) || ALSO_FRESH.contains(&key);
        if !fresh && !PURE_OPERATORS.contains(key) && !ALIASES.first.contains(key) {
            return Err(self.unknown(&format!("it calls {spoken}, which torchlane does not know")));
        }
        let of_tensors = matches!(name, "add" | "mul") && all.iter().any(|value| value.kind == Kind::Tensor);
        let result = if COPIES.contains(&name) && !of_tensors {
            let parts: Vec<_> = all.iter().map(|value| self.heap.part(value, None)).collect();
            let made = self.heap.make(site, &[]);
            parts.iter().for_each(|part| self.heap.put(&made, part));
            if matches!(name, "items") {
                self.heap.put(&made, &made);
            }
            made
        } else if fresh || of_tensors {
            self.heap.make(site, &[])
        } else if PARTS.contains(&key) {
            let mut part = self.heap.part(first, None);
            part.join(&Value { sites: Vec::new(), ..first.memory() });
            // The default of `get`.
            all.iter().skip(1).for_each(|value| {
                part.join(&value.memory());
            });
            part
        } else {
            let shared = if ALIASES.first.contains(key) { all.get(..1).unwrap_or_default() } else { &all };
            let made = self.heap.make(site, &[]);
            self.around(made, shared)
        };
        let is_tensor = of_tensors || first.kind == Kind::Tensor && TENSOR_OF_TENSOR.contains(&name);
        Ok(if is_tensor { Value { kind: Kind::Tensor, ..result } } else { result })
    }

    /// Remembers an operator that is in a mode for training for certain.
    fn trains(&mut self, name: &str, arguments: &Arguments<'a>) {
        let nth = |at: usize, names: &[&str]| {
            let named = arguments.iter().find(|(given, _)| given.is_some_and(|given| names.contains(&given)));
            let value = named.or_else(|| arguments.get(at).filter(|(given, _)| given.is_none()));
            value.map(|(_, value)| &value.known)
        };
        let is_on = |at, names: &[&str]| nth(at, names) == Some(&Known::Bool(true));
        let is_zero = |at, names: &[&str]| match nth(at, names) {
            Some(Known::Literal(text)) => text.parse() == Ok(0.0),
            _ => false,
        };
        let trains = match name.trim_end_matches('_') {
            "dropout" | "feature_dropout" | "alpha_dropout" | "feature_alpha_dropout" | "native_dropout" => {
                is_on(2, &["train", "training"]) && !is_zero(1, &["p"])
            }
            "rrelu" => is_on(3, &["training"]),
            "lstm" | "gru" | "rnn_tanh" | "rnn_relu" => {
                // (input, hx, params, has_biases, num_layers, dropout, train, ...)
                let is_plain = matches!(nth(3, &["has_biases"]), Some(Known::Bool(_)));
                is_plain
                    && is_on(6, &["train"])
                    && !is_zero(5, &["dropout"])
                    && nth(4, &["num_layers"]) != Some(&Known::Literal("1".into()))
            }
            "batch_norm" => is_on(5, &["training"]) && nth(3, &["running_mean"]) != Some(&Known::None),
            _ => false,
        };
        if trains && self.training.is_none() {
            let what = format!("torch.{name} is in training mode");
            self.training = Some(super::super::info::Seen { what, place: self.here() });
        }
    }
}

/// Whether an operator writes to a keyword argument of this name.
fn is_written(argument: &str, operator: &str) -> bool {
    match argument {
        // Bounds of `clamp`, which is found in every model; only these write to them.
        "min" | "max" => matches!(operator, "min" | "max" | "aminmax" | "_aminmax"),
        _ => argument.starts_with("out") || WRITTEN_KEYWORDS.contains(&argument),
    }
}

/// What an operator on constants comes to.
fn decided(operator: &str, arguments: &Arguments<'_>) -> Option<bool> {
    let known = |at: usize| arguments.get(at).map(|(_, value)| &value.known);
    let truth = |known: Option<&Known>| match known {
        Some(Known::Bool(is)) => Some(*is),
        _ => None,
    };
    match operator {
        "__not__" => truth(known(0)).map(|is| !is),
        "__and__" => match (truth(known(0)), truth(known(1))) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (one, other) => one.zip(other).map(|_| true),
        },
        "__or__" => match (truth(known(0)), truth(known(1))) {
            (Some(true), _) | (_, Some(true)) => Some(true),
            (one, other) => one.zip(other).map(|_| false),
        },
        "__is__" | "__isnot__" => {
            let same = match (known(0)?, known(1)?) {
                (Known::None, Known::None) => true,
                (Known::None, Known::NotNone | Known::Bool(_) | Known::Literal(_))
                | (Known::NotNone | Known::Bool(_) | Known::Literal(_), Known::None) => false,
                _ => return None,
            };
            Some(same == (operator == "__is__"))
        }
        "eq" | "ne" => {
            let same = match (known(0)?, known(1)?) {
                (Known::Bool(one), Known::Bool(other)) => one == other,
                (Known::Literal(one), Known::Literal(other)) => equal(one, other)?,
                _ => return None,
            };
            Some(same == (operator == "eq"))
        }
        _ => None,
    }
}

/// Whether two literals are equal, where that can be told.
fn equal(one: &str, other: &str) -> Option<bool> {
    let is_text = |text: &str| text.starts_with(['"', '\'']);
    let plain = |text: &str| !text.contains('\\');
    match (is_text(one), is_text(other)) {
        (true, true) => {
            (plain(one) && plain(other)).then(|| super::ast::unquoted(one) == super::ast::unquoted(other))
        }
        (false, false) => {
            let number = |text: &str| text.parse::<f64>().ok();
            number(one).zip(number(other)).map(|(one, other)| one == other)
        }
        _ => None,
    }
}
