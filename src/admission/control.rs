//! The lane of admin calls: a flood of inference does not delay them, and they are bounded all the same.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use crate::error::{Error, Reason, Result};

/// Few at once, some waiting, no more.
#[derive(Debug, Clone)]
pub struct ControlLane {
    at_once: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    queue: usize,
    work: TaskTracker,
}

/// The right to change something. Let go of it once the change is made, even where there is something to wait for.
#[derive(Debug)]
pub struct ControlPlace(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl ControlLane {
    /// `at_once` calls run, `queue` more may wait.
    pub fn new(at_once: usize, queue: usize) -> Self {
        let at_once = Arc::new(Semaphore::new(at_once.max(1)));
        Self { at_once, waiting: Arc::default(), queue, work: TaskTracker::new() }
    }

    /// Waits for a place, first come first served, and does `work` in a task of its own: a change that was begun is
    /// carried through, whether its caller stays or not. It holds its place until the work is done or lets go of it.
    /// `late` is what to say when the deadline passes after the work has begun.
    ///
    /// # Errors
    /// Too many wait already; the deadline passed; or what `work` says.
    pub async fn run<T, W>(
        &self,
        deadline: Option<Instant>,
        late: &'static str,
        work: impl FnOnce(ControlPlace) -> W,
    ) -> Result<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let place = within(
            deadline,
            self.enter(),
            || "the deadline passed while other admin calls ran: nothing was changed",
        )
        .await?;
        let (done, outcome) = oneshot::channel();
        let work = work(ControlPlace(place));
        self.work.spawn(async move {
            let _caller_left = done.send(work.await);
        });
        let outcome = async { outcome.await.unwrap_or_else(|_| Err(stopping())) };
        within(deadline, outcome, || late).await
    }

    /// No work is under way and nobody waits to begin any.
    pub fn is_idle(&self) -> bool {
        self.work.is_empty() && self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Waits until no work is under way.
    pub async fn finish(&self) {
        self.work.close();
        self.work.wait().await;
    }

    async fn enter(&self) -> Result<OwnedSemaphorePermit> {
        let waiting = Waiting(&self.waiting);
        let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
        let place = match self.at_once.clone().try_acquire_owned() {
            Ok(place) => return Ok(place),
            Err(_) if ahead >= self.queue => {
                let message = "too many admin calls wait already (admission.control_queue)";
                return Err(Error::new(Reason::QueueFull, message).with_retry_after(Duration::from_secs(1)));
            }
            Err(_) => self.at_once.clone().acquire_owned().await,
        };
        drop(waiting);
        place.map_err(|_| stopping())
    }
}

async fn within<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<T>>,
    late: impl FnOnce() -> &'static str,
) -> Result<T> {
    match deadline {
        None => work.await,
        Some(deadline) => timeout_at(deadline, work)
            .await
            .unwrap_or_else(|_| Err(Error::new(Reason::DeadlineExceeded, late()))),
    }
}

fn stopping() -> Error {
    Error::new(Reason::ShuttingDown, "the server stopped before this was done")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_queue_is_bounded_and_leaving_frees_a_place() {
        let lane = ControlLane::new(1, 1);
        let held = lane.enter().await.unwrap();
        let mut first = Box::pin(lane.enter());
        assert!(futures::poll!(&mut first).is_pending());
        assert_eq!(lane.enter().await.unwrap_err().reason(), Reason::QueueFull);
        drop(first);
        let mut second = Box::pin(lane.enter());
        assert!(futures::poll!(&mut second).is_pending());
        drop(held);
        let _place = second.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_begun_goes_on_and_what_was_not_changes_nothing() {
        let lane = ControlLane::new(1, 8);
        let soon = || Some(Instant::now() + Duration::from_secs(1));
        let (release, held) = oneshot::channel::<()>();
        let begun = lane
            .run(soon(), "it goes on", async move |_place| {
                let _released = held.await;
                Ok(())
            })
            .await
            .unwrap_err();
        assert_eq!(begun.message(), "it goes on");
        let waited = lane.run(soon(), "", async move |_place| Ok(())).await.unwrap_err();
        assert!(waited.message().contains("nothing was changed"), "{waited}");
        assert!(!lane.is_idle(), "the place is held by the work, not by its caller");
        release.send(()).unwrap();
        lane.finish().await;
        assert!(lane.is_idle());
        lane.run(None, "", async move |_place| Ok(())).await.unwrap();
    }
}
