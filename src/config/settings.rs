//! Every setting, with its default.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use torchlane_archive::safety::Safety;
use torchlane_engine::trace::TelemetrySettings;
use torchlane_repository::seal::Policy;

use super::{
    Cache, Store,
    log::{AccessPolicy, LogFormat, SampleSettings},
};
use crate::{
    admission::{PressureSettings, TenantSettings},
    model::{LoadMode, human_duration},
    residency::ReloadPolicy,
};

/// All of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Directories, or URLs of object stores, that hold models; the first that has a model wins.
    pub repositories: Vec<PathBuf>,
    /// Start even if the repositories hold no model.
    pub allow_empty: bool,
    /// What runs models.
    pub backend: BackendKind,
    /// Addresses and limits of the wire.
    pub server: Server,
    /// The Open Inference Protocol.
    pub oip: OpenInference,
    /// The page for people.
    pub console: Console,
    /// Who may be in flight.
    pub admission: Admission,
    /// What callers may have, by the name in `x-tenant`; `default` is for all others.
    pub tenants: BTreeMap<String, TenantSettings>,
    /// Lower lanes are refused while something is short.
    pub pressure: PressureSettings,
    /// Answers that are kept.
    pub response_cache: ResponseCache,
    /// Threads that run batches.
    pub executors: Executors,
    /// Threads that load models.
    pub loader: Loader,
    /// What may be in memory at once.
    pub memory: Memory,
    /// Looking for new versions.
    pub watch: Watch,
    /// What is written down of changes of models.
    pub audit: Audit,
    /// What files of models are held to.
    pub integrity: Integrity,
    /// What archives may ask for.
    pub safety: Safety,
    /// Object stores.
    pub store: Store,
    /// Where files from object stores are kept.
    pub cache: Cache,
    /// Samples of live traffic, for the check of later versions.
    pub samples: SampleSettings,
    /// Log lines.
    pub log: Log,
    /// Traces.
    pub telemetry: TelemetrySettings,
    /// What `/metrics` has.
    pub metrics: Metrics,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            repositories: vec![PathBuf::from("models")],
            allow_empty: false,
            backend: BackendKind::default(),
            server: Server::default(),
            oip: OpenInference::default(),
            console: Console::default(),
            admission: Admission::default(),
            tenants: BTreeMap::new(),
            pressure: PressureSettings::default(),
            response_cache: ResponseCache::default(),
            executors: Executors::default(),
            loader: Loader::default(),
            memory: Memory::default(),
            watch: Watch::default(),
            audit: Audit::default(),
            integrity: Integrity::default(),
            safety: Safety::default(),
            store: Store::default(),
            cache: Cache::default(),
            samples: SampleSettings::default(),
            log: Log::default(),
            telemetry: TelemetrySettings::default(),
            metrics: Metrics::default(),
        }
    }
}

/// What runs models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// libtorch.
    #[default]
    Torch,
    /// No model at all: for tests of everything else.
    Fake,
}

