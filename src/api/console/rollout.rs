//! A rollout as the console shows it: both versions side by side, and what the tests say.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::{
    lifecycle::RolloutStatus,
    rollout::{BAR, Check, SideSeen, checks},
};

/// How it stands, or how it ended.
#[derive(Debug, Serialize)]
pub(super) struct RolloutView {
    /// `running`, `promoted`, `rolled_back` or `aborted`.
    state: &'static str,
    /// `canary`, `shadow` or `ab`.
    strategy: &'static str,
    live_version: String,
    version: String,
    /// Of the callers that see the new version.
    percent: f64,
    /// From 0.
    step: usize,
    /// Percent at each.
    steps: Vec<f64>,
    since: String,
    ended: Option<String>,
    /// What the counts said last, or why it ended.
    verdict: String,
    live: SideView,
    candidate: SideView,
    /// Requests that the live version answered because the new one had failed them.
    fallbacks: u64,
    compared: u64,
    different: u64,
    checks: Vec<CheckView>,
}

#[derive(Debug, Serialize)]
struct SideView {
    answered: u64,
    failed: u64,
    late: u64,
    /// From 0 to 1.
    error_rate: f64,
    p50_seconds: f64,
    p99_seconds: f64,
    compute_p50_seconds: f64,
    compute_p99_seconds: f64,
}

#[derive(Debug, Serialize)]
struct CheckView {
    name: &'static str,
    /// That the version is bad: at 1 it is rolled back.
    evidence: f64,
    text: String,
}

impl RolloutView {
    pub(super) fn new(status: &RolloutStatus) -> Self {
        let seen = &status.seen;
        let comparisons = seen.comparisons();
        Self {
            state: status.state.as_str(),
            strategy: status.plan.strategy.as_str(),
            live_version: status.live.to_string(),
            version: status.version.to_string(),
            percent: status.percent,
            step: status.step,
            steps: status.plan.shares(),
            since: time(status.since),
            ended: status.ended.map(time),
            verdict: status.verdict.clone(),
            live: SideView::new(&seen.live),
            candidate: SideView::new(&seen.candidate),
            fallbacks: seen.fallbacks,
            compared: comparisons.of,
            different: comparisons.hits,
            checks: checks(&status.plan, seen).into_iter().map(CheckView::new).collect(),
        }
    }
}

impl SideView {
    fn new(seen: &SideSeen) -> Self {
        let SideSeen { answered, failed, late, p50, p99, compute_p50, compute_p99 } = *seen;
        let seconds = |time: Duration| time.as_secs_f64();
        Self {
            answered,
            failed,
            late,
            error_rate: seen.error_rate(),
            p50_seconds: seconds(p50),
            p99_seconds: seconds(p99),
            compute_p50_seconds: seconds(compute_p50),
            compute_p99_seconds: seconds(compute_p99),
        }
    }
}

impl CheckView {
    fn new(check: Check) -> Self {
        let Check { name, log_evidence, text, .. } = check;
        Self { name, evidence: (log_evidence / BAR).clamp(0.0, 1.0), text }
    }
}

/// RFC 3339, UTC, to the second.
pub(super) fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}
