//! The one set of books of a server, and what holds a line in them.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::Instant};
use torchlane_model::ModelName;

use super::{Ledger, LineId, Shortage, Standing, Thrash, Verdict};

/// What a reload does whose old and new version do not fit the budget together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReloadPolicy {
    /// It is refused, and the old version goes on serving.
    #[default]
    Refuse,
    /// The old version goes first. Requests wait for the new one, as for a model that is loaded for its first request.
    UnloadFirst,
}

/// The memory budget.
#[derive(Debug)]
pub struct Memory {
    ledger: Mutex<Ledger<ModelName>>,
    thrash: Mutex<Thrash<ModelName>>,
    /// Something was given back.
    changed: Notify,
    /// Who makes room does so alone: what it frees is for it, and not for who comes next.
    order: tokio::sync::Mutex<()>,
}

/// The right to make room.
pub type Order<'a> = tokio::sync::MutexGuard<'a, ()>;

/// What becomes of a load that needs room.
#[derive(Debug)]
pub enum Room {
    /// There it is.
    Reserved(Reservation),
    /// These have to go first.
    Evict(Vec<ModelName>),
    /// All that could go is in use.
    Wait,
    /// It cannot be made to fit.
    Refused(Shortage),
}

/// How the books stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MemorySnapshot {
    /// Bytes there are. 0: there is no budget.
    pub budget: u64,
    /// Bytes of what is loaded or being loaded.
    pub used: u64,
    /// Models with a version loaded.
    pub models: usize,
    /// Models come back again and again shortly after they had to go.
    pub thrashing: bool,
}

impl Memory {
    /// Empty books. 0: there is no budget.
    pub fn new(budget: u64) -> Arc<Self> {
        Arc::new(Self {
            ledger: Mutex::new(Ledger::new((budget > 0).then_some(budget))),
            thrash: Mutex::default(),
            changed: Notify::new(),
            order: tokio::sync::Mutex::default(),
        })
    }

    /// Whether there is a budget.
    pub fn is_limited(&self) -> bool {
        self.ledger.lock().budget().is_some()
    }

    /// How things stand.
    pub fn snapshot(&self) -> MemorySnapshot {
        let thrashing = self.thrash.lock().is_on(Instant::now());
        let ledger = self.ledger.lock();
        let (budget, models) = (ledger.budget().unwrap_or(0), ledger.resident());
        MemorySnapshot { budget, used: ledger.used(), models, thrashing }
    }

    /// Models that have something loaded or being loaded.
    pub fn models(&self) -> Vec<ModelName> {
        self.ledger.lock().models().cloned().collect()
    }

    /// Reserves what is free, if that is enough and nobody is making room.
    pub fn spare(self: &Arc<Self>, model: &ModelName, bytes: u64) -> Option<Reservation> {
        let _alone = self.order.try_lock().ok()?;
        let line = self.ledger.lock().spare(model, bytes).ok()?;
        Some(Reservation { memory: self.clone(), line })
    }

    /// Waits for the right to make room: first come, first served.
    pub async fn order(&self) -> Order<'_> {
        self.order.lock().await
    }

    /// Reserves room, or says what has to happen before. A model that `standing` does not know is in use.
    pub fn admit(
        self: &Arc<Self>,
        model: &ModelName,
        bytes: u64,
        standing: &HashMap<ModelName, Standing>,
    ) -> Room {
        let unknown = Standing { last: u64::MAX, pinned: false, busy: true };
        let verdict =
            self.ledger.lock().admit(model, bytes, |other| standing.get(other).copied().unwrap_or(unknown));
        match verdict {
            Verdict::Fits(line) => Room::Reserved(Reservation { memory: self.clone(), line }),
            Verdict::Evict(victims) => Room::Evict(victims),
            Verdict::Wait => Room::Wait,
            Verdict::Refuse(shortage) => Room::Refused(shortage),
        }
    }

    /// Ends when something is given back from here on.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// A model had to go.
    pub fn evicted(&self, model: &ModelName) {
        self.thrash.lock().evicted(model, Instant::now());
    }

    /// A model was loaded because a request asked for it. Says so where models only take each other's place.
    pub fn asked_back(&self, model: &ModelName) {
        let turned = self.thrash.lock().loaded(model, Instant::now());
        let MemorySnapshot { budget, used, models, .. } = self.snapshot();
        match turned {
            Some(true) => tracing::warn!(target: "torchlane::residency",
                budget,
                used,
                models,
                "models only take each other's place in memory: raise memory.budget, pin what is urgent, or spread the models over more servers"
            ),
            Some(false) => {
                tracing::info!(target: "torchlane::residency", budget, used, models, "models stay in memory again")
            }
            None => {}
        }
    }
}

/// A line in the books. What it holds is given back when it is dropped, with the version that it stands for.
#[derive(Debug)]
pub struct Reservation {
    memory: Arc<Memory>,
    line: LineId,
}

impl Reservation {
    /// Bytes that it holds.
    pub fn bytes(&self) -> u64 {
        self.memory.ledger.lock().bytes(self.line)
    }

    /// The load has ended: this is what was measured. What is more than it holds must have been reserved and absorbed.
    pub fn settle(&self, bytes: u64) {
        self.memory.ledger.lock().settle(self.line, bytes);
        self.memory.changed.notify_waiters();
    }

    /// Takes over what was reserved later for the same load.
    pub fn absorb(&self, more: Self) {
        // The line of `more` is gone then: its drop finds nothing to give back.
        self.memory.ledger.lock().merge(self.line, more.line);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.memory.ledger.lock().free(self.line);
        self.memory.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reservation_gives_back_what_it_holds() {
        let memory = Memory::new(10);
        let (a, b): (ModelName, ModelName) = ("a".parse().unwrap(), "b".parse().unwrap());
        let held = memory.spare(&a, 6).unwrap();
        assert!(memory.spare(&b, 5).is_none());
        let more = memory.spare(&a, 4).unwrap();
        held.absorb(more);
        held.settle(9);
        assert_eq!(memory.snapshot(), MemorySnapshot { budget: 10, used: 9, models: 1, thrashing: false });
        assert!(matches!(memory.admit(&b, 2, &HashMap::new()), Room::Wait), "nobody says that it may go");
        drop(held);
        assert_eq!(memory.snapshot().used, 0);
        assert!(matches!(memory.admit(&b, 11, &HashMap::new()), Room::Refused(_)));
    }
}
