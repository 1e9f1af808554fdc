//! The repositories of a server. Each stands for itself: one that cannot be read, or turns empty, changes nothing for its own
//! models and nothing for those of the others.
//!
//! What a repository held when it was last read is kept here. A model belongs to the first repository that has it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    time::Duration,
};

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use torchlane_model::ModelName;

use super::{FetchError, Found, RepositoryError, Source, VersionFiles};
use crate::RepositoryMetrics;

/// Longest that a question about all models waits for news of one repository.
const NEWS: Duration = Duration::from_secs(2);

/// A repository that could not be read is not asked again within this time only because of a question.
const REST: Duration = Duration::from_secs(5);

/// An empty directory stands where a volume is not mounted.
const EMPTY: &str = "it holds no model any more (is a volume not mounted?)";

/// All of them, in the order in which they count.
#[derive(Debug, Default)]
pub struct Repositories {
    all: Vec<Repository>,
    /// Models in several repositories that the log has named, with the second repository.
    shadowed: Mutex<BTreeSet<(ModelName, usize)>>,
}

/// One of them.
#[derive(Debug)]
pub struct Repository {
    source: Source,
    /// Its path or URL.
    place: String,
    /// It may lose its last model: this server alone writes to it.
    may_be_empty: bool,
    seen: Mutex<Seen>,
    metrics: RepositoryMetrics,
}

#[derive(Debug, Default)]
struct Seen {
    /// As of the last look that succeeded.
    models: BTreeMap<ModelName, Found>,
    /// A look has succeeded.
    read: bool,
    trouble: Option<Trouble>,
}

/// Why a repository cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// With the repository's path or URL.
    pub message: String,
    /// It may end by itself.
    pub is_transient: bool,
    since: Instant,
}

/// What a look at one repository came to.
#[derive(Debug)]
pub struct Look {
    /// Its models: as they are now, or as of the last look that succeeded.
    pub found: Vec<Found>,
    /// Why it could not be read now.
    pub trouble: Option<Trouble>,
}

impl Repository {
    /// A repository that could be read so far.
    pub fn new(source: Source, place: String, metrics: RepositoryMetrics) -> Self {
        Self { source, place, may_be_empty: false, seen: Mutex::default(), metrics }
    }

    /// One that this server alone writes to.
    #[must_use]
    pub fn may_be_empty(self) -> Self {
        Self { may_be_empty: true, ..self }
    }

    /// Where the system may tell of changes.
    pub fn root(&self) -> Option<&Path> {
        self.source.root()
    }

    /// Its path or URL.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Looks at it, and keeps what it holds.
    pub async fn look(&self) -> Look {
        let (problem, is_transient) = match self.source.scan().await {
            Ok(found) => {
                let mut seen = self.seen.lock();
                if !found.is_empty() || seen.models.is_empty() || self.may_be_empty {
                    seen.models = found.iter().map(|found| (found.name.clone(), found.clone())).collect();
                    seen.read = true;
                    if seen.trouble.take().is_some() {
                        tracing::info!(target: "torchlane::repository", repository = self.place, "the repository can be read again");
                    }
                    self.metrics.readable(&self.place, true);
                    return Look { found, trouble: None };
                }
                (format!("model repository {}: {EMPTY}", self.place), true)
            }
            Err(error) => (error.to_string(), error.is_transient()),
        };
        let message = match problem {
            problem if problem.contains(&self.place) => problem,
            problem => format!("model repository {}: {problem}", self.place),
        };
        self.fails(message, is_transient).await
    }

    async fn fails(&self, message: String, is_transient: bool) -> Look {
        // What an earlier process listed.
        if !self.seen.lock().read {
            let remembered = self.source.remembered().await;
            let mut seen = self.seen.lock();
            if seen.models.is_empty() {
                seen.models = remembered.into_iter().map(|found| (found.name.clone(), found)).collect();
            }
        }
        let mut seen = self.seen.lock();
        // Clients say how long they tried: that is no news.
        let words = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
        let is_known = seen.trouble.as_ref().is_some_and(|known| words(&known.message) == words(&message));
        if !is_known {
            let models = seen.models.len();
            tracing::error!(target: "torchlane::repository",
                repository = self.place,
                models,
                "cannot look for new versions: {message}. Its models stay as they are"
            );
        }
        self.metrics.readable(&self.place, false);
        let trouble = Trouble { message, is_transient, since: Instant::now() };
        seen.trouble = Some(trouble.clone());
        Look { found: seen.models.values().cloned().collect(), trouble: Some(trouble) }
    }

    /// The last look failed.
    pub fn is_in_trouble(&self) -> bool {
        self.seen.lock().trouble.is_some()
    }

    /// One model, read afresh.
    async fn find(&self, name: &ModelName) -> Result<Option<Found>, RepositoryError> {
        let found = self.source.find(name).await?;
        if let Some(found) = &found {
            self.seen.lock().models.insert(name.clone(), found.clone());
        }
        Ok(found)
    }

    fn has(&self, name: &ModelName) -> bool {
        self.seen.lock().models.contains_key(name)
    }
}

