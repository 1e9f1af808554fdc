//! Metrics of requests: how many, how long, and where the time went.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use opentelemetry::trace::TraceId;
use parking_lot::RwLock;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, exemplar::HistogramWithExemplars, family::Family, histogram::Histogram},
    registry::{Registry, Unit},
};

use crate::{
    call::Timing,
    model::{Lane, Version},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    model: String,
    version: String,
    lane: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ModelLabel {
    pub(super) model: String,
}

/// What leads from a bucket of a histogram to a request that fell into it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TraceLabel {
    trace_id: String,
}

/// One finished request.
#[derive(Debug, Clone)]
pub struct Sample<'a> {
    /// Empty where no such model exists: names that callers make up must not become series.
    pub model: &'a str,
    /// The one that ran.
    pub version: Option<Version>,
    /// Its lane.
    pub lane: Lane,
    /// `ok`, or the reason of the error.
    pub outcome: &'static str,
    /// From decoded to answered.
    pub total: Duration,
    /// Queue, batch wait, compute and batch size, where it ran.
    pub ran: Option<Timing>,
    /// Where it is traced.
    pub trace: Option<TraceId>,
}

/// Where the requests of one kind are counted: found once, not five times a request.
#[derive(Debug)]
struct Series {
    requests: Counter,
    total: HistogramWithExemplars<TraceLabel>,
    /// Kinds that never run (refusals) have none.
    ran: Option<Ran>,
}

#[derive(Debug)]
struct Ran {
    queue: Histogram,
    batch_wait: Histogram,
    compute: Histogram,
    batch_size: Histogram,
}

impl Series {
    fn count(&self, sample: &Sample<'_>) {
        self.requests.inc();
        let exemplar = sample.trace.map(|trace| TraceLabel { trace_id: trace.to_string() });
        // An exemplar without a time would count as new at each scrape.
        let at = exemplar.is_some().then(SystemTime::now);
        self.total.observe(sample.total.as_secs_f64(), exemplar, at);
        if let (Some(series), Some(timing)) = (&self.ran, sample.ran) {
            series.queue.observe(timing.queue.as_secs_f64());
            series.batch_wait.observe(timing.batch_wait.as_secs_f64());
            series.compute.observe(timing.compute.as_secs_f64());
            series.batch_size.observe(timing.batch_size as f64);
        }
    }
}

