//! How many rows the next batch takes. Pure.

use std::time::Duration;

use super::{Profile, RowClass, profile::filled};

/// What the planner looks at.
#[derive(Debug)]
pub struct PlanInput<'a> {
    /// The model's limit.
    pub max_batch: usize,
    /// Rows that wait and could share the batch, the first job's included.
    pub waiting_rows: usize,
    /// Executors that have nothing to do, not counting the one that asks.
    pub idle_executors: usize,
    /// What passes take, and the class of the rows.
    pub profile: Option<(&'a Profile, RowClass)>,
    /// Sizes that passes are padded to, ascending; empty: none are.
    pub buckets: &'a [usize],
    /// Longest that the pass may take: others wait for it to end.
    pub within: Duration,
}

/// Most rows for the next batch. Never 0.
///
/// Everything that waits, up to the limit, but a fair part of it where other executors are idle: two half batches side by
/// side end sooner than one whole. Of the sizes up to that, the one with the most rows a second by the profile.
pub fn rows_to_take(input: &PlanInput<'_>) -> usize {
    let fair = input.waiting_rows.div_ceil(input.idle_executors + 1);
    let most = fair.min(input.max_batch).max(1);
    match input.profile {
        Some((profile, class)) => profile.best_rows(class, most, input.within, input.buckets),
        None => filled(input.buckets, most),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(
        max_batch: usize,
        waiting_rows: usize,
        idle_executors: usize,
        profile: Option<&Profile>,
    ) -> usize {
        let profile = profile.map(|profile| (profile, RowClass::default()));
        let within = Duration::from_millis(25);
        rows_to_take(&PlanInput { max_batch, waiting_rows, idle_executors, profile, buckets: &[], within })
    }

    #[test]
    fn takes_what_waits_up_to_the_limit() {
        assert_eq!(plan(8, 3, 0, None), 3);
        assert_eq!(plan(8, 30, 0, None), 8);
        assert_eq!(plan(8, 0, 0, None), 1);
    }

    #[test]
    fn shares_with_idle_executors() {
        assert_eq!(plan(32, 10, 1, None), 5);
        assert_eq!(plan(32, 1, 3, None), 1);
    }

    #[test]
    fn asks_the_profile_for_the_best_size() {
        let profile = Profile::default();
        assert_eq!(plan(4, 4, 0, Some(&profile)), 4, "nothing known");
        for (rows, ms) in [(1, 10), (2, 12), (4, 40)] {
            profile.record(RowClass::default(), rows, Duration::from_millis(ms));
        }
        assert_eq!(plan(4, 4, 0, Some(&profile)), 2);
    }
}
