//! Every field of a `ModelConfig`, and what becomes of it. `docs/reference/triton.md` has the same list for people; a test holds both
//! against the descriptor.

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is part of what `manifest.rs` or `naming.rs` make of a config.
    Mapped,
    /// Nothing is to be done: it changes neither answers nor speed here.
    Idle,
    /// Answers are right without it: it is said that it is not heeded, and why or what to use instead.
    Warned(&'static str),
    /// Answers would be wrong without it, or there would be none.
    Refused(&'static str),
}

use Fate::{Idle, Mapped, Refused, Warned};

/// What becomes of the field at `path`, which has names alone: `input.dims`. `None`: it is the fields in it that have a fate.
pub(super) fn fate(path: &str) -> Option<Fate> {
    FIELDS.iter().find(|(field, _)| *field == path).map(|(_, fate)| *fate)
}

const TENSORRT: &str = "it is for TensorRT alone: leave it out";
const NO_GPU: &str = "torchlane runs models on the CPU";
const QUEUE: &str = "waiting is bounded for a lane, not for a model: admission.queue_depth, and deadlines";

/// Fields by their path. Of a message that stands here itself, the fields in it share its fate.
pub(super) const FIELDS: &[(&str, Fate)] = &[
    ("name", Mapped),
    ("platform", Mapped),
    ("backend", Mapped),
    ("runtime", Mapped),
    ("version_policy.latest.num_versions", Mapped),
    ("version_policy.all", Mapped),
    ("version_policy.specific.versions", Mapped),
    ("max_batch_size", Mapped),
    ("input.name", Mapped),
    ("input.data_type", Mapped),
    ("input.format", Idle),
    ("input.dims", Mapped),
    ("input.reshape.shape", Mapped),
    ("input.is_shape_tensor", Refused(TENSORRT)),
    (
        "input.allow_ragged_batch",
        Refused("requests of unlike shapes are not joined into one flat tensor: use pad in a model.toml"),
    ),
    (
        "input.optional",
        Warned(
            "an input may be left out where forward has a default or Optional[...] for it, and only there",
        ),
    ),
    ("input.is_non_linear_format_io", Refused(TENSORRT)),
    ("output.name", Mapped),
    ("output.data_type", Mapped),
    ("output.dims", Mapped),
    ("output.label_filename", Mapped),
    ("output.reshape.shape", Mapped),
    ("output.is_shape_tensor", Refused(TENSORRT)),
    ("output.is_non_linear_format_io", Refused(TENSORRT)),
    ("instance_group.name", Idle),
    ("instance_group.count", Mapped),
    ("instance_group.kind", Mapped),
    ("instance_group.gpus", Warned(NO_GPU)),
    ("instance_group.profile", Warned(TENSORRT)),
    (
        "instance_group.rate_limiter",
        Warned("executors are shared by lane and deadline: use priorities, or tenants.NAME.weight"),
    ),
    ("instance_group.passive", Mapped),
    ("instance_group.secondary_devices", Warned(NO_GPU)),
    (
        "instance_group.host_policy",
        Warned("where threads run is the system's choice: bind the whole process, with taskset or a cpuset"),
    ),
    ("default_model_filename", Mapped),
    ("cc_model_filenames", Warned("there is one archive for every machine: default_model_filename")),
    ("metric_tags", Warned("metrics have the model's name alone: add labels where they are scraped")),
    (
        "optimization.graph",
        Warned("libtorch optimises a graph by itself while the version is warmed up, and knows no levels"),
    ),
    (
        "optimization.priority",
        Warned("use dynamic_batching.default_priority_level, or priorities in requests"),
    ),
    ("optimization.cuda", Warned(NO_GPU)),
    (
        "optimization.execution_accelerators",
        Warned("models run as they were exported: optimise them before, for instance with torch.jit.freeze"),
    ),
    ("optimization.input_pinned_memory", Idle),
    ("optimization.output_pinned_memory", Idle),
    ("optimization.gather_kernel_buffer_threshold", Idle),
    ("optimization.eager_batching", Idle),
    (
        "dynamic_batching.preferred_batch_size",
        Warned("which sizes are worth it is learned from what passes take; buckets in a model.toml fix them"),
    ),
    ("dynamic_batching.max_queue_delay_microseconds", Mapped),
    (
        "dynamic_batching.preserve_ordering",
        Warned("each caller gets its own answer, but who came first need not be answered first"),
    ),
    ("dynamic_batching.priority_levels", Mapped),
    ("dynamic_batching.default_priority_level", Mapped),
    (
        "dynamic_batching.default_queue_policy.timeout_action",
        Warned("what is late is refused, never put off"),
    ),
    (
        "dynamic_batching.default_queue_policy.default_timeout_microseconds",
        Warned(
            "waiting ends with the request's deadline (grpc-timeout), at the latest with admission.max_deadline",
        ),
    ),
    // A request's own timeout always counts.
    ("dynamic_batching.default_queue_policy.allow_timeout_override", Idle),
    ("dynamic_batching.default_queue_policy.max_queue_size", Warned(QUEUE)),
    ("dynamic_batching.priority_queue_policy", Warned(QUEUE)),
    (
        "sequence_batching",
        Refused(
            "nothing is kept from one request of a sequence to the next: pass the state in and out as tensors",
        ),
    ),
    ("ensemble_scheduling.step.model_name", Mapped),
    ("ensemble_scheduling.step.model_version", Mapped),
    ("ensemble_scheduling.step.input_map", Mapped),
    ("ensemble_scheduling.step.output_map", Mapped),
    (
        "ensemble_scheduling.step.model_namespace",
        Refused("a model's name is one, whichever repository it is in"),
    ),
    (
        "ensemble_scheduling.max_inflight_requests",
        Warned("each step is a request to its model, and bounded as any is: admission.max_in_flight"),
    ),
    // Names and values have a table of their own: parameters.rs.
    ("parameters", Mapped),
    ("model_warmup.name", Idle),
    ("model_warmup.batch_size", Mapped),
    // Passes are run until they take the same time twice.
    ("model_warmup.count", Idle),
    // The input's own datatype holds.
    ("model_warmup.inputs.data_type", Idle),
    ("model_warmup.inputs.dims", Mapped),
    ("model_warmup.inputs.zero_data", Mapped),
    ("model_warmup.inputs.random_data", Mapped),
    (
        "model_warmup.inputs.input_data_file",
        Warned("its shape is warmed up with zeros; a version's samples.safetensors brings values"),
    ),
    (
        "model_operations.op_library_filename",
        Refused("no library is loaded beside libtorch: export the model without operators of its own"),
    ),
    (
        "model_transaction_policy.decoupled",
        Refused("a request has one answer: a model that sends any other number of them cannot be served"),
    ),
    ("batch_input", Refused("the model would lack an input: compute it from the others in forward")),
    ("batch_output", Refused("outputs are split along their first dimension and no other way")),
    (
        "model_repository_agents.agents",
        Refused("no agent is run on the files: to have digests and signatures checked, use torchlane sign"),
    ),
    ("response_cache.enable", Mapped),
    (
        "model_metrics.metric_control",
        Warned("the buckets of torchlane's histograms are fixed: docs/reference/metrics.md"),
    ),
];
