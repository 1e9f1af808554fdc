//! The first looks at the repositories, and the loads that follow. No repository waits long for another: one that does not answer
//! joins later.

use std::{
    cmp::Reverse,
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use super::{Asker, Manager, manager::GLANCE};
use crate::{
    files,
    model::{LoadMode, ModelName},
    repository::{Found, Look, Trouble, VersionFiles},
};

/// Repositories that answer within this time are loaded as one, in one order.
const TOGETHER: Duration = Duration::from_secs(1);

/// Models whose files are looked at side by side.
const AT_ONCE: usize = 16;

/// What the first look at a repository found.
#[derive(Debug)]
struct First {
    at: usize,
    found: Vec<Found>,
    trouble: Option<Trouble>,
}

/// What the start came to.
#[derive(Debug, Default)]
pub struct Started {
    /// Models that were found.
    pub found: usize,
    /// Models that serve.
    pub loaded: usize,
    /// Why repositories could not be read.
    pub troubles: Vec<Trouble>,
}

impl Manager {
    /// Loads what should be loaded of every model in the repositories, side by side. A model whose newest version fails
    /// falls back to the next older one that loads; one without any does not keep the others from serving. What is lazy, or
    /// finds no room, is left to its first request. Files that were written within the last `settle` are looked at twice.
    /// `watch` gets each repository, with what it held, once its models are loaded.
    pub async fn start(self: &Arc<Self>, settle: Duration, watch: impl Fn(usize, Vec<Found>)) -> Started {
        let count = self.config.repositories.iter().count();
        let mut looks: FuturesUnordered<_> = (0..count).map(|at| self.first_look(at, settle)).collect();
        let mut together = Vec::new();
        let deadline = sleep_until(Instant::now() + settle + TOGETHER);
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                biased;
                look = looks.next() => match look {
                    Some(look) => together.push(look),
                    None => break,
                },
                () = &mut deadline => break,
            }
        }
        // What is said first is of the first repository, whichever was the quickest to fail.
        together.sort_by_key(|first| first.at);
        let begin = async |firsts: Vec<First>| {
            let started = self.load_first(&firsts).await;
            firsts.into_iter().for_each(|first| watch(first.at, first.found));
            started
        };
        let late = async {
            let mut all = Vec::new();
            let mut loads = looks.map(|look| begin(vec![look])).buffer_unordered(count.max(1));
            while let Some(started) = loads.next().await {
                all.push(started);
            }
            all
        };
        let (first, late) = tokio::join!(begin(together), late);
        late.into_iter().fold(first, Started::and)
    }

    async fn first_look(&self, at: usize, settle: Duration) -> First {
        let Some(repository) = self.config.repositories.get(at) else {
            return First { at, found: Vec::new(), trouble: None };
        };
        let Look { mut found, trouble } = repository.look().await;
        let young = |files: &VersionFiles| files.is_younger_than(settle);
        if found.iter().flat_map(|found| &found.versions).any(young) {
            tokio::time::sleep(settle).await;
            let now = repository.look().await.found;
            // What has changed meanwhile is still being written: it is left to a later look.
            let seen: HashMap<_, _> = found.iter().map(|found| (&found.name, found)).collect();
            let quiet = |name: &ModelName, files: &VersionFiles| {
                let before =
                    seen.get(name).and_then(|before| before.versions.iter().find(|old| *old == files));
                before.is_some_and(|before| before.aside.writing == files.aside.writing)
            };
            let settled = now.into_iter().filter_map(|Found { name, versions, unfinished }| {
                let some = !versions.is_empty();
                let versions: Vec<_> = versions.into_iter().filter(|files| quiet(&name, files)).collect();
                (!some || !versions.is_empty()).then_some(Found { name, versions, unfinished })
            });
            let settled: Vec<_> = settled.collect();
            found = settled;
        }
        First { at, found, trouble }
    }

    async fn load_first(self: &Arc<Self>, firsts: &[First]) -> Started {
        self.take_note();
        let mut names = HashSet::new();
        let found: Vec<Found> = firsts
            .iter()
            .flat_map(|first| first.found.iter().map(|found| (first.at, found)))
            .filter(|(at, found)| self.config.repositories.owner(&found.name) == Some(*at))
            .map(|(_, found)| found.clone())
            .filter(|found| names.insert(found.name.clone()))
            .collect();
        let ordered = self.in_order_of_start(found.clone()).await;
        if self.config.memory.is_limited() {
            let names = ordered.iter().map(|found| found.name.clone());
            self.starting.send_modify(|starting| starting.extend(names));
        }
        let loads: Vec<_> = ordered
            .into_iter()
            .map(|found| {
                let manager = self.clone();
                self.tasks.spawn(async move {
                    let name = found.name.clone();
                    let serves = manager.sync(found, Asker::Start).await;
                    manager.claimed(&name);
                    serves
                })
            })
            .collect();
        let mut loaded = 0;
        for load in loads {
            loaded += usize::from(load.await.unwrap_or(false));
        }
        let troubles = firsts.iter().filter_map(|first| first.trouble.clone()).collect();
        Started { found: found.len(), loaded, troubles }
    }

    /// Where not all fit the budget, what is pinned comes first, then what is newest.
    async fn in_order_of_start(&self, found: Vec<Found>) -> Vec<Found> {
        if !self.config.memory.is_limited() {
            return found;
        }
        let order = async |found: Found| {
            let load = self.manifest_of(&found).await.ok().and_then(|manifest| manifest.load);
            let is_pinned = load.unwrap_or(self.config.residency.load) == LoadMode::Pinned;
            let newest = found.versions.last().map(|newest| newest.archive.clone());
            let written = match newest {
                Some(archive) => {
                    let of = archive.clone();
                    let written = move || of.metadata().ok()?.modified().ok();
                    files::run(&archive, files::LOOK, written).await.ok().flatten()
                }
                None => None,
            };
            (Reverse((is_pinned, written)), found)
        };
        // Side by side: one file that does not answer delays no others.
        let mut ordered: Vec<_> = futures::stream::iter(found).map(order).buffered(AT_ONCE).collect().await;
        ordered.sort_by_key(|(order, _)| *order);
        ordered.into_iter().map(|(_, found)| found).collect()
    }

    /// Waits until all models have claimed their room that may do so before this one. One whose files do not answer is not
    /// waited for long.
    pub(super) async fn may_claim(&self, model: &ModelName) {
        let mut starting = self.starting.subscribe();
        let first = starting.wait_for(|starting| {
            !starting.contains(model) || starting.front().is_some_and(|first| first == model)
        });
        let _late = tokio::time::timeout(GLANCE, first).await;
    }

    /// A model of the start has its room, or needs none.
    pub(super) fn claimed(&self, model: &ModelName) {
        self.starting.send_if_modified(|starting| {
            let before = starting.len();
            starting.retain(|other| other != model);
            starting.len() < before
        });
    }
}

impl Started {
    fn and(mut self, other: Self) -> Self {
        self.troubles.extend(other.troubles);
        Self { found: self.found + other.found, loaded: self.loaded + other.loaded, ..self }
    }
}
