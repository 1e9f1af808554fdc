//! The lane of admin calls: a flood of inference does not delay them, and they are bounded all the same.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

use torchlane_model::error::{Error, Reason, Result};

/// Few at once, some waiting, no more. One more place is kept for calls that undo: slow reloads do not keep a rollback
/// waiting.
#[derive(Debug, Clone)]
pub struct ControlLane {
    at_once: Arc<Semaphore>,
    undo: Arc<Semaphore>,
    waiting: Arc<AtomicUsize>,
    queue: usize,
    work: TaskTracker,
    /// Work runs here, not on the thread that reads the call: it goes on when that thread ends.
    runtime: Handle,
}

/// What an admin call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errand {
    /// It brings something new.
    Change,
    /// It takes something back: a rollback, the end of a rollout, an unload.
    Undo,
}

/// Calls that undo and may wait beyond the others: a full queue of changes refuses no rollback.
const UNDO_QUEUE: usize = 64;

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
    /// `at_once` calls run, on `runtime`, and one more that undoes; `queue` more may wait.
    pub fn new(at_once: usize, queue: usize, runtime: Handle) -> Self {
        let (at_once, undo) = (Arc::new(Semaphore::new(at_once.max(1))), Arc::new(Semaphore::new(1)));
        Self { at_once, undo, waiting: Arc::default(), queue, work: TaskTracker::new(), runtime }
    }

    /// Waits for a place, first come first served, and does `work` in a task of its own: a change that was begun is
    /// carried through, whether its caller stays or not. It holds its place until the work is done or lets go of it.
    /// `late` is what to say when the deadline passes after the work has begun.
    ///
    /// # Errors
    /// Too many wait already; the deadline passed; or what `work` says.
    pub async fn run<T, W>(
        &self,
        errand: Errand,
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
            self.enter(errand),
            || "the deadline passed while other admin calls ran: nothing was changed",
        )
        .await?;
        let (done, outcome) = oneshot::channel();
        let work = work(ControlPlace(place));
        let carry_out = async move {
            let _caller_left = done.send(work.await);
        };
        self.work.spawn_on(carry_out, &self.runtime);
        // The work panicked, or the server has ended.
        let outcome = async { outcome.await.unwrap_or_else(|_| Err(unfinished(self.work.is_closed()))) };
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

    async fn enter(&self, errand: Errand) -> Result<OwnedSemaphorePermit> {
        let waiting = Waiting(&self.waiting);
        let ahead = self.waiting.fetch_add(1, Ordering::Relaxed);
        let undoes = errand == Errand::Undo;
        let kept = || undoes.then(|| self.undo.clone().try_acquire_owned().ok()).flatten();
        let free = self.at_once.clone().try_acquire_owned().ok();
        let place = match free.or_else(kept) {
            Some(place) => return Ok(place),
            None if ahead >= self.queue + if undoes { UNDO_QUEUE } else { 0 } => {
                let message = "too many admin calls wait already (admission.control_queue)";
                return Err(Error::new(Reason::QueueFull, message).with_retry_after(Duration::from_secs(1)));
            }
            None => {
                let kept = async {
                    if undoes {
                        self.undo.clone().acquire_owned().await
                    } else {
                        std::future::pending().await
                    }
                };
                tokio::select! {
                    place = self.at_once.clone().acquire_owned() => place,
                    place = kept => place,
                }
            }
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

fn unfinished(ends: bool) -> Error {
    if ends {
        stopping()
    } else {
        Error::new(Reason::Internal, "a bug in torchlane: the server's log says where")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_queue_is_bounded_and_leaving_frees_a_place() {
        let lane = ControlLane::new(1, 1, Handle::current());
        let held = lane.enter(Errand::Change).await.unwrap();
        let mut first = Box::pin(lane.enter(Errand::Change));
        assert!(futures::poll!(&mut first).is_pending());
        assert_eq!(lane.enter(Errand::Change).await.unwrap_err().reason(), Reason::QueueFull);
        drop(first);
        let mut second = Box::pin(lane.enter(Errand::Change));
        assert!(futures::poll!(&mut second).is_pending());
        drop(held);
        let _place = second.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_begun_goes_on_and_what_was_not_changes_nothing() {
        let lane = ControlLane::new(1, 8, Handle::current());
        let soon = || Some(Instant::now() + Duration::from_secs(1));
        let (release, held) = oneshot::channel::<()>();
        let begun = lane
            .run(Errand::Change, soon(), "it goes on", async move |_place| {
                let _released = held.await;
                Ok(())
            })
            .await
            .unwrap_err();
        assert_eq!(begun.message(), "it goes on");
        let waited = lane.run(Errand::Change, soon(), "", async move |_place| Ok(())).await.unwrap_err();
        assert!(waited.message().contains("nothing was changed"), "{waited}");
        assert!(!lane.is_idle(), "the place is held by the work, not by its caller");
        release.send(()).unwrap();
        lane.finish().await;
        assert!(lane.is_idle());
        lane.run(Errand::Change, None, "", async move |_place| Ok(())).await.unwrap();
    }

    #[tokio::test]
    async fn what_undoes_has_a_place_of_its_own() {
        let lane = ControlLane::new(1, 0, Handle::current());
        let slow = lane.enter(Errand::Change).await.unwrap();
        assert_eq!(lane.enter(Errand::Change).await.unwrap_err().reason(), Reason::QueueFull);
        let undo = lane.enter(Errand::Undo).await.unwrap();
        let mut next = Box::pin(lane.enter(Errand::Undo));
        assert!(futures::poll!(&mut next).is_pending());
        drop(undo);
        let undo = next.await.unwrap();
        let mut next = Box::pin(lane.enter(Errand::Undo));
        assert!(futures::poll!(&mut next).is_pending());
        drop(slow);
        let _either = next.await.unwrap();
        drop(undo);
        assert!(lane.enter(Errand::Change).await.is_err(), "the kept place is for what undoes");
    }

    #[test]
    fn what_was_begun_outlives_the_thread_that_read_the_call() {
        let outlives = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let lane = ControlLane::new(1, 1, outlives.handle().clone());
        let (release, held) = oneshot::channel::<()>();
        let (done, is_done) = std::sync::mpsc::channel();
        let work = async move |_place| {
            let _released = held.await;
            done.send(()).map_err(|_| stopping())
        };
        let on_io = lane.clone();
        std::thread::spawn(move || {
            let io = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            io.block_on(async move {
                let mut call = Box::pin(on_io.run(Errand::Change, None, "", work));
                assert!(futures::poll!(&mut call).is_pending());
            });
        })
        .join()
        .unwrap();
        release.send(()).unwrap();
        outlives.block_on(lane.finish());
        is_done.try_recv().unwrap();
    }

    #[tokio::test]
    async fn a_change_that_panics_is_a_bug_and_not_the_end_of_the_server() {
        let lane = ControlLane::new(1, 1, Handle::current());
        let outcome = lane.run::<(), _>(Errand::Change, None, "", async |_place| panic!("bug")).await;
        assert_eq!(outcome.unwrap_err().reason(), Reason::Internal);
        assert!(lane.is_idle());
    }
}
