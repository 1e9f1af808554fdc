//! How much memory a version takes.
//!
//! A backend that knows says so. libtorch does not, so the process is weighed before and after the load, before a warm-up
//! leaves its own traces. Requests that run meanwhile make that uncertain, both ways, so it is held between two bounds
//! that are not: the tensors' bytes below, and above what was thought by the size of the files.

/// Bytes of this process that are in memory. 0 where the system does not tell.
pub(super) fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0);
    kib.saturating_mul(1024)
}

/// What is taken down for a version: what its backend says, or else what the process gained.
pub(super) fn measured(told: Option<u64>, gained: u64, tensors: u64, estimate: u64) -> u64 {
    told.unwrap_or_else(|| gained.clamp(tensors, estimate.max(tensors)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_weighed_is_held_between_what_is_known() {
        assert_eq!(measured(Some(7), 100, 50, 200), 7);
        assert_eq!(measured(None, 100, 50, 200), 100);
        assert_eq!(
            measured(None, 0, 50, 200),
            50,
            "a request that ended meanwhile gave more back than the load took"
        );
        assert_eq!(measured(None, 1000, 50, 200), 200, "one that began took more");
        assert_eq!(measured(None, 1000, 300, 200), 300, "the files are compressed");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_system_tells_what_is_resident() {
        assert!(resident() > 1 << 20);
    }
}
