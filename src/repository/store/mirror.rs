//! A store as a repository: lists it, and brings versions here when they are wanted.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::TryStreamExt as _;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt as _, limit::LimitStore, path::Path as Location};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep, timeout},
};

use super::{
    address::{self, Address, StoreOptions},
    cache::{Building, Cache, Pin},
    download::Transfer,
    error::FetchError,
    index::{self, INDEX, MAX_INDEX_BYTES},
    layout::{Listed, Offer, Plan, offers},
    part::hex,
};
use crate::{
    error::Reason,
    model::ModelName,
    repository::{Found, Kept, VersionFiles},
    telemetry::StoreMetrics,
    threads,
};

/// How a store is mirrored.
#[derive(Debug, Clone)]
pub struct MirrorConfig {
    /// Where the cache is; empty where nobody knows. Several stores, and several processes, may share one.
    pub cache: PathBuf,
    /// Most that the cache may take, in bytes.
    pub max_bytes: u64,
    /// A store that gives no byte for so long is given up.
    pub patience: Duration,
    /// Those who ask for all models share a listing for so long.
    pub list_every: Duration,
    /// By kind of store.
    pub options: StoreOptions,
}

/// Requests to one store at once.
const REQUESTS: usize = 16;

/// Longest wait for a listing where there is an older one.
const NEWS: Duration = Duration::from_secs(2);

/// The last listing, beside the versions. Hidden: it is none of them.
const LAST_LISTING: &str = ".listing.json";

/// A repository in an object store, and its part of the cache.
pub struct Mirror {
    shared: Arc<Shared>,
    /// Downloads have a thread of their own: what they write and hash must not hold up admin calls.
    runtime: Option<Runtime>,
}

struct Shared {
    client: LimitStore<Box<dyn ObjectStore>>,
    prefix: Location,
    shown: String,
    scheme: &'static str,
    /// Its place in the cache.
    id: String,
    trees: PathBuf,
    cache: Cache,
    patience: Duration,
    list_every: Duration,
    metrics: StoreMetrics,
    offers: Mutex<BTreeMap<ModelName, Offer>>,
    listed: tokio::sync::Mutex<Option<Instant>>,
}

impl std::fmt::Debug for Mirror {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Mirror").field(&self.shared.shown).finish()
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Mirror {
    /// The repository at `url`. Nothing is asked of the store yet.
    ///
    /// # Errors
    /// Not a URL of a store, options that do not fit, or a cache that cannot be written.
    pub fn open(url: &str, config: &MirrorConfig, metrics: StoreMetrics) -> Result<Self, FetchError> {
        Self::at(address::connect(url, &config.options)?, config, metrics)
    }

    fn at(address: Address, config: &MirrorConfig, metrics: StoreMetrics) -> Result<Self, FetchError> {
        if config.cache.as_os_str().is_empty() {
            // Never a folder that anybody can write to: what lies there is run.
            let message =
                format!("{} needs a cache, and HOME is not set: set cache.directory", address.shown);
            return Err(FetchError::new(Reason::LoadFailed, message));
        }
        let unusable = |error| FetchError::cache(format_args!("files in {}", config.cache.display()), &error);
        let cache = Cache::open(&config.cache, config.max_bytes).map_err(unusable)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("store")
            .enable_all()
            .on_thread_start(|| {
                // As for loaders: it works without too.
                let _refused = threads::give_way();
            })
            .build()
            .map_err(unusable)?;
        let Address { client, prefix, shown, scheme } = address;
        let id = hex(&Sha256::digest(&shown)).chars().take(16).collect::<String>();
        let trees = cache.trees(&id);
        fs::create_dir_all(&trees).map_err(unusable)?;
        let client = LimitStore::new(client, REQUESTS);
        let (patience, list_every) = (config.patience, config.list_every);
        let (offers, listed) = (Mutex::default(), tokio::sync::Mutex::default());
        let shared = Shared {
            client,
            prefix,
            shown,
            scheme,
            id,
            trees,
            cache,
            patience,
            list_every,
            metrics,
            offers,
            listed,
        };
        Ok(Self { shared: Arc::new(shared), runtime: Some(runtime) })
    }

    /// Every model that the store has, by name; nothing is downloaded. Where the store cannot be reached, what the
    /// last listing had.
    ///
    /// # Errors
    /// It cannot be listed and never was.
    pub async fn scan(&self) -> Result<Vec<Found>, FetchError> {
        let shared = self.shared.clone();
        self.on_own_thread(async move { shared.scan().await }).await
    }

    /// One model, read afresh.
    ///
    /// # Errors
    /// As for [`Mirror::scan`].
    pub async fn find(&self, name: &ModelName) -> Result<Option<Found>, FetchError> {
        let (shared, name) = (self.shared.clone(), name.clone());
        self.on_own_thread(async move { shared.find(&name).await }).await
    }

    /// Brings the files here, unless they are, and keeps them for as long as the result lives. Files of others are
    /// returned as they are.
    ///
    /// # Errors
    /// The store does not answer, an object changed since it was listed, or the cache cannot take it.
    pub async fn fetch(&self, files: VersionFiles) -> Result<VersionFiles, FetchError> {
        let Some(tree) = self.shared.tree_of(&files.archive) else { return Ok(files) };
        let (shared, begun) = (self.shared.clone(), Instant::now());
        let work = async move {
            match shared.cache.pin(&tree) {
                Ok(Some(pin)) => Ok(pin),
                _ => {
                    let fetched = shared.fetch(&tree).await;
                    let result = match &fetched {
                        Ok(_) => "ok",
                        Err(error) if error.reason() == Reason::CacheFull => "full",
                        Err(_) => "failed",
                    };
                    shared.metrics.fetched(shared.scheme, result, begun.elapsed());
                    shared.metrics.cache_bytes(shared.cache.bytes().unwrap_or(0));
                    fetched
                }
            }
        };
        let pin = self.on_own_thread(work).await?;
        Ok(VersionFiles { kept: Kept::by(pin), ..files })
    }

    async fn on_own_thread<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, FetchError>> + Send + 'static,
    ) -> Result<T, FetchError> {
        let stopped = || FetchError::new(Reason::ShuttingDown, "the server is stopping: nothing was changed");
        let task = self.runtime.as_ref().ok_or_else(stopped)?.spawn(work);
        task.await.unwrap_or_else(|error| {
            Err(if error.is_panic() {
                FetchError::new(Reason::Internal, "a bug in torchlane: the server's log says where")
            } else {
                stopped()
            })
        })
    }
}

