//! Work on files, on threads of its own. A disk or a network volume may not answer for minutes, so no thread of the wire
//! and no runtime waits for it. A call that is given up leaves its thread behind until the file system answers. A place
//! that holds [`STUCK`] threads in that way is refused at once, so that it cannot take the threads of others.

use std::{
    collections::{HashMap, VecDeque},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use thiserror::Error;
use tokio::sync::oneshot;

use torchlane_model::error::{Error as ApiError, Reason};

/// Longest that one look at a model's files may take.
pub const LOOK: Duration = Duration::from_secs(60);
/// Longest that a listing of a whole repository, or a copy of a model, may take.
pub const LONG: Duration = Duration::from_secs(600);

/// Threads that work on files at once.
const THREADS: usize = 32;
/// Threads that one place may hold after their callers have left.
const STUCK: usize = 2;
/// Threads that stand in for stuck ones: until so many are stuck, a hundred models on a dead volume take none from the others.
const STAND_INS: usize = 224;
/// A thread without work ends after this time.
const IDLE: Duration = Duration::from_secs(10);

/// Why work on files has no result.
#[derive(Debug, Error)]
pub enum Stalled {
    /// It is given up.
    #[error("the file system of {0} did not answer within {1:?}")]
    TimeLimit(PathBuf, Duration),
    /// Earlier calls still wait there.
    #[error("the file system of {0} does not answer: {1} earlier calls still wait for it")]
    Held(PathBuf, usize),
    /// The system has no more threads.
    #[error("cannot start a thread for work on files: {0}")]
    NoThread(io::Error),
    /// The panic hook has logged where.
    #[error("a bug in torchlane: the server's log says where")]
    Panicked,
}

impl From<Stalled> for io::Error {
    fn from(stalled: Stalled) -> Self {
        match stalled {
            Stalled::NoThread(error) => error,
            Stalled::TimeLimit(..) | Stalled::Held(..) => Self::new(io::ErrorKind::TimedOut, stalled),
            Stalled::Panicked => Self::other(stalled),
        }
    }
}

impl From<Stalled> for ApiError {
    fn from(stalled: Stalled) -> Self {
        let reason = match stalled {
            Stalled::TimeLimit(..) | Stalled::Held(..) | Stalled::NoThread(_) => Reason::LoadFailed,
            Stalled::Panicked => Reason::Internal,
        };
        Self::new(reason, stalled.to_string())
    }
}

/// Runs `work`, which reads or writes files in `place`, and waits for it no longer than `limit`.
///
/// # Errors
/// It is not done in time, the place holds too many threads already, no thread can be started, or it panicked.
pub async fn run<T: Send + 'static>(
    place: &Path,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Stalled> {
    static POOL: LazyLock<Arc<Pool>> = LazyLock::new(Arc::default);
    run_in(&POOL, place, limit, work).await
}

async fn run_in<T: Send + 'static>(
    pool: &Arc<Pool>,
    place: &Path,
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Stalled> {
    let (done, result) = oneshot::channel();
    let fate = Arc::new(Mutex::new(Fate::Waits));
    let work = move || -> Answer {
        // A panic ends this piece of work alone.
        let result = catch_unwind(AssertUnwindSafe(work));
        Box::new(move || drop(result.map(|result| drop(done.send(result)))))
    };
    pool.submit(Job { place: place.to_owned(), fate: fate.clone(), work: Box::new(work) })?;
    let _waits = Waits { pool, place, fate };
    match tokio::time::timeout(limit, result).await {
        Ok(result) => result.map_err(|_| Stalled::Panicked),
        Err(_) => Err(Stalled::TimeLimit(place.to_owned(), limit)),
    }
}

/// What becomes of a piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// In the queue.
    Waits,
    Runs,
    Ended,
    /// Its caller has left before a thread took it up.
    Dropped,
    /// Its caller has left, and its thread is counted as stuck.
    Left,
}

/// Gives the result to the caller.
type Answer = Box<dyn FnOnce() + Send>;

struct Job {
    place: PathBuf,
    fate: Arc<Mutex<Fate>>,
    /// Must not panic.
    work: Box<dyn FnOnce() -> Answer + Send>,
}

/// A caller that waits. Also one whose future is dropped leaves its thread behind.
struct Waits<'a> {
    pool: &'a Pool,
    place: &'a Path,
    fate: Arc<Mutex<Fate>>,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut state = self.pool.state.lock();
        let mut fate = self.fate.lock();
        match *fate {
            Fate::Waits => *fate = Fate::Dropped,
            Fate::Runs => {
                *fate = Fate::Left;
                *state.stuck.entry(self.place.to_owned()).or_default() += 1;
            }
            Fate::Ended | Fate::Dropped | Fate::Left => {}
        }
    }
}

#[derive(Default)]
struct Pool {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// Threads whose callers have left, by place.
    stuck: HashMap<PathBuf, usize>,
}

