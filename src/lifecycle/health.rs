//! Whether models answer, as one function of how things stand now: of what is live, what its breaker says, and for a model
//! made of others, of these. Health, readiness and the index of models all ask here.

use super::{Manager, entry::Entry};
use crate::{
    admission::version_not_loaded,
    error::Result,
    model::{ModelName, VersionWish},
    registry::Lease,
};

impl Manager {
    /// Whether requests for that version of a model are answered, be it after a load.
    ///
    /// # Errors
    /// There is no such model or version.
    pub fn answers(&self, model: &str, wish: &VersionWish) -> Result<bool> {
        let entry = self.known(model)?;
        Ok(match stands(&entry, wish)? {
            Some(lease) => self.lease_answers(&lease),
            None => entry.would_load(wish),
        })
    }

    /// Whether requests that name no version of the model are answered. `None`: there is no such model.
    pub fn serves(&self, model: &str) -> Option<bool> {
        self.answers(model, &VersionWish::Any).ok()
    }

    /// Every model, and whether requests for it are answered.
    pub fn all_serve(&self) -> Vec<(ModelName, bool)> {
        let names: Vec<ModelName> = self.entries.lock().keys().cloned().collect();
        names.into_iter().filter_map(|name| Some((name.clone(), self.serves(name.as_str())?))).collect()
    }

    /// A version answers while its breaker is closed and, if it is made of others, each of these answers.
    fn lease_answers(&self, lease: &Lease) -> bool {
        let mut steps = lease.ensemble.iter().flat_map(|plan| plan.steps());
        !lease.breaker.is_open()
            && steps.all(|step| {
                let wish = VersionWish::parse(&step.version);
                wish.is_some_and(|wish| self.answers(&step.model, &wish).unwrap_or(false))
            })
    }
}

/// The version that a request with that wish would get. `None`: nothing is loaded.
fn stands(entry: &Entry, wish: &VersionWish) -> Result<Option<Lease>> {
    let (slot, admits) = entry.slot.find(wish);
    match slot.lease() {
        Some(lease) if admits.admits(lease.version) => Ok(Some(lease)),
        Some(_) => Err(version_not_loaded(&entry.slot, wish)),
        None => Ok(None),
    }
}
