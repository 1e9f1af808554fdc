//! What threads of several kinds share: their priority, their time, and an end where they cannot be broken off.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread::JoinHandle,
    time::Duration,
};

static LEFT_BEHIND: AtomicBool = AtomicBool::new(false);

/// Whether some thread of this process was left behind by [`join`].
pub fn left_behind() -> bool {
    LEFT_BEHIND.load(Ordering::Relaxed)
}

/// Joins threads. False if some had not ended after about `patience`: they are left to the end of the process.
pub fn join(threads: Vec<JoinHandle<()>>, patience: Duration) -> bool {
    let step = Duration::from_millis(1);
    let mut left = patience;
    while threads.iter().any(|thread| !thread.is_finished()) && !left.is_zero() {
        std::thread::sleep(step);
        left = left.saturating_sub(step);
    }
    let all = threads.iter().all(JoinHandle::is_finished);
    LEFT_BEHIND.fetch_or(!all, Ordering::Relaxed);
    for thread in threads {
        if thread.is_finished() {
            let _panicked = thread.join();
        }
    }
    all
}

/// The runtime of a thread that is to be started. It may be dropped anywhere, also if the thread cannot be started: a bare runtime
/// panics where other tasks run. Its end waits for no work on files.
#[derive(Debug)]
pub struct OwnRuntime(Option<tokio::runtime::Runtime>);

impl OwnRuntime {
    /// The runtime that `builder` makes.
    ///
    /// # Errors
    /// The system gives none.
    pub fn build(builder: &mut tokio::runtime::Builder) -> std::io::Result<Self> {
        builder.build().map(|runtime| Self(Some(runtime)))
    }

    /// Runs `work` to its end.
    pub fn block_on<F: Future>(&self, work: F) -> Option<F::Output> {
        Some(self.0.as_ref()?.block_on(work))
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Whether the system has threads left for this process: some libraries panic where it has none.
///
/// # Errors
/// It has none.
pub fn check() -> std::io::Result<()> {
    let thread = std::thread::Builder::new().name("check".to_owned()).spawn(|| ())?;
    let _ended = thread.join();
    Ok(())
}

/// CPU time of this thread so far.
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// This thread gets about a quarter of a CPU that another one wants too.
///
/// # Errors
/// The system does not allow it.
pub fn step_back() -> std::io::Result<()> {
    Ok(rustix::process::setpriority_process(None, 5)?)
}

/// This thread gets little more of a CPU than others leave: on Linux a priority is a thread's own.
///
/// # Errors
/// The system does not allow it.
pub fn give_way() -> std::io::Result<()> {
    Ok(rustix::process::setpriority_process(None, 19)?)
}

/// This thread gets nothing of a CPU but what others leave, and whoever wakes up takes a CPU that it runs on for a free one. No
/// way leads back, without a right that servers do not have. Where that cannot be had it gives way otherwise.
///
/// # Errors
/// The system does not allow either.
pub fn run_when_idle() -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use thread_priority::{
            NormalThreadSchedulePolicy::Idle, ThreadPriority, ThreadSchedulePolicy,
            set_thread_priority_and_policy, thread_native_id,
        };
        let (lowest, idle) = (ThreadPriority::Min, ThreadSchedulePolicy::Normal(Idle));
        if set_thread_priority_and_policy(thread_native_id(), lowest, idle).is_ok() {
            return Ok(());
        }
    }
    give_way()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_runtime_of_a_thread_that_cannot_be_started_is_dropped_where_other_tasks_run() {
        let own = OwnRuntime::build(tokio::runtime::Builder::new_current_thread().enable_all()).unwrap();
        let too_large = std::thread::Builder::new().stack_size(usize::MAX / 2);
        let started = too_large.spawn(move || own.block_on(async {}));
        assert!(started.is_err());
    }

    #[test]
    fn a_stuck_thread_is_left_behind() {
        let (release, held) = std::sync::mpsc::channel::<()>();
        let stuck = std::thread::spawn(move || {
            let _released = held.recv();
        });
        let quick = std::thread::spawn(|| ());
        assert!(!join(vec![quick, stuck], Duration::from_millis(20)));
        assert!(left_behind());
        drop(release);
        assert!(join(vec![std::thread::spawn(|| ())], Duration::from_secs(60)));
    }
}
