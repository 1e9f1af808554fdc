//! Every name in the code by which an operator, a class written in C++ or a task could be reached.
//!
//! libtorch resolves names as follows (`import_source.cpp`, `ir_emitter.cpp`): `torch.x` is the operator `aten::x`,
//! `ops.ns.x` is `ns::x`, `__torch__.a.B` is a class or a function of the archive or, below `__torch__.torch.classes`,
//! a class written in C++; a member of a value is one of its own, else the operator `aten::x` with the value in front;
//! `getattr(v, "x")` is `v.x`. All other names are local, or builtins that only compute.

use std::collections::HashMap;

use super::super::error::shown;
use super::super::lexer::Token;
use super::at_load::AtLoad;
use super::chain::Chain;
use super::expanded::Expanded;
use super::forms::Forms;
use super::nesting::Nesting;
use super::operators;
use super::{Danger, Findings};

/// Most different names that are remembered; beyond, the code counts as not understood.
const MAX_NAMES: usize = 100_000;

/// Collects what the code mentions, line by line.
#[derive(Debug, Default)]
pub(in super::super) struct Mentions {
    findings: Findings,
    /// The file being read, and where in it.
    module: String,
    line: usize,
    nesting: Nesting,
    chain: Chain,
    forms: Forms,
    at_load: AtLoad,
    expanded: Expanded,
    /// Paths that the archive should define, and members that it should if they are no ordinary operators; each with
    /// the place of its first mention.
    paths: HashMap<String, String>,
    members: HashMap<String, (Danger, String)>,
}

impl Mentions {
    /// Begins a file: `__torch__.torch.nn` for `code/__torch__/torch/nn.py`.
    pub(in super::super) fn begin_file(&mut self, module: &str) {
        module.clone_into(&mut self.module);
        self.line = 0;
        self.nesting = Nesting::default();
    }

    /// Takes in the logical line that begins at line `number`.
    pub(in super::super) fn line(&mut self, number: usize, indent: usize, tokens: &[Token<'_>]) {
        self.line = number;
        if self.nesting.line(indent, tokens) {
            self.find(Danger::Nesting, "code");
        }
        if self.paths.len() + self.members.len() > MAX_NAMES {
            self.find(Danger::Unreadable, "code with more names than any model has");
            return;
        }
        if indent == 0 {
            self.chain.end();
        }
        match tokens {
            [Token::Name("def" | "class"), Token::Name(name), ..] if indent == 0 => {
                self.chain.define(&format!("{}.{name}", self.module));
            }
            [Token::Name("def"), ..] => self.chain.method(),
            _ => {}
        }
        let Self { forms, findings, module, .. } = self;
        forms.line(indent, tokens, &mut |danger, what| findings.add(danger, what, || place(module, number)));
        self.at_load.line(tokens);
        if tokens.iter().any(|token| matches!(token, Token::Name("getattr" | "hasattr"))) {
            self.texts(tokens);
        }
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += match token {
                Token::Name(name) => self.name(name, tokens, at),
                _ => 1,
            };
        }
    }

    /// Remembers that a file could not be read to its end.
    pub(in super::super) fn unreadable(&mut self, reason: &str) {
        self.find(Danger::Unreadable, &format!("code with {reason}"));
    }

    /// Remembers that the archive holds a tensor with a dimension of stride 0.
    pub(in super::super) fn holds_expanded(&mut self) {
        self.expanded.holds_one();
    }

    /// Everything that was found, given what the archive defines: the paths of its classes and functions, and the names
    /// of methods and attributes.
    pub(in super::super) fn findings(
        mut self,
        defines_path: impl Fn(&str) -> bool,
        defines_member: impl Fn(&str) -> bool,
    ) -> Findings {
        if self.chain.is_too_long() {
            self.findings.add(Danger::Nesting, "a chain of definitions", || "code".to_owned());
        }
        for (name, place) in self.expanded.into_found() {
            let what = format!("aten::{name} along a dimension of a tensor that may be expanded");
            self.findings.add(Danger::Expanded, &what, || place);
        }
        if self.at_load.may_not_end() {
            self.findings.add(Danger::Endless, "__torch__.__setstate__", || "code".to_owned());
        }
        for (path, place) in self.paths {
            // A mention may go on behind the definition: `__torch__.Color.RED`.
            let of_class = path.rsplit_once('.').is_some_and(|(class, member)| {
                defines_path(class)
                    && matches!(operators::member_danger(member), None | Some(Danger::Unknown))
            });
            if !of_class && !defines_path(&path) {
                self.findings.add(Danger::Unknown, &path, || place);
            }
        }
        for (member, (danger, place)) in self.members {
            if !defines_member(&member) {
                self.findings.add(danger, &format!("aten::{member}"), || place);
            }
        }
        self.findings
    }

