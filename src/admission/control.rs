//! The lane of admin calls: a flood of inference does not delay them, and they are bounded all the same.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, Reason, Result};

/// Few at once, some waiting, no more.
#[derive(Debug, Clone)]
pub struct ControlLane {
    at_once: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    queue: usize,
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ControlLane {
    /// `at_once` calls run, `queue` more may wait.
    pub fn new(at_once: usize, queue: usize) -> Self {
        Self { at_once: Arc::new(Semaphore::new(at_once.max(1))), waiting: Arc::default(), queue }
    }

    /// Waits for a place, first come first served.
    ///
    /// # Errors
    /// Too many wait already.
    pub async fn enter(&self) -> Result<OwnedSemaphorePermit> {
        let waiting = Waiting(&self.waiting);
        if self.waiting.fetch_add(1, Ordering::Relaxed) > self.queue {
            let message = "too many admin calls wait already (admission.control_queue)";
            return Err(Error::new(Reason::QueueFull, message).with_retry_after(Duration::from_secs(1)));
        }
        let place = self.at_once.clone().acquire_owned().await;
        drop(waiting);
        place.map_err(|_| Error::new(Reason::ShuttingDown, "the server is stopping"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_queue_is_bounded_and_leaving_frees_a_place() {
        let lane = ControlLane::new(1, 1);
        let held = lane.enter().await.unwrap();
        let mut first = Box::pin(lane.enter());
        let mut second = Box::pin(lane.enter());
        assert!(futures::poll!(&mut first).is_pending());
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(lane.enter().await.unwrap_err().reason(), Reason::QueueFull);
        drop(second);
        drop(held);
        let _place = first.await.unwrap();
    }
}
