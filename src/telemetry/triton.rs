//! Metrics of models by the names that Triton has for them, for dashboards and scalers that ask for those.
//!
//! They are the statistics of each version, so they begin anew when it is loaded again, as counters may. Triton's counters do
//! not end in `_total` as OpenMetrics asks for: their type is left open, which no query asks for.

use std::{collections::BTreeMap, fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, text::encode_registry},
    metrics::MetricType,
    registry::Registry as Exposition,
};

use crate::{
    model::{ModelName, Version},
    registry::Registry,
    sched::{Counts, Failure, Scheduler},
};

/// What is read of one version.
#[derive(Debug)]
struct Row {
    counts: Counts,
    /// Requests that wait, for a ticket or an executor.
    pending: u64,
    /// Its answers are kept.
    is_cached: bool,
}

type Rows = BTreeMap<(ModelName, Version), Row>;

/// Name, help, and where the number comes from. Durations are sums in microseconds.
type Family = (&'static str, &'static str, fn(&Counts) -> u64);

const FAMILIES: [Family; 8] = [
    ("nv_inference_request_success", "Requests that were answered", |counts| counts.success.count),
    ("nv_inference_count", "Rows that were answered", |counts| counts.inferences),
    ("nv_inference_exec_count", "Passes, batches counted once", |counts| counts.executions),
    ("nv_inference_request_duration_us", "Answered requests, from decoded to answered", |counts| {
        micros(counts.success.time)
    }),
    ("nv_inference_queue_duration_us", "Answered requests, waiting", |counts| micros(counts.queue.time)),
    ("nv_inference_compute_input_duration_us", "Putting inputs together", |counts| {
        micros(counts.compute.input.time)
    }),
    ("nv_inference_compute_infer_duration_us", "Forward passes", |counts| micros(counts.compute.infer.time)),
    ("nv_inference_compute_output_duration_us", "Taking outputs apart", |counts| {
        micros(counts.compute.output.time)
    }),
];
/// Of versions whose answers are kept.
const CACHE_FAMILIES: [Family; 4] = [
    ("nv_cache_num_hits_per_model", "Requests that the response cache answered", |counts| {
        counts.cache_hit.count
    }),
    ("nv_cache_num_misses_per_model", "Requests that it could not answer", |counts| counts.cache_miss.count),
    ("nv_cache_hit_duration_per_model", "Finding answers, in microseconds", |counts| {
        micros(counts.cache_hit.time)
    }),
    ("nv_cache_miss_duration_per_model", "Looking in vain and keeping answers, in microseconds", |counts| {
        micros(counts.cache_miss.time)
    }),
];
const FAILURE: &str = "nv_inference_request_failure";
const PENDING: &str = "nv_inference_pending_request_count";

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// Appends them to `text`.
pub(super) fn encode(text: &mut String, models: &Registry, scheduler: &Scheduler) {
    write(text, read(models, scheduler));
}

fn read(models: &Registry, scheduler: &Scheduler) -> Rows {
    let running = scheduler.running();
    let mut rows = Rows::new();
    for slot in models.all().iter().flat_map(|model| model.all()) {
        let Some(lease) = slot.lease() else { continue };
        let run = running.get(&slot.id()).copied().unwrap_or_default() as u64;
        let row = Row {
            counts: lease.statistics.now(),
            pending: slot.in_use().saturating_sub(run),
            is_cached: lease.manifest.response_cache,
        };
        // While versions change places one may stand in two slots.
        rows.entry((slot.name().clone(), lease.version)).or_insert(row);
    }
    rows
}

fn write(text: &mut String, rows: Rows) {
    let mut exposition = Exposition::default();
    exposition.register_collector(Box::new(Table(rows)));
    // Writing to a String cannot fail.
    let _infallible = encode_registry(text, &exposition);
}

#[derive(Debug)]
struct Table(Rows);