    /// One name; returns how many tokens it and what belongs to it take.
    fn name(&mut self, name: &str, tokens: &[Token<'_>], at: usize) -> usize {
        let before = at.checked_sub(1).and_then(|before| tokens.get(before));
        let rest = tokens.get(at..).unwrap_or_default();
        if before.is_some_and(|token| token.is(".")) {
            self.member(name, rest.get(1..).unwrap_or_default());
            return 1;
        }
        match (name, rest) {
            ("torch", [_, dot, Token::Name(operator), ..]) if dot.is(".") => {
                self.operator("aten", operator, rest.get(3..).unwrap_or_default());
                3
            }
            ("ops", [_, dot, Token::Name(namespace), again, Token::Name(operator), ..])
                if dot.is(".") && again.is(".") =>
            {
                self.operator(namespace, operator, rest.get(5..).unwrap_or_default());
                5
            }
            // As values they could be given another name.
            ("torch" | "ops", _) => {
                self.find(Danger::Unreadable, &format!("`{name}` without a name behind it"));
                1
            }
            ("__torch__", _) => self.path(rest),
            ("fork" | "awaitable", _) => {
                self.find(Danger::Tasks, &format!("prim::{name}"));
                1
            }
            _ => 1,
        }
    }

    fn operator(&mut self, namespace: &str, name: &str, arguments: &[Token<'_>]) {
        match operators::danger(namespace, name) {
            Some(Danger::Values) if self.forms.is_harmless(name, arguments) => {}
            Some(danger) => self.find(danger, &format!("{namespace}::{name}")),
            None => {}
        }
        let Self { expanded, module, line, .. } = self;
        expanded.mention(name, arguments, false, || place(module, *line));
        if namespace == "aten"
            && let Some((danger, what)) = self.forms.call(name, arguments, false)
        {
            self.find(danger, &what);
        }
    }

    /// `.name` behind a value. What no operator is called can only be the archive's own, or nothing.
    fn member(&mut self, name: &str, arguments: &[Token<'_>]) {
        let called = arguments.first().is_some_and(|token| token.is("("));
        let Self { expanded, module, line, .. } = self;
        expanded.mention(name, arguments, true, || place(module, *line));
        if let Some((danger, what)) = self.forms.call(name, arguments, true) {
            self.find(danger, &what);
        }
        match operators::member_danger(name) {
            None => {}
            // Attributes and submodules often have the name of a function.
            Some(Danger::Values) if !called => {}
            Some(danger @ Danger::Unknown) if called => self.expect(danger, name),
            Some(Danger::Unknown) => {}
            Some(danger @ Danger::Rare) => self.expect(danger, name),
            Some(danger) => self.find(danger, &format!("aten::{name}")),
        }
    }

    /// Remembers a member that only the archive's own code can make harmless.
    fn expect(&mut self, danger: Danger, name: &str) {
        if !self.members.contains_key(name) {
            self.members.insert(name.to_owned(), (danger, self.place()));
        }
    }

    /// `__torch__.a.B` and all that is written behind it.
    fn path(&mut self, tokens: &[Token<'_>]) -> usize {
        let mut path = "__torch__".to_owned();
        let mut taken = 1;
        while let Some([dot, Token::Name(name)]) = tokens.get(taken..taken + 2)
            && dot.is(".")
        {
            path.push('.');
            path.push_str(name);
            taken += 2;
        }
        if path.starts_with("__torch__.torch.classes.") {
            self.find(Danger::CustomClass, &path);
            return taken;
        }
        self.chain.mention(&path);
        if !self.paths.contains_key(&path) {
            self.paths.insert(path, self.place());
        }
        taken
    }

    /// The texts of a line with a `getattr`, of which one is the name of a member. A text that would have to be worked out, with
    /// escapes or in several pieces, is not: no writer of names needs either.
    fn texts(&mut self, tokens: &[Token<'_>]) {
        let mut after_text = false;
        for token in tokens {
            if let Token::Text(text) = token {
                if after_text || text.contains('\\') {
                    self.find(Danger::Unreadable, "`getattr` with a name in pieces");
                }
                self.member(text.trim_matches(['"', '\'']), &[]);
            }
            after_text = matches!(token, Token::Text(_));
        }
    }

    fn find(&mut self, danger: Danger, what: &str) {
        let Self { findings, module, line, .. } = self;
        findings.add(danger, what, || place(module, *line));
    }

    fn place(&self) -> String {
        place(&self.module, self.line)
    }
}

fn place(module: &str, line: usize) -> String {
    let file = shown(&module.replace('.', "/"));
    if line == 0 { format!("code/{file}.py") } else { format!("code/{file}.py:{line}") }
}
