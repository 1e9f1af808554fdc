//! Files that a config names. A repository asks before anything is loaded, and each time that it is looked at.

use std::path::{Component, Path};

use torchlane_proto::inference::model_config::SchedulingChoice;

use super::TritonConfig;

/// The archive's name in a version's directory where a config says no other. It is torchlane's own name for it too.
pub const ARCHIVE: &str = "model.pt";

/// The files that a config names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamedFiles {
    /// The archive, by its name in each version's directory; `None`: [`ARCHIVE`].
    pub archive: Option<String>,
    /// Files of labels, below the model's directory.
    pub labels: Vec<String>,
}

impl NamedFiles {
    /// The files that the text of a config names. A text that cannot be parsed names none, nor do names that lead elsewhere
    /// count: whoever loads the model says what is wrong with them.
    pub fn in_text(text: &str) -> Self {
        // Few name any, and a repository is looked at every two seconds: the others are not parsed for it.
        if !text.contains("_filename") {
            return Self::default();
        }
        TritonConfig::parse(text).map_or_else(|_| Self::default(), |config| Self::in_config(&config))
    }

    /// The files that a config names, but for those that lead elsewhere.
    pub fn in_config(config: &TritonConfig) -> Self {
        let config = config.config();
        let archive = Some(config.default_model_filename.clone()).filter(|name| is_plain(name));
        let labels = config.output.iter().map(|output| output.label_filename.clone());
        Self { archive, labels: labels.filter(|path| is_below(path)).collect() }
    }
}

/// Whether the text of a config is an ensemble's.
pub fn is_ensemble(text: &str) -> bool {
    text.contains("ensemble_scheduling")
        && TritonConfig::parse(text).is_ok_and(|config| {
            matches!(config.config().scheduling_choice, Some(SchedulingChoice::EnsembleScheduling(_)))
        })
}

/// The name of a file that lies right there and is not hidden.
pub(super) fn is_plain(name: &str) -> bool {
    is_below(name) && !name.starts_with('.') && !name.contains(['/', '\\'])
}

/// A path that leads nowhere but down.
pub(super) fn is_below(path: &str) -> bool {
    let down = |part: Component<'_>| matches!(part, Component::Normal(_));
    !path.is_empty() && !path.contains('\0') && Path::new(path).components().all(down)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_where_they_lead_nowhere_else() {
        let text = |archive: &str, labels: &str| {
            format!("default_model_filename: '{archive}'\noutput {{ name: 'y' label_filename: '{labels}' }}")
        };
        let named = NamedFiles::in_text(&text("net.ts", "names/labels.txt"));
        assert_eq!(named.archive.as_deref(), Some("net.ts"));
        assert_eq!(named.labels, ["names/labels.txt"]);
        for bad in ["../net.ts", "/net.ts", ".", "..", ""] {
            assert_eq!(NamedFiles::in_text(&text(bad, bad)), NamedFiles::default(), "{bad}");
        }
        assert_eq!(NamedFiles::in_text(&text("1/net.ts", "")).archive, None, "no path");
        assert_eq!(NamedFiles::in_text(&text(".net.ts", "")).archive, None, "hidden");
        for other in ["name: 'm'", "default_model_filename: 3", "default_model_filename: 'a' ]"] {
            assert_eq!(NamedFiles::in_text(other), NamedFiles::default(), "{other}");
        }
    }
}
