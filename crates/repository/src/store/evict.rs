//! What must leave the cache for something to come in: a pure function.
//!
//! **Invariant**: what is in use never leaves, and nothing leaves for something that does not fit all the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::SystemTime,
};

/// A version that was put together.
#[derive(Debug, Clone)]
pub(super) struct Tree<K> {
    pub(super) key: K,
    pub(super) used: SystemTime,
    /// Live, previous, or being prepared, in this process or another.
    pub(super) held: bool,
    /// The contents that it needs.
    pub(super) objects: BTreeSet<String>,
}

/// A download that has not ended.
#[derive(Debug, Clone)]
pub(super) struct Unfinished<K> {
    pub(super) key: K,
    pub(super) used: SystemTime,
    /// Under way now.
    pub(super) held: bool,
    /// What it takes, or will take once it is complete.
    pub(super) bytes: u64,
}

/// All that is in a cache.
#[derive(Debug, Clone)]
pub(super) struct Contents<K> {
    pub(super) trees: Vec<Tree<K>>,
    pub(super) unfinished: Vec<Unfinished<K>>,
    /// Sizes, by content.
    pub(super) objects: BTreeMap<String, u64>,
}

/// What is to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Leaving<K> {
    pub(super) trees: Vec<K>,
    pub(super) unfinished: Vec<K>,
    pub(super) objects: Vec<String>,
}

/// It does not fit: so many bytes cannot be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct NoRoom {
    pub(super) in_use: u64,
}

/// Bytes that are there, and will be once what is under way is complete.
pub(super) fn total<K>(contents: &Contents<K>) -> u64 {
    let unfinished = contents.unfinished.iter().map(|one| one.bytes);
    contents.objects.values().copied().chain(unfinished).fold(0, u64::saturating_add)
}

/// Makes room for `need` bytes beside what is there, within `most`. Contents that no version needs go first, then what
/// was used longest ago.
pub(super) fn room<K: Clone>(contents: &Contents<K>, need: u64, most: u64) -> Result<Leaving<K>, NoRoom> {
    let mut users: BTreeMap<&str, usize> =
        contents.objects.keys().map(|object| (object.as_str(), 0)).collect();
    for object in contents.trees.iter().flat_map(|tree| &tree.objects) {
        if let Some(count) = users.get_mut(object.as_str()) {
            *count += 1;
        }
    }
    let size = |object: &str| contents.objects.get(object).copied().unwrap_or(0);
    let mut left = total(contents);
    let mut leaving = Leaving { trees: Vec::new(), unfinished: Vec::new(), objects: Vec::new() };
    let fits = |left: u64| left.saturating_add(need) <= most;
    if !fits(left) {
        for (object, _) in users.iter().filter(|(_, count)| **count == 0) {
            left = left.saturating_sub(size(object));
            leaving.objects.push((*object).to_owned());
        }
    }
    enum Candidate<'a, K> {
        Tree(&'a Tree<K>),
        Unfinished(&'a Unfinished<K>),
    }
    let trees =
        contents.trees.iter().filter(|tree| !tree.held).map(|tree| (tree.used, Candidate::Tree(tree)));
    let unfinished = contents.unfinished.iter().filter(|one| !one.held);
    let unfinished = unfinished.map(|one| (one.used, Candidate::Unfinished(one)));
    let mut candidates: Vec<_> = trees.chain(unfinished).collect();
    candidates.sort_by_key(|(used, _)| *used);
    for (_, candidate) in candidates {
        if fits(left) {
            break;
        }
        match candidate {
            Candidate::Unfinished(one) => {
                left = left.saturating_sub(one.bytes);
                leaving.unfinished.push(one.key.clone());
            }
            Candidate::Tree(tree) => {
                leaving.trees.push(tree.key.clone());
                for object in &tree.objects {
                    let Some(count) = users.get_mut(object.as_str()) else { continue };
                    *count -= 1;
                    if *count == 0 {
                        left = left.saturating_sub(size(object));
                        leaving.objects.push(object.clone());
                    }
                }
            }
        }
    }
    if fits(left) { Ok(leaving) } else { Err(NoRoom { in_use: left }) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    prop_compose! {
        fn contents()(
            trees in proptest::collection::vec((0..9_u64, any::<bool>(), proptest::collection::btree_set(0..8_usize, 1..4)), 0..6),
            unfinished in proptest::collection::vec((0..9_u64, any::<bool>(), 1..50_u64), 0..3),
            sizes in proptest::collection::vec(1..50_u64, 8),
        ) -> Contents<usize> {
            Contents {
                trees: trees.into_iter().enumerate().map(|(key, (used, held, objects))| Tree {
                    key, used: at(used), held, objects: objects.into_iter().map(|object| object.to_string()).collect(),
                }).collect(),
                unfinished: unfinished.into_iter().enumerate().map(|(key, (used, held, bytes))| Unfinished {
                    key, used: at(used), held, bytes,
                }).collect(),
                objects: sizes.into_iter().enumerate().map(|(i, size)| (i.to_string(), size)).collect(),
            }
        }
    }

    proptest! {
        #[test]
        fn room_is_made_of_what_nobody_uses(contents in contents(), need in 0..200_u64, most in 1..300_u64) {
            let held: BTreeSet<_> =
                contents.trees.iter().filter(|tree| tree.held).flat_map(|tree| tree.objects.clone()).collect();
            let kept: u64 = held.iter().map(|object| contents.objects[object]).sum::<u64>()
                + contents.unfinished.iter().filter(|one| one.held).map(|one| one.bytes).sum::<u64>();
            match room(&contents, need, most) {
                Err(NoRoom { in_use }) => {
                    prop_assert_eq!(in_use, kept);
                    prop_assert!(kept + need > most, "it would have fitted");
                }
                Ok(leaving) => {
                    prop_assert!(leaving.objects.iter().all(|object| !held.contains(object)));
                    prop_assert!(leaving.trees.iter().all(|key| !contents.trees[*key].held));
                    prop_assert!(leaving.unfinished.iter().all(|key| !contents.unfinished[*key].held));
                    let gone: BTreeSet<_> = leaving.objects.iter().collect();
                    prop_assert_eq!(gone.len(), leaving.objects.len(), "nothing leaves twice");
                    let freed: u64 = leaving.objects.iter().map(|object| contents.objects[object]).sum::<u64>()
                        + leaving.unfinished.iter().map(|key| contents.unfinished[*key].bytes).sum::<u64>();
                    prop_assert!(total(&contents) - freed + need <= most);
                    // No version is left without a content of its own.
                    for tree in contents.trees.iter().filter(|tree| !leaving.trees.contains(&tree.key)) {
                        prop_assert!(tree.objects.iter().all(|object| !gone.contains(object)));
                    }
                    // What stays was used no earlier than what leaves.
                    let last_out = leaving.trees.iter().map(|key| contents.trees[*key].used).max();
                    for tree in contents.trees.iter().filter(|tree| !tree.held && !leaving.trees.contains(&tree.key)) {
                        prop_assert!(last_out.is_none_or(|out| tree.used >= out));
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_leaves_where_there_is_room() {
        let contents: Contents<usize> =
            Contents { trees: vec![], unfinished: vec![], objects: [("orphan".to_owned(), 5)].into() };
        let leaving = room(&contents, 5, 10).unwrap();
        assert_eq!(leaving, Leaving { trees: vec![], unfinished: vec![], objects: vec![] });
        assert_eq!(room(&contents, 6, 10).unwrap().objects, ["orphan"]);
        assert_eq!(room(&contents, 11, 10), Err(NoRoom { in_use: 0 }));
    }
}
