//! What can be asked of the server and its models.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::OpenInference;
use crate::{
    admission::{not_ready, unknown_model, version_not_loaded},
    api::arrival::version,
    error::Result,
    model::{Signature, Version},
    proto::inference::{
        DataType, InferBatchStatistics, InferStatistics, MemoryUsage, ModelConfig, ModelMetadataResponse,
        ModelStatistics, ModelStatisticsResponse, ServerMetadataResponse, StatisticDuration,
        model_metadata_response::TensorMetadata,
    },
    registry::{Known, Lease, ModelSlot, ServedShapes},
    sched::{Counts, Parts, Total},
    triton,
};

impl<S> OpenInference<S> {
    /// The server's name, version, and what it offers beside the protocol's own calls: no more than it does.
    pub(in crate::api) fn server_metadata(&self) -> ServerMetadataResponse {
        let mut extensions = vec![
            "binary_tensor_data",
            "classification",
            "model_configuration",
            "model_repository",
            "parameters",
            "schedule_policy",
            "statistics",
        ];
        if self.regions().enabled() {
            extensions.push("system_shared_memory");
        }
        // Both are told in any case; the extensions are about changing them.
        if self.with.log.is_some() {
            extensions.push("logging");
        }
        if self.with.traces.is_some() {
            extensions.push("trace");
        }
        ServerMetadataResponse {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: extensions.into_iter().map(str::to_owned).collect(),
        }
    }

    /// Whether requests for that version are answered; be it after it has been brought into memory.
    ///
    /// # Errors
    /// There is no such model or version.
    pub(in crate::api) fn model_ready(&self, name: &str, wanted: &str) -> Result<bool> {
        self.with.manager.answers(name, &version(wanted)?)
    }

    /// What a version takes and returns. A model that is not in memory is brought there.
    ///
    /// # Errors
    /// There is no such model or version, or it does not serve.
    pub(in crate::api) async fn model_metadata(
        &self,
        name: &str,
        wanted: &str,
        deadline: Option<Instant>,
    ) -> Result<ModelMetadataResponse> {
        // From one description, so that the two agree.
        let config = self.model_config(name, wanted, deadline).await?;
        let batched = config.max_batch_size > 0;
        let mut versions: Vec<Version> = self
            .with
            .registry
            .get(name)
            .map(|slot| {
                slot.all().iter().filter_map(|slot| slot.lease()).map(|lease| lease.version).collect()
            })
            .unwrap_or_default();
        versions.sort_unstable();
        versions.dedup();
        Ok(ModelMetadataResponse {
            name: name.to_owned(),
            versions: versions.iter().map(ToString::to_string).collect(),
            platform: config.platform,
            inputs: config
                .input
                .iter()
                .map(|of| tensor(&of.name, of.data_type(), &of.dims, batched))
                .collect(),
            outputs: config
                .output
                .iter()
                .map(|of| tensor(&of.name, of.data_type(), &of.dims, batched))
                .collect(),
        })
    }

    /// What versions have done since they were loaded: of one model, or of all where `name` is empty; of one version, or of all
    /// that are loaded where `wanted` is empty.
    ///
    /// # Errors
    /// There is no such model or version.
    pub(in crate::api) fn statistics(&self, name: &str, wanted: &str) -> Result<ModelStatisticsResponse> {
        let registry = &self.with.registry;
        let slots = if name.is_empty() {
            registry.all()
        } else {
            vec![registry.get(name).ok_or_else(|| unknown_model(name, registry))?]
        };
        let mut model_stats = Vec::new();
        for slot in slots {
            if !wanted.is_empty() && !name.is_empty() {
                model_stats.push(statistics(name, &self.lease(name, wanted)?));
                continue;
            }
            let mut leases: Vec<Lease> = slot.all().iter().filter_map(|slot| slot.lease()).collect();
            leases.sort_by_key(|lease| lease.version);
            leases.dedup_by_key(|lease| lease.version);
            model_stats.extend(leases.iter().map(|lease| statistics(slot.name().as_str(), lease)));
        }
        Ok(ModelStatisticsResponse { model_stats })
    }

