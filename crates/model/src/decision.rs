//! What torchlane decides about a version beside what its owner asks for.

use std::fmt;

use parking_lot::Mutex;
use serde::Serialize;

/// One decision. The same words appear in the log, in `torchlane check`, `inspect` and `models NAME`, in `GetModel`, in
/// Triton's model configuration and in the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Its subject: `state`, `batching`, `concurrency`, `response_cache`, `training`, ...
    pub what: &'static str,
    /// What torchlane does, why, and how to override it.
    pub text: String,
}

impl Decision {
    /// A decision about `what`.
    pub fn new(what: &'static str, text: impl Into<String>) -> Self {
        Self { what, text: text.into() }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.text)
    }
}

/// All decisions about one loaded version, in the order in which they were made. Some are learned while it serves.
#[derive(Debug, Default)]
pub struct Decisions(Mutex<Vec<Decision>>);

impl Decisions {
    /// More decisions than this are not kept.
    const MOST: usize = 32;

    /// Adds a decision; `false` where it is known already.
    pub fn add(&self, decision: Decision) -> bool {
        let mut all = self.0.lock();
        let is_new = all.len() < Self::MOST && !all.contains(&decision);
        if is_new {
            all.push(decision);
        }
        is_new
    }

    /// All of them.
    pub fn all(&self) -> Vec<Decision> {
        self.0.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_kept_once_and_in_order() {
        let decisions = Decisions::default();
        assert!(decisions.add(Decision::new("state", "b")) && decisions.add(Decision::new("batching", "a")));
        assert!(!decisions.add(Decision::new("state", "b")), "known");
        let told: Vec<_> = decisions.all().iter().map(ToString::to_string).collect();
        assert_eq!(told, ["state: b", "batching: a"]);
        let fresh = (0..100).filter(|n| decisions.add(Decision::new("state", n.to_string()))).count();
        assert_eq!(fresh, Decisions::MOST - 2);
    }
}
