//! Metrics of the response cache. What it holds is read at each scrape; what it did is counted here, model by model.

use std::{collections::HashMap, sync::Arc};

use parking_lot::RwLock;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::ResponseCache;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    model: String,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CauseLabels {
    model: String,
    cause: &'static str,
}

/// All of them; clones count together.
#[derive(Debug, Clone, Default)]
pub struct CacheMetrics {
    lookups: Family<ResultLabels, Counter>,
    insertions: Family<ResultLabels, Counter>,
    evictions: Family<CauseLabels, Counter>,
    bytes: Gauge,
    entries: Gauge,
    models: Arc<RwLock<HashMap<String, CacheCounts>>>,
}

/// Those of one model: found once for each request, and kept with each answer.
#[derive(Debug, Clone, Default)]
pub struct CacheCounts {
    /// Requests that were answered from it.
    pub hits: Counter,
    /// Requests that were looked for in vain.
    pub misses: Counter,
    /// Answers that were put in.
    pub kept: Counter,
    /// Answers that take more than one entry may.
    pub too_large: Counter,
    /// Answers that had to go for others.
    pub for_room: Counter,
    /// Answers of versions that are gone.
    pub outdated: Counter,
}

impl CacheMetrics {
    /// Puts them into the catalogue.
    pub fn register(&self, r: &mut Registry) {
        r.register("response_cache_lookups", "Requests looked up", self.lookups.clone());
        r.register("response_cache_insertions", "Answers that were to be kept", self.insertions.clone());
        r.register("response_cache_evictions", "Answers that went", self.evictions.clone());
        r.register_with_unit("response_cache", "What kept answers take", Unit::Bytes, self.bytes.clone());
        r.register("response_cache_entries", "Answers that are kept", self.entries.clone());
    }

    /// Where a model's are counted. Only for models that there are: names that callers make up must not become series.
    pub fn of(&self, model: &str) -> CacheCounts {
        if let Some(counts) = self.models.read().get(model) {
            return counts.clone();
        }
        let result = |family: &Family<ResultLabels, Counter>, result| {
            family.get_or_create(&ResultLabels { model: model.to_owned(), result }).clone()
        };
        let cause =
            |cause| self.evictions.get_or_create(&CauseLabels { model: model.to_owned(), cause }).clone();
        let counts = CacheCounts {
            hits: result(&self.lookups, "hit"),
            misses: result(&self.lookups, "miss"),
            kept: result(&self.insertions, "kept"),
            too_large: result(&self.insertions, "too_large"),
            for_room: cause("room"),
            outdated: cause("version"),
        };
        self.models.write().insert(model.to_owned(), counts.clone());
        counts
    }

    /// A model is gone, and all of its series with it.
    pub fn forget(&self, model: &str) {
        if self.models.write().remove(model).is_none() {
            return;
        }
        let of = || model.to_owned();
        for result in ["hit", "miss"] {
            self.lookups.remove(&ResultLabels { model: of(), result });
        }
        for result in ["kept", "too_large"] {
            self.insertions.remove(&ResultLabels { model: of(), result });
        }
        for cause in ["room", "version"] {
            self.evictions.remove(&CauseLabels { model: of(), cause });
        }
    }

    /// Takes over what the cache holds now.
    pub fn read(&self, cache: Option<&ResponseCache>) {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.bytes.set(number(cache.map_or(0, ResponseCache::bytes)));
        self.entries.set(number(cache.map_or(0, ResponseCache::entries) as u64));
    }
}
