//! Accepts connections for both ports. If one cannot be accepted, which mostly means that descriptors are short, it tries again
//! after a pause that grows, and logs it now and then.

use std::{io, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::peers::Peers;
use crate::{admission::Connected, telemetry::Door};

/// Before the next try; twice as long each time.
const FIRST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_secs(1);
/// Between two lines in the log.
const QUIET: Duration = Duration::from_secs(10);

/// How one listener fares.
#[derive(Debug)]
pub(super) struct Accepting {
    door: Door,
    pause: Duration,
    /// Failures since the last line, and when that was.
    failures: u64,
    logged: Option<Instant>,
}

impl Accepting {
    pub(super) fn new(door: Door) -> Self {
        Self { door, pause: FIRST, failures: 0, logged: None }
    }

    /// The next connection that its caller may have; `None` after `stop`.
    pub(super) async fn next(
        &mut self,
        listener: &TcpListener,
        peers: &Peers,
        stop: &CancellationToken,
    ) -> Option<(TcpStream, Connected)> {
        loop {
            match stop.run_until_cancelled(listener.accept()).await? {
                Ok((stream, from)) => {
                    self.well();
                    let Some(connected) = peers.connect(self.door, from) else { continue };
                    let _best_effort = stream.set_nodelay(true);
                    return Some((stream, connected));
                }
                Err(error) => {
                    let pause = self.note(&error, Instant::now());
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    fn well(&mut self) {
        self.pause = FIRST;
    }

    fn note(&mut self, error: &io::Error, now: Instant) -> Duration {
        self.failures += 1;
        if self.logged.is_none_or(|at| now.saturating_duration_since(at) >= QUIET) {
            let failures = std::mem::take(&mut self.failures);
            tracing::warn!(port = self.door.as_str(), %error, failures, "cannot accept connections: raise the limit on open files (ulimit -n), or lower the number of clients");
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
        let (mut accepting, began) = (Accepting::new(Door::Grpc), Instant::now());
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
