//! Tells whether files are still the ones that were seen: by inode, size and time of change, without reading them.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, SystemTime},
};

/// Of some files, in their order; one that is not there counts too. Links are followed, so a link that is turned to another
/// file (as Kubernetes does with mounted volumes) is a change. The number of the device is left out: it may change when a
/// volume is mounted again.
pub(super) fn stamp<'a>(files: impl IntoIterator<Item = Option<&'a Path>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        let facts = file.and_then(|path| path.metadata().ok());
        let facts = facts.map(|meta| (meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()));
        facts.hash(&mut hasher);
    }
    hasher.finish()
}

/// Changes with the owner and the rights of some files: with what may keep a server from reading them.
pub(super) fn access<'a>(files: impl IntoIterator<Item = Option<&'a Path>>) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        let facts = file.and_then(|path| path.metadata().ok());
        let facts = facts.map(|meta| (meta.mode(), meta.uid(), meta.gid(), meta.ctime(), meta.ctime_nsec()));
        facts.hash(&mut hasher);
    }
    hasher.finish()
}

/// How long ago the youngest of these files was written, by the clocks of this machine and of the one that holds the
/// files: in either direction, since the two need not agree. `None`: no such file.
pub(super) fn age<'a>(
    files: impl IntoIterator<Item = Option<&'a Path>>,
    now: SystemTime,
) -> Option<Duration> {
    let written = files.into_iter().flatten().filter_map(|path| path.metadata().ok()?.modified().ok());
    written.map(|at| now.duration_since(at).unwrap_or_else(|ahead| ahead.duration())).min()
}
