//! Descriptors: how many the process may have open, and what they are for. Some are kept for files, probes and the rest of the process,
//! so that connections cannot take the last ones.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is there for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptors {
    /// Connections to the gRPC port.
    pub(super) grpc: u64,
    /// Connections to the HTTP port.
    pub(super) http: u64,
    /// Regions of shared memory.
    pub(super) regions: u64,
}

impl Descriptors {
    /// As the settings want it, as far as the system allows.
    pub(super) fn new(connections: u64, regions: u64) -> Self {
        let wants = Self { grpc: connections, http: http(connections), regions };
        let Some(limit) = raise() else { return wants };
        // Without /proc it is not known how many are open.
        let open = std::fs::read_dir("/proc/self/fd").map_or(64, |open| open.count() as u64);
        let gets = Self::within(limit, open, wants);
        if gets.grpc < connections {
            tracing::info!(
                open_files = limit,
                connections = gets.grpc,
                "server.max_connections is {connections}, the limit on open files allows fewer: raise it (ulimit -n)"
            );
        }
        gets
    }

    /// Within a limit of the system, of which `open` are taken already. An eighth is kept for the rest of the process.
    fn within(limit: u64, open: u64, wants: Self) -> Self {
        let kept = (limit / 8).clamp(48, 4096);
        let left = limit.saturating_sub(open + kept);
        let regions = wants.regions.min(left / 8);
        let http = wants.http.min(left / 4).max(1);
        Self { grpc: wants.grpc.min(left.saturating_sub(regions + http)).max(1), http, regions }
    }
}

/// Probes, metrics, the console and REST: fewer than by gRPC.
fn http(connections: u64) -> u64 {
    (connections / 4).max(64)
}

/// Raises the limit on open files as far as it may be raised, and says what it is. `None`: there is none.
fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    if current == maximum || setrlimit(Resource::Nofile, raised).is_err() { current } else { maximum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_descriptors_are_not_for_connections() {
        let wants = Descriptors { grpc: 8192, http: 2048, regions: 1024 };
        assert_eq!(Descriptors::within(1 << 20, 50, wants), wants);
        for limit in [64, 128, 256, 1024, 4096, 10_000] {
            let Descriptors { grpc, http, regions } = Descriptors::within(limit, 40, wants);
            assert!(grpc >= 1 && http >= 1);
            assert!(grpc + http + regions + 40 + 48 <= limit.max(90), "{limit}: {grpc} {http} {regions}");
        }
        assert_eq!(Descriptors::within(256, 40, wants), Descriptors { grpc: 105, http: 42, regions: 21 });
    }
}
