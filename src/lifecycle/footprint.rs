//! How much memory a version takes.
//!
//! A backend that knows says so. libtorch does not, so what is in use in the process is read before a version is read and after
//! it was warmed up: what libtorch makes of a model's code in the first passes stays with it, and for a small model that is most
//! of what it takes. Not what is resident: after an eviction the allocator has memory to use again, and nothing would seem to be
//! gained. Requests that run meanwhile make it uncertain, both ways, so it is held between two bounds that are not: the
//! tensors' bytes below, and above what was thought by the size of the files.

/// What is taken down for a version: what its backend says, or else what came into use, or else what was thought.
pub(super) fn measured(told: Option<u64>, gained: Option<u64>, tensors: u64, estimate: u64) -> u64 {
    told.unwrap_or_else(|| gained.unwrap_or(estimate).clamp(tensors, estimate.max(tensors)))
}

#[cfg(test)]
mod tests {
    use std::{
        any::Any,
        path::Path,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
    };

    use super::{
        super::{Preparation, Rules, prepare},
        *,
    };
    use crate::{
        backend::{ArchiveSummary, Backend, BackendError, FakeBackend, Module, Pass, ThreadRole},
        loader::weights::Overlay,
        model::NamedTensor,
        repository::Directory,
    };

    #[test]
    fn what_was_weighed_is_held_between_what_is_known() {
        assert_eq!(measured(Some(7), Some(100), 50, 200), 7);
        assert_eq!(measured(None, Some(100), 50, 200), 100);
        let ended = "a request that ended meanwhile gave more back than the load took";
        assert_eq!(measured(None, Some(0), 50, 200), 50, "{ended}");
        assert_eq!(measured(None, Some(1000), 50, 200), 200, "one that began took more");
        assert_eq!(measured(None, Some(1000), 300, 200), 300, "the files are compressed");
        assert_eq!(measured(None, None, 50, 200), 200, "nobody knows");
    }

    /// The fake backend, but its modules do not tell what they take: 1000 bytes, and 300 more from the first pass on.
    #[derive(Debug, Default)]
    struct Grows {
        allocated: Arc<AtomicU64>,
    }

    impl Backend for Grows {
        fn name(&self) -> &'static str {
            "grows"
        }
        fn enter_thread(&self, role: ThreadRole) -> Box<dyn Any> {
            FakeBackend.enter_thread(role)
        }
        fn glance(&self, _: &Path) -> Result<(), BackendError> {
            Ok(())
        }

        fn inspect(&self, archive: &Path) -> Result<ArchiveSummary, BackendError> {
            FakeBackend.inspect(archive)
        }
        fn load(&self, archive: &Path, over: Option<&Overlay<'_>>) -> Result<Box<dyn Module>, BackendError> {
            self.allocated.fetch_add(1000, Ordering::Relaxed);
            let inner = FakeBackend.load(archive, over)?;
            Ok(Box::new(Growing { inner, passes: AtomicU64::new(0), allocated: self.allocated.clone() }))
        }
        fn memory_estimate(&self, _: &[&Path]) -> u64 {
            5000
        }
        fn allocated(&self) -> Option<u64> {
            Some(self.allocated.load(Ordering::Relaxed))
        }
    }

    struct Growing {
        inner: Box<dyn Module>,
        passes: AtomicU64,
        allocated: Arc<AtomicU64>,
    }

    impl Module for Growing {
        fn forward(&self, pass: Pass<'_>) -> Result<Vec<NamedTensor>, BackendError> {
            if self.passes.fetch_add(1, Ordering::Relaxed) == 0 {
                self.allocated.fetch_add(300, Ordering::Relaxed);
            }
            self.inner.forward(pass)
        }
    }

    #[test]
    fn what_a_version_takes_with_its_first_pass_counts() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("m/1")).unwrap();
        std::fs::write(dir.path().join("m/1/model.pt"), "").unwrap();
        let manifest = "[[inputs]]\nname = 'x'\ndtype = 'FP32'\nshape = [1, 2]\n";
        std::fs::write(dir.path().join("m/model.toml"), manifest).unwrap();
        let found = Directory::open(dir.path()).unwrap().scan().unwrap();
        let rules = Rules::default();
        let alone = Preparation::alone(&found[0].name, &found[0].versions[0], &rules);
        assert_eq!(prepare(&Grows::default(), &alone).unwrap().servable.memory_bytes, 1300);
    }
}
