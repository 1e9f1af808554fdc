//! What the file that describes a model says of it: a `model.toml`, or Triton's `config.pbtxt`.

use std::{ffi::OsStr, path::Path, sync::Arc};

use super::{LoadFailure, Phase};
use crate::{
    backend::ArchiveSummary,
    ensemble::NESTED,
    model::{ModelManifest, ModelName, Plan, Signature},
    proto::inference::ModelConfig,
    repository::{VersionFiles, read_text},
    triton::{self, TritonConfig},
};

/// What is said of a model. The default: nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Described {
    /// In the words of a `model.toml`.
    pub(super) manifest: ModelManifest,
    /// What is said and not heeded, a line each.
    pub(super) warnings: Vec<String>,
    /// The `config.pbtxt` that says it.
    pub(super) config: Option<Arc<ModelConfig>>,
    by: By,
}

/// Which file says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum By {
    #[default]
    Toml,
    Triton,
}

impl Described {
    /// Reads what describes the model that `files` are of.
    ///
    /// # Errors
    /// It cannot be read, or what it says cannot be done.
    pub(super) fn read(files: &VersionFiles) -> Result<Self, LoadFailure> {
        let Some(path) = &files.manifest else { return Ok(Self::default()) };
        let read = if path.file_name() == Some(OsStr::new(triton::FILE)) {
            Self::from_triton(path, files)
        } else {
            Self::from_toml(path)
        };
        read.map_err(|cause| LoadFailure::new(Phase::Verify, cause))
    }

    fn from_toml(path: &Path) -> Result<Self, String> {
        let manifest = ModelManifest::parse(&read_text(path)?).map_err(|error| By::Toml.blame(&error))?;
        let is_there_too = path.with_file_name(triton::FILE).exists();
        let warnings = is_there_too.then(|| format!("{} is not read: model.toml is there too", triton::FILE));
        Ok(Self { manifest, warnings: warnings.into_iter().collect(), ..Self::default() })
    }

    fn from_triton(path: &Path, files: &VersionFiles) -> Result<Self, String> {
        let config = TritonConfig::parse(&read_text(path)?).map_err(|error| error.to_string())?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let labels = |file: &str| -> Result<Vec<String>, String> {
            Ok(read_text(&directory.join(file))?.lines().map(str::to_owned).collect())
        };
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let (manifest, warnings) =
            config.manifest(&name(directory), &labels).map_err(|error| error.to_string())?;
        // In an object store its name was guessed, for a listing does not show what the config says.
        let (said, found) = (config.archive(), name(&files.archive));
        if manifest.steps.is_empty() && said != found {
            return Err(format!(
                "{}: default_model_filename: the archive is to be called {said}, and {found} was found: in an object store \
                 call it {}, or leave no other .pt beside it",
                triton::FILE,
                triton::ARCHIVE
            ));
        }
        let warnings = warnings.iter().map(ToString::to_string).collect();
        let config = Some(Arc::new(config.config().clone()));
        Ok(Self { manifest, warnings, config, by: By::Triton })
    }

    /// The steps of `model`, where it is an ensemble.
    ///
    /// # Errors
    /// They cannot run.
    pub(super) fn plan(&self, model: &ModelName) -> Result<Option<Plan>, LoadFailure> {
        let wrong = |error: &dyn std::fmt::Display| LoadFailure::new(Phase::Verify, self.by.blame(error));
        let plan = self.manifest.plan().map_err(|error| wrong(&error))?;
        // Which of the others are ensembles is seen when they run: they may be loaded later, and change.
        match self.manifest.steps.iter().position(|step| step.model == model.as_str()) {
            Some(step) => Err(wrong(&format_args!("step {step} ({model}): {NESTED}"))),
            None => Ok(plan),
        }
    }

    /// What it comes to for an archive: which tensor is which argument is known now.
    ///
    /// # Errors
    /// The archive has no such arguments.
    pub(super) fn for_archive(
        mut self,
        summary: &ArchiveSummary,
    ) -> Result<(ModelManifest, Signature), LoadFailure> {
        if self.by == By::Triton {
            triton::name_arguments(&mut self.manifest.inputs, &summary.arguments);
        }
        let signature = Signature::new(summary.arguments.clone(), &summary.outputs, &self.manifest)
            .map_err(|error| LoadFailure::new(Phase::Verify, self.by.blame(&error)))?;
        Ok((self.manifest, signature))
    }
}

impl By {
    fn blame(self, error: &dyn std::fmt::Display) -> String {
        let file = match self {
            Self::Toml => "model.toml",
            Self::Triton => triton::FILE,
        };
        format!("{file}: {error}")
    }
}

/// What is said of the model that `files` are of. With it what has no effect, and what the model's name keeps from it, a line
/// each.
///
/// # Errors
/// It cannot be read, or what it says cannot be done.
pub fn described(
    model: &ModelName,
    files: &VersionFiles,
) -> Result<(ModelManifest, Vec<String>), LoadFailure> {
    let Described { manifest, mut warnings, .. } = Described::read(files)?;
    warnings.extend(model.hidden_by_route());
    Ok((manifest, warnings))
}