impl Shared {
    async fn scan(&self) -> Result<Vec<Found>, FetchError> {
        let mut looked = self.listed.lock().await;
        if looked.is_none_or(|at| at.elapsed() >= self.list_every) {
            // Who asks what there is does not wait long for news.
            let patience = if looked.is_none() { self.patience } else { NEWS.min(self.patience) };
            let listed = match self.patiently(patience, || self.list(None)).await {
                Ok(listed) => {
                    self.remember(&listed);
                    listed
                }
                Err(error) if error.is_transient() => {
                    let Some(last) = self.last_listing() else { return Err(error) };
                    tracing::error!(target: "torchlane::store", "{error}: going by its last listing");
                    last
                }
                Err(error) => return Err(error),
            };
            *self.offers.lock() =
                offers(&listed).into_iter().map(|offer| (offer.name.clone(), offer)).collect();
            *looked = Some(Instant::now());
        }
        Ok(self.offers.lock().values().map(|offer| offer.found(&self.trees)).collect())
    }

    async fn find(&self, name: &ModelName) -> Result<Option<Found>, FetchError> {
        let listed = match self.patiently(self.patience, || self.list(Some(name))).await {
            Err(error) if error.is_transient() => {
                // What was listed before may be here.
                let known = self.offers.lock().get(name).map(|offer| offer.found(&self.trees));
                tracing::error!(target: "torchlane::store", "{error}: going by what was listed before");
                return known.map(Some).ok_or(error);
            }
            listed => listed?,
        };
        let offer = offers(&listed).into_iter().find(|offer| offer.name == *name);
        let found = offer.as_ref().map(|offer| offer.found(&self.trees));
        let mut offers = self.offers.lock();
        match offer {
            Some(offer) => drop(offers.insert(name.clone(), offer)),
            None => drop(offers.remove(name)),
        }
        Ok(found)
    }

