//! All slots by name.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use torchlane_model::ModelName;

use super::ModelSlot;
use crate::rollout::Split;

/// All models known to this server. Reading takes no lock and the same time however many there are; adding models copies
/// the table, so that many are best added at once.
#[derive(Debug, Default)]
pub struct Registry {
    table: ArcSwap<Table>,
}

#[derive(Debug, Clone, Default)]
struct Table {
    by_name: HashMap<ModelName, Arc<ModelSlot>>,
    /// Sorted.
    names: Vec<ModelName>,
}

impl Registry {
    /// The slot of that model.
    pub fn get(&self, name: &str) -> Option<Arc<ModelSlot>> {
        self.table.load().by_name.get(name).cloned()
    }

    /// How requests for that model are split, while a version of it is rolled out. Counts no reference up where there is none.
    pub fn split(&self, name: &str) -> Option<Arc<Split>> {
        self.table.load().by_name.get(name)?.split()
    }

    /// The slot of that model, made if it is not there.
    pub fn get_or_insert(&self, name: &ModelName) -> Arc<ModelSlot> {
        let made = || Arc::new(ModelSlot::new(name.clone()));
        self.insert_all(std::slice::from_ref(name)).pop().unwrap_or_else(made)
    }

    /// The slots of those models, made where they are not there.
    pub fn insert_all(&self, names: &[ModelName]) -> Vec<Arc<ModelSlot>> {
        let find = |table: &Table| -> Option<Vec<_>> {
            names.iter().map(|name| table.by_name.get(name).cloned()).collect()
        };
        if let Some(all) = find(&self.table.load()) {
            return all;
        }
        // A race between two inserts is settled by rcu: the loser finds the winner's slots in the table it retries with.
        self.table.rcu(|table| {
            let mut table = Table::clone(table);
            for name in names {
                let slot = || Arc::new(ModelSlot::new(name.clone()));
                table.by_name.entry(name.clone()).or_insert_with(slot);
            }
            table.names = table.by_name.keys().cloned().collect();
            table.names.sort_unstable();
            table
        });
        find(&self.table.load()).unwrap_or_default()
    }

    /// Forgets a model. Requests that have its slot keep it until they have ended.
    pub fn remove(&self, name: &ModelName) {
        self.table.rcu(|table| {
            let mut table = Table::clone(table);
            table.by_name.remove(name);
            table.names.retain(|other| other != name);
            table
        });
    }

    /// The first `most` names in the order of the alphabet, and whether there are more.
    pub fn some_names(&self, most: usize) -> (Vec<ModelName>, bool) {
        let table = self.table.load();
        (table.names.iter().take(most).cloned().collect(), table.names.len() > most)
    }

    /// The slots of all live versions, by name.
    pub fn all(&self) -> Vec<Arc<ModelSlot>> {
        let table = self.table.load();
        table.names.iter().filter_map(|name| table.by_name.get(name).cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_one_slot() {
        let registry = Registry::default();
        let names: Vec<ModelName> = ["digits", "a", "b"].map(|name| name.parse().unwrap()).into();
        let first = registry.get_or_insert(&names[0]);
        assert_eq!(first.id(), registry.insert_all(&names)[0].id());
        assert_eq!(first.id(), registry.get("digits").unwrap().id());
        assert!(registry.get("other").is_none());
        assert!(first.lease().is_none());
        assert_eq!(registry.some_names(2), (vec![names[1].clone(), names[2].clone()], true));
        assert_eq!(registry.all().len(), 3);
    }
}
