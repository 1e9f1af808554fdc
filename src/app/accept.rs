//! What to do when a connection cannot be accepted, which mostly means that descriptors are short: try again after a pause
//! that grows, and log it now and then.

use std::{io, time::Duration};

use tokio::time::Instant;

/// Before the next try; twice as long each time.
const FIRST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_secs(1);
/// Between two lines in the log.
const QUIET: Duration = Duration::from_secs(10);

/// How one listener fares.
#[derive(Debug)]
pub(super) struct Accepting {
    port: &'static str,
    pause: Duration,
    /// Failures since the last line, and when that was.
    failures: u64,
    logged: Option<Instant>,
}

impl Accepting {
    pub(super) fn new(port: &'static str) -> Self {
        Self { port, pause: FIRST, failures: 0, logged: None }
    }

    /// A connection was accepted.
    pub(super) fn well(&mut self) {
        self.pause = FIRST;
    }

    /// None could be. Returns when to try again.
    pub(super) async fn failed(&mut self, error: &io::Error) {
        let pause = self.note(error, Instant::now());
        tokio::time::sleep(pause).await;
    }

    fn note(&mut self, error: &io::Error, now: Instant) -> Duration {
        self.failures += 1;
        if self.logged.is_none_or(|at| now.saturating_duration_since(at) >= QUIET) {
            let failures = std::mem::take(&mut self.failures);
            tracing::warn!(port = self.port, %error, failures, "cannot accept connections: raise the limit on open files (ulimit -n), or lower the number of clients");
            self.logged = Some(now);
        }
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_grows_and_lines_are_few() {
        let (mut accepting, began) = (Accepting::new("grpc"), Instant::now());
        let error = || io::Error::from_raw_os_error(24);
        let (mut now, mut lines) = (began, 0);
        for _ in 0..100 {
            let before = accepting.logged;
            now += accepting.note(&error(), now);
            lines += u32::from(accepting.logged != before);
        }
        let took = now - began;
        assert!(took > Duration::from_secs(90), "{took:?}: the processor is not kept busy");
        assert!((9..=11).contains(&lines), "{lines} lines in {took:?}");
        accepting.well();
        assert_eq!(accepting.note(&error(), now), FIRST);
    }
}
