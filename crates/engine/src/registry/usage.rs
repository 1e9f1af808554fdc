//! Who uses a slot, and when it was last used.

use std::{
    ops::Deref,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::time::Instant;

use super::ModelSlot;

/// Nobody gets in any more.
const CLOSED: u64 = 1 << 63;
/// One that waits for what is to be loaded into the slot. Below it are those that use what is.
const WAITS: u64 = 1 << 32;

/// One word says who is in a slot and whether it is open: so nobody can come in between the look and the closing.
#[derive(Debug, Default)]
pub(super) struct Usage {
    state: AtomicU64,
    last: AtomicU64,
}

/// A request uses the slot. As long as one does what stands in it is not evicted.
#[derive(Debug)]
pub struct InUse(Arc<ModelSlot>);

impl Deref for InUse {
    type Target = Arc<ModelSlot>;

    fn deref(&self) -> &Arc<ModelSlot> {
        &self.0
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.usage().state.fetch_sub(1, Ordering::Release);
    }
}

/// A request waits for what is to be loaded into the slot. What comes is not evicted before it has been looked at.
#[derive(Debug)]
pub struct Awaiting(Arc<ModelSlot>);

impl Drop for Awaiting {
    fn drop(&mut self) {
        self.0.usage().state.fetch_sub(WAITS, Ordering::Release);
    }
}

impl ModelSlot {
    /// Uses the slot. `None`: what stands in it is just being evicted.
    pub fn enter(self: &Arc<Self>) -> Option<InUse> {
        let was = self.usage().state.fetch_add(1, Ordering::Acquire);
        let entered = InUse(self.clone());
        (was & CLOSED == 0).then_some(entered)
    }

    /// Waits for what is to be loaded into it.
    pub fn await_load(self: &Arc<Self>) -> Awaiting {
        self.usage().state.fetch_add(WAITS, Ordering::Relaxed);
        Awaiting(self.clone())
    }

    /// Requests that use it.
    pub fn in_use(&self) -> u64 {
        self.usage().state.load(Ordering::Acquire) & (WAITS - 1)
    }

    /// Requests that wait for what is to be loaded into it.
    pub fn awaiting(&self) -> u64 {
        (self.usage().state.load(Ordering::Acquire) & !CLOSED) / WAITS
    }

    /// Remembers that it was used, for [`ModelSlot::last_use`].
    pub fn touch(&self, now: Instant) {
        // A little earlier than the last store of another thread is near enough.
        self.usage().last.store(ticks(now), Ordering::Relaxed);
    }

    /// When it was last used, in nanoseconds on a clock that all slots share.
    pub fn last_use(&self) -> u64 {
        self.usage().last.load(Ordering::Relaxed)
    }

    /// Closes it if nobody uses it or waits for it.
    pub fn close_if_idle(&self) -> bool {
        self.usage().state.compare_exchange(0, CLOSED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Closes it for those who come from now on.
    pub fn close(&self) {
        self.usage().state.fetch_or(CLOSED, Ordering::AcqRel);
    }

    /// Opens it again.
    pub fn reopen(&self) {
        self.usage().state.fetch_and(!CLOSED, Ordering::Release);
    }
}

fn ticks(now: Instant) -> u64 {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(now.saturating_duration_since(*BEGIN).as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_slot_closes_only_when_nobody_is_in_it() {
        let slot = Arc::new(ModelSlot::new("m".parse().unwrap()));
        let used = slot.enter().unwrap();
        assert!(!slot.close_if_idle());
        let waits = slot.await_load();
        drop(used);
        assert_eq!((slot.in_use(), slot.awaiting(), slot.close_if_idle()), (0, 1, false));
        drop(waits);
        assert!(slot.close_if_idle() && slot.enter().is_none());
        // Who comes while it is closed may wait.
        let waits = slot.await_load();
        slot.reopen();
        assert_eq!((slot.in_use(), slot.awaiting()), (0, 1));
        let used = slot.enter().unwrap();
        slot.close();
        assert!(slot.enter().is_none());
        assert_eq!(slot.in_use(), 1, "who was refused is not counted");
        drop((used, waits));
        assert_eq!((slot.in_use(), slot.awaiting()), (0, 0));
    }

    #[test]
    fn the_last_use_is_on_one_clock() {
        let (a, b) = (ModelSlot::new("a".parse().unwrap()), ModelSlot::new("b".parse().unwrap()));
        let now = Instant::now();
        a.touch(now + Duration::from_millis(2));
        b.touch(now + Duration::from_millis(1));
        assert!(a.last_use() > b.last_use());
    }
}