impl Collector for Table {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let of_all = FAMILIES.map(|family| (family, false));
        for ((name, help, value), of_cached) in
            of_all.into_iter().chain(CACHE_FAMILIES.map(|family| (family, true)))
        {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Unknown)?;
            for ((model, version), row) in self.0.iter().filter(|(_, row)| row.is_cached || !of_cached) {
                let labels = [("model", model.to_string()), ("version", version.to_string())];
                family.encode_family(&labels)?.encode_gauge(&value(&row.counts))?;
            }
        }
        let help = "Requests that were refused or failed";
        let mut family = encoder.encode_descriptor(FAILURE, help, None, MetricType::Unknown)?;
        for ((model, version), row) in &self.0 {
            for why in Failure::ALL {
                let failures = row.counts.failures.get(&why).copied().unwrap_or_default();
                let labels = [
                    ("model", model.to_string()),
                    ("reason", why.as_str().to_owned()),
                    ("version", version.to_string()),
                ];
                family.encode_family(&labels)?.encode_gauge(&failures)?;
            }
        }
        let help = "Requests that wait to be run";
        let mut family = encoder.encode_descriptor(PENDING, help, None, MetricType::Gauge)?;
        for ((model, version), row) in &self.0 {
            let labels = [("model", model.to_string()), ("version", version.to_string())];
            family.encode_family(&labels)?.encode_gauge(&row.pending)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sched::{Parts, Total};

    fn total(count: u64, millis: u64) -> Total {
        Total { count, time: Duration::from_millis(millis) }
    }

    #[test]
    fn each_number_has_tritons_name_and_labels() {
        let counts = Counts {
            inferences: 11,
            executions: 2,
            success: total(3, 70),
            fail: total(1, 5),
            failures: [(Failure::Rejected, 1)].into(),
            queue: total(3, 31),
            compute: Parts { input: total(3, 3), infer: total(3, 30), output: total(3, 6) },
            cache_hit: total(5, 1),
            cache_miss: total(3, 2),
            ..Counts::default()
        };
        let mut text = String::new();
        let row = |is_cached| Row { counts: counts.clone(), pending: 4, is_cached };
        let name = |text: &str| text.parse().unwrap();
        write(
            &mut text,
            [((name("m"), Version(2)), row(true)), ((name("plain"), Version(1)), row(false))].into(),
        );
        let of_plain = text.lines().filter(|line| line.contains("plain")).collect::<Vec<_>>();
        assert!(of_plain.iter().all(|line| !line.starts_with("nv_cache_")), "{of_plain:?}");
        let lines: Vec<_> =
            text.lines().filter(|line| !line.starts_with('#') && line.contains("\"m\"")).collect();
        assert_eq!(
            lines,
            [
                r#"nv_inference_request_success{model="m",version="2"} 3"#,
                r#"nv_inference_count{model="m",version="2"} 11"#,
                r#"nv_inference_exec_count{model="m",version="2"} 2"#,
                r#"nv_inference_request_duration_us{model="m",version="2"} 70000"#,
                r#"nv_inference_queue_duration_us{model="m",version="2"} 31000"#,
                r#"nv_inference_compute_input_duration_us{model="m",version="2"} 3000"#,
                r#"nv_inference_compute_infer_duration_us{model="m",version="2"} 30000"#,
                r#"nv_inference_compute_output_duration_us{model="m",version="2"} 6000"#,
                r#"nv_cache_num_hits_per_model{model="m",version="2"} 5"#,
                r#"nv_cache_num_misses_per_model{model="m",version="2"} 3"#,
                r#"nv_cache_hit_duration_per_model{model="m",version="2"} 1000"#,
                r#"nv_cache_miss_duration_per_model{model="m",version="2"} 2000"#,
                r#"nv_inference_request_failure{model="m",reason="REJECTED",version="2"} 1"#,
                r#"nv_inference_request_failure{model="m",reason="CANCELED",version="2"} 0"#,
                r#"nv_inference_request_failure{model="m",reason="BACKEND",version="2"} 0"#,
                r#"nv_inference_request_failure{model="m",reason="OTHER",version="2"} 0"#,
                r#"nv_inference_pending_request_count{model="m",version="2"} 4"#,
            ]
        );
    }

    #[test]
    fn the_page_names_them_all() {
        let page = include_str!("../../docs/reference/metrics.md");
        let names = FAMILIES.iter().chain(&CACHE_FAMILIES).map(|(name, ..)| *name);
        for name in names.chain([FAILURE, PENDING]) {
            assert!(page.contains(&format!("| `{name}` |")), "reference/metrics.md does not name {name}");
        }
    }
}
