//! Threads that load, warm up and drop models, away from those that serve.

use std::{
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::backend::{Backend, ThreadRole};

type Work = Box<dyn FnOnce() + Send>;

/// A few threads of the lowest CPU priority that the system gives.
#[derive(Debug)]
pub struct LoaderPool {
    work: Option<mpsc::SyncSender<Work>>,
    threads: Vec<JoinHandle<()>>,
}

/// Work that may wait for a thread. The manager admits one change a model at a time, so this is not reached in practice.
const QUEUE: usize = 4096;

impl LoaderPool {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn start(threads: usize, backend: &Arc<dyn Backend>) -> std::io::Result<Self> {
        let (work, queue) = mpsc::sync_channel::<Work>(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        let threads = (0..threads.max(1))
            .map(|index| {
                let (queue, backend) = (queue.clone(), backend.clone());
                std::thread::Builder::new().name(format!("load-{index}")).spawn(move || {
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
        Ok(Self { work: Some(work), threads })
    }

    /// Runs `work` on a loader thread. `None` if it panicked or the pool is closing.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (done, result) = oneshot::channel();
        let task = move || {
            // A panic ends this piece of work, not the thread.
            if let Ok(value) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
                let _nobody_waits = done.send(value);
            }
        };
        self.work.as_ref()?.try_send(Box::new(task)).ok()?;
        result.await.ok()
    }
}

impl Drop for LoaderPool {
    fn drop(&mut self) {
        self.work = None;
        for thread in self.threads.drain(..) {
            let _panicked = thread.join();
        }
    }
}
