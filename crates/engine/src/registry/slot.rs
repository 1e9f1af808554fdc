//! The place where a version stands.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwapOption;
use torchlane_model::{Label, ModelName, Version, VersionSelector, VersionWish};

use super::{Beside, Lease, ServedShapes, usage::Usage};
use crate::{backend::Servable, rollout::Split, sched::Profile};

/// Tells slots apart without comparing names; never used twice in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SlotId(u64);

/// A model's slot: its live version stands in it, and it outlives every version. Versions that are loaded beside the live
/// one have slots of their own, which nothing but [`ModelSlot::find`] leads to: queue, profile and forecasts tell versions
/// apart because they tell slots apart.
#[derive(Debug)]
pub struct ModelSlot {
    id: SlotId,
    name: ModelName,
    live: ArcSwapOption<Servable>,
    served: Arc<ServedShapes>,
    profile: Profile,
    beside: ArcSwapOption<Beside>,
    usage: Usage,
}

impl ModelSlot {
    /// An empty slot.
    pub fn new(name: ModelName) -> Self {
        Self::with(name, Arc::default())
    }

    fn with(name: ModelName, served: Arc<ServedShapes>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: SlotId(NEXT.fetch_add(1, Ordering::Relaxed)),
            name,
            live: ArcSwapOption::empty(),
            served,
            profile: Profile::default(),
            beside: ArcSwapOption::empty(),
            usage: Usage::default(),
        }
    }

    /// A slot for another version of the same model. Shapes that one of them has served are good for all.
    #[must_use]
    pub fn for_another(&self, servable: Arc<Servable>) -> Self {
        let slot = Self::with(self.name.clone(), self.served.clone());
        slot.live.store(Some(servable));
        slot
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

    pub(super) fn usage(&self) -> &Usage {
        &self.usage
    }

    /// What passes of the version in this slot take.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// A hold on the version in this slot, if there is one.
    pub fn lease(&self) -> Option<Lease> {
        self.live.load_full().map(Lease::new)
    }

    /// What stands in this slot, for whoever manages it.
    pub fn standing(&self) -> Option<Arc<Servable>> {
        self.live.load_full()
    }

    /// The slot that has what is wished for, and which version in it may answer. What is not loaded leads to this
    /// slot: its version does not fit, and the refusal can say which one would.
    pub fn find(self: &Arc<Self>, wish: &VersionWish) -> (Arc<Self>, VersionSelector) {
        let beside = self.beside.load();
        let of_version = |version: Version| {
            beside.as_ref().and_then(|beside| beside.slots.get(&version)).unwrap_or(self).clone()
        };
        let labelled = |label: &str| beside.as_ref().and_then(|beside| beside.labels.get(label));
        let behind_label = |version: Version| {
            let slot = of_version(version);
            // A label follows the version through changes; a number does not.
            let stands = slot.lease().is_some_and(|lease| lease.version == version);
            (slot, if stands { VersionSelector::Live } else { VersionSelector::Exactly(version) })
        };
        match wish {
            VersionWish::Any => (self.clone(), VersionSelector::Live),
            VersionWish::Exactly(version) => (of_version(*version), VersionSelector::Exactly(*version)),
            // Without a version of its own it is the live one's.
            VersionWish::Stable => match labelled(Label::STABLE) {
                None => (self.clone(), VersionSelector::Live),
                Some(version) => behind_label(*version),
            },
            VersionWish::Labelled(label) => match labelled(label.as_str()) {
                None => (self.clone(), VersionSelector::Exactly(NO_VERSION)),
                Some(version) => behind_label(*version),
            },
        }
    }

    /// How requests that leave the version open are split, while another version is rolled out.
    pub fn split(&self) -> Option<Arc<Split>> {
        self.beside.load().as_ref().and_then(|beside| beside.split.clone())
    }

    /// What is loaded beside the live version.
    pub fn beside(&self) -> Option<Arc<Beside>> {
        self.beside.load_full()
    }

    /// Replaces what is loaded beside the live version. Requests that wait in a slot that is no longer there are run
    /// with what stands in it.
    pub fn set_beside(&self, beside: Beside) {
        self.beside.store(Some(beside).filter(|beside| !beside.is_empty()).map(Arc::new));
    }

    /// This slot and those beside it.
    pub fn all(self: &Arc<Self>) -> Vec<Arc<Self>> {
        let beside = self.beside();
        std::iter::once(self.clone()).chain(beside.iter().flat_map(|b| b.slots.values().cloned())).collect()
    }

    /// Puts `next` in place (or nothing) and returns what stood there. From here on nobody can get hold of the
    /// old version: once its leases have ended, the returned `Arc` is the last.
    pub fn swap(&self, next: Option<Arc<Servable>>) -> Option<Arc<Servable>> {
        self.live.swap(next)
    }
}

/// What a label without a version leads to.
const NO_VERSION: Version = Version(u64::MAX);
