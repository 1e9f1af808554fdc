//! What comes out of object stores, and what it takes on disk.

use std::{sync::atomic::AtomicI64, time::Duration};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreLabel {
    store: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FetchLabels {
    store: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RepositoryLabel {
    repository: String,
}

/// Which repositories can be read; clones are the same.
#[derive(Debug, Clone, Default)]
pub struct RepositoryMetrics(Family<RepositoryLabel, Gauge>);

impl RepositoryMetrics {
    /// Puts it into the catalogue.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "repository_readable",
            "1 while the repository can be read, 0 while its models stay as they were",
            self.0.clone(),
        );
    }

    /// What the last look at it came to.
    pub fn readable(&self, repository: &str, readable: bool) {
        let label = RepositoryLabel { repository: repository.to_owned() };
        self.0.get_or_create(&label).set(i64::from(readable));
    }
}

/// Counts of downloads; clones count together. `store` is the kind: `s3`, `gs`, `az`, `http`.
#[derive(Debug, Clone)]
pub struct StoreMetrics {
    bytes: Family<StoreLabel, Counter>,
    fetches: Family<FetchLabels, Counter>,
    seconds: Family<StoreLabel, Histogram>,
    cache: Gauge<i64, AtomicI64>,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        // 10 ms to 20 minutes: from a model.toml to tens of gigabytes.
        let seconds = || Histogram::new([0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 1200.0]);
        Self {
            bytes: Family::default(),
            fetches: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            cache: Gauge::default(),
        }
    }
}

impl StoreMetrics {
    /// Puts them into the catalogue.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "store_downloaded",
            "Bytes that came from object stores",
            Unit::Bytes,
            self.bytes.clone(),
        );
        registry.register(
            "store_fetches",
            "Versions fetched from object stores, by result",
            self.fetches.clone(),
        );
        registry.register_with_unit(
            "store_fetch_duration",
            "Fetching a version",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register_with_unit(
            "store_cache",
            "What the cache of object stores takes",
            Unit::Bytes,
            self.cache.clone(),
        );
    }

    /// So many bytes came.
    pub fn received(&self, store: &'static str, bytes: u64) {
        self.bytes.get_or_create(&StoreLabel { store }).inc_by(bytes);
    }

    /// A fetch ended: `ok`, `full` or `failed`.
    pub fn fetched(&self, store: &'static str, result: &'static str, took: Duration) {
        self.fetches.get_or_create(&FetchLabels { store, result }).inc();
        self.seconds.get_or_create(&StoreLabel { store }).observe(took.as_secs_f64());
    }

    /// What the cache takes now.
    pub fn cache_bytes(&self, bytes: u64) {
        self.cache.set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }
}
