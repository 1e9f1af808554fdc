//! Threads that load, warm up and drop models, away from those that serve. What waits is taken up by its rank: first what gives
//! memory back or undoes, which has a thread of its own besides; then loads that requests wait for; patient ones last.
//!
//! A load runs native code and cannot be broken off. One that takes longer than it may is left behind with its thread:
//! whoever asked for it is answered, and a spare thread takes the place. If it ends after all, nobody looks at what it
//! made, and the spare is a spare again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use tokio::sync::{oneshot, watch};

use super::{Pace, Urgency};
use crate::{
    backend::{Backend, ThreadRole},
    threads,
};

/// Says whether its thread goes on. It is given the rank of work that the thread takes up at most.
type Work = Box<dyn FnOnce(Rank) -> bool + Send>;

/// The order in which work is taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// It undoes, or gives memory back.
    Undo,
    /// Somebody waits for it.
    Hurried,
    /// The server begins.
    AtOnce,
    Patient,
}

impl Rank {
    const LAST: Self = Self::Patient;

    const fn of(urgency: Urgency) -> Self {
        match urgency {
            Urgency::Undo => Self::Undo,
            Urgency::Hurried => Self::Hurried,
            Urgency::AtOnce => Self::AtOnce,
            Urgency::Patient => Self::Patient,
        }
    }
}

/// Work that waits, by rank and arrival.
#[derive(Default)]
struct Queue {
    work: BTreeMap<(Rank, u64), Work>,
    next: u64,
    /// Nothing comes any more.
    ended: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("waiting", &self.work.len()).finish_non_exhaustive()
    }
}

/// Threads that are not left behind.
#[derive(Debug, Clone, Copy, Default)]
struct Able {
    /// Those that take up anything.
    any: usize,
    /// Those that are kept for what undoes.
    kept: usize,
}

impl Able {
    fn of(&mut self, most: Rank) -> &mut usize {
        if most == Rank::Undo { &mut self.kept } else { &mut self.any }
    }

    const fn none_for(self, rank: Rank) -> bool {
        self.any == 0 && (self.kept == 0 || !matches!(rank, Rank::Undo))
    }
}

/// A few threads; the steps of their work run at low priority ([`super::pace`]).
#[derive(Debug)]
pub struct LoaderPool {
    crew: Arc<Crew>,
    closed: Arc<AtomicBool>,
}

/// Why work has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// The pool was closed before the work began.
    Closed,
    /// The work panicked; the panic hook has logged where.
    Panicked,
    /// It took longer than it may, and is left behind.
    TimeLimit,
    /// Every thread is held by work that was left behind.
    NoThread,
}

/// libtorch's compiler calls itself for what is nested in a model's code. `archive::safety` bounds the nesting for this
/// much stack, of which only what is used takes memory.
pub(super) const STACK_BYTES: usize = 64 << 20;

/// Work that may wait for a thread. The manager admits one change a model at a time, so this is not reached in practice.
const QUEUE: usize = 4096;

impl LoaderPool {
    /// Starts `threads` threads, which work at that pace. Up to `spare` more take the places of those that are left behind.
    ///
    /// # Errors
    /// The system gives no more threads.
    pub fn start(
        threads: usize,
        spare: usize,
        pace: Arc<Pace>,
        backend: &Arc<dyn Backend>,
    ) -> std::io::Result<Self> {
        let (able, _) = watch::channel(Able::default());
        let crew = Arc::new(Crew {
            queue: Mutex::default(),
            waits: Condvar::new(),
            backend: backend.clone(),
            pace,
            roll: Mutex::new(Roll { threads: Vec::new(), started: 0, spare }),
            able,
            stuck: Arc::default(),
        });
        for _ in 0..threads.max(1) {
            crew.enlist(&mut crew.roll.lock(), Rank::LAST)?;
        }
        crew.enlist(&mut crew.roll.lock(), Rank::Undo)?;
        Ok(Self { crew, closed: Arc::new(AtomicBool::new(false)) })
    }

