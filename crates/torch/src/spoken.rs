//! What models print, and what they warn of, as lines of the log. By itself libtorch writes both to the streams of the process as
//! they are: in the middle of the log, where a model could write lines that look like the server's.

use std::collections::HashMap;

use parking_lot::Mutex;
use tokio::time::Instant;
use torchlane_engine::backend::current_task;
use torchlane_model::error::shown;

/// Lines that a task may write at once, and then one each second.
const AT_ONCE: f64 = 20.0;
/// Characters of a line.
const MOST_SHOWN: usize = 500;
/// Tasks whose lines are counted. With more, all begin again.
const TASKS: usize = 1024;

/// What a model did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Spoken {
    /// `print(...)`.
    Printed,
    /// `warnings.warn(...)`, or one of libtorch's own.
    Warned,
}

/// How many more lines a task may write.
struct Budget {
    lines: f64,
    since: Instant,
    left_out: u64,
}

/// By task and manner: a model that prints much does not use up its warnings.
type Budgets = HashMap<(Spoken, String), Budget>;

static BUDGETS: Mutex<Option<Budgets>> = Mutex::new(None);

/// Writes `text` to the log, in the name of what this thread runs.
pub(super) fn log(spoken: Spoken, text: &str) {
    let of = (spoken, current_task().unwrap_or_else(|| "no pass".to_owned()));
    let during = &of.1;
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let Some(left_out) = admit(BUDGETS.lock().get_or_insert_default(), &of, Instant::now()) else {
            continue;
        };
        let line = shown(line, MOST_SHOWN);
        let left_out = (left_out > 0).then_some(left_out);
        match spoken {
            Spoken::Printed => {
                tracing::info!(target: "torchlane::model", during, left_out, "the model prints: {line}");
            }
            Spoken::Warned => {
                tracing::warn!(target: "torchlane::model", during, left_out, "the model warns: {line}");
            }
        }
    }
}

/// Takes one line from a task's budget: how many lines were left out since its last. `None`: this one is.
fn admit(budgets: &mut Budgets, of: &(Spoken, String), now: Instant) -> Option<u64> {
    if budgets.len() >= TASKS && !budgets.contains_key(of) {
        budgets.clear();
    }
    let new = Budget { lines: AT_ONCE, since: now, left_out: 0 };
    let budget = budgets.entry(of.clone()).or_insert(new);
    budget.lines = AT_ONCE.min(budget.lines + now.duration_since(budget.since).as_secs_f64());
    budget.since = now;
    if budget.lines < 1.0 {
        budget.left_out += 1;
        return None;
    }
    budget.lines -= 1.0;
    Some(std::mem::take(&mut budget.left_out))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_task_writes_some_lines_and_then_one_a_second() {
        let (mut budgets, start) = (HashMap::new(), Instant::now());
        let prints = |task: &str| (Spoken::Printed, task.to_owned());
        for _ in 0..20 {
            assert_eq!(admit(&mut budgets, &prints("a"), start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(admit(&mut budgets, &prints("a"), start + Duration::from_millis(90)), None);
        }
        assert_eq!(admit(&mut budgets, &prints("b"), start), Some(0), "another task has its own");
        assert_eq!(
            admit(&mut budgets, &(Spoken::Warned, "a".to_owned()), start),
            Some(0),
            "warnings have theirs"
        );
        let later = start + Duration::from_millis(1090);
        assert_eq!(admit(&mut budgets, &prints("a"), later), Some(7));
        assert_eq!(admit(&mut budgets, &prints("a"), later), None);
        for task in 0..2 * TASKS {
            assert_eq!(admit(&mut budgets, &prints(&task.to_string()), later), Some(0));
        }
        assert!(budgets.len() <= TASKS);
    }
}
