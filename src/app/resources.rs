//! How much of its memory and CPUs the process uses, as the system tells it; looked at again and again.
//!
//! `/sys/fs/cgroup` is the process's own cgroup inside a container. Outside it is the root, which has no limits: then it is
//! this process against the machine.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    admission::{Pressure, Resource},
    tasks::Pulse,
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Feeds `pressure` until it is dropped.
pub(super) async fn sample(pressure: Arc<Pressure>, pulse: Pulse) {
    let system = System { root: PathBuf::from("/") };
    let memory: fn(&System) -> Option<f64> = System::memory;
    let mut looks = vec![(Resource::Memory, memory), (Resource::Cpu, System::cpu)];
    looks.retain(|(resource, look)| {
        let told = look(&system).is_some();
        if pressure.watches(*resource) && !told {
            let setting = format!("pressure.{}", resource.as_str());
            tracing::warn!(setting, "this system does not tell how much is used: the setting has no effect");
        }
        pressure.watches(*resource) && told
    });
    loop {
        let now = Instant::now();
        for (resource, look) in &looks {
            if let Some(ratio) = look(&system) {
                pressure.read(*resource, ratio, now);
            }
        }
        pressure.read_in_flight(now);
        pulse.beat();
        tokio::time::sleep(LOOK).await;
    }
}

/// The kernel's files under a root that tests make up.
struct System {
    root: PathBuf,
}

impl System {
    /// Memory in use over what there is. The cgroup's where it has a limit (v2, then v1), without file pages that the
    /// kernel can take back at once; else this process's.
    fn memory(&self) -> Option<f64> {
        let machine = self.field("proc/meminfo", "MemTotal:")? * 1024.0;
        let cgroup = |dir: &str, limit: &str, usage: &str, cache: &str| {
            let number = |name: &str| self.text(&format!("{dir}/{name}"))?.trim().parse::<f64>().ok();
            // Without a limit v2 says "max", v1 a number larger than any machine.
            let limit = number(limit).filter(|limit| *limit > 0.0 && *limit < machine)?;
            let cache = self.field(&format!("{dir}/memory.stat"), cache).unwrap_or(0.0);
            Some((number(usage)? - cache).max(0.0) / limit)
        };
        let v2 = || cgroup("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file");
        let v1 = || {
            let (limit, usage) = ("memory.limit_in_bytes", "memory.usage_in_bytes");
            cgroup("sys/fs/cgroup/memory", limit, usage, "total_inactive_file")
        };
        v2().or_else(v1).or_else(|| Some(self.field("proc/self/status", "VmRSS:")? * 1024.0 / machine))
    }

    /// Share of the last ten seconds in which something waited for a CPU: in the cgroup, else on the machine.
    fn cpu(&self) -> Option<f64> {
        let avg10 = |path| {
            let text = self.text(path)?;
            let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
            let percent: f64 = some.split(' ').find_map(|word| word.strip_prefix("avg10="))?.parse().ok()?;
            Some(percent / 100.0)
        };
        avg10("sys/fs/cgroup/cpu.pressure").or_else(|| avg10("proc/pressure/cpu"))
    }

    fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.root.join(path)).ok()
    }

    /// The number after `name` in a file of names and numbers.
    fn field(&self, path: &str, name: &str) -> Option<f64> {
        let text = self.text(path)?;
        let mut words = text.lines().map(str::split_whitespace);
        words.find_map(|mut line| (line.next()? == name).then(|| line.next()?.parse().ok())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
        let dir = tempfile::tempdir().unwrap();
        let machine = [
            ("proc/meminfo", "MemTotal:       1000 kB\nMemFree:         100 kB\n"),
            ("proc/self/status", "Name:\ttorchlane\nVmRSS:\t     250 kB\n"),
        ];
        for (path, text) in machine.iter().chain(files) {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let root = dir.path().to_owned();
        (dir, System { root })
    }

    #[test]
    fn memory_is_of_the_nearest_limit() {
        let v2 = |limit| {
            [
                ("sys/fs/cgroup/memory.max", limit),
                ("sys/fs/cgroup/memory.current", "409600\n"),
                ("sys/fs/cgroup/memory.stat", "anon 300000\ninactive_file 102400\nactive_file 7\n"),
            ]
        };
        let v1 = |limit| {
            [
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", limit),
                ("sys/fs/cgroup/memory/memory.usage_in_bytes", "204800\n"),
                ("sys/fs/cgroup/memory/memory.stat", "inactive_file 7\ntotal_inactive_file 102400\n"),
            ]
        };
        let memory = |files: &[(&str, &str)]| {
            let (_dir, system) = system(files);
            system.memory()
        };
        assert_eq!(memory(&v2("512000\n")), Some(0.6));
        assert_eq!(memory(&v2("max\n")), Some(0.25), "of the machine");
        assert_eq!(memory(&v1("512000\n")), Some(0.2));
        assert_eq!(memory(&v1("9223372036854771712\n")), Some(0.25));
        assert_eq!(memory(&v2("512000\n")[..1]), Some(0.25), "half a cgroup");
        assert_eq!(memory(&v2("nonsense")), Some(0.25));
        assert_eq!(System { root: "no/such/root".into() }.memory(), None);
    }

    #[test]
    fn cpu_pressure_is_the_cgroups_own_where_it_is_told() {
        let psi = |avg10| {
            format!(
                "some avg10={avg10} avg60=1.00 avg300=0.00 total=5\nfull avg10=90.00 avg60=0.00 avg300=0.00 total=0\n"
            )
        };
        let (own, node) = (psi("12.50"), psi("50.00"));
        let (node, own) =
            (("proc/pressure/cpu", node.as_str()), ("sys/fs/cgroup/cpu.pressure", own.as_str()));
        let cpu = |files: &[(&str, &str)]| {
            let (_dir, system) = system(files);
            system.cpu()
        };
        assert_eq!(cpu(&[node, own]), Some(0.125));
        assert_eq!(cpu(&[node]), Some(0.5));
        assert_eq!(cpu(&[]), None);
    }

    #[test]
    fn this_system_tells_its_memory() {
        let ratio = System { root: "/".into() }.memory().unwrap();
        assert!((0.0..=1.0).contains(&ratio), "{ratio}");
    }
}