/// `[server]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    /// Where gRPC listens.
    pub grpc_addr: SocketAddr,
    /// Where `/metrics`, `/livez` and `/readyz` listen.
    pub http_addr: SocketAddr,
    /// Names by which clients reach this server, beside localhost and its addresses; `*` is any. Empty: on loopback no others, on
    /// another address any.
    pub hosts: Vec<String>,
    /// Origins of pages that may call by gRPC and change models, such as `https://console.example`.
    pub origins: Vec<String>,
    /// How long an HTTP connection may rest between two requests.
    #[serde(with = "human_duration")]
    pub http_idle: Duration,
    /// Offer server reflection (v1 and v1alpha).
    pub reflection: bool,
    /// Longest message, each way.
    pub max_message_bytes: ByteSize,
    /// After the signal to stop: how long requests in flight may take to end.
    #[serde(with = "human_duration")]
    pub grace: Duration,
    /// Between "not ready" and closing the door, for load balancers to notice.
    #[serde(with = "human_duration")]
    pub drain_delay: Duration,
    /// Threads that read and write the wire. 0: one for each four CPUs.
    pub io_threads: usize,
    /// Requests on one connection at once; a client waits before it sends more.
    pub max_streams: u32,
    /// Inference requests in the process, waiting ones included; over it calls are refused unread.
    pub max_requests: usize,
    /// Bytes of inference requests in the process: being read, waiting or running. A message over it is refused.
    pub max_in_flight_bytes: ByteSize,
    /// Calls that are open on all connections, those without a message yet included; over it calls are refused.
    pub max_open_calls: usize,
    /// Connections to the gRPC port, and a quarter as many to the HTTP port; fewer where the limit on open files is lower. Over it
    /// they are closed at once.
    pub max_connections: usize,
    /// What one caller, known by its address, may hold of each of these three, and of regions of shared memory: a share of what the
    /// others leave.
    pub caller_share: f64,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            grpc_addr: SocketAddr::from(([127, 0, 0, 1], 50051)),
            http_addr: SocketAddr::from(([127, 0, 0, 1], 8080)),
            hosts: Vec::new(),
            origins: Vec::new(),
            http_idle: Duration::from_secs(75),
            reflection: true,
            max_message_bytes: ByteSize::mib(64),
            grace: Duration::from_secs(30),
            drain_delay: Duration::ZERO,
            io_threads: 0,
            max_streams: 128,
            max_requests: 4096,
            max_in_flight_bytes: ByteSize::gib(1),
            max_open_calls: 16_384,
            max_connections: 8192,
            caller_share: 0.5,
        }
    }
}

/// `[oip]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OpenInference {
    /// Callers on this machine may send and receive tensors through shared memory (`/dev/shm`). Whoever can call can then read
    /// and write all of it that this process can.
    pub shared_memory: bool,
    /// A directory for models that come with a load: files, or a configuration. It is one more of the repositories. Whoever can
    /// call can then put models there, which are programs. None: loads bring nothing.
    pub uploads: Option<PathBuf>,
}

/// `[console]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Console {
    /// A page for people at `/` on the HTTP port.
    pub enabled: bool,
    /// That page can reload, roll back and unload models: for whoever reaches the port.
    pub admin: bool,
    /// Stands at the top of the page, beside the host's name: which server this is.
    pub title: String,
}

impl Default for Console {
    fn default() -> Self {
        Self { enabled: true, admin: false, title: String::new() }
    }
}

/// `[admission]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admission {
    /// Tickets: requests that executors hold or have queued.
    pub max_in_flight: usize,
    /// Requests that may wait for a ticket, in each lane.
    pub queue_depth: usize,
    /// Share of the tickets that HIGH and below leave to CRITICAL.
    pub headroom_high: f64,
    /// Share that NORMAL and below leave to HIGH and CRITICAL.
    pub headroom_normal: f64,
    /// Share that LOW leaves to all others.
    pub headroom_low: f64,
    /// Least share of executor time for a lower lane that has work. 0: strict priority.
    pub min_share: f64,
    /// Deadlines further away are brought forward to this.
    #[serde(with = "human_duration")]
    pub max_deadline: Duration,
    /// Admin calls that run at once.
    pub control_in_flight: usize,
    /// Admin calls that may wait.
    pub control_queue: usize,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            max_in_flight: 256,
            queue_depth: 512,
            headroom_high: 0.05,
            headroom_normal: 0.10,
            headroom_low: 0.20,
            min_share: 0.05,
            max_deadline: Duration::from_secs(300),
            control_in_flight: 4,
            control_queue: 64,
        }
    }
}

/// `[response_cache]`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ResponseCache {
    /// Bytes that requests and answers may take that are kept for models with `response_cache = true`. 0: none are kept.
    pub max_bytes: ByteSize,
}

impl Default for ResponseCache {
    fn default() -> Self {
        Self { max_bytes: ByteSize::mib(64) }
    }
}

