//! What keeps a version's files where they are, for as long as somebody may need them.

use std::{any::Any, fmt, sync::Arc};

/// A hold on files that would otherwise be removed when room is needed. Clones hold them too; the last one to be
/// dropped lets them go. The default holds nothing: files in a directory are their owner's.
#[derive(Clone, Default)]
pub struct Kept(Option<Arc<dyn Any + Send + Sync>>);

impl Kept {
    /// By `hold`, until it is dropped.
    pub fn by(hold: impl Any + Send + Sync) -> Self {
        Self(Some(Arc::new(hold)))
    }
}

impl fmt::Debug for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "kept" } else { "not kept" })
    }
}

/// Files are the same files whether somebody holds them or not.
impl PartialEq for Kept {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Kept {}
