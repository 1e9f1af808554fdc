//! Operators that read outside a tensor of which a dimension has stride 0, as `expand` makes it (torch 2.13, found by
//! `tools/operators/fuzz.py --expanded`). An archive that has one and can make such a tensor is refused: what lies
//! beside the tensor may be another caller's.

use std::collections::BTreeMap;

use super::super::lexer::Token;
use super::super::types::{bracketed, split};

/// Operators that read outside if they are given a dimension.
const READS_OUTSIDE: &[&str] = &["median", "nanmedian"];

/// Operators that make such tensors, or may hand one on that they were asked for.
const EXPANDS: &[&str] = &[
    "expand",
    "expand_as",
    "broadcast_to",
    "broadcast_tensors",
    "meshgrid",
    "cartesian_prod",
    "atleast_2d",
    "atleast_3d",
    "einsum",
    "affine_grid_generator",
    "empty_strided",
    "new_empty_strided",
    "from_dlpack",
];

/// Follows the calls of one archive.
#[derive(Debug, Default)]
pub(super) struct Expanded {
    expands: bool,
    /// By operator, the place of its first call with a dimension.
    reads: BTreeMap<String, String>,
}

impl Expanded {
    /// Takes in a mention of an operator, with what is written behind it. `member`: the tensor stands before the dot.
    pub(super) fn mention(
        &mut self,
        name: &str,
        tokens: &[Token<'_>],
        member: bool,
        place: impl FnOnce() -> String,
    ) {
        self.expands |= EXPANDS.contains(&name);
        if READS_OUTSIDE.contains(&name) && !self.reads.contains_key(name) {
            let arguments = match tokens.first() {
                Some(open) if open.is("(") => bracketed(tokens).map(|(inner, _)| split(inner).len()),
                // A member that is not called is a submodule's or an attribute's name, if it is one of the archive's.
                _ if member => Some(0),
                _ => None,
            };
            if arguments.is_none_or(|count| count > usize::from(!member)) {
                self.reads.insert(name.to_owned(), place());
            }
        }
    }

    /// Remembers that the archive itself holds such a tensor.
    pub(super) fn holds_one(&mut self) {
        self.expands = true;
    }

    /// Operators that may read outside, with their places.
    pub(super) fn into_found(self) -> impl Iterator<Item = (String, String)> {
        let expands = self.expands;
        self.reads.into_iter().filter(move |_| expands)
    }
}