    /// Threads that are held by work that was left behind, as it stands at any time.
    pub fn stuck(&self) -> Arc<AtomicUsize> {
        self.crew.stuck.clone()
    }

    /// Runs `work` that gives something back, however long it takes. No load is before it.
    ///
    /// # Errors
    /// It panicked, the pool is closed, or no thread is left.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        self.run_within(Duration::MAX, Urgency::Undo, work).await
    }

    /// Runs `work` on a loader thread, and waits for it no longer than `limit` from when it has begun. It gives way to those
    /// who are served, as far as its `urgency` lets it.
    ///
    /// # Errors
    /// As for [`LoaderPool::run`], or it took longer.
    pub async fn run_within<T: Send + 'static>(
        &self,
        limit: Duration,
        urgency: Urgency,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (begin, begun) = oneshot::channel();
        let (done, mut result) = oneshot::channel();
        let (closed, crew, fate) = (self.closed.clone(), self.crew.clone(), Arc::new(Mutex::new(Fate::Runs)));
        let on_thread = fate.clone();
        let task = move |most: Rank| {
            if closed.load(Ordering::Relaxed) {
                let _nobody_waits = done.send(Err(Stopped::Closed));
                return true;
            }
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            if begin.send((name, most)).is_err() {
                return true;
            }
            let underway = crew.pace.begin(&crew.backend, urgency);
            // A panic ends this piece of work, not the thread.
            if let Ok(value) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
                let _nobody_waits = done.send(Ok(value));
            }
            drop(underway);
            crew.came_back(&on_thread, most)
        };
        let rank = Rank::of(urgency);
        if !self.crew.submit(rank, Box::new(task)) {
            return Err(Stopped::Closed);
        }
        let mut able = self.crew.able.subscribe();
        let thread = tokio::select! {
            biased;
            begun = begun => begun,
            _ = able.wait_for(|able| able.none_for(rank)) => return Err(Stopped::NoThread),
        };
        // Without a beginning there is only a reason.
        let Ok((thread, most)) = thread else { return result.await.unwrap_or(Err(Stopped::Panicked)) };
        if let Ok(result) = tokio::time::timeout(limit, &mut result).await {
            return result.unwrap_or(Err(Stopped::Panicked));
        }
        if self.crew.leave_behind(&fate, &thread, most) {
            return Err(Stopped::TimeLimit);
        }
        result.await.unwrap_or(Err(Stopped::Panicked))
    }

    /// Begins no more work: what waits is told so.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        self.crew.pace.close();
        let waiting = std::mem::take(&mut self.crew.queue.lock().work);
        for work in waiting.into_values() {
            let _goes_on = work(Rank::LAST);
        }
    }
}

/// What becomes of a thread with its piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// Somebody waits for it.
    Runs,
    /// It has ended.
    Ended,
    /// It was left behind, and a spare thread has its place.
    Replaced,
    /// It was left behind, and its place is empty.
    Missed,
}

/// The threads, and what they take their work from.
#[derive(Debug)]
struct Crew {
    queue: Mutex<Queue>,
    waits: Condvar,
    backend: Arc<dyn Backend>,
    pace: Arc<Pace>,
    roll: Mutex<Roll>,
    able: watch::Sender<Able>,
    /// Those that are.
    stuck: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Roll {
    threads: Vec<JoinHandle<()>>,
    /// Ever, for their names.
    started: usize,
    /// More may be started, so many.
    spare: usize,
}

impl Crew {
    /// False: too much waits, or the pool has ended.
    fn submit(&self, rank: Rank, work: Work) -> bool {
        let mut queue = self.queue.lock();
        if queue.ended || queue.work.len() >= QUEUE {
            return false;
        }
        let number = queue.next;
        queue.next += 1;
        queue.work.insert((rank, number), work);
        // Not every thread takes up everything.
        self.waits.notify_all();
        true
    }

