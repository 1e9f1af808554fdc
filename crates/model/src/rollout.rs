//! `[rollout]` of `model.toml`: how a new version comes to take the live one's place.

use std::time::Duration;

use serde::Deserialize;

use super::{human_duration, manifest::ManifestError};

/// Who sees a new version before everybody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strategy {
    /// Nobody: it goes live at once.
    #[default]
    None,
    /// A share of the callers.
    Canary,
    /// Nobody, but a share of the requests is run by it too and compared.
    Shadow,
    /// Callers that say so, by a header or by their tenant.
    Ab,
}

impl Strategy {
    /// The name in `model.toml`, in the API and in the logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Canary => "canary",
            Self::Shadow => "shadow",
            Self::Ab => "ab",
        }
    }
}

/// `[rollout]`: how a new version is tried beside the live one, and when it is promoted or rolled back.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutPlan {
    /// Who sees the new version.
    pub strategy: Strategy,
    /// Canary: percent of the callers. Shadow: percent of the requests that are run by both.
    pub percent: f64,
    /// Canary: percents one after the other, each held for an equal part of `promote_after`. Empty: `percent` alone.
    pub steps: Vec<f64>,
    /// A/B: the header that sends a request to the new version...
    pub header: String,
    /// ...where it has this value.
    pub value: String,
    /// A/B: tenants whose requests go to the new version.
    pub tenants: Vec<String>,
    /// See [`RolloutPlan::promote_after`].
    #[serde(deserialize_with = "human_duration::deserialize_some")]
    pub promote_after: Option<Duration>,
    /// Fewer requests than this at a step say nothing good of the new version.
    pub min_requests: u64,
    /// Part of its requests that the new version may fail or be late for beyond the live one's.
    pub max_errors: f64,
    /// How many times as long a pass may take as the live version's of the same size.
    pub max_latency_ratio: f64,
    /// Largest difference of an element of the outputs from the live version's, relative where that is above 1. `None`: any.
    pub max_difference: Option<f64>,
    /// Part of the compared requests that may differ by more.
    pub max_drift: f64,
    /// Percent of the requests that the other version is made to answer too, to compare outputs.
    pub compare: Option<f64>,
}

/// Where nothing else is said: how long a canary must be good.
const PROMOTE_AFTER: Duration = Duration::from_secs(600);
/// Where nothing else is said and outputs have a bound: percent of the requests that are compared.
const COMPARE: f64 = 5.0;

impl Default for RolloutPlan {
    fn default() -> Self {
        Self {
            strategy: Strategy::None,
            percent: 10.0,
            steps: Vec::new(),
            header: String::new(),
            value: String::new(),
            tenants: Vec::new(),
            promote_after: None,
            min_requests: 100,
            max_errors: 0.005,
            max_latency_ratio: 1.5,
            max_difference: None,
            max_drift: 0.01,
            compare: None,
        }
    }
}

impl RolloutPlan {
    /// Percents of the callers, one after the other; never empty.
    pub fn shares(&self) -> Vec<f64> {
        match self.strategy {
            Strategy::Canary if !self.steps.is_empty() => self.steps.clone(),
            Strategy::Canary => vec![self.percent],
            _ => vec![0.0],
        }
    }

    /// Good time after which it goes live by itself. `None`: never. Only canaries do where nothing is said.
    pub fn promote_after(&self) -> Option<Duration> {
        let default = (self.strategy == Strategy::Canary).then_some(PROMOTE_AFTER);
        self.promote_after.or(default).filter(|after| !after.is_zero())
    }

    /// Sets [`RolloutPlan::promote_after`]; zero is never.
    pub fn set_promote_after(&mut self, after: Duration) {
        self.promote_after = Some(after);
    }

    /// Percent of the requests that both versions run, one of them only to be compared.
    pub fn mirrored(&self) -> f64 {
        match self.strategy {
            Strategy::None => 0.0,
            Strategy::Shadow => self.percent,
            _ => self.compare.unwrap_or(if self.max_difference.is_some() { COMPARE } else { 0.0 }),
        }
    }

    /// Sets the percent that is compared.
    pub fn set_compare(&mut self, percent: f64) {
        self.compare = Some(percent);
    }

