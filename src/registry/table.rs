//! All slots by name.

use std::{collections::BTreeMap, sync::Arc};

use arc_swap::ArcSwap;

use super::ModelSlot;
use crate::model::ModelName;

/// All models known to this server. Reading takes no lock; adding a model copies the table.
#[derive(Debug, Default)]
pub struct Registry {
    slots: ArcSwap<BTreeMap<ModelName, Arc<ModelSlot>>>,
}

impl Registry {
    /// The slot of that model.
    pub fn get(&self, name: &str) -> Option<Arc<ModelSlot>> {
        self.slots.load().get(name).cloned()
    }

    /// The slot of that model, made if it is not there.
    pub fn get_or_insert(&self, name: &ModelName) -> Arc<ModelSlot> {
        if let Some(slot) = self.get(name.as_str()) {
            return slot;
        }
        let fresh = Arc::new(ModelSlot::new(name.clone()));
        // A race between two inserts is settled by rcu: the loser finds the winner's slot in the table it retries with.
        self.slots.rcu(|slots| {
            let mut slots = BTreeMap::clone(slots);
            slots.entry(name.clone()).or_insert_with(|| fresh.clone());
            slots
        });
        self.get(name.as_str()).unwrap_or(fresh)
    }

    /// Names of all slots, sorted.
    pub fn names(&self) -> Vec<ModelName> {
        self.slots.load().keys().cloned().collect()
    }

    /// All slots, by name.
    pub fn all(&self) -> Vec<Arc<ModelSlot>> {
        self.slots.load().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_slot() {
        let registry = Registry::default();
        let name: ModelName = "digits".parse().unwrap();
        let first = registry.get_or_insert(&name);
        assert_eq!(first.id(), registry.get_or_insert(&name).id());
        assert!(registry.get("other").is_none());
        assert!(first.lease().is_none());
    }
}
