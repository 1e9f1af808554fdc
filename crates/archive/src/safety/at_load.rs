//! Code that runs while a model loads: `__setstate__`, and what it calls. A load cannot be broken off, so that code must
//! come to an end by itself: no loops, no calls in a circle, and not more calls than a person would write.

use std::collections::{HashMap, HashSet};

use super::super::lexer::Token;

/// Most calls that `__setstate__` may lead to; those of torch's own modules make some ten.
const MAX_CALLS: u64 = 100_000;
/// Most callees that are remembered; beyond, code that runs while loading counts as endless.
const MAX_CALLEES: usize = 2_000_000;

/// What each definition does, by the last part of its name: methods of one name count as one.
#[derive(Debug, Default)]
pub(super) struct AtLoad {
    definitions: HashMap<String, Definition>,
    open: Option<String>,
    callees: usize,
}

#[derive(Debug, Default)]
struct Definition {
    loops: bool,
    calls: u64,
    callees: HashSet<String>,
}

impl AtLoad {
    /// Takes in a logical line.
    pub(super) fn line(&mut self, tokens: &[Token<'_>]) {
        match tokens {
            [Token::Name("def"), Token::Name(name), ..] => {
                self.open = Some((*name).to_owned());
                self.definitions.entry((*name).to_owned()).or_default();
            }
            [Token::Name("class"), ..] => self.open = None,
            _ => {}
        }
        let Some(open) = self.open.as_ref().and_then(|open| self.definitions.get_mut(open)) else { return };
        for (at, token) in tokens.iter().enumerate() {
            let Token::Name(name) = token else { continue };
            open.loops |= matches!(*name, "while" | "for");
            if tokens.get(at + 1).is_some_and(|next| next.is("(")) {
                open.calls = open.calls.saturating_add(1);
            }
            // Every name counts as one that is called: a function may be given another name first.
            let behind_dot =
                at.checked_sub(1).and_then(|before| tokens.get(before)).is_some_and(|token| token.is("."));
            if behind_dot && self.callees < MAX_CALLEES && open.callees.insert((*name).to_owned()) {
                self.callees += 1;
            }
        }
    }

    /// Whether code that runs while loading may not end.
    pub(super) fn may_not_end(&self) -> bool {
        let name = "__setstate__";
        self.definitions.contains_key(name)
            && (self.callees >= MAX_CALLEES
                || self.cost(name, &mut HashMap::new(), 0).is_none_or(|cost| cost > MAX_CALLS))
    }

    /// Calls that one of this definition leads to; `None` where there may be no end.
    fn cost(&self, name: &str, known: &mut HashMap<String, Option<u64>>, depth: usize) -> Option<u64> {
        let Some(definition) = self.definitions.get(name) else { return Some(0) };
        if let Some(cost) = known.get(name) {
            return *cost;
        }
        if definition.loops || depth > 100 {
            return None;
        }
        // Met again before it is done, it calls itself.
        known.insert(name.to_owned(), None);
        let mut dearest = 0;
        for callee in &definition.callees {
            dearest = dearest.max(self.cost(callee, known, depth + 1)?);
        }
        let cost = definition.calls.saturating_mul(dearest.saturating_add(1));
        known.insert(name.to_owned(), Some(cost));
        Some(cost)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::lexer::Lexer;
    use super::*;

    fn may_not_end(code: &str) -> bool {
        let (mut lexer, mut at_load) = (Lexer::new(code), AtLoad::default());
        while let Ok(Some(line)) = lexer.next_line() {
            at_load.line(&line.tokens);
        }
        at_load.may_not_end()
    }

    #[test]
    fn loops_and_circles_behind_setstate_are_found_and_those_elsewhere_are_not() {
        let forward = "class M(Module):\n  def forward(self, x):\n    while True:\n      x = self.step(x)\n  def step(self, x):\n    return x\n";
        assert!(!may_not_end(forward));
        let plain = "  def __setstate__(self, state):\n    self.w = (state)[0]\n    _0 = (self).set_it((state)[1], )\n  def set_it(self, w):\n    self.v = torch.add(w, 1)\n";
        assert!(!may_not_end(&format!("{forward}{plain}")));
        for body in [
            "    while True:\n      pass\n",
            "    for i in range(1000000000000):\n      pass\n",
            "    x = [i for i in state]\n",
            "    self.forward(state)\n",
            "    self.a(state)\n",
            "    f = self.forward\n    f(state)\n",
        ] {
            let circle = "  def a(self, x):\n    self.b(x)\n  def b(self, x):\n    self.a(x)\n";
            assert!(
                may_not_end(&format!("{forward}{circle}  def __setstate__(self, state):\n{body}")),
                "{body}"
            );
        }
        let twice: String = (0..40)
            .map(|i| format!("def f{i}(x):\n  __torch__.f{0}(x)\n  __torch__.f{0}(x)\n", i + 1))
            .collect();
        assert!(may_not_end(&format!(
            "{twice}class M(Module):\n  def __setstate__(self, s):\n    __torch__.f0(s)\n"
        )));
    }
}