    /// Whether it can be carried out.
    ///
    /// # Errors
    /// A number out of its range, or an A/B rollout that names nobody.
    pub fn check(&self) -> Result<(), ManifestError> {
        let range = |key, value: String, allowed| Err(ManifestError::Range { key, value, allowed });
        let percent = |value: f64| value > 0.0 && value <= 100.0;
        if !percent(self.percent) {
            return range("rollout.percent", self.percent.to_string(), "above 0, up to 100");
        }
        let ascend = self.steps.is_sorted_by(|a, b| a < b);
        if self.steps.len() > 20 || !ascend || !self.steps.iter().all(|step| percent(*step)) {
            return range("rollout.steps", format!("{:?}", self.steps), "up to 20 percents that ascend");
        }
        if let Some(bad) = self.compare.filter(|compare| !(0.0..=100.0).contains(compare)) {
            return range("rollout.compare", bad.to_string(), "0 to 100");
        }
        for (key, part) in [("rollout.max_errors", self.max_errors), ("rollout.max_drift", self.max_drift)] {
            if !(0.0001..=0.5).contains(&part) {
                return range(key, part.to_string(), "0.0001 to 0.5");
            }
        }
        if !(1.0..=1000.0).contains(&self.max_latency_ratio) {
            return range("rollout.max_latency_ratio", self.max_latency_ratio.to_string(), "1 to 1000");
        }
        if let Some(bad) = self.max_difference.filter(|most| !(most.is_finite() && *most >= 0.0)) {
            return range("rollout.max_difference", bad.to_string(), "0 or more");
        }
        if self.min_requests == 0 {
            return range("rollout.min_requests", "0".to_owned(), "1 or more");
        }
        if self.strategy == Strategy::Ab && self.header.is_empty() && self.tenants.is_empty() {
            return range("rollout.strategy", "ab".to_owned(), "with header and value, or tenants");
        }
        if !self.header.is_empty() && http::HeaderName::from_bytes(self.header.as_bytes()).is_err() {
            return range(
                "rollout.header",
                "(no header)".to_owned(),
                "the name of a header, as x-experiment",
            );
        }
        if self.header.is_empty() != self.value.is_empty() {
            return range("rollout.header", self.header.clone(), "header and value together");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::ModelManifest, *};

    fn plan(text: &str) -> Result<RolloutPlan, String> {
        let parsed = ModelManifest::parse(&format!("[rollout]\n{text}"));
        parsed.map(|manifest| manifest.rollout).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_said_follows_from_the_strategy() {
        assert_eq!(plan("").unwrap(), RolloutPlan::default());
        let canary = plan("strategy = 'canary'").unwrap();
        assert_eq!((canary.shares(), canary.mirrored()), (vec![10.0], 0.0));
        assert_eq!(canary.promote_after(), Some(PROMOTE_AFTER));
        let compared = plan("strategy = 'canary'\nsteps = [1, 10]\nmax_difference = 0.1").unwrap();
        assert_eq!((compared.shares(), compared.mirrored()), (vec![1.0, 10.0], COMPARE));
        let shadow = plan("strategy = 'shadow'\npercent = 20").unwrap();
        assert_eq!((shadow.shares(), shadow.mirrored(), shadow.promote_after()), (vec![0.0], 20.0, None));
        assert_eq!(plan("strategy = 'canary'\npromote_after = '0s'").unwrap().promote_after(), None);
    }

    #[test]
    fn what_cannot_be_carried_out_is_refused() {
        for bad in [
            "percent = 0",
            "percent = nan",
            "steps = [10, 1]",
            "steps = [101]",
            "max_errors = 0",
            "max_latency_ratio = 0.5",
            "max_difference = -1",
            "strategy = 'ab'",
            "strategy = 'ab'\nheader = 'x-experiment'",
            "strategy = 'ab'\nheader = 'a b'\nvalue = 'b'",
            "strategy = 'blue'",
            "min_requests = 0",
        ] {
            let error = plan(bad).unwrap_err();
            assert!(error.starts_with("rollout") || error.starts_with("line 2: "), "{bad}: {error}");
        }
    }
}
