//! The place where a model's live version stands.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwapOption;

use super::{Lease, ServedShapes};
use crate::{
    backend::Servable,
    model::{ModelName, VersionSelector},
    sched::Profile,
};

/// Tells slots apart without comparing names; never used twice in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(u64);

/// One model's slot. It outlives every version that stands in it.
#[derive(Debug)]
pub struct ModelSlot {
    id: SlotId,
    name: ModelName,
    live: ArcSwapOption<Servable>,
    served: ServedShapes,
    profile: Profile,
}

impl ModelSlot {
    /// An empty slot.
    pub fn new(name: ModelName) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: SlotId(NEXT.fetch_add(1, Ordering::Relaxed)),
            name,
            live: ArcSwapOption::empty(),
            served: ServedShapes::default(),
            profile: Profile::default(),
        }
    }

    /// Its identity.
    pub fn id(&self) -> SlotId {
        self.id
    }

    /// The model's name.
    pub fn name(&self) -> &ModelName {
        &self.name
    }

    /// Shapes that this model has served.
    pub fn served(&self) -> &ServedShapes {
        &self.served
    }

    /// What passes of this model take.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// A hold on the live version, if there is one.
    pub fn lease(&self) -> Option<Lease> {
        self.live.load_full().map(Lease::new)
    }

    /// A hold on the live version if it is the one wanted.
    pub fn lease_for(&self, wanted: VersionSelector) -> Option<Lease> {
        self.lease().filter(|lease| wanted.admits(lease.version))
    }

    /// Puts `next` in place (or nothing) and returns what stood there. From here on nobody can get hold of the
    /// old version: once its leases have ended, the returned `Arc` is the last.
    pub fn swap(&self, next: Option<Arc<Servable>>) -> Option<Arc<Servable>> {
        self.live.swap(next)
    }
}
