//! Models that come with a call: put where uploads lie, then loaded as any other is. What does not load leaves what was there
//! before, on disk as in memory.

use std::sync::Arc;

use super::{Asker, Manager, ReloadReport, ReloadRequest, entry::Waiting};
use crate::{
    admission::ControlPlace,
    error::{Error, Reason, Result},
    files,
    model::ModelName,
    repository::{Staged, Upload, Uploads},
};

impl Manager {
    /// Whether models may come with a call.
    pub fn takes_uploads(&self) -> bool {
        self.config.uploads.is_some()
    }

    /// Replaces all files of a model, or what describes it, and loads it. Uploads of one model come one after the other.
    ///
    /// # Errors
    /// Uploads are off; another repository has the model; it cannot be written; or as for [`Manager::reload`]. In each case
    /// what was there before stays.
    pub async fn upload(
        &self,
        model: &str,
        upload: Upload,
        asker: Asker,
        place: Option<ControlPlace>,
    ) -> Result<ReloadReport> {
        let uploads = self.config.uploads.clone().ok_or_else(uploads_are_off)?;
        let name: ModelName = model
            .parse()
            .map_err(|rule| Error::new(Reason::BadRequest, format!("{rule}")).with_field("model"))?;
        let _turn = uploads.turn(&name).await;
        self.may_replace(&uploads, &name, &upload).await?;
        let staged = {
            let (uploads, name) = (uploads.clone(), name.clone());
            let of = uploads.clone();
            blocking(&of, move || uploads.put(&name, &upload)).await?
        };
        let request = ReloadRequest { model: name.to_string(), ..ReloadRequest::default() };
        let entry = self.entry(&name);
        // Nothing that nobody asks for takes up what may be gone again in a moment. Who asks waits for the turn.
        let on_trial = entry.begin();
        match self.reload_what_is_there(request, asker, place).await {
            Ok(report) => {
                blocking(&uploads, move || staged.prove()).await?;
                Ok(report)
            }
            Err(error) => {
                if let Err(kept) = self.take_back(&uploads, &name, staged, on_trial).await {
                    tracing::error!(target: "torchlane::models", model = %name, error = %kept, "an upload cannot be undone");
                }
                Err(match error.reason() {
                    Reason::Superseded => {
                        let message = format!("{error}, and what came with it is not kept: send it again");
                        Error::new(Reason::Superseded, message)
                    }
                    _ => error,
                })
            }
        }
    }

    /// Waits until no upload of the model is on trial: what lies there may be taken back.
    pub(super) async fn after_uploads(&self, model: &str) {
        if let (Some(uploads), Ok(name)) = (&self.config.uploads, model.parse()) {
            drop(uploads.turn(&name).await);
        }
    }

    /// No other repository has it, and a configuration alone has something to describe.
    async fn may_replace(&self, uploads: &Uploads, name: &ModelName, upload: &Upload) -> Result<()> {
        let root = uploads.directory().root();
        let mut is_there = false;
        for repository in &self.config.repositories {
            let found = repository.find(name).await;
            // What is there and cannot be read may be replaced, but only where uploads lie.
            let is_own = repository.root() == Some(root);
            match found {
                Ok(None) => {}
                Ok(Some(_)) if is_own => is_there = true,
                Err(_) if is_own => {}
                Ok(Some(_)) => {
                    let message = format!(
                        "model '{name}' is in a repository that takes no uploads: change it there, or upload under another name (oip.uploads is {})",
                        root.display()
                    );
                    return Err(Error::new(Reason::NotUploaded, message).with_field("model"));
                }
                Err(error) => return Err(Error::new(error.reason(), error.to_string())),
            }
        }
        if matches!(upload, Upload::Config(_)) && !is_there {
            let message =
                format!("no model '{name}' among the uploads (oip.uploads): send its files with 'config'");
            return Err(Error::new(Reason::UnknownModel, message).with_field("model"));
        }
        Ok(())
    }

    /// The load has failed. Where somebody else's has loaded these very files meanwhile, they stay all the same.
    async fn take_back(
        &self,
        uploads: &Arc<Uploads>,
        name: &ModelName,
        staged: Staged,
        on_trial: Waiting<'_>,
    ) -> Result<()> {
        let is_new = !staged.replaces();
        {
            let entry = self.entry(name);
            // Changes before have ended, and those that come later look at the disk again.
            let _turn = entry.turn_to_tidy().await;
            let (uploads, name, live) = (uploads.clone(), name.clone(), entry.live());
            let of = uploads.clone();
            blocking(&of, move || {
                let found = uploads.directory().find(&name).ok().flatten();
                let is_live =
                    found.zip(live).is_some_and(|(found, (_, live))| found.versions.contains(&live));
                if is_live { staged.prove() } else { staged.put_back() }
            })
            .await?;
        }
        drop(on_trial);
        match self.find(name.as_str()).await {
            Ok(found) => self.entry(name).set_versions(found.numbers()),
            // It never was a model.
            Err(error) if is_new && error.reason() == Reason::UnknownModel => self.forget(name).await,
            Err(_) => {}
        }
        Ok(())
    }
}

/// What whoever sends files is told where the settings do not allow it.
pub(super) fn uploads_are_off() -> Error {
    let message = "this server loads what is in its repositories, as it is there: put the files there, or set oip.uploads";
    Error::new(Reason::Unimplemented, message).with_field("parameters")
}

/// Work on a disk, on a thread that may wait for it.
async fn blocking<T: Send + 'static>(
    uploads: &Uploads,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    files::run(uploads.directory().root(), files::LONG, work).await?
}
