//! Bytes of messages that are in the process: requests being read, waiting or running, and answers on their way.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Bytes of a message that may use the whole limit. What is larger leaves an eighth of it free, so that large messages that
/// come slowly cannot keep small urgent ones out.
const SMALL: u64 = 64 << 10;

/// The count, shared by all connections and I/O threads. Requests never go over its limit; answers may.
#[derive(Debug)]
pub struct InFlightBytes {
    now: AtomicU64,
    limit: u64,
}

impl InFlightBytes {
    /// At most `limit` bytes at once.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { now: AtomicU64::new(0), limit: limit.max(1) })
    }

    /// Bytes now.
    pub fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// What they are of the limit, 0 to 1.
    pub fn ratio(&self) -> f64 {
        self.now() as f64 / self.limit as f64
    }
}

/// Bytes of one message, or of what has been read of it; freed when dropped.
#[derive(Debug)]
pub struct MessageBytes {
    of: Arc<InFlightBytes>,
    bytes: AtomicU64,
}

impl MessageBytes {
    /// None yet.
    pub fn new(of: Arc<InFlightBytes>) -> Self {
        Self { of, bytes: AtomicU64::new(0) }
    }

    /// Counts `bytes` more. False, and nothing is counted, if that would be over the limit.
    #[must_use]
    pub fn add(&self, bytes: u64) -> bool {
        let small = self.bytes.load(Ordering::Relaxed).saturating_add(bytes) <= SMALL;
        let limit = if small { self.of.limit } else { self.of.limit - self.of.limit / 8 };
        let within = |now: u64| now.checked_add(bytes).filter(|sum| *sum <= limit);
        let counted = self.of.now.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_ok();
        if counted {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        counted
    }

    /// Counts an answer: it is there, so it is counted even where that is over the limit, and keeps requests out.
    #[must_use]
    pub fn of_answer(&self, bytes: u64) -> Self {
        self.of.now.fetch_add(bytes, Ordering::Relaxed);
        Self { of: self.of.clone(), bytes: AtomicU64::new(bytes) }
    }

    /// Hands over what has been counted: to a message that is there as a whole, while the next one of its stream is read.
    #[must_use]
    pub fn take(&self) -> Self {
        Self { of: self.of.clone(), bytes: AtomicU64::new(self.bytes.swap(0, Ordering::Relaxed)) }
    }
}

impl Drop for MessageBytes {
    fn drop(&mut self) {
        self.of.now.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_freed_once_whoever_holds_them() {
        let all = InFlightBytes::new(100);
        let reading = MessageBytes::new(all.clone());
        assert!(reading.add(40));
        let message = reading.take();
        assert!(reading.add(60) && !reading.add(1) && !MessageBytes::new(all.clone()).add(1));
        assert_eq!((all.now(), all.ratio()), (100, 1.0), "what is refused is not counted");
        drop(message);
        assert_eq!(all.now(), 60);
        drop(reading);
        assert_eq!(all.now(), 0);
        assert!(!MessageBytes::new(all).add(u64::MAX));
    }

    #[test]
    fn an_answer_keeps_requests_out() {
        let all = InFlightBytes::new(100);
        let request = MessageBytes::new(all.clone());
        let answer = request.of_answer(150);
        assert!(all.now() == 150 && !request.add(1));
        drop(answer);
        assert!(request.add(1));
    }

    #[test]
    fn large_messages_leave_room_for_small_ones() {
        let all = InFlightBytes::new(80 * SMALL);
        let large = MessageBytes::new(all.clone());
        assert!((0..70).all(|_| large.add(SMALL)) && !large.add(SMALL));
        let small: Vec<_> = (0..10).map(|_| MessageBytes::new(all.clone())).collect();
        assert!(small.iter().all(|message| message.add(SMALL)), "the last eighth");
    }

    #[test]
    fn threads_together_stay_within_the_limit() {
        let all = InFlightBytes::new(1000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..2000 {
                        let message = MessageBytes::new(all.clone());
                        let _may_be_full = message.add(i % 700);
                        assert!(all.now() <= 1000);
                    }
                });
            }
        });
        assert_eq!(all.now(), 0);
    }
}
