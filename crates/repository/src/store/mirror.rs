//! A store as a repository: lists it, and brings versions here when they are wanted.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::{
    runtime::Runtime,
    task::block_in_place,
    time::{Instant, sleep, timeout},
};
use torchlane_model::{ModelName, error::Reason};

use super::{
    address::{self, Address, StoreOptions},
    cache::{Building, Cache, Pin},
    download::Transfer,
    error::FetchError,
    layout::{Listed, Offer, Plan, offers},
    listing::Remote,
    part::hex,
};
use crate::{Found, Kept, StoreMetrics, VersionFiles};

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

/// The last listing, beside the versions. Hidden: it is none of them.
const LAST_LISTING: &str = ".listing.json";

/// A repository in an object store, and its part of the cache.
pub struct Mirror {
    shared: Arc<Shared>,
    /// Downloads have a thread of their own: what they write and hash must not hold up admin calls.
    runtime: Option<Runtime>,
}

struct Shared {
    remote: Remote,
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
        f.debug_tuple("Mirror").field(&self.shared.remote.shown).finish()
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
                let _refused = rustix::process::setpriority_process(None, 19);
            })
            .build()
            .map_err(unusable)?;
        let remote = Remote::new(address);
        let id = hex(&Sha256::digest(&remote.shown)).chars().take(16).collect::<String>();
        let trees = cache.trees(&id);
        fs::create_dir_all(&trees).map_err(unusable)?;
        let (patience, list_every) = (config.patience, config.list_every);
        let (offers, listed) = (Mutex::default(), tokio::sync::Mutex::default());
        let shared = Shared { remote, id, trees, cache, patience, list_every, metrics, offers, listed };
        Ok(Self { shared: Arc::new(shared), runtime: Some(runtime) })
    }

    /// Every model that the store has, by name; nothing is downloaded.
    ///
    /// # Errors
    /// It cannot be listed now.
    pub async fn scan(&self) -> Result<Vec<Found>, FetchError> {
        let shared = self.shared.clone();
        self.on_own_thread(async move { shared.scan().await }).await
    }

    /// What the last listing had, in this process or an earlier one: for a start while the store cannot be reached.
    ///
    /// # Errors
    /// The server is stopping.
    pub async fn remembered(&self) -> Result<Vec<Found>, FetchError> {
        let shared = self.shared.clone();
        self.on_own_thread(async move { Ok(block_in_place(|| shared.remembered())) }).await
    }

    /// One model, read afresh. Where the store cannot be reached, what was listed before.
    ///
    /// # Errors
    /// It cannot be listed, and no listing before had the model.
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
            match block_in_place(|| shared.cache.pin(&tree)) {
                Ok(Some(pin)) => Ok(pin),
                _ => {
                    let fetched = shared.fetch(&tree).await;
                    let result = match &fetched {
                        Ok(_) => "ok",
                        Err(error) if error.reason() == Reason::CacheFull => "full",
                        Err(_) => "failed",
                    };
                    shared.metrics.fetched(shared.remote.scheme, result, begun.elapsed());
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
            let listed = self.within(self.patience, self.remote.list(None)).await?;
            block_in_place(|| self.remember(&listed));
            self.offer(&listed);
            *looked = Some(Instant::now());
        }
        Ok(self.offered())
    }

    fn offer(&self, listed: &[Listed]) {
        *self.offers.lock() = offers(listed).into_iter().map(|offer| (offer.name.clone(), offer)).collect();
    }

    fn offered(&self) -> Vec<Found> {
        self.offers.lock().values().map(|offer| offer.found(&self.trees)).collect()
    }

    fn remembered(&self) -> Vec<Found> {
        if self.offers.lock().is_empty()
            && let Some(last) = self.last_listing()
        {
            self.offer(&last);
        }
        self.offered()
    }

    async fn find(&self, name: &ModelName) -> Result<Option<Found>, FetchError> {
        let listed = match self.patiently(self.patience, || self.remote.list(Some(name))).await {
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
            match self.within(left, ask()).await {
                Err(error) if error.is_transient() && begun.elapsed() + pause < patience => {
                    sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                answer => return answer,
            }
        }
    }

    async fn within<T>(
        &self,
        patience: Duration,
        answer: impl Future<Output = Result<T, FetchError>>,
    ) -> Result<T, FetchError> {
        timeout(patience, answer).await.unwrap_or_else(|_| {
            let (shown, patience) = (&self.remote.shown, self.patience);
            let message = format!("{shown} did not answer for {patience:?} (store.patience)");
            Err(FetchError::new(Reason::StoreUnavailable, message))
        })
    }

    /// For a start while the store cannot be reached. A disk that does not take it is not worth a failure.
    fn remember(&self, listed: &[Listed]) {
        let (path, new) = (
            self.trees.join(LAST_LISTING),
            self.trees.join(format!("{LAST_LISTING}.{}", std::process::id())),
        );
        let written = serde_json::to_vec(listed).map_err(std::io::Error::other);
        // The cache may have been removed since the start.
        let made = fs::create_dir_all(&self.trees);
        if let Err(error) =
            made.and(written).and_then(|text| fs::write(&new, text)).and_then(|()| fs::rename(&new, path))
        {
            let _gone_already = fs::remove_file(new);
            tracing::warn!(target: "torchlane::store", %error, "the listing of {} is not kept", self.remote.shown);
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
        let unusable = |error: std::io::Error| FetchError::cache(&self.remote.shown, &error);
        let (name, plan) = self.plan(tree).ok_or_else(|| FetchError::changed(&self.remote.shown))?;
        let _turn = loop {
            match self.cache.turn(&self.id, name.as_str()).map_err(unusable)? {
                Some(turn) => break turn,
                None => sleep(Duration::from_millis(50)).await,
            }
        };
        // The fetch that had the turn before may have brought it.
        if let Some(pin) = block_in_place(|| self.cache.pin(tree)).map_err(unusable)? {
            return Ok(pin);
        }
        let mut building = block_in_place(|| self.cache.build(tree)).map_err(unusable)?;
        match self.bring(&plan, &mut building).await {
            Ok(()) => block_in_place(|| self.cache.finish(building)).map_err(unusable),
            Err(error) => {
                Cache::give_up(building);
                Err(error)
            }
        }
    }

    /// Every file of `plan`: from other versions where they have it, from the store else.
    async fn bring(&self, plan: &Plan, building: &mut Building) -> Result<(), FetchError> {
        let unusable = |error: std::io::Error| FetchError::cache(&self.remote.shown, &error);
        let known = block_in_place(|| self.cache.known(&self.id));
        let mut missing = Vec::new();
        for listed in &plan.files {
            let sha256 = listed.sha256.as_ref().or_else(|| known.get(listed));
            let here = match sha256 {
                Some(sha256) => {
                    block_in_place(|| self.cache.link_known(building, listed, sha256)).map_err(unusable)?
                }
                None => false,
            };
            if !here {
                missing.push(listed);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        for mut part in block_in_place(|| self.cache.reserve(&self.id, &missing))? {
            let path = part.listed().path.clone();
            let transfer = Transfer {
                store: &self.remote.client,
                location: self.remote.location(&path)?,
                url: format!("{}/{path}", self.remote.shown),
                patience: self.patience,
                metrics: &self.metrics,
                scheme: self.remote.scheme,
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
            block_in_place(|| self.cache.adopt(building, part, &sha256)).map_err(unusable)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;

#[cfg(test)]
#[path = "s3_tests.rs"]
mod s3_tests;
