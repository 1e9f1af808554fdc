//! When what is on disk may be taken for finished: a model's files are loaded once they have been quiet for a while, and a
//! model is gone once it has been missing for a while. Pure: fed with what a look found and when.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tokio::time::Instant;
use torchlane_model::ModelName;

use super::Found;

/// What looks have found so far.
#[derive(Debug)]
pub struct Settle {
    /// So long nothing may have changed.
    quiet: Duration,
    seen: HashMap<ModelName, Seen>,
}

#[derive(Debug)]
struct Seen {
    /// `None`: missing.
    found: Option<Found>,
    since: Instant,
}

/// What a look comes to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Models whose files are quiet.
    pub quiet: Vec<Found>,
    /// Models that were seen before and are gone, until [`Settle::forget`].
    pub gone: Vec<ModelName>,
    /// When a look would find more of them.
    pub again: Option<Instant>,
}

impl Settle {
    /// Files are finished when nothing has changed for `quiet`.
    pub fn new(quiet: Duration) -> Self {
        Self { quiet, seen: HashMap::new() }
    }

    /// Takes for finished what is there at the start.
    pub fn begin(&mut self, found: &[Found], now: Instant) {
        let since = now.checked_sub(self.quiet).unwrap_or(now);
        self.seen.extend(found.iter().map(|f| (f.name.clone(), Seen { found: Some(f.clone()), since })));
    }

    /// A model that is gone has been dealt with.
    pub fn forget(&mut self, name: &ModelName) {
        self.seen.remove(name);
    }

    /// Takes in what a look at `now` found.
    pub fn look(&mut self, found: Vec<Found>, now: Instant) -> Settled {
        let mut settled = Settled::default();
        let there: HashSet<ModelName> = found.iter().map(|found| found.name.clone()).collect();
        for found in found {
            let seen =
                self.seen.entry(found.name.clone()).or_insert_with(|| Seen { found: None, since: now });
            let stands = |before: &Found| *before == found && before.saw_as(&found, |aside| aside.writing);
            if !seen.found.as_ref().is_some_and(stands) {
                *seen = Seen { found: Some(found.clone()), since: now };
            }
            let due = seen.since + self.quiet;
            if due <= now {
                settled.quiet.push(found);
            } else {
                settled.again = Some(settled.again.map_or(due, |again| again.min(due)));
            }
        }
        self.seen.retain(|name, seen| {
            if there.contains(name) {
                return true;
            }
            if seen.found.take().is_some() {
                seen.since = now;
            }
            let due = seen.since + self.quiet;
            if due <= now {
                settled.gone.push(name.clone());
                return true;
            }
            settled.again = Some(settled.again.map_or(due, |again| again.min(due)));
            true
        });
        settled.gone.sort_unstable();
        settled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Duration = Duration::from_secs(2);

    fn found(name: &str, stamp: u64) -> Found {
        let mut found = Found::new(name.parse().unwrap(), Vec::new());
        found
            .versions
            .push(super::super::VersionFiles { stamp, ..super::super::VersionFiles::bare("m.pt".into()) });
        found
    }

    #[test]
    fn what_still_changes_is_waited_for() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut settle = Settle::new(QUIET);
        let waits = |again| Settled { again: Some(again), ..Settled::default() };
        assert_eq!(settle.look(vec![found("m", 1)], at(0)), waits(at(2)));
        assert_eq!(settle.look(vec![found("m", 2)], at(1)), waits(at(3)), "it grew");
        assert_eq!(settle.look(vec![found("m", 2)], at(2)), waits(at(3)));
        let quiet = |names: &[&str]| Settled {
            quiet: names.iter().map(|n| found(n, 2)).collect(),
            ..Settled::default()
        };
        assert_eq!(settle.look(vec![found("m", 2)], at(3)), quiet(&["m"]));
        assert_eq!(settle.look(vec![found("m", 2)], at(4)), quiet(&["m"]), "it stays so");
    }

    #[test]
    fn what_is_missing_for_a_moment_is_not_gone() {
        let begin = Instant::now();
        let at = |seconds: u64| begin + Duration::from_secs(seconds);
        let mut settle = Settle::new(QUIET);
        settle.begin(&[found("m", 1), found("n", 1)], at(0));
        assert_eq!(settle.look(vec![found("n", 1)], at(1)).gone, []);
        let back = settle.look(vec![found("m", 1), found("n", 1)], at(2));
        assert_eq!((back.quiet.len(), back.again), (1, Some(at(4))), "what is new must be quiet first");
        assert_eq!(settle.look(vec![found("n", 1)], at(3)).again, Some(at(5)));
        let gone = settle.look(vec![found("n", 1)], at(5));
        assert_eq!((gone.gone, gone.quiet.len()), (vec!["m".parse().unwrap()], 1));
        assert_eq!(settle.look(vec![found("n", 1)], at(6)).gone.len(), 1, "again, until it is dealt with");
        settle.forget(&"m".parse().unwrap());
        assert_eq!(settle.look(vec![found("n", 1)], at(7)).gone, []);
    }
}