    /// All objects, or those of one model.
    async fn list(&self, model: Option<&ModelName>) -> Result<Vec<Listed>, FetchError> {
        let failed = |error: object_store::Error| FetchError::store(&self.shown, &error);
        if self.scheme == "http" {
            let index = Location::from_iter(self.prefix.parts().chain([INDEX.into()]));
            match self.client.get(&index).await {
                Ok(answer) if answer.meta.size > MAX_INDEX_BYTES => {
                    let message = format!("{}/{INDEX} is over {MAX_INDEX_BYTES} bytes", self.shown);
                    return Err(FetchError::new(Reason::LoadFailed, message));
                }
                Ok(answer) => {
                    let text = answer.bytes().await.map_err(failed)?;
                    return index::parse(&text)
                        .map_err(|why| FetchError::new(Reason::LoadFailed, format!("{}/{why}", self.shown)));
                }
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let below = |name: &str| Location::from_iter(self.prefix.parts().chain([name.into()]));
        let prefix = model.map_or_else(|| self.prefix.clone(), |name| below(name.as_str()));
        let mut metas: Vec<ObjectMeta> =
            self.client.list(Some(&prefix)).try_collect().await.map_err(failed)?;
        if let Some(name) = model {
            match self.client.head(&below(&format!("{name}.pt"))).await {
                Ok(meta) => metas.push(meta),
                Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(metas.into_iter().filter_map(|meta| self.listed(meta)).collect())
    }

    fn listed(&self, meta: ObjectMeta) -> Option<Listed> {
        let path: Vec<_> =
            meta.location.prefix_match(&self.prefix)?.map(|part| part.as_ref().to_owned()).collect();
        Some(Listed {
            path: path.join("/"),
            size: meta.size,
            tag: meta.e_tag,
            modified: meta.last_modified.timestamp_millis(),
            sha256: None,
        })
    }

    /// Asks again while that may help.
    async fn patiently<T, F: Future<Output = Result<T, FetchError>>>(
        &self,
        patience: Duration,
        ask: impl Fn() -> F,
    ) -> Result<T, FetchError> {
        let begun = Instant::now();
        let mut pause = Duration::from_millis(100);
        loop {
            let left = patience.saturating_sub(begun.elapsed());
            let answer = timeout(left, ask()).await.unwrap_or_else(|_| {
                let message = format!("{} did not answer for {patience:?} (store.patience)", self.shown);
                Err(FetchError::new(Reason::StoreUnavailable, message))
            });
            match answer {
                Err(error) if error.is_transient() && begun.elapsed() + pause < patience => {
                    sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                answer => return answer,
            }
        }
    }

    /// For a start while the store cannot be reached. A disk that does not take it is not worth a failure.
    fn remember(&self, listed: &[Listed]) {
        let (path, new) = (
            self.trees.join(LAST_LISTING),
            self.trees.join(format!("{LAST_LISTING}.{}", std::process::id())),
        );
        let written = serde_json::to_vec(listed).map_err(std::io::Error::other);
        if let Err(error) =
            written.and_then(|text| fs::write(&new, text)).and_then(|()| fs::rename(&new, path))
        {
            let _gone_already = fs::remove_file(new);
            tracing::warn!(target: "torchlane::store", %error, "the listing of {} is not kept", self.shown);
        }
    }

    fn last_listing(&self) -> Option<Vec<Listed>> {
        serde_json::from_slice(&fs::read(self.trees.join(LAST_LISTING)).ok()?).ok()
    }

    /// The version's directory, if `archive` is one of this store's.
    fn tree_of(&self, archive: &Path) -> Option<PathBuf> {
        let below = archive.strip_prefix(&self.trees).ok()?;
        Some(self.trees.join(below.components().next()?))
    }

    fn plan(&self, tree: &Path) -> Option<(ModelName, Plan)> {
        let wanted = tree.file_name()?.to_str()?;
        let offers = self.offers.lock();
        offers.iter().find_map(|(name, offer)| {
            let plan = offer.plans.iter().find(|plan| plan.fingerprint() == wanted)?;
            Some((name.clone(), plan.clone()))
        })
    }

    async fn fetch(&self, tree: &Path) -> Result<Pin, FetchError> {
        let unusable = |error: std::io::Error| FetchError::cache(&self.shown, &error);
        let (name, plan) = self.plan(tree).ok_or_else(|| FetchError::changed(&self.shown))?;
        let _turn = loop {
            match self.cache.turn(&self.id, name.as_str()).map_err(unusable)? {
                Some(turn) => break turn,
                None => sleep(Duration::from_millis(50)).await,
            }
        };
        // Whoever had the turn before may have brought it.
        if let Some(pin) = self.cache.pin(tree).map_err(unusable)? {
            return Ok(pin);
        }
        let mut building = self.cache.build(tree).map_err(unusable)?;
        match self.bring(&plan, &mut building).await {
            Ok(()) => self.cache.finish(building).map_err(unusable),
            Err(error) => {
                Cache::give_up(building);
                Err(error)
            }
        }
    }

    /// Every file of `plan`: from other versions where they have it, from the store else.
    async fn bring(&self, plan: &Plan, building: &mut Building) -> Result<(), FetchError> {
        let unusable = |error: std::io::Error| FetchError::cache(&self.shown, &error);
        let known = self.cache.known(&self.id);
        let mut missing = Vec::new();
        for listed in &plan.files {
            let sha256 = listed.sha256.as_ref().or_else(|| known.get(listed));
            let here = match sha256 {
                Some(sha256) => self.cache.link_known(building, listed, sha256).map_err(unusable)?,
                None => false,
            };
            if !here {
                missing.push(listed);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        for mut part in self.cache.reserve(&self.id, &missing)? {
            let path = part.listed().path.clone();
            let transfer = Transfer {
                store: &self.client,
                location: Location::from_iter(self.prefix.parts().chain(path.split('/').map(Into::into))),
                url: format!("{}/{path}", self.shown),
                patience: self.patience,
                metrics: &self.metrics,
                scheme: self.scheme,
            };
            let (begun, had) = (Instant::now(), part.bytes());
            let sha256 = match transfer.run(&mut part).await {
                Ok(sha256) => sha256,
                Err(error) => {
                    if error.reason() == Reason::CacheFull {
                        part.remove();
                    }
                    return Err(error);
                }
            };
            tracing::info!(
                target: "torchlane::store", url = transfer.url, bytes = part.bytes(), resumed_at = had, took = ?begun.elapsed(),
                "downloaded"
            );
            self.cache.adopt(building, part, &sha256).map_err(unusable)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
