//! What came of a run.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// What came of all loads of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The server.
    pub addr: String,
    /// What was spoken.
    pub protocol: String,
    /// Time that was counted.
    pub seconds: f64,
    /// Each load.
    pub loads: Vec<LoadReport>,
}

/// What came of one load.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LoadReport {
    /// Its name.
    pub name: String,
    /// The model.
    pub model: String,
    /// How it was sent.
    pub pace: String,
    /// Requests that have an answer or a refusal.
    pub sent: u64,
    /// Requests that were due and not sent: too many had no answer.
    pub unsent: u64,
    /// Answered well.
    pub ok: u64,
    /// Refused or failed.
    pub refused: u64,
    /// By reason.
    pub errors: BTreeMap<String, u64>,
    /// Good answers a second, by when they came.
    pub rate: f64,
    /// Rows in them.
    pub rows_per_second: f64,
    /// Of good answers.
    pub latency: Latency,
    /// How late the generator itself was; part of the latencies of an open loop.
    pub generator_lag_p99_ms: f64,
    /// For each second: good answers, and the longest of them in ms.
    pub timeline: Vec<(u64, f64)>,
}

/// Latencies in ms. From when a request was due (open loop) or sent (closed loop) to its whole answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Latency {
    /// Median.
    pub p50: f64,
    /// 90 in 100 are no longer.
    pub p90: f64,
    /// 99 in 100.
    pub p99: f64,
    /// 999 in 1000.
    pub p999: f64,
    /// The longest.
    pub max: f64,
    /// Pairs of a part (0 to 1) and the latency that this part does not exceed.
    pub curve: Vec<(f64, f64)>,
}

impl Latency {
    pub(super) fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |part: f64| histogram.value_at_quantile(part) as f64 / 1e3;
        let steps = [
            0.0, 0.1, 0.25, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.975, 0.98, 0.99, 0.995,
            0.998, 0.999, 0.9995, 0.9999,
        ];
        // No further than there are requests to tell.
        let telling = |part: &f64| (1.0 - part) * histogram.len() as f64 >= 1.0;
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: histogram.max() as f64 / 1e3,
            curve: steps.into_iter().filter(telling).map(|part| (part, at(part))).collect(),
        }
    }
}

impl LoadReport {
    /// Errors as `QUEUE_FULL 12, DEADLINE_EXCEEDED 3`.
    pub fn errors_in_words(&self) -> String {
        let mut words: Vec<String> =
            self.errors.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        if self.unsent > 0 {
            words.push(format!("not sent {}", self.unsent));
        }
        words.join(", ")
    }
}