impl Repositories {
    /// In the order in which they count.
    pub fn new(all: Vec<Repository>) -> Self {
        Self { all, shadowed: Mutex::default() }
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &Repository> {
        self.all.iter()
    }

    /// That one.
    pub fn get(&self, at: usize) -> Option<&Repository> {
        self.all.get(at)
    }

    /// Which one a model belongs to, by the last looks.
    pub fn owner(&self, name: &ModelName) -> Option<usize> {
        self.all.iter().position(|repository| repository.has(name))
    }

    /// Looks at all of them at once. One that takes long goes on by itself, and one that could not be read rests: then what is
    /// known of it stays.
    pub async fn refresh(&self) {
        let rests = |trouble: &Trouble| trouble.since.elapsed() < REST;
        let asked = self.all.iter().filter(|one| !one.seen.lock().trouble.as_ref().is_some_and(rests));
        let _late = join_all(asked.map(|repository| timeout(NEWS, repository.look()))).await;
    }

    /// Every model, by the last looks.
    pub fn models(&self) -> Vec<Found> {
        let mut all = BTreeMap::new();
        for (at, repository) in self.all.iter().enumerate() {
            for (name, found) in &repository.seen.lock().models {
                if all.contains_key(name) {
                    self.name_shadowed(name, at);
                } else {
                    all.insert(name.clone(), found.clone());
                }
            }
        }
        all.into_values().collect()
    }

    fn name_shadowed(&self, name: &ModelName, second: usize) {
        if self.shadowed.lock().insert((name.clone(), second)) {
            tracing::warn!(target: "torchlane::models", "{}", self.shadowed_by(name, second));
        }
    }

    fn shadowed_by(&self, name: &ModelName, second: usize) -> String {
        let place = |at: usize| self.all.get(at).map_or("", |repository| repository.place.as_str());
        let first = self.owner(name).unwrap_or(second);
        format!(
            "model '{name}' is in {} and in {}: the first is served. Remove one, or give it another name",
            place(first),
            place(second)
        )
    }

    /// What is wrong with them, one sentence each: those that cannot be read, and models that are in several.
    pub fn complaints(&self) -> Vec<String> {
        let troubles = self.troubles().into_iter().map(|trouble| trouble.message);
        troubles.chain(self.shadowed().into_iter().map(|(_, said)| said)).collect()
    }

    /// Models that are in several repositories, with a sentence for each repository whose model is not served.
    pub fn shadowed(&self) -> Vec<(ModelName, String)> {
        let mut said = Vec::new();
        for (at, repository) in self.all.iter().enumerate().skip(1) {
            let names: Vec<_> = repository.seen.lock().models.keys().cloned().collect();
            let shadowed = names.iter().filter(|name| self.owner(name).is_some_and(|owner| owner < at));
            said.extend(shadowed.map(|name| (name.clone(), self.shadowed_by(name, at))));
        }
        said
    }

    /// Those that cannot be read now.
    pub fn troubles(&self) -> Vec<Trouble> {
        self.all.iter().filter_map(|repository| repository.seen.lock().trouble.clone()).collect()
    }

    /// One model, read afresh: from the repository that it belongs to, or else from the first that has it. Stores are asked last:
    /// a model in a directory does not wait for them.
    ///
    /// # Errors
    /// Its repository cannot be read; or none has it, and one of them cannot be read.
    pub async fn find(&self, name: &ModelName) -> Result<Option<Found>, RepositoryError> {
        let owner = self.owner(name);
        if let Some(owner) = owner.and_then(|at| self.all.get(at))
            && let Some(found) = owner.find(name).await?
        {
            return Ok(Some(found));
        }
        let others = self.all.iter().enumerate().filter(|(at, _)| Some(*at) != owner);
        let (near, far): (Vec<_>, Vec<_>) =
            others.map(|(_, repository)| repository).partition(|repository| repository.root().is_some());
        let mut failed = None;
        for repository in near {
            match repository.find(name).await {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        for answer in join_all(far.iter().map(|repository| repository.find(name))).await {
            match answer {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    /// Whether the repository at `at` has lost a model, and no other is known to have it.
    pub async fn lost(&self, name: &ModelName, at: usize) -> bool {
        let Some(repository) = self.all.get(at) else { return false };
        self.owner(name).is_none() && matches!(repository.source.find(name).await, Ok(None))
    }

    /// Where a model is besides `root`, as far as that is known without waiting for a store.
    pub async fn elsewhere(&self, name: &ModelName, root: &Path) -> Option<&str> {
        for repository in self.all.iter().filter(|repository| repository.root() != Some(root)) {
            let is_there = match repository.root() {
                Some(_) => match repository.find(name).await {
                    Ok(found) => found.is_some(),
                    Err(_) => repository.has(name),
                },
                None => repository.has(name),
            };
            if is_there {
                return Some(&repository.place);
            }
        }
        None
    }

    /// Sees to it that the files are where they are said to be, and stay there while the result lives.
    ///
    /// # Errors
    /// They cannot be fetched.
    pub async fn materialize(&self, mut files: VersionFiles) -> Result<VersionFiles, FetchError> {
        for repository in &self.all {
            files = repository.source.materialize(files).await?;
        }
        Ok(files)
    }
}
