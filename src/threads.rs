//! What threads of several kinds share: their priority, their time, and an end where they cannot be broken off.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread::JoinHandle,
    time::Duration,
};

static LEFT_BEHIND: AtomicBool = AtomicBool::new(false);

/// Whether some thread of this process was left behind by [`join`].
pub(crate) fn left_behind() -> bool {
    LEFT_BEHIND.load(Ordering::Relaxed)
}

/// Joins threads. False if some had not ended after about `patience`: they are left to the end of the process.
pub(crate) fn join(threads: Vec<JoinHandle<()>>, patience: Duration) -> bool {
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

/// CPU time of this thread so far.
pub(crate) fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// This thread gets a CPU when no other wants it, and else the least share that there is: on Linux a priority is a thread's
/// own. `SCHED_IDLE` would give less still, and too little: on a machine that was full, reloads that take a second took more
/// than fifty, where they take two or three at nice 19.
///
/// # Errors
/// The system does not allow it.
pub(crate) fn give_way() -> std::io::Result<()> {
    Ok(rustix::process::setpriority_process(None, 19)?)
}

#[cfg(test)]
mod tests {
    use super::*;

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
