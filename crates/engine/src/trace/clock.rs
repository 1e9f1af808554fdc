//! From the clock by which times are taken to the one in which spans are written.

use std::time::SystemTime;

use tokio::time::Instant;

/// One look at both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    instant: Instant,
    wall: SystemTime,
}

impl Clock {
    pub(super) fn now() -> Self {
        Self { instant: Instant::now(), wall: SystemTime::now() }
    }

    /// What the wall clock said, or will say, at that time, unless it is set meanwhile: spans that use the same look stand
    /// to each other as their times do.
    pub(super) fn wall(self, at: Instant) -> SystemTime {
        match at.checked_duration_since(self.instant) {
            Some(later) => self.wall.checked_add(later),
            None => self.wall.checked_sub(self.instant.saturating_duration_since(at)),
        }
        .unwrap_or(self.wall)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_keep_their_distance() {
        let clock = Clock::now();
        let ms = Duration::from_millis;
        let (before, after) = (clock.instant - ms(3), clock.instant + ms(4));
        assert_eq!(clock.wall(clock.instant), clock.wall);
        assert_eq!(clock.wall(after).duration_since(clock.wall(before)).unwrap(), ms(7));
    }
}
