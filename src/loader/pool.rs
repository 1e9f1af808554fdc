//! Threads that load, warm up and drop models, away from those that serve.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    backend::{Backend, ThreadRole},
    threads,
};

type Work = Box<dyn FnOnce() + Send>;

/// A few threads of the lowest CPU priority that the system gives.
#[derive(Debug)]
pub struct LoaderPool {
    work: Option<mpsc::SyncSender<Work>>,
    threads: Vec<JoinHandle<()>>,
    closed: Arc<AtomicBool>,
}

/// Why work has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The pool was closed before the work began.
    Closed,
    /// The work panicked; the panic hook has logged where.
    Panicked,
}

/// libtorch's compiler calls itself for what is nested in a model's code. `archive::safety` bounds the nesting for this
/// much stack, of which only what is used takes memory.
const STACK_BYTES: usize = 64 << 20;

/// Work that may wait for a thread. The manager admits one change a model at a time, so this is not reached in practice.
const QUEUE: usize = 4096;

impl LoaderPool {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn start(threads: usize, backend: &Arc<dyn Backend>) -> std::io::Result<Self> {
        let (work, queue) = mpsc::sync_channel::<Work>(QUEUE);
        let closed = Arc::new(AtomicBool::new(false));
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..threads.max(1))
            .map(|index| {
                let (queue, backend) = (queue.clone(), backend.clone());
                let thread =
                    std::thread::Builder::new().name(format!("load-{index}")).stack_size(STACK_BYTES);
                thread.spawn(move || {
                    // On Linux this is the thread's own priority. Without it loading still works, only less politely.
                    if let Err(error) = rustix::process::setpriority_process(None, 19) {
                        tracing::warn!(%error, "loader threads keep normal CPU priority");
                    }
                    let _guard = backend.enter_thread(ThreadRole::Loader);
                    loop {
                        let next = queue.lock().recv();
                        match next {
                            Ok(work) => {
                                work();
                                backend.release_memory();
                            }
                            Err(mpsc::RecvError) => return,
                        }
                    }
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { work: Some(work), threads, closed })
    }

    /// Runs `work` on a loader thread.
    ///
    /// # Errors
    /// It panicked, or the pool is closed.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (done, result) = oneshot::channel();
        let closed = self.closed.clone();
        let task = move || {
            if closed.load(Ordering::Relaxed) {
                let _nobody_waits = done.send(Err(Stopped::Closed));
                return;
            }
            // A panic ends this piece of work, not the thread.
            if let Ok(value) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
                let _nobody_waits = done.send(Ok(value));
            }
        };
        let queued = self.work.as_ref().is_some_and(|work| work.try_send(Box::new(task)).is_ok());
        if !queued {
            return Err(Stopped::Closed);
        }
        result.await.unwrap_or(Err(Stopped::Panicked))
    }

    /// Begins no more work: what waits is told so.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }
}

/// A load cannot be broken off. One that takes longer than this is left to the end of the process.
const PATIENCE: Duration = Duration::from_millis(500);

impl Drop for LoaderPool {
    fn drop(&mut self) {
        self.close();
        self.work = None;
        if !threads::join(std::mem::take(&mut self.threads), PATIENCE) {
            tracing::warn!("a model was still loading: it is abandoned");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::FakeBackend;

    #[tokio::test]
    async fn closing_tells_those_who_wait_and_a_panic_ends_one_piece_of_work() {
        let backend: Arc<dyn Backend> = Arc::new(FakeBackend);
        let pool = LoaderPool::start(1, &backend).unwrap();
        assert_eq!(pool.run(|| panic!("bug")).await, Err::<(), _>(Stopped::Panicked));
        assert_eq!(pool.run(|| 1).await, Ok(1));
        let (begun, has_begun) = mpsc::channel();
        let (release, held) = mpsc::channel();
        let mut running = Box::pin(pool.run(move || begun.send(()).map(|()| held.recv())));
        assert!(futures::poll!(&mut running).is_pending());
        has_begun.recv().unwrap();
        let mut waiting = Box::pin(pool.run(|| 2));
        assert!(futures::poll!(&mut waiting).is_pending());
        pool.close();
        release.send(3).unwrap();
        assert_eq!(running.await.unwrap().unwrap(), Ok(3), "what has begun is seen through");
        assert_eq!(waiting.await, Err(Stopped::Closed));
    }
}
