//! What an archive's code may do to memory that is not its own, from its text alone.
//!
//! The answer decides whether a request's memory may be handed to libtorch without a copy, so a `false` must be true:
//! whatever is not known to be harmless counts as harmful. All code in the archive counts, called or not.
//!
//! | found in a statement | assigns attributes | in place | containers |
//! |---|---|---|---|
//! | an assignment, outside brackets, whose target has a `.` | yes | | |
//! | one whose target has a `[` | | yes | yes |
//! | an augmented assignment (`+=`, ...) or `:=` | yes with a `.` | yes | yes |
//! | `del` | | | yes |
//! | a `for` or `as` whose target has a `.` or a `[` | yes | yes | yes |
//! | a call's keyword argument that some overload writes to (`out=`, `values=`, ...) | | yes | |
//! | an operator that changes lists or dicts (`append`, `_set_item`, `pop`, `sort`, ...), called or only named | | | yes |
//! | any other operator whose name ends in `_` (`torch.add_`, `ops.aten.relu_`, `x.copy_`), called or only named | | yes | |
//! | `batch_norm` or `instance_norm`, unless its training flag is a literal `False` or its two statistics a literal `None` | | yes | |
//! | an operator that is not in `pure_operators.txt`, of another namespace than `aten` and `prim`, or not known at all | yes | yes | yes |
//! | a call of a method, or a mention of a path `__torch__...`, that the archive does not define (classes written in C++) | yes | yes | yes |
//! | a call of a plain name that is no harmless builtin and not bound to a `__torch__` path, or of an expression | yes | yes | yes |
//! | a mention of `fork`, `awaitable` or `setattr`, or of `classes` behind a dot (`__torch__.torch.classes...`, also in a declaration) | yes | yes | yes |
//! | code that is no UTF-8, or cannot be split into tokens, classes and signatures | yes | yes | yes |
//!
//! Not looked for, since no caller can see it: what an operator does to memory of its own, and random state. Whether
//! an output *aliases* an input or a weight (`x.view(...)`, `return self.weight`) cannot be told from the text and is
//! not said here.

use std::collections::{BTreeMap, HashSet};

use super::info::Effects;
use super::lexer::Token;
use super::operators::{
    CONTAINER_OPERATORS, HARMFUL_NAMES, HARMLESS_NAMES, NORMS, PURE_OPERATORS, WRITTEN_KEYWORDS, harmful,
    is_augmented,
};
use super::types::{bracketed, split};

/// Most different names that are kept; beyond, the code counts as unknown.
const MAX_NAMES: usize = 200_000;
/// Most tokens that are looked through for the flags of nested norms; beyond, a norm counts as writing.
const MAX_NORM_TOKENS: usize = 1 << 24;

/// Collects what the statements of an archive do, file by file.
#[derive(Debug)]
pub(super) struct Scan {
    effects: Effects,
    loops: bool,
    operators: BTreeMap<String, usize>,
    /// Methods called on values.
    methods: HashSet<String>,
    /// Paths `__torch__...` that are mentioned.
    paths: HashSet<String>,
    /// In this file: plain names that are called, and those bound to a `__torch__` path.
    called: HashSet<String>,
    bound: HashSet<String>,
    norm_tokens_left: usize,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            effects: Effects::default(),
            loops: false,
            operators: BTreeMap::new(),
            methods: HashSet::new(),
            paths: HashSet::new(),
            called: HashSet::new(),
            bound: HashSet::new(),
            norm_tokens_left: MAX_NORM_TOKENS,
        }
    }
}

impl Scan {
    /// Takes in one logical line that is no declaration.
    pub(super) fn statement(&mut self, tokens: &[Token<'_>]) {
        if self.names() > MAX_NAMES {
            self.effects = Effects::UNKNOWN;
            return;
        }
        self.assignments(tokens);
        self.loops |= tokens.iter().any(|token| matches!(token, Token::Name("for" | "while")));
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += match token {
                Token::Name(_) => self.chain(tokens, at),
                Token::Symbol("(") => {
                    // A call of something that is no name: `f[0](x)`, `(g)(x)`.
                    let called = at.checked_sub(1).and_then(|before| tokens.get(before));
                    if called.is_some_and(|token| token.is(")") || token.is("]")) {
                        self.effects = Effects::UNKNOWN;
                    }
                    1
                }
                _ => 1,
            };
        }
    }