/// `[executors]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Executors {
    /// Threads that run batches. 0: one for each CPU of the quota.
    pub threads: usize,
    /// Threads that one operator may use. 0: what the quota leaves for each executor.
    pub intra_op_threads: usize,
    /// Longest batch that is formed, by the learned latency profile: the time that a more urgent request may be made to
    /// wait for it. A single request may take longer.
    #[serde(with = "human_duration")]
    pub max_block: Duration,
    /// Choose the size of a batch by the learned latency profile. Otherwise all that waits is taken, up to `max_batch`.
    pub learned_batches: bool,
    /// A pass that runs for longer is taken to be stuck: its version's breaker opens and another thread takes the executor's
    /// place. 0s: never.
    #[serde(with = "human_duration")]
    pub stuck_after: Duration,
    /// Threads that may take the place of stuck ones.
    pub spare: usize,
    /// Executors that never run LOW work. One executor may always.
    pub kept_from_low: usize,
}

impl Default for Executors {
    fn default() -> Self {
        Self {
            threads: 0,
            intra_op_threads: 0,
            max_block: Duration::from_millis(25),
            learned_batches: true,
            stuck_after: Duration::from_secs(60),
            spare: 2,
            kept_from_low: 0,
        }
    }
}

/// `[loader]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Loader {
    /// Models that load at once.
    pub threads: usize,
    /// A load that takes longer, warm-up included, has failed: it cannot be broken off, so its thread is left behind.
    #[serde(with = "human_duration")]
    pub time_limit: Duration,
    /// Threads that may take the places of those left behind.
    pub spare: usize,
    /// The longest that one load is drawn out for the sake of those who are served meanwhile. 0s: never.
    #[serde(with = "human_duration")]
    pub patience: Duration,
}

impl Default for Loader {
    fn default() -> Self {
        Self { threads: 1, time_limit: Duration::from_secs(600), spare: 2, patience: Duration::from_secs(30) }
    }
}

/// `[audit]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Audit {
    /// A file to which every change of a model is appended, one JSON object a line. None: the last thousand are kept in
    /// memory alone.
    pub file: Option<PathBuf>,
}

/// `[memory]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Bytes that models may take together. 0: any number. Passes and requests need memory beside it.
    pub budget: ByteSize,
    /// When models are loaded that do not say: `eager`, `lazy` or `pinned`.
    pub load: LoadMode,
    /// What a reload does that does not fit beside the old version, after others have gone: `refuse` or `unload_first`.
    pub reload: ReloadPolicy,
    /// Longest that a request without a deadline waits for its model.
    #[serde(with = "human_duration")]
    pub max_wait: Duration,
    /// Requests that may wait for models to be loaded.
    pub max_waiting: usize,
    /// Requests that may wait for the same model.
    pub max_waiting_per_model: usize,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            budget: ByteSize::b(0),
            load: LoadMode::default(),
            reload: ReloadPolicy::default(),
            max_wait: Duration::from_secs(30),
            max_waiting: 1024,
            max_waiting_per_model: 256,
        }
    }
}

/// `[watch]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    /// Between two looks for new, changed and removed models and versions. 0s: only when asked to.
    #[serde(with = "human_duration")]
    pub interval: Duration,
    /// Files that changed within this time may still be being written: they are not loaded yet.
    #[serde(with = "human_duration")]
    pub settle: Duration,
}

impl Default for Watch {
    fn default() -> Self {
        Self { interval: Duration::from_secs(2), settle: Duration::from_secs(1) }
    }
}

/// `[integrity]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Integrity {
    /// What a version must bring: `off` (nothing), `digest` (a `manifest.json`) or `signed` (one with a signature by a
    /// trusted key). A `manifest.json` that is there must be true in any case.
    pub policy: Policy,
    /// Public keys: paths of PEM files, PEM text, or `ed25519:` and 32 bytes in base64. Read at the start.
    pub trusted_keys: Vec<String>,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `pretty` or `json`.
    pub format: LogFormat,
    /// A filter such as `info` or `info,torchlane::access=off`.
    pub level: String,
    /// Which requests get a line: `all`, `sampled` or `off`.
    pub access: AccessPolicy,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::default(), level: "info".to_owned(), access: AccessPolicy::default() }
    }
}

/// `[metrics]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Show what Triton has of it by Triton's names too.
    pub triton_names: bool,
}