    /// Waits for work of that rank or before. `None`: the pool has ended.
    fn next(&self, most: Rank) -> Option<Work> {
        let mut queue = self.queue.lock();
        loop {
            if queue.ended {
                return None;
            }
            if queue.work.first_key_value().is_some_and(|((rank, _), _)| *rank <= most) {
                return queue.work.pop_first().map(|(_, work)| work);
            }
            self.waits.wait(&mut queue);
        }
    }

    /// Starts a thread that takes up work of that rank or before.
    fn enlist(self: &Arc<Self>, roll: &mut Roll, most: Rank) -> std::io::Result<()> {
        roll.threads.retain(|thread| !thread.is_finished());
        let crew = self.clone();
        let name = format!("load-{}", roll.started);
        let thread = std::thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(move || {
            let _guard = crew.backend.enter_thread(ThreadRole::Loader);
            while let Some(work) = crew.next(most) {
                let goes_on = work(most);
                crew.backend.release_memory();
                if !goes_on {
                    return;
                }
            }
        })?;
        roll.threads.push(thread);
        roll.started += 1;
        self.able.send_modify(|able| *able.of(most) += 1);
        Ok(())
    }

    /// Gives a piece of work up. False if it has ended at this very moment.
    fn leave_behind(self: &Arc<Self>, fate: &Mutex<Fate>, thread: &str, most: Rank) -> bool {
        let mut roll = self.roll.lock();
        let mut fate = fate.lock();
        if *fate == Fate::Ended {
            return false;
        }
        self.stuck.fetch_add(1, Ordering::Relaxed);
        self.able.send_modify(|able| *able.of(most) = able.of(most).saturating_sub(1));
        *fate = Fate::Missed;
        if roll.spare > 0 && self.enlist(&mut roll, most).is_ok() {
            roll.spare -= 1;
            *fate = Fate::Replaced;
        }
        let (left, spare) = (self.able.borrow().any, roll.spare);
        tracing::error!(thread, left, spare, "a load does not end: its thread is left behind");
        true
    }