impl Pool {
    fn submit(self: &Arc<Self>, job: Job) -> Result<(), Stalled> {
        let mut state = self.state.lock();
        if let Some(held) = state.stuck.get(&job.place).filter(|held| **held >= STUCK) {
            return Err(Stalled::Held(job.place, *held));
        }
        state.queue.push_back(job);
        let stand_ins = state.stuck.values().sum::<usize>().min(STAND_INS);
        if state.idle >= state.queue.len() || state.threads >= THREADS + stand_ins {
            self.work.notify_one();
            return Ok(());
        }
        let pool = self.clone();
        let spawned = std::thread::Builder::new().name("files".to_owned()).spawn(move || pool.serve());
        match spawned {
            Ok(_detached) => state.threads += 1,
            // The threads that are there take it up.
            Err(_) if state.threads > 0 => {}
            Err(error) => {
                state.queue.pop_back();
                return Err(Stalled::NoThread(error));
            }
        }
        Ok(())
    }

    /// One thread's life.
    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            let Some(Job { place, fate, work }) = state.queue.pop_front() else {
                state.idle += 1;
                let rested = self.work.wait_for(&mut state, IDLE);
                state.idle -= 1;
                if rested.timed_out() && state.queue.is_empty() {
                    state.threads -= 1;
                    return;
                }
                continue;
            };
            let dropped = std::mem::replace(&mut *fate.lock(), Fate::Runs) == Fate::Dropped;
            if dropped {
                continue;
            }
            drop(state);
            let answer = work();
            state = self.state.lock();
            if std::mem::replace(&mut *fate.lock(), Fate::Ended) == Fate::Left
                && let Some(held) = state.stuck.get_mut(&place)
            {
                *held -= 1;
                if *held == 0 {
                    state.stuck.remove(&place);
                }
            }
            // Only now: a caller with an answer must not find its thread still at work, which would count as stuck.
            drop(state);
            // What nothing waits for is dropped here, and may panic in that.
            let _panicked = catch_unwind(AssertUnwindSafe(answer));
            state = self.state.lock();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A caller that leaves once its work, which lasts until the result is dropped, has begun.
    async fn leave_behind(pool: &Arc<Pool>, place: &Path) -> mpsc::Sender<()> {
        let (begin, begun) = mpsc::channel::<()>();
        let (release, held) = mpsc::channel::<()>();
        let work = move || begin.send(()).map(|()| held.recv());
        let mut leaves = Box::pin(run_in(pool, place, LOOK, work));
        assert!(futures::poll!(&mut leaves).is_pending());
        begun.recv().unwrap();
        release
    }

    #[tokio::test]
    async fn a_place_that_does_not_answer_holds_few_threads_and_none_of_other_places() {
        let pool = Arc::<Pool>::default();
        let (stalls, other) = (Path::new("/stalls"), Path::new("/other"));
        let mut releases = Vec::new();
        for _ in 0..STUCK {
            releases.push(leave_behind(&pool, stalls).await);
        }
        let refused = run_in(&pool, stalls, LOOK, || ()).await;
        assert!(matches!(refused, Err(Stalled::Held(_, STUCK))), "{refused:?}");
        assert_eq!(run_in(&pool, other, LOOK, || 7).await.unwrap(), 7);
        drop(releases);
        while !pool.state.lock().stuck.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(run_in(&pool, stalls, LOOK, || 8).await.unwrap(), 8, "it answers again");
    }

    #[tokio::test]
    async fn a_call_that_was_answered_holds_no_thread() {
        let (pool, place) = (Arc::<Pool>::default(), Path::new("/"));
        for round in 1..=5_000 {
            let is_well = round % 1_000 > 0;
            let answered = run_in(&pool, place, LOOK, move || assert!(is_well)).await;
            assert_eq!(answered.is_ok(), is_well);
            assert!(pool.state.lock().stuck.is_empty(), "round {round}");
        }
    }

    #[tokio::test]
    async fn a_call_is_given_up_in_time() {
        let (release, held) = mpsc::channel::<()>();
        let limit = Duration::from_millis(20);
        let late = run_in(&Arc::default(), Path::new("/stalls"), limit, move || held.recv().is_err()).await;
        assert!(matches!(late, Err(Stalled::TimeLimit(_, within)) if within == limit), "{late:?}");
        drop(release);
    }

    #[tokio::test]
    async fn many_places_that_do_not_answer_take_no_thread_from_others() {
        let pool = Arc::<Pool>::default();
        let mut releases = Vec::new();
        for place in 0..THREADS {
            for _ in 0..STUCK {
                releases.push(leave_behind(&pool, Path::new(&format!("/stalls/{place}"))).await);
            }
        }
        assert_eq!(run_in(&pool, Path::new("/other"), LOOK, || 7).await.unwrap(), 7);
        assert!(pool.state.lock().threads > THREADS);
    }

    #[tokio::test]
    async fn a_panic_ends_one_piece_of_work_and_many_pieces_share_few_threads() {
        let pool = Arc::<Pool>::default();
        let place = Path::new("/");
        let bug = run_in(&pool, place, LOOK, || panic!("bug")).await;
        assert!(matches!(bug, Err::<(), _>(Stalled::Panicked)));
        let many = (0..200).map(|i| run_in(&pool, place, LOOK, move || i));
        let all = futures::future::join_all(many).await;
        assert_eq!(all.into_iter().map(Result::unwrap).collect::<Vec<_>>(), (0..200).collect::<Vec<_>>());
        assert!(pool.state.lock().threads <= THREADS);
    }
}
