//! Which file describes a model, and which others it names.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
};

use super::{read_text, stamp::stamp};
use crate::triton::{self, NamedFiles};

/// The archive's file name within a version, where nothing else is said.
pub(super) const ARCHIVE: &str = triton::ARCHIVE;

/// What a model's directory says about it.
pub(super) const MANIFEST: &str = "model.toml";

/// The same for Triton. Where both are there, it is not read.
pub(super) const CONFIG: &str = triton::FILE;

/// What a model's directory holds beside its versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Description {
    /// Its `model.toml` or `config.pbtxt`.
    pub(super) manifest: Option<PathBuf>,
    /// The archive's file name within each version.
    pub(super) archive: String,
    /// Files of labels.
    labels: Vec<PathBuf>,
}

impl Default for Description {
    fn default() -> Self {
        Self { manifest: None, archive: ARCHIVE.to_owned(), labels: Vec::new() }
    }
}

impl Description {
    /// Whether it is Triton's.
    pub(super) fn is_config(&self) -> bool {
        self.manifest.as_ref().is_some_and(|path| path.ends_with(CONFIG))
    }

    /// Of the model in that directory. What cannot be read names nothing: whoever loads the model says why.
    pub(super) fn of(model: &Path) -> Self {
        // Whatever it is: one that is no file must fail when it is read, not be taken for none.
        let at = |file: &str| Some(model.join(file)).filter(|path| path.symlink_metadata().is_ok());
        let (toml, config) = (at(MANIFEST), at(CONFIG));
        let text = config.as_deref().filter(|_| toml.is_none()).and_then(|config| read_text(config).ok());
        let NamedFiles { archive, labels } = text.as_deref().map(NamedFiles::in_text).unwrap_or_default();
        Self {
            manifest: toml.or(config),
            archive: archive.unwrap_or_else(|| ARCHIVE.to_owned()),
            labels: labels.into_iter().map(|path| model.join(path)).collect(),
        }
    }

    /// Whether it is an ensemble's. What cannot be read is not: it is complained of when it is loaded.
    pub(super) fn is_ensemble(&self) -> bool {
        let Some(path) = &self.manifest else { return false };
        let Ok(text) = read_text(path) else { return false };
        if path.file_name() == Some(OsStr::new(CONFIG)) {
            return triton::is_ensemble(&text);
        }
        #[derive(serde::Deserialize)]
        struct Steps {
            steps: Option<serde::de::IgnoredAny>,
        }
        toml::from_str(&text).is_ok_and(|Steps { steps }| steps.is_some())
    }

    /// Changes with what it says, and with the labels.
    pub(super) fn stamp(&self) -> u64 {
        let labels = self.labels.iter().map(|path| Some(path.as_path()));
        stamp(std::iter::once(self.manifest.as_deref()).chain(labels))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn one_file_describes_a_model_and_names_others() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        let of = || Description::of(dir.path());
        assert_eq!((of().manifest, of().archive.as_str()), (None, "model.pt"));
        write(CONFIG, "default_model_filename: 'net.ts' output { name: 'y' label_filename: 'labels.txt' }");
        write("labels.txt", "cat");
        assert_eq!((of().manifest, of().archive.as_str()), (Some(dir.path().join(CONFIG)), "net.ts"));
        let before = of().stamp();
        assert_eq!(of().stamp(), before);
        write("labels.txt", "cat\ndog");
        assert_ne!(of().stamp(), before, "labels are part of what is said");
        write(CONFIG, "not a config");
        assert_eq!((of().archive.as_str(), of().is_ensemble()), ("model.pt", false));
        write(CONFIG, "platform: 'ensemble' ensemble_scheduling { step { model_name: 'm' } }");
        assert!(of().is_ensemble());
        write(MANIFEST, "");
        assert!(!of().is_ensemble());
        assert_eq!(of().manifest, Some(dir.path().join(MANIFEST)), "model.toml comes first");
    }
}