    /// A piece of work has ended. Whether its thread goes on.
    fn came_back(&self, fate: &Mutex<Fate>, most: Rank) -> bool {
        let mut roll = self.roll.lock();
        let was = std::mem::replace(&mut *fate.lock(), Fate::Ended);
        if matches!(was, Fate::Replaced | Fate::Missed) {
            self.stuck.fetch_sub(1, Ordering::Relaxed);
            tracing::info!("a load that was left behind has ended");
        }
        match was {
            Fate::Replaced => roll.spare += 1,
            Fate::Missed => self.able.send_modify(|able| *able.of(most) += 1),
            Fate::Runs | Fate::Ended => {}
        }
        was != Fate::Replaced
    }
}

/// A load cannot be broken off. One that takes longer than this is left to the end of the process.
const PATIENCE: Duration = Duration::from_millis(500);

impl Drop for LoaderPool {
    fn drop(&mut self) {
        self.close();
        self.crew.queue.lock().ended = true;
        self.crew.waits.notify_all();
        let threads = std::mem::take(&mut self.crew.roll.lock().threads);
        if !threads::join(threads, PATIENCE) {
            tracing::warn!("a model was still loading: it is abandoned");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::backend::FakeBackend;

    fn pool(threads: usize, spare: usize) -> LoaderPool {
        let backend: Arc<dyn Backend> = Arc::new(FakeBackend);
        LoaderPool::start(threads, spare, Pace::none(), &backend).unwrap()
    }

    /// Runs `work` as a load that requests wait for.
    async fn load<T: Send + 'static>(
        pool: &LoaderPool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        pool.run_within(Duration::from_secs(3600), Urgency::Hurried, work).await
    }

    #[tokio::test]
    async fn closing_tells_those_who_wait_and_a_panic_ends_one_piece_of_work() {
        let pool = pool(1, 0);
        assert_eq!(load(&pool, || panic!("bug")).await, Err::<(), _>(Stopped::Panicked));
        assert_eq!(load(&pool, || 1).await, Ok(1));
        let (begun, has_begun) = mpsc::channel();
        let (release, held) = mpsc::channel();
        let mut running = Box::pin(load(&pool, move || begun.send(()).map(|()| held.recv())));
        assert!(futures::poll!(&mut running).is_pending());
        has_begun.recv().unwrap();
        let mut waiting = Box::pin(load(&pool, || 2));
        assert!(futures::poll!(&mut waiting).is_pending());
        pool.close();
        release.send(3).unwrap();
        assert_eq!(running.await.unwrap().unwrap(), Ok(3), "what has begun is seen through");
        assert_eq!(waiting.await, Err(Stopped::Closed));
    }

    #[tokio::test]
    async fn spares_take_the_places_of_those_left_behind_until_there_are_none() {
        let pool = pool(1, 1);
        let limit = Duration::from_millis(20);
        let hang = || {
            let (release, held) = mpsc::channel::<()>();
            (release, move || held.recv().unwrap_or_default())
        };
        let ((first, hangs), (second, hangs_too)) = (hang(), hang());
        assert_eq!(pool.run_within(limit, Urgency::Hurried, hangs).await, Err(Stopped::TimeLimit));
        assert_eq!(load(&pool, || 1).await, Ok(1), "the spare is there");
        assert_eq!(pool.run_within(limit, Urgency::Hurried, hangs_too).await, Err(Stopped::TimeLimit));
        assert_eq!(
            (load(&pool, || 2).await, pool.stuck().load(Ordering::Relaxed)),
            (Err(Stopped::NoThread), 2)
        );
        // What ends after all goes on as a loader, or makes room for another spare.
        drop(second);
        while pool.stuck().load(Ordering::Relaxed) > 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(load(&pool, || 3).await, Ok(3));
        drop(first);
        while pool.stuck().load(Ordering::Relaxed) > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let (third, hangs_again) = hang();
        assert_eq!(pool.run_within(limit, Urgency::Hurried, hangs_again).await, Err(Stopped::TimeLimit));
        assert_eq!(load(&pool, || 4).await, Ok(4), "there is a spare again");
        drop(third);
    }

    #[tokio::test]
    async fn waiting_for_a_thread_does_not_count() {
        let pool = pool(1, 0);
        let (release, held) = mpsc::channel::<()>();
        let mut running = Box::pin(load(&pool, move || held.recv().unwrap_or_default()));
        assert!(futures::poll!(&mut running).is_pending());
        let mut waiting = Box::pin(pool.run_within(Duration::from_secs(3600), Urgency::Hurried, || 2));
        assert!(futures::poll!(&mut waiting).is_pending());
        drop(release);
        running.await.unwrap();
        assert_eq!(waiting.await, Ok(2));
    }

    #[tokio::test]
    async fn what_undoes_waits_for_no_load_and_patient_loads_wait_for_all_others() {
        let pool = pool(1, 0);
        let (release, held) = mpsc::channel::<()>();
        let mut running = Box::pin(load(&pool, move || held.recv().unwrap_or_default()));
        assert!(futures::poll!(&mut running).is_pending());
        let order = Arc::new(Mutex::new(Vec::new()));
        let ranked = |urgency, name: &'static str| {
            let order = order.clone();
            pool.run_within(Duration::MAX, urgency, move || order.lock().push(name))
        };
        let mut patient = Box::pin(ranked(Urgency::Patient, "patient"));
        let mut start = Box::pin(ranked(Urgency::AtOnce, "start"));
        let mut hurried = Box::pin(ranked(Urgency::Hurried, "hurried"));
        for waits in [&mut patient as &mut (dyn Future<Output = _> + Unpin), &mut start, &mut hurried] {
            assert!(futures::poll!(waits).is_pending());
        }
        ranked(Urgency::Undo, "undo").await.unwrap();
        assert_eq!(pool.run(|| 5).await, Ok(5), "memory is given back meanwhile too");
        drop(release);
        running.await.unwrap();
        let (one, two, three) = tokio::join!(patient, start, hurried);
        assert_eq!((one, two, three), (Ok(()), Ok(()), Ok(())));
        assert_eq!(*order.lock(), ["undo", "hurried", "start", "patient"]);
    }
}
