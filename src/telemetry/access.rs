//! One line for each request, or for a sample of them.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::AccessPolicy;

const OK_PER_SECOND: u32 = 20;
const FAILED_PER_SECOND: u32 = 100;

/// Decides which requests get a line.
#[derive(Debug)]
pub struct AccessLog {
    policy: AccessPolicy,
    windows: Mutex<[Window; 2]>,
}

#[derive(Debug, Clone, Copy)]
struct Window {
    since: Instant,
    written: u32,
    suppressed: u64,
}

impl AccessLog {
    /// A log by that policy.
    pub fn new(policy: AccessPolicy) -> Self {
        Self { policy, windows: Mutex::new([Window { since: Instant::now(), written: 0, suppressed: 0 }; 2]) }
    }

    /// Whether to write a line, and how many of its kind were left out since the last one.
    pub fn admit(&self, ok: bool) -> Option<u64> {
        match self.policy {
            AccessPolicy::All => return Some(0),
            AccessPolicy::Off => return None,
            AccessPolicy::Sampled => {}
        }
        let most = if ok { OK_PER_SECOND } else { FAILED_PER_SECOND };
        let now = Instant::now();
        let mut windows = self.windows.lock();
        let window = windows.get_mut(usize::from(ok))?;
        if now.duration_since(window.since) >= Duration::from_secs(1) {
            window.since = now;
            window.written = 0;
        }
        if window.written == most {
            window.suppressed += 1;
            return None;
        }
        window.written += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sample_counts_what_it_leaves_out() {
        let log = AccessLog::new(AccessPolicy::Sampled);
        assert_eq!((0..100).filter(|_| log.admit(true).is_some()).count(), 20);
        assert_eq!((0..500).filter(|_| log.admit(false).is_some()).count(), 100);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(log.admit(true), Some(80));
        assert_eq!(log.admit(true), Some(0));
    }
}
