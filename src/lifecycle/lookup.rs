//! What the repositories have of a model, and what an operator should know of them.

use super::Manager;
use crate::{
    admission::unknown_model,
    error::{Error, Reason, Result},
    model::{ModelName, Version},
    repository::{Found, VersionFiles},
};

impl Manager {
    pub(super) async fn find(&self, model: &str) -> Result<Found> {
        let name: ModelName = model.parse().map_err(|_| unknown_model(model, &self.registry))?;
        match self.config.repositories.find(&name).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => Err(unknown_model(model, &self.registry)),
            Err(error) => Err(Error::new(error.reason(), error.to_string())),
        }
    }

    /// How many repositories there are.
    pub fn repositories(&self) -> usize {
        self.config.repositories.iter().count()
    }

    /// What an operator should know of the repositories and of what models ask of them, one sentence each.
    pub fn complaints(&self) -> Vec<String> {
        let entries: Vec<_> = self.entries.lock().values().cloned().collect();
        let models = entries.iter().flat_map(|entry| entry.complaints());
        self.config.repositories.complaints().into_iter().chain(models).collect()
    }
}

pub(super) fn choose(found: &Found, wanted: Option<Version>) -> Result<VersionFiles> {
    let choice = match wanted {
        None => found.versions.last(),
        Some(version) => found.versions.iter().find(|files| files.version == version),
    };
    choice.cloned().ok_or_else(|| {
        let have =
            found.versions.iter().map(|files| files.version.to_string()).collect::<Vec<_>>().join(", ");
        let have = if have.is_empty() { "no versions".to_owned() } else { format!("versions {have}") };
        let half = wanted.filter(|version| found.unfinished.contains(version));
        let half = half.map_or_else(String::new, |version| {
            format!(". The directory of version {version} holds neither an archive nor weights")
        });
        let wanted = wanted.map_or_else(|| "a version".to_owned(), |version| format!("version {version}"));
        let message = format!("model '{}' has {have} on disk, not {wanted}{half}", found.name);
        Error::new(Reason::UnknownVersion, message).with_field("version")
    })
}
