//! What `torchlane check` finds out: whether a server would serve what the repositories hold.

use super::{
    from_settings::{backend, rules},
    repositories,
    server::StartError,
};
use crate::{
    backend::{Backend, ThreadRole},
    config::Settings,
    lifecycle::{Preparation, Rules, described, prepare},
    model::{Decision, Version, VersionPlan},
    repository::{Found, Repositories},
    telemetry::Metrics,
};

/// What `torchlane check` found out about one version of a model, or about a repository.
#[derive(Debug, Clone)]
pub struct ModelCheck {
    /// The model, or the repository.
    pub name: String,
    /// The version, where there is one.
    pub version: Option<u64>,
    /// What keeps it from being served.
    pub problem: Option<String>,
    /// What an operator should know though the model is served, a line each.
    pub warnings: Vec<String>,
    /// What torchlane decided about it.
    pub decisions: Vec<Decision>,
}

impl ModelCheck {
    fn failed(name: &str, problem: String) -> Self {
        let (warnings, decisions) = (Vec::new(), Vec::new());
        Self { name: name.to_owned(), version: None, problem: Some(problem), warnings, decisions }
    }
}

/// Prepares every version that a server would load, as it would, and drops it again.
///
/// # Errors
/// The backend or the settings cannot be used, or there is no model anywhere.
pub fn check_models(settings: &Settings) -> Result<Vec<ModelCheck>, StartError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(check(settings))
}

async fn check(settings: &Settings) -> Result<Vec<ModelCheck>, StartError> {
    let backend = backend(settings.backend)?;
    let _guard = backend.enter_thread(ThreadRole::Loader);
    let rules = rules(settings)?;
    let uploads = repositories::look_at_uploads(settings)?;
    let repositories = repositories::open(settings, uploads.as_ref(), &Metrics::default())?;
    let mut checks = Vec::new();
    for repository in repositories.iter() {
        if let Some(trouble) = repository.look().await.trouble {
            checks.push(ModelCheck::failed(repository.place(), trouble.message));
        }
    }
    let models = repositories.models();
    if models.is_empty() && checks.is_empty() && !settings.allow_empty {
        return Err(repositories::empty(&settings.repositories));
    }
    for found in &models {
        checks.extend(check_model(backend.as_ref(), &rules, &repositories, found).await);
    }
    for (name, said) in repositories.shadowed() {
        let check = checks.iter_mut().find(|check| check.name == name.as_str());
        check.into_iter().for_each(|check| check.warnings.push(said.clone()));
    }
    Ok(checks)
}

async fn check_model(
    backend: &dyn Backend,
    rules: &Rules,
    repositories: &Repositories,
    found: &Found,
) -> Vec<ModelCheck> {
    let name = found.name.as_str();
    let Some(newest) = found.versions.last() else {
        let unreadable = repositories.find(&found.name).await.err().map(|error| error.to_string());
        let nothing = || format!("no version: put an archive at {name}/1/model.pt");
        return vec![ModelCheck::failed(name, unreadable.unwrap_or_else(nothing))];
    };
    // In the order of a server: what a model is said to be, then its files.
    let said = match repositories.materialize(newest.clone()).await {
        Ok(files) => described(&found.name, &files).map_err(|failure| failure.to_string()),
        Err(error) => Err(error.to_string()),
    };
    let (manifest, warnings) = match said {
        Ok(said) => said,
        Err(problem) => {
            let version = Some(newest.version.0);
            return vec![ModelCheck { version, ..ModelCheck::failed(name, problem) }];
        }
    };
    let plan = manifest.versions.plan(&found.numbers());
    let mut complaints = plan.complaints(name, &found.numbers());
    let Some(live) = plan.live else {
        let nothing = || format!("[versions] chooses none of the versions of model '{name}'");
        let problem = if complaints.is_empty() { nothing() } else { complaints.remove(0) };
        return vec![ModelCheck { warnings, ..ModelCheck::failed(name, problem) }];
    };
    let VersionPlan { beside, .. } = plan;
    let mut checks = Vec::new();
    for version in std::iter::once(live).chain(beside) {
        let (problem, decisions) = match check_version(backend, rules, repositories, found, version).await {
            Ok(decisions) => (None, decisions),
            Err(problem) => (Some(problem), Vec::new()),
        };
        let (name, version) = (name.to_owned(), Some(version.0));
        checks.push(ModelCheck { name, version, problem, warnings: Vec::new(), decisions });
    }
    if let Some(first) = checks.first_mut() {
        first.warnings = warnings.into_iter().chain(complaints).collect();
    }
    checks
}

async fn check_version(
    backend: &dyn Backend,
    rules: &Rules,
    repositories: &Repositories,
    found: &Found,
    version: Version,
) -> Result<Vec<Decision>, String> {
    let files = found.versions.iter().find(|files| files.version == version).cloned();
    let files = files.ok_or_else(|| format!("version {version} is not there"))?;
    let files = repositories.materialize(files).await.map_err(|error| error.to_string())?;
    let alone = Preparation::alone(&found.name, &files, rules);
    let prepared = prepare(backend, &alone).map_err(|failure| failure.to_string())?;
    Ok(prepared.servable.decisions.all())
}
