//! How many threads the process may keep busy: what the cgroup and the affinity mask give, not what the node has.

use std::{fs, num::NonZeroUsize};

use crate::config::Executors;

/// CPUs that this process may use, at least 1: the smallest of the affinity mask and the cgroup's quota (v2, then v1),
/// rounded up. libtorch by itself takes the node's.
pub fn cpu_quota() -> usize {
    // The standard library reads both; on kernels where it cannot see the quota the files are read here.
    let seen = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    cgroup_cpus().map_or(seen, |quota| quota.min(seen)).max(1)
}

fn cgroup_cpus() -> Option<usize> {
    let v2 = || quota_v2(&fs::read_to_string("/sys/fs/cgroup/cpu.max").ok()?);
    let v1 = || {
        let read = |name: &str| {
            fs::read_to_string(format!("/sys/fs/cgroup/cpu/cpu.{name}")).ok()?.trim().parse::<i64>().ok()
        };
        whole(read("cfs_quota_us")?, read("cfs_period_us")?)
    };
    v2().or_else(v1)
}

fn quota_v2(text: &str) -> Option<usize> {
    let mut parts = text.split_whitespace();
    whole(parts.next()?.parse().ok()?, parts.next()?.parse().ok()?)
}

fn whole(quota: i64, period: i64) -> Option<usize> {
    (quota > 0 && period > 0)
        .then(|| usize::try_from(quota.div_euclid(period) + i64::from(quota % period > 0)).ok())?
}

/// How the quota is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuPlan {
    /// CPUs of the quota.
    pub quota: usize,
    /// Threads that run batches.
    pub executors: usize,
    /// Threads of one operator on each.
    pub intra_op: usize,
    /// Threads that read and write the wire.
    pub io: usize,
}

impl CpuPlan {
    /// Executors times intra-op threads never exceeds the quota, unless both are set by hand.
    pub fn new(quota: usize, config: &Executors, io_threads: usize) -> Self {
        let (executors, intra_op) = match (config.threads, config.intra_op_threads) {
            (0, 0) => (quota, 1),
            (0, wide) => ((quota / wide).max(1), wide),
            (n, 0) => (n, (quota / n).max(1)),
            (n, wide) => (n, wide),
        };
        let io = if io_threads == 0 { quota.div_ceil(4) } else { io_threads };
        Self { quota, executors, intra_op, io }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(quota: usize, threads: usize, intra_op_threads: usize) -> (usize, usize) {
        let plan = CpuPlan::new(quota, &Executors { threads, intra_op_threads, ..Executors::default() }, 0);
        (plan.executors, plan.intra_op)
    }

    #[test]
    fn the_quota_is_never_exceeded_by_default() {
        assert_eq!(plan(4, 0, 0), (4, 1));
        assert_eq!(plan(8, 2, 0), (2, 4));
        assert_eq!(plan(8, 0, 3), (2, 3));
        assert_eq!(plan(2, 0, 8), (1, 8));
        assert_eq!(plan(2, 3, 2), (3, 2), "set by hand");
    }

    #[test]
    fn quotas_are_rounded_up() {
        assert_eq!(quota_v2("150000 100000\n"), Some(2));
        assert_eq!(quota_v2("50000 100000\n"), Some(1));
        assert_eq!(quota_v2("max 100000\n"), None);
        assert_eq!(whole(-1, 100_000), None);
    }
}
