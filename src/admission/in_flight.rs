//! Bytes of messages that are in the process: requests being read, waiting or running, and answers on their way.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// Bytes of a message that may use the whole limit. What is larger leaves an eighth of it free, so that large messages that
/// come slowly cannot keep small urgent ones out.
const SMALL: u64 = 64 << 10;

/// The counts, shared by all connections and I/O threads: of requests and of answers, each with the same limit. So answers that
/// nobody takes keep no requests out.
#[derive(Debug)]
pub struct InFlightBytes {
    requests: AtomicU64,
    answers: AtomicU64,
    limit: u64,
}

impl InFlightBytes {
    /// At most `limit` bytes of requests at once, and as many of answers.
    pub fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self { requests: AtomicU64::new(0), answers: AtomicU64::new(0), limit: limit.max(1) })
    }

    /// Bytes now, of both.
    pub fn now(&self) -> u64 {
        self.requests.load(Ordering::Relaxed) + self.answers.load(Ordering::Relaxed)
    }

    /// What they are of the limit, 0 to 1; of those that are nearer to it.
    pub fn ratio(&self) -> f64 {
        self.requests.load(Ordering::Relaxed).max(self.answers.load(Ordering::Relaxed)) as f64
            / self.limit as f64
    }

    /// Answers are over half of what they may be: who does not take one is not waited for as long as otherwise.
    pub fn is_short(&self) -> bool {
        self.answers.load(Ordering::Relaxed) > self.limit / 2
    }

    /// Whether `bytes` more were counted in `count`; `whole`: of a message that has so many.
    fn add(&self, count: &AtomicU64, bytes: u64, whole: u64) -> bool {
        let limit = if whole <= SMALL { self.limit } else { self.limit - self.limit / 8 };
        let within = |now: u64| now.checked_add(bytes).filter(|sum| *sum <= limit);
        count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_ok()
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
        let whole = self.bytes.load(Ordering::Relaxed).saturating_add(bytes);
        let counted = self.of.add(&self.of.requests, bytes, whole);
        if counted {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        counted
    }

    /// Counts the answer to it. `None`: that would be over the limit.
    pub fn answer(&self, bytes: u64) -> Option<HeldAnswer> {
        let counted = self.of.add(&self.of.answers, bytes, bytes);
        counted.then(|| HeldAnswer { of: self.of.clone(), bytes })
    }

    /// Counts a part of an answer that is sent already, even where it is over the limit.
    pub fn part_of_answer(&self, bytes: u64) -> HeldAnswer {
        self.of.answers.fetch_add(bytes, Ordering::Relaxed);
        HeldAnswer { of: self.of.clone(), bytes }
    }

    /// Hands over what has been counted: to a message that is there as a whole, while the next one of its stream is read.
    #[must_use]
    pub fn take(&self) -> Self {
        Self { of: self.of.clone(), bytes: AtomicU64::new(self.bytes.swap(0, Ordering::Relaxed)) }
    }
}

impl Drop for MessageBytes {
    fn drop(&mut self) {
        self.of.requests.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// Bytes of an answer; freed when dropped.
#[derive(Debug)]
pub struct HeldAnswer {
    of: Arc<InFlightBytes>,
    bytes: u64,
}

impl Drop for HeldAnswer {
    fn drop(&mut self) {
        self.of.answers.fetch_sub(self.bytes, Ordering::Relaxed);
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
    fn answers_have_an_account_of_their_own() {
        let all = InFlightBytes::new(80 * SMALL);
        let request = MessageBytes::new(all.clone());
        let large: Vec<_> = (0..70).map_while(|_| request.answer(2 * SMALL)).collect();
        assert_eq!((large.len(), all.now(), all.is_short()), (35, 70 * SMALL, true));
        assert!(request.answer(SMALL).is_some(), "the last eighth is for small ones");
        assert!(request.add(SMALL), "requests are let in");
        assert_eq!(all.ratio(), 70.0 / 80.0);
        let part = request.part_of_answer(100 * SMALL);
        assert!(request.answer(1).is_none());
        drop((part, large));
        assert!(!all.is_short() && all.now() == SMALL);
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
