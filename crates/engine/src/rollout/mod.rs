//! A new version beside the live one, seen by a share of the callers before all of them: who is sent to it, what is noted of
//! both versions, and what that says. `docs/guides/rollout.md` has the statistics.
//!
//! **Invariant**: what a new version does wrong costs time and never an answer: a request that it fails is run by the live one.
//! A shadow's answer reaches nobody. What decides is pure: it reads counts, and is told how much time has passed.
//!
//! Beginning, promoting and rolling back change what is loaded; that is `lifecycle`'s.

mod difference;
mod evidence;
mod metrics;
mod mirror;
mod passes;
mod route;
mod sequential;
mod split;
mod verdict;

pub use difference::difference;
pub use evidence::{Callers, Compared, Ending, Evidence, Seen, Side, SideSeen};
pub use metrics::RolloutMetrics;
pub use mirror::Mirror;
pub use passes::Passes;
pub use route::{Route, RouteLayer};
pub use sequential::{BAR, SUSPICIOUS, Sequence, Trials, log_evidence};
pub use split::{Key, Split};
pub use verdict::{Check, Clock, Verdict, checks, judge};