    /// A version's configuration in Triton's form, completed by what its answers have shown. A model that is not in memory is brought
    /// there.
    ///
    /// # Errors
    /// There is no such model or version, or it does not serve.
    pub(in crate::api) async fn model_config(
        &self,
        name: &str,
        wanted: &str,
        deadline: Option<Instant>,
    ) -> Result<ModelConfig> {
        self.bring(name, deadline).await?;
        let (slot, lease) = self.found(name, wanted)?;
        let signature = seen(&lease.signature, slot.served(), lease.max_batch > 1);
        let mut config =
            triton::describe(name, &signature, &lease.manifest, lease.max_batch, lease.config.as_deref());
        config.parameters.extend(triton::decided(lease.decisions.all()));
        Ok(config)
    }

    /// A hold on the version that a request without more to say would get.
    pub(in crate::api) fn lease(&self, name: &str, wanted: &str) -> Result<Lease> {
        self.found(name, wanted).map(|(_, lease)| lease)
    }

    fn found(&self, name: &str, wanted: &str) -> Result<(Arc<ModelSlot>, Lease)> {
        let registry = &self.with.registry;
        let wish = version(wanted)?;
        let slot = registry.get(name).ok_or_else(|| unknown_model(name, registry))?;
        let (found, admits) = slot.find(&wish);
        match found.lease() {
            Some(lease) if admits.admits(lease.version) => Ok((found, lease)),
            Some(_) => Err(version_not_loaded(&slot, &wish)),
            None => Err(not_ready(slot.name())),
        }
    }
}

/// A signature with what is not declared filled in from the answers so far.
fn seen(signature: &Signature, served: &ServedShapes, rows_differ: bool) -> Signature {
    let (inputs, outputs) = served.known(rows_differ);
    let known = |name: &str, is_input: bool| {
        let tensors = if is_input { &inputs } else { &outputs };
        // The only input needs no name in a request.
        let is_it = |known: &&Known| known.name == name || is_input && known.name.is_empty();
        tensors.iter().find(is_it).map(|known| (known.dtype, known.shape.clone()))
    };
    let names: Vec<_> = outputs.iter().map(|known| known.name.clone()).collect();
    signature.completed(known, &names)
}

/// A tensor as clients see it, by Triton's rule: what is batched has one more dimension than its `dims`. A datatype that is not known
/// is empty.
fn tensor(name: &str, data_type: DataType, dims: &[i64], batched: bool) -> TensorMetadata {
    TensorMetadata {
        name: name.to_owned(),
        datatype: triton::dtype(data_type).map_or("", |dtype| dtype.as_str()).to_owned(),
        shape: batched.then_some(-1).into_iter().chain(dims.iter().copied()).collect(),
    }
}

fn statistics(name: &str, lease: &Lease) -> ModelStatistics {
    let Counts {
        last,
        inferences,
        executions,
        success,
        fail,
        queue,
        compute,
        cache_hit,
        cache_miss,
        batches,
        failures: _,
    } = lease.statistics.now();
    let since_1970 = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let last_inference = last.map(since_1970).map_or(0, millis);
    let batch_stats =
        batches.into_iter().map(|(rows, Parts { input, infer, output })| InferBatchStatistics {
            batch_size: rows as u64,
            compute_input: total(input),
            compute_infer: total(infer),
            compute_output: total(output),
        });
    ModelStatistics {
        name: name.to_owned(),
        version: lease.version.to_string(),
        last_inference,
        inference_count: inferences,
        execution_count: executions,
        inference_stats: Some(InferStatistics {
            success: total(success),
            fail: total(fail),
            queue: total(queue),
            compute_input: total(compute.input),
            compute_infer: total(compute.infer),
            compute_output: total(compute.output),
            cache_hit: total(cache_hit),
            cache_miss: total(cache_miss),
        }),
        batch_stats: batch_stats.collect(),
        memory_usage: vec![MemoryUsage { r#type: "CPU".to_owned(), id: 0, byte_size: lease.memory_bytes }],
        ..ModelStatistics::default()
    }
}

fn total(total: Total) -> Option<StatisticDuration> {
    let ns = u64::try_from(total.time.as_nanos()).unwrap_or(u64::MAX);
    Some(StatisticDuration { count: total.count, ns })
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
