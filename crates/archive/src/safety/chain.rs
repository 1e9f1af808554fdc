//! How long a chain of definitions is, each of which mentions the next. libtorch compiles what a function or a class
//! mentions before it goes on with it, by calling itself: a long enough chain ends the process.

use std::collections::{HashMap, HashSet};

/// Most methods and functions that may stand in each other; a model that is one, of modules in modules, has some fifty.
pub(super) const MAX_CHAIN: usize = 3000;
/// Most mentions that are remembered; beyond, the chain counts as too long.
const MAX_MENTIONS: usize = 2_000_000;

/// Which definition mentions which.
#[derive(Debug, Default)]
pub(super) struct Chain {
    numbers: HashMap<String, usize>,
    /// By number: functions and methods of the definition, at least one, and what it mentions.
    weights: Vec<usize>,
    mentioned: Vec<HashSet<usize>>,
    mentions: usize,
    open: Option<usize>,
}

impl Chain {
    /// Begins the class or function of this path.
    pub(super) fn define(&mut self, path: &str) {
        self.open = Some(self.number(path));
    }

    /// Ends it.
    pub(super) fn end(&mut self) {
        self.open = None;
    }

    /// Takes in a method of the open class.
    pub(super) fn method(&mut self) {
        if let Some(weight) = self.open.and_then(|open| self.weights.get_mut(open)) {
            *weight += 1;
        }
    }

    /// Takes in a path that the open definition mentions. It may go on behind the name of a class.
    pub(super) fn mention(&mut self, path: &str) {
        if self.mentions > MAX_MENTIONS {
            return;
        }
        let Some(open) = self.open else { return };
        for path in [Some(path), path.rsplit_once('.').map(|(class, _)| class)].into_iter().flatten() {
            let number = self.number(path);
            if let Some(mentioned) = self.mentioned.get_mut(open).filter(|_| number != open) {
                self.mentions += usize::from(mentioned.insert(number));
            }
        }
    }

    /// Whether some chain may be longer than [`MAX_CHAIN`]: definitions that mention each other in a ring all count.
    pub(super) fn is_too_long(&self) -> bool {
        self.mentions > MAX_MENTIONS || self.longest() > MAX_CHAIN
    }

    fn number(&mut self, path: &str) -> usize {
        if let Some(number) = self.numbers.get(path) {
            return *number;
        }
        let number = self.weights.len();
        self.numbers.insert(path.to_owned(), number);
        self.weights.push(1);
        self.mentioned.push(HashSet::new());
        number
    }

    /// Kosaraju's algorithm: visited backwards in the order in which the definitions are done, the mentions turned
    /// round, each visit finds one ring, and finds it after all rings that lead to it.
    fn longest(&self) -> usize {
        let forwards: Vec<Vec<usize>> =
            self.mentioned.iter().map(|mentioned| mentioned.iter().copied().collect()).collect();
        let mut backwards = vec![Vec::new(); forwards.len()];
        for (from, mentioned) in forwards.iter().enumerate() {
            for to in mentioned {
                if let Some(list) = backwards.get_mut(*to) {
                    list.push(from);
                }
            }
        }
        let mut seen = vec![false; forwards.len()];
        let mut done = Vec::with_capacity(forwards.len());
        for start in 0..forwards.len() {
            visit(&forwards, start, &mut seen, &mut done);
        }
        let mut seen = vec![false; forwards.len()];
        let mut lengths = vec![0; forwards.len()];
        let mut longest = 0;
        for start in done.into_iter().rev() {
            let mut ring = Vec::new();
            visit(&backwards, start, &mut seen, &mut ring);
            let weight = |number: &usize| self.weights.get(*number).copied().unwrap_or(0);
            let own: usize = ring.iter().map(weight).sum();
            let before = ring.iter().filter_map(|number| backwards.get(*number)).flatten();
            let before = before.filter_map(|number| lengths.get(*number)).copied().max().unwrap_or(0);
            for number in ring {
                if let Some(length) = lengths.get_mut(number) {
                    *length = own + before;
                }
            }
            longest = longest.max(own + before);
        }
        longest
    }
}

/// Puts everything that can be reached from `start` and was not `seen` into `done`, what is reached last first.
fn visit(edges: &[Vec<usize>], start: usize, seen: &mut [bool], done: &mut Vec<usize>) {
    let mut enter = |node: usize| seen.get_mut(node).is_some_and(|seen| !std::mem::replace(seen, true));
    if !enter(start) {
        return;
    }
    let mut stack = vec![(start, 0)];
    while let Some((node, next)) = stack.last_mut() {
        match edges.get(*node).and_then(|edges| edges.get(*next)) {
            Some(to) => {
                *next += 1;
                if enter(*to) {
                    stack.push((*to, 0));
                }
            }
            None => {
                done.push(*node);
                stack.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chain(edges: &[(usize, usize)]) -> Chain {
        let mut chain = Chain::default();
        for (from, to) in edges {
            chain.define(&format!("d{from}"));
            chain.mention(&format!("d{to}"));
        }
        chain
    }

    #[test]
    fn the_longest_way_counts_and_rings_count_whole() {
        assert_eq!(chain(&[(0, 1), (1, 2), (0, 2)]).longest(), 3);
        assert_eq!(chain(&[(0, 0)]).longest(), 1);
        assert_eq!(chain(&[(0, 1), (1, 0), (1, 2)]).longest(), 3);
        let line: Vec<_> = (0..100_000).map(|i| (i, i + 1)).collect();
        assert_eq!(chain(&line).longest(), 100_001);
        let mut methods = chain(&[(0, 1), (1, 2)]);
        methods.define("d1");
        (0..10).for_each(|_| methods.method());
        assert_eq!(methods.longest(), 13);
    }

    /// The longest walk without visiting anything twice, by trying all.
    fn walk(edges: &[(usize, usize)], at: usize, seen: &mut Vec<usize>) -> usize {
        seen.push(at);
        let further = edges.iter().filter(|(from, to)| *from == at && !seen.contains(to)).map(|(_, to)| *to);
        let further: Vec<_> = further.collect();
        let longest = further.into_iter().map(|to| walk(edges, to, seen)).max().unwrap_or(0);
        seen.pop();
        longest + 1
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_walk_is_longer_and_without_rings_it_is_exact(edges in prop::collection::vec((0..8_usize, 0..8_usize), 1..16)) {
            let longest = |edges: &[_]| (0..8).map(|at| walk(edges, at, &mut Vec::new())).max().unwrap();
            prop_assert!(chain(&edges).longest() >= longest(&edges));
            let down: Vec<_> = edges.iter().copied().filter(|(from, to)| from < to).collect();
            if !down.is_empty() {
                prop_assert_eq!(chain(&down).longest(), longest(&down));
            }
        }
    }
}
