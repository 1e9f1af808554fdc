//! What an archive asks for that a model does not need: files, processes, other machines, memory that nobody checks.
//!
//! Everything here is read from the archive, nothing is run. The scan collects what the code mentions ([`mentions`])
//! and what the pickles name ([`pickles`]); [`Findings`] are what is not on the list of ordinary operators
//! (`operators.txt`), each with its place and its reason. All code in the archive counts, called or not. Beside names
//! it looks at arguments that libtorch takes without a check ([`forms`]), at values that are not what the code declares
//! ([`declared`]), and at code that runs while loading ([`at_load`]).
//!
//! A mention is enough: in TorchScript an operator can only be reached by its name, written out as `torch.x`, `ops.ns.x`,
//! a member `.x` of a value, or the text in a `getattr`. So nothing is followed, and nothing can be hidden by an alias.
//!
//! `docs/security.md` says what this protects from, and what it does not.

mod at_load;
mod chain;
mod danger;
mod declared;
mod expanded;
mod forms;
mod mentions;
mod nesting;
mod operators;
mod pickles;
mod policy;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

pub use danger::{Danger, Severity};
pub use policy::{Policy, Safety, Verdict};

pub(super) use declared::check_declared;
pub(super) use mentions::Mentions;
pub(super) use pickles::{check as check_pickle, check_lines};

use super::error::shown;

/// Most different findings that are kept of one archive; whoever has as many is refused all the same.
const MAX_FINDINGS: usize = 200;

/// One thing in an archive that is not known to be harmless.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was found, as the setting `safety.allow` would name it: `aten::from_file`, `os.system`.
    pub what: String,
    /// Where it was found first: `code/__torch__.py:12`, or the name of a pickle.
    pub place: String,
    /// At how many places it was found.
    pub count: usize,
    /// How bad it would be.
    pub severity: Severity,
    /// Why it is not ordinary.
    pub danger: Danger,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}) {}", self.what, self.place, self.danger)
    }
}

/// Findings, each thing once.
#[derive(Debug, Default)]
pub(super) struct Findings {
    by_name: BTreeMap<(Danger, String), (String, usize)>,
}

impl Findings {
    /// Takes in one more; `what` and `place` may be text of the archive.
    pub(super) fn add(&mut self, danger: Danger, what: &str, place: impl FnOnce() -> String) {
        let key = (danger, shown(what));
        if let Some((_, count)) = self.by_name.get_mut(&key) {
            *count = count.saturating_add(1);
        } else if self.by_name.len() < MAX_FINDINGS {
            self.by_name.insert(key, (shown(&place()), 1));
        }
    }

    /// Takes in all of `others`.
    pub(super) fn absorb(&mut self, others: Self) {
        for ((danger, what), (place, count)) in others.by_name {
            if self.by_name.len() < MAX_FINDINGS {
                self.by_name.entry((danger, what)).or_insert((place, 0)).1 += count;
            }
        }
    }

    /// The worst first.
    pub(super) fn into_list(self) -> Vec<Finding> {
        let list = self.by_name.into_iter().map(|((danger, what), (place, count))| Finding {
            what,
            place,
            count,
            severity: danger.severity(),
            danger,
        });
        let mut list: Vec<_> = list.collect();
        list.sort_by_key(|finding| finding.severity);
        list
    }
}