    /// Takes in any logical line, declarations too: classes written in C++ may do anything.
    pub(super) fn line(&mut self, tokens: &[Token<'_>]) {
        let foreign = |pair: &[Token<'_>]| matches!(pair, [dot, Token::Name("classes")] if dot.is("."));
        if tokens.windows(2).any(foreign) {
            self.effects = Effects::UNKNOWN;
        }
    }

    /// Ends a file: its local names mean nothing in the next one.
    pub(super) fn end_file(&mut self) {
        if self.called.iter().any(|name| !self.bound.contains(name)) {
            self.effects = Effects::UNKNOWN;
        }
        self.called.clear();
        self.bound.clear();
    }

    /// Operators that are called as `torch.x` or `ops.ns.x`, spelled `aten::x`, with the number of places.
    pub(super) fn operators(&self) -> &BTreeMap<String, usize> {
        &self.operators
    }

    /// Whether any statement is or holds a loop.
    pub(super) fn loops(&self) -> bool {
        self.loops
    }

    /// What all the code may do, given the methods that it defines and whether it defines a path.
    pub(super) fn effects(&self, methods: &HashSet<&str>, defined: impl Fn(&str) -> bool) -> Effects {
        let known = |name: &str| methods.contains(name) || PURE_OPERATORS.contains(name) || harmful(name);
        let unknown_method = |name: &String| !known(name);
        // A mention may go on behind the definition: `__torch__.Color.RED`.
        let is_defined = |path: &String| {
            defined(path)
                || path.rsplit_once('.').is_some_and(|(class, member)| defined(class) && !harmful(member))
        };
        if self.methods.iter().any(unknown_method) || !self.paths.iter().all(is_defined) {
            return Effects::UNKNOWN;
        }
        self.effects
    }

    /// One pass, whatever the statement: what stands before an assignment is only remembered as two flags.
    fn assignments(&mut self, tokens: &[Token<'_>]) {
        let mut depth = 0_i64;
        let mut start = 0;
        let (mut has_dot, mut has_item, mut is_loop_target) = (false, false, false);
        for (at, token) in tokens.iter().enumerate() {
            let before =
                at.checked_sub(1).and_then(|before| tokens.get(before)).and_then(|token| token.name());
            match *token {
                Token::Symbol(".") => has_dot = true,
                Token::Symbol("[") => has_item = true,
                Token::Symbol(";") if depth == 0 => (start, has_dot, has_item) = (at + 1, false, false),
                Token::Symbol("=") if depth == 0 => {
                    self.effects.assigns_attributes |= has_dot;
                    self.effects.mutates_in_place |= has_item;
                    self.effects.mutates_containers |= has_item;
                    let is_path = tokens.get(at + 1).is_some_and(|token| token.name() == Some("__torch__"));
                    if let Some(name) = before.filter(|_| at == start + 1 && is_path) {
                        self.bound.insert(name.to_owned());
                    }
                }
                Token::Symbol("=") => {
                    let written = |name: &str| name.starts_with("out") || WRITTEN_KEYWORDS.contains(&name);
                    self.effects.mutates_in_place |= before.is_none_or(written);
                }
                Token::Symbol(symbol) if is_augmented(symbol) => {
                    self.effects.assigns_attributes |= has_dot;
                    self.effects.mutates_in_place = true;
                    self.effects.mutates_containers = true;
                }
                Token::Name("for" | "as") => is_loop_target = true,
                Token::Name("in") | Token::Symbol(":") => is_loop_target = false,
                Token::Name("del") => self.effects.mutates_containers = true,
                _ => {}
            }
            match token {
                Token::Symbol("(" | "[" | "{") => depth += 1,
                Token::Symbol(")" | "]" | "}") => depth -= 1,
                _ => {}
            }
            if is_loop_target && (token.is(".") || token.is("[")) {
                self.effects = Effects::UNKNOWN;
            }
        }
    }

    /// A name and the members behind it (`torch.add`, `self.layer`, `x`), from `at`; returns how many tokens that is.
    fn chain(&mut self, tokens: &[Token<'_>], at: usize) -> usize {
        let mut names = Vec::new();
        let mut rest = tokens.get(at..).unwrap_or_default();
        let behind_value =
            at.checked_sub(1).and_then(|before| tokens.get(before)).is_some_and(|token| token.is("."));
        while let [Token::Name(name), tail @ ..] = rest {
            names.push(*name);
            rest = tail;
            match tail {
                [dot, Token::Name(_), ..] if dot.is(".") => rest = tail.get(1..).unwrap_or_default(),
                _ => break,
            }
        }
        let call = rest.first().is_some_and(|token| token.is("("));
        match names.as_slice() {
            _ if behind_value => self.members(&names, call),
            ["torch", name] => self.operator("aten", name, call, rest),
            ["ops", namespace, name] => self.operator(namespace, name, call, rest),
            ["torch" | "ops", ..] => self.effects = Effects::UNKNOWN,
            ["__torch__", ..] => drop(self.paths.insert(names.join("."))),
            ["CONSTANTS", _] => {}
            [name] if HARMFUL_NAMES.contains(name) => self.effects = Effects::UNKNOWN,
            [name] if call => {
                if !HARMLESS_NAMES.contains(name) {
                    self.called.insert((*name).to_owned());
                }
            }
            [_, members @ ..] => self.members(members, call),
            [] => {}
        }
        (names.len() * 2).saturating_sub(1).max(1)
    }

    /// `.a.b` behind a value; the last one is called or not.
    fn members(&mut self, names: &[&str], call: bool) {
        for (index, name) in names.iter().enumerate() {
            self.named(name);
            if call && index + 1 == names.len() {
                self.methods.insert((*name).to_owned());
            }
        }
    }

    fn operator(&mut self, namespace: &str, name: &str, call: bool, arguments: &[Token<'_>]) {
        if call {
            *self.operators.entry(format!("{namespace}::{name}")).or_default() += 1;
        }
        let pure = match namespace {
            "aten" => PURE_OPERATORS.contains(name),
            "prim" => PURE_OPERATORS.contains(format!("prim::{name}").as_str()),
            _ => false,
        };
        if pure {
            return;
        }
        if namespace == "aten" && NORMS.contains(&name) {
            self.effects.mutates_in_place |= !(call && self.is_frozen_norm(arguments));
        } else if namespace == "aten" && harmful(name) {
            self.named(name);
        } else {
            self.effects = Effects::UNKNOWN;
        }
    }

    /// Whether the call `(input, weight, bias, mean, variance, training, ...)` leaves its statistics alone.
    fn is_frozen_norm(&mut self, tokens: &[Token<'_>]) -> bool {
        let within = tokens.get(..self.norm_tokens_left).unwrap_or(tokens);
        let Some((inner, _)) = bracketed(within) else {
            self.norm_tokens_left = self.norm_tokens_left.saturating_sub(within.len());
            return false;
        };
        self.norm_tokens_left = self.norm_tokens_left.saturating_sub(inner.len());
        let arguments = split(inner);
        let is = |index: usize, literal: &str| matches!(arguments.get(index), Some([Token::Name(name)]) if *name == literal);
        is(5, "False") || (is(3, "None") && is(4, "None"))
    }

    /// Different names that are kept.
    fn names(&self) -> usize {
        self.operators.len() + self.methods.len() + self.paths.len() + self.called.len() + self.bound.len()
    }

    /// A name that may be that of an operator: as a member of a value it need not be called to do harm later.
    fn named(&mut self, name: &str) {
        if CONTAINER_OPERATORS.contains(&name) {
            self.effects.mutates_containers = true;
        } else if harmful(name) {
            self.effects.mutates_in_place = true;
        }
    }
}
