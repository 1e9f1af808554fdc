//! What is known of archives that were read through: a version of weights alone need not read the archive beneath it again.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::FileIdentity;
use crate::backend::ArchiveSummary;

/// What reading all of an archive has shown.
#[derive(Debug)]
pub struct Verified {
    /// sha256, hexadecimal.
    pub sha256: String,
    /// What it says about itself. Its checksums were right.
    pub summary: ArchiveSummary,
}

/// Files change the time of their last change in steps: of some milliseconds at home, of a second or two elsewhere.
const REST: Duration = Duration::from_secs(2);

/// The archives that were verified last, by the identity of their file.
#[derive(Debug)]
pub struct Known {
    /// The last one used is the last.
    archives: Mutex<Vec<(FileIdentity, Arc<Verified>)>>,
    rest: Duration,
}

impl Default for Known {
    fn default() -> Self {
        Self::after(REST)
    }
}

impl Known {
    /// More archives than this are not remembered.
    pub const LIMIT: usize = 32;

    /// Remembers archives that had not been changed for at least `rest`.
    pub fn after(rest: Duration) -> Self {
        Self { archives: Mutex::default(), rest }
    }

    /// What is known of this file, if it is the one that was read.
    pub fn get(&self, identity: &FileIdentity) -> Option<Arc<Verified>> {
        let mut archives = self.archives.lock();
        let found = archives.iter().position(|(known, _)| known == identity)?;
        let used = archives.remove(found);
        let verified = used.1.clone();
        archives.push(used);
        Some(verified)
    }

    /// Keeps what was found out. `identity` is that of the file before and after it was read.
    pub fn keep(&self, identity: FileIdentity, verified: Arc<Verified>) {
        if !identity.has_rested(self.rest) {
            return;
        }
        let mut archives = self.archives.lock();
        archives.retain(|(known, _)| *known != identity);
        if archives.len() >= Self::LIMIT {
            archives.remove(0);
        }
        archives.push((identity, verified));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verified() -> Arc<Verified> {
        Arc::new(Verified { sha256: String::new(), summary: ArchiveSummary::default() })
    }

    #[test]
    fn a_changed_file_is_another_and_the_longest_unused_goes_first() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: usize, text: &str| {
            let path = dir.path().join(name.to_string());
            std::fs::write(&path, text).unwrap();
            FileIdentity::of(&path).unwrap()
        };
        let known = Known::after(Duration::ZERO);
        let first = file(0, "a");
        known.keep(first, verified());
        assert!(known.get(&first).is_some());
        assert!(known.get(&file(0, "ab")).is_none(), "it has another size");
        for name in 1..Known::LIMIT {
            known.keep(file(name, "a"), verified());
        }
        assert!(known.get(&first).is_some(), "used: now it is the last to go");
        known.keep(file(Known::LIMIT, "a"), verified());
        assert!(known.get(&first).is_some());
        assert!(known.get(&FileIdentity::of(&dir.path().join("1")).unwrap()).is_none());
        assert_eq!(known.archives.lock().len(), Known::LIMIT);
    }

    #[test]
    fn what_was_written_a_moment_ago_may_change_unseen() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let identity = FileIdentity::of(file.path()).unwrap();
        let known = Known::default();
        known.keep(identity, verified());
        assert!(known.get(&identity).is_none());
    }
}
