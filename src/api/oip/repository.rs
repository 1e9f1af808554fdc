//! The repository: what is in it, and loading and unloading by hand. A load is torchlane's own reload: verified, warmed up,
//! swapped in at once; one that fails leaves what serves as it is.

use std::net::SocketAddr;

use super::{LoadParameter, OpenInference, uploads};
use crate::{
    admission::{Errand, MessageBytes},
    api::arrival::{Arrival, asker},
    error::{Error, Reason, Result},
    lifecycle::{ModelState, ModelStatus, ReloadRequest},
    proto::inference::{RepositoryIndexResponse, repository_index_response::ModelIndex},
};

impl<S> OpenInference<S> {
    /// Every version that is loaded or being loaded, and a line for each model that has none; with `ready` only those that serve.
    ///
    /// # Errors
    /// A repository is named: all count as one.
    pub(in crate::api) async fn index(
        &self,
        repository: &str,
        ready: bool,
    ) -> Result<RepositoryIndexResponse> {
        one_repository(repository)?;
        self.with.manager.refresh().await;
        let models = self.with.manager.list();
        let models = models.iter().flat_map(indexed).filter(|line| !ready || line.state == READY).collect();
        Ok(RepositoryIndexResponse { models })
    }

    /// Loads a model, or loads it again: the version that its `model.toml` asks for. What comes with the call is put in the
    /// place of its files first. Its bytes are `counted` until that is done.
    ///
    /// # Errors
    /// A repository is named, what the call brings is not allowed or cannot be kept, or the load fails.
    pub(in crate::api) async fn load(
        &self,
        repository: &str,
        model: String,
        parameters: Vec<(String, LoadParameter)>,
        counted: Option<MessageBytes>,
        (arrival, from): (&Arrival, Option<SocketAddr>),
    ) -> Result<()> {
        one_repository(repository)?;
        let upload = uploads::read(parameters, self.takes_uploads())?;
        let asker = asker(&arrival.headers, from)?;
        self.controlled(Errand::Change, arrival.deadline, async move |manager, place| {
            let _counted = counted;
            let loaded = match upload {
                Some(upload) => manager.upload(&model, upload, asker, Some(place)).await,
                None => {
                    let request = ReloadRequest { model, ..ReloadRequest::default() };
                    manager.reload(request, asker, Some(place)).await
                }
            };
            loaded.map(drop)
        })
        .await
    }

    /// Unloads a model. One that is not loaded stays so.
    ///
    /// # Errors
    /// A repository is named, or there is no such model.
    pub(in crate::api) async fn unload(
        &self,
        repository: &str,
        model: String,
        (arrival, from): (&Arrival, Option<SocketAddr>),
    ) -> Result<()> {
        one_repository(repository)?;
        let asker = asker(&arrival.headers, from)?;
        let unloaded = self.controlled(Errand::Undo, arrival.deadline, async move |manager, place| {
            manager.unload(&model, asker, Some(place)).await.map(drop)
        });
        match unloaded.await {
            Err(error) if error.reason() == Reason::ModelNotReady => Ok(()),
            unloaded => unloaded,
        }
    }
}

fn one_repository(name: &str) -> Result<()> {
    if name.is_empty() {
        return Ok(());
    }
    let message = "repository_name: the server's repositories count as one; leave it out";
    Err(Error::new(Reason::BadRequest, message).with_field("repository_name"))
}

const READY: &str = "READY";
const LOADING: &str = "LOADING";

/// The lines of one model.
fn indexed(model: &ModelStatus) -> Vec<ModelIndex> {
    let line = |version: String, state: &str, reason: &str| ModelIndex {
        name: model.name.to_string(),
        version,
        state: state.to_owned(),
        reason: reason.to_owned(),
    };
    let newest = || model.versions.last().map(ToString::to_string).unwrap_or_default();
    let live = model.live.iter().map(|live| live.version);
    let mut versions: Vec<_> = live.chain(model.loaded.iter().map(|loaded| loaded.version)).collect();
    versions.sort_unstable();
    versions.dedup();
    if !versions.is_empty() {
        let mut lines: Vec<_> = versions.iter().map(|version| line(version.to_string(), READY, "")).collect();
        if let Some(version) = model.loading.filter(|version| !versions.contains(version)) {
            lines.push(line(version.to_string(), LOADING, ""));
        }
        return lines;
    }
    vec![match model.state {
        _ if model.on_demand => line(newest(), READY, "loaded by its next request"),
        ModelState::Loading => {
            line(model.loading.map_or_else(newest, |version| version.to_string()), LOADING, "")
        }
        ModelState::Failed => {
            line(newest(), "UNAVAILABLE", model.last_error.as_deref().unwrap_or("it failed to load"))
        }
        _ => line(newest(), "UNAVAILABLE", "unloaded"),
    }]
}
