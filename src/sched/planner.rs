//! How many rows the next batch takes. Pure.

use std::time::Duration;

/// What is known about a model's speed, by rows in a pass.
pub trait LatencyProfile {
    /// Time of one pass with that many rows, where it is known.
    fn pass(&self, rows: usize) -> Option<Duration>;
}

/// What the planner looks at.
pub struct PlanInput<'a> {
    /// The model's limit.
    pub max_batch: usize,
    /// Rows that wait and could share the batch, the first job's included.
    pub waiting_rows: usize,
    /// Executors that have nothing to do, not counting the one that asks.
    pub idle_executors: usize,
    /// Learned latencies, where there are any.
    pub profile: Option<&'a dyn LatencyProfile>,
}

/// Most rows for the next batch. Never 0.
///
/// Without a profile: everything that waits, up to the limit, but a fair part of it where other executors are idle:
/// two half batches side by side end sooner than one whole. With a profile: of the sizes up to that, the one with the
/// most rows a second.
pub fn rows_to_take(input: &PlanInput<'_>) -> usize {
    let fair = input.waiting_rows.div_ceil(input.idle_executors + 1);
    let most = fair.min(input.max_batch).max(1);
    let Some(profile) = input.profile else { return most };
    let speed = |rows: usize| profile.pass(rows).map(|time| rows as f64 / time.as_secs_f64().max(1e-9));
    (1..=most)
        .filter_map(|rows| Some((rows, speed(rows)?)))
        .max_by(|a, b| a.1.total_cmp(&b.1))
        .map_or(most, |(rows, _)| rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Table(&'static [(usize, u64)]);

    impl LatencyProfile for Table {
        fn pass(&self, rows: usize) -> Option<Duration> {
            self.0.iter().find(|(n, _)| *n == rows).map(|(_, us)| Duration::from_micros(*us))
        }
    }

    fn plan(
        max_batch: usize,
        waiting_rows: usize,
        idle_executors: usize,
        profile: Option<&dyn LatencyProfile>,
    ) -> usize {
        rows_to_take(&PlanInput { max_batch, waiting_rows, idle_executors, profile })
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
    fn a_model_that_does_not_profit_is_not_batched() {
        let flat = Table(&[(1, 100), (2, 210), (4, 430)]);
        assert_eq!(plan(4, 4, 0, Some(&flat)), 1);
        let gains = Table(&[(1, 100), (2, 120), (4, 400)]);
        assert_eq!(plan(4, 4, 0, Some(&gains)), 2);
        assert_eq!(plan(4, 4, 0, Some(&Table(&[]))), 4, "nothing known");
    }
}
