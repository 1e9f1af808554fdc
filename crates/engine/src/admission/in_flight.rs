//! Bytes of messages that are in the process: requests being read, waiting or running, and answers on their way. Both count for
//! their caller, in accounts of their own: answers that a caller does not take keep no requests out.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::Account;

/// Bytes of a message that may use the whole limit, and all of its caller's part. What is larger leaves an eighth of both free, so
/// that large messages that come slowly cannot keep small urgent ones out.
const SMALL: u64 = 64 << 10;

/// Bytes of one message, or of what has been read of it; freed when dropped.
#[derive(Debug)]
pub struct MessageBytes {
    of: Arc<Account>,
    bytes: AtomicU64,
}

impl MessageBytes {
    /// None yet.
    pub fn new(of: Arc<Account>) -> Self {
        Self { of, bytes: AtomicU64::new(0) }
    }

    /// Who pays for them.
    pub fn account(&self) -> &Arc<Account> {
        &self.of
    }

    /// Counts `bytes` more. False, and nothing is counted, if that would be over the limit.
    #[must_use]
    pub fn add(&self, bytes: u64) -> bool {
        let whole = self.bytes.load(Ordering::Relaxed).saturating_add(bytes);
        let counted = self.of.all.requests.take(&self.of.requests, bytes, whole > SMALL);
        if counted {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
        counted
    }

    /// Frees up to `bytes` of them: they are gone, and the message is not.
    pub fn free(&self, bytes: u64) {
        let less = |now: u64| Some(now.saturating_sub(bytes));
        let before = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).unwrap_or(0);
        self.of.all.requests.give(&self.of.requests, before.min(bytes));
    }

    /// Counts the answer to it. `None`: that would be over the limit.
    pub fn answer(&self, bytes: u64) -> Option<HeldAnswer> {
        let counted = self.of.all.answers.take(&self.of.answers, bytes, bytes > SMALL);
        counted.then(|| HeldAnswer { of: self.of.clone(), bytes })
    }

    /// Hands over what has been counted: to a message that is there as a whole, while the next one of its stream is read.
    #[must_use]
    pub fn take(&self) -> Self {
        Self { of: self.of.clone(), bytes: AtomicU64::new(self.bytes.swap(0, Ordering::Relaxed)) }
    }
}

impl Drop for MessageBytes {
    fn drop(&mut self) {
        self.of.all.requests.give(&self.of.requests, *self.bytes.get_mut());
    }
}

/// Bytes of an answer; freed when dropped.
#[derive(Debug)]
pub struct HeldAnswer {
    of: Arc<Account>,
    bytes: u64,
}

impl HeldAnswer {
    /// How many they are.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for HeldAnswer {
    fn drop(&mut self) {
        self.of.all.answers.give(&self.of.answers, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_freed_once_whoever_holds_them() {
        let all = Account::alone(100);
        let reading = MessageBytes::new(all.clone());
        assert!(reading.add(40));
        let message = reading.take();
        assert!(reading.add(60) && !reading.add(1) && !MessageBytes::new(all.clone()).add(1));
        assert_eq!((all.now(), all.ratio()), (100, 1.0), "what is refused is not counted");
        drop(message);
        assert_eq!(all.now(), 60);
        reading.free(20);
        assert_eq!(all.now(), 40);
        reading.free(100);
        assert_eq!(all.now(), 0, "no more than there is");
        drop(reading);
        assert!(!MessageBytes::new(all).add(u64::MAX));
    }

    #[test]
    fn answers_have_an_account_of_their_own() {
        let all = Account::alone(80 * SMALL);
        let request = MessageBytes::new(all.clone());
        let large: Vec<_> = (0..70).map_while(|_| request.answer(2 * SMALL)).collect();
        assert_eq!((large.len(), all.now(), all.is_short()), (35, 70 * SMALL, true));
        assert!(request.answer(SMALL).is_some(), "the last eighth is for small ones");
        assert!(request.add(SMALL), "requests are let in");
        assert_eq!(all.ratio(), 70.0 / 80.0);
        let small: Vec<_> = (0..10).map_while(|_| request.answer(SMALL)).collect();
        assert!(small.len() == 10 && request.answer(1).is_none());
        drop((small, large));
        assert!(!all.is_short() && all.now() == SMALL);
    }

    #[test]
    fn large_messages_leave_room_for_small_ones() {
        let all = Account::alone(80 * SMALL);
        let large = MessageBytes::new(all.clone());
        assert!((0..70).all(|_| large.add(SMALL)) && !large.add(SMALL));
        let small: Vec<_> = (0..10).map(|_| MessageBytes::new(all.clone())).collect();
        assert!(small.iter().all(|message| message.add(SMALL)), "the last eighth");
    }

    #[test]
    fn threads_together_stay_within_the_limit() {
        let all = Account::alone(1000);
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