/// Version, lane and outcome.
type Kind = (Option<Version>, Lane, &'static str);

type Kinds = HashMap<Kind, Series>;

fn labels(model: &str, (version, lane, outcome): Kind) -> RequestLabels {
    RequestLabels {
        model: model.to_owned(),
        version: version.map(|version| version.to_string()).unwrap_or_default(),
        lane: lane.as_str(),
        outcome,
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct RequestMetrics {
    requests: Family<RequestLabels, Counter>,
    total: Family<RequestLabels, HistogramWithExemplars<TraceLabel>>,
    queue: Family<RequestLabels, Histogram>,
    batch_wait: Family<RequestLabels, Histogram>,
    compute: Family<RequestLabels, Histogram>,
    batch_size: Family<ModelLabel, Histogram>,
    /// By model.
    series: RwLock<HashMap<String, Kinds>>,
}

/// 100 µs to 60 s, about three to a decade.
const DURATIONS: [f64; 18] = [
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0,
];

fn durations() -> Histogram {
    Histogram::new(DURATIONS)
}

fn sizes() -> Histogram {
    Histogram::new([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0])
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            total: Family::new_with_constructor(|| HistogramWithExemplars::new(DURATIONS.into_iter())),
            queue: Family::new_with_constructor(durations),
            batch_wait: Family::new_with_constructor(durations),
            compute: Family::new_with_constructor(durations),
            batch_size: Family::new_with_constructor(sizes),
            series: RwLock::default(),
        }
    }
}

impl RequestMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register("requests", "Requests answered or refused", self.requests.clone());
        r.register_with_unit(
            "request_duration",
            "From decoded request to answer",
            Unit::Seconds,
            self.total.clone(),
        );
        r.register_with_unit("queue_duration", "Waiting to be let in", Unit::Seconds, self.queue.clone());
        r.register_with_unit(
            "batch_wait_duration",
            "Waiting for an executor",
            Unit::Seconds,
            self.batch_wait.clone(),
        );
        r.register_with_unit(
            "compute_duration",
            "Executor time of the batch",
            Unit::Seconds,
            self.compute.clone(),
        );
        r.register("batch_size", "Items in the batch of a request", self.batch_size.clone());
    }

    /// Counts a finished request. `is_there`: whether there is such a model, where nothing was counted for it yet.
    pub(super) fn count(&self, sample: &Sample<'_>, is_there: impl FnOnce(&str) -> bool) {
        let kind = (sample.version, sample.lane, sample.outcome);
        if let Some(series) = self.series.read().get(sample.model).and_then(|kinds| kinds.get(&kind)) {
            series.count(sample);
            return;
        }
        let mut all = self.series.write();
        // A request may outlive its model, whose series must not come back.
        let model = if all.contains_key(sample.model) || is_there(sample.model) { sample.model } else { "" };
        let sample = Sample { model, ..sample.clone() };
        let kinds = all.entry(model.to_owned()).or_default();
        kinds.entry(kind).or_insert_with(|| self.make_series(&sample)).count(&sample);
    }

    /// Drops the series of all other versions of a model: a server that runs for months sees many. A request that a version
    /// answers after that makes them anew, until the model changes again.
    pub(super) fn keep_only(&self, model: &str, versions: &[Version]) {
        if let Some(kinds) = self.series.write().get_mut(model) {
            kinds.retain(|kind, _| {
                let stays = kind.0.is_none_or(|version| versions.contains(&version));
                if !stays {
                    self.remove(&labels(model, *kind));
                }
                stays
            });
        }
    }

    /// Drops all series of a model that is gone.
    pub(super) fn forget(&self, model: &str) {
        let mut all = self.series.write();
        for kind in all.remove(model).iter().flat_map(HashMap::keys) {
            self.remove(&labels(model, *kind));
        }
        self.batch_size.remove(&ModelLabel { model: model.to_owned() });
    }

    fn remove(&self, labels: &RequestLabels) {
        self.requests.remove(labels);
        self.total.remove(labels);
        for family in [&self.queue, &self.batch_wait, &self.compute] {
            family.remove(labels);
        }
    }

    fn make_series(&self, sample: &Sample<'_>) -> Series {
        let model = sample.model.to_owned();
        let labels = labels(&model, (sample.version, sample.lane, sample.outcome));
        // Not by this sample alone: what the response cache answers runs nothing, others do.
        let ran = (sample.outcome == "ok").then(|| Ran {
            queue: self.queue.get_or_create(&labels).clone(),
            batch_wait: self.batch_wait.get_or_create(&labels).clone(),
            compute: self.compute.get_or_create(&labels).clone(),
            batch_size: self.batch_size.get_or_create(&ModelLabel { model }).clone(),
        });
        Series {
            requests: self.requests.get_or_create(&labels).clone(),
            total: self.total.get_or_create(&labels).clone(),
            ran,
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;

    use super::*;

    #[test]
    fn only_a_traced_request_leaves_an_exemplar() {
        let metrics = RequestMetrics::default();
        let mut registry = Registry::with_prefix("torchlane");
        metrics.register(&mut registry);
        let sample = |ms, trace| Sample {
            model: "m",
            version: Some(Version(1)),
            lane: Lane::Normal,
            outcome: "ok",
            total: Duration::from_millis(ms),
            ran: None,
            trace,
        };
        metrics.count(&sample(2, None), |_| true);
        metrics.count(&sample(40, Some(TraceId::from(0xabc))), |_| true);
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let with: Vec<_> = text.lines().filter(|line| line.contains(" # {")).collect();
        assert_eq!(with.len(), 1, "{text}");
        assert!(with[0].starts_with("torchlane_request_duration_seconds_bucket{le=\"0.05\""), "{}", with[0]);
        let exemplar = " 2 # {trace_id=\"00000000000000000000000000000abc\"} 0.04 ";
        assert!(with[0].contains(exemplar), "{}", with[0]);
    }
}
