//! Medians and spreads.

use std::time::Duration;

use serde_json::{Value, json};
use torchlane::load::{Latency, LoadReport};

/// Figures of the same thing, one a round.
#[derive(Debug, Clone, Default)]
pub struct Rounds(pub Vec<f64>);

impl Rounds {
    pub fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    pub fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NEG_INFINITY, f64::max)
    }

    /// Round by round: machines drift, neighbours in time less.
    pub fn with(&self, other: &Self, what: impl Fn(f64, f64) -> f64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| what(*a, *b)).collect())
    }

    pub fn json(&self) -> Value {
        json!({"median": self.median(), "min": self.min(), "max": self.max(), "rounds": self.0})
    }
}

/// Of sorted latencies, in microseconds. Nearest rank.
pub fn percentile(sorted: &[Duration], p: f64) -> f64 {
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).map_or(f64::NAN, |latency| latency.as_secs_f64() * 1e6)
}

/// Sorted latencies as a curve of `torchlane::load::svg`.
pub fn curve(name: &str, sorted: &[Duration]) -> LoadReport {
    let parts = [0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999];
    // No further than there are requests to tell.
    let telling = |part: &f64| (1.0 - part) * sorted.len() as f64 >= 1.0;
    let at = |part: f64| percentile(sorted, part) / 1e3;
    let latency = Latency {
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: at(0.999),
        max: at(1.0),
        curve: parts.into_iter().filter(telling).map(|part| (part, at(part.max(1e-9)))).collect(),
    };
    LoadReport {
        name: name.to_owned(),
        model: String::new(),
        pace: String::new(),
        sent: sorted.len() as u64,
        unsent: 0,
        ok: sorted.len() as u64,
        refused: 0,
        errors: Default::default(),
        rate: 0.0,
        rows_per_second: 0.0,
        latency,
        generator_lag_p99_ms: 0.0,
        timeline: Vec::new(),
    }
}

/// The machine, for whoever reads the figures later.
pub fn machine() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    json!({
        "cpu": cpu,
        "cpus": torchlane::app::cpu_quota(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "torchlane": env!("CARGO_PKG_VERSION"),
    })
}

/// Writes beside other results of this machine.
pub fn write_json(path: &std::path::Path, value: &Value) -> crate::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, serde_json::to_string_pretty(value)? + "\n")?;
    println!("\nAll figures: {}", path.display());
    Ok(())
}
