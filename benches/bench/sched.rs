//! What the scheduler itself costs, without a model: jobs a second from submit over batch to reply on one core, and the run
//! queue alone with up to a million jobs in it.

use std::{
    fs,
    hint::black_box,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use torchlane::{
    admission::{
        Account, Headroom, LimitConfig, Limiter, Pressure, PressureSettings, PriorityLimitLayer,
        ResolveLayer, Tenants,
    },
    backend::{Backend, FakeBackend},
    call::{Admitted, BoundCall, InferCall},
    lifecycle::{Preparation, Rules, prepare},
    model::{BatchKey, Batching, Lane, NamedTensor, TenantId, VersionSelector},
    registry::{ModelSlot, Registry, SlotId},
    repository::Directory,
    sched::{
        Charge, ExecutorConfig, GroupKey, Profile, QueueConfig, RowClass, RunQueue, Schedulable, Scheduler,
    },
    tensor::{DType, HostTensor},
};
use tower::{Layer as _, Service as _};

use crate::{
    Result, process,
    stats::{self, Rounds},
};

/// Jobs that are submitted before their replies are awaited: as many as the server has tickets by default.
const WINDOW: usize = 256;
/// Jobs of one measurement.
const JOBS: usize = WINDOW * 400;
const TARGET: f64 = 300_000.0;

pub fn run(rounds: usize, json_path: &Path) -> Result<()> {
    process::pin_to_one_cpu()?;
    let scheduler = scheduler(rounds)?;
    let queue = queue(rounds)?;
    stats::write_json(
        json_path,
        &json!({"machine": stats::machine(), "scheduler": scheduler, "queue": queue}),
    )
}

const QUEUE: QueueConfig =
    QueueConfig { min_share: 0.05, max_block: Duration::from_millis(25), learned: true, low_executors: 1 };

fn scheduler(rounds: usize) -> Result<Value> {
    println!(
        "Jobs a second through submit, batch and reply on one CPU; a pass that does nothing, {WINDOW} in flight:"
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = Vec::new();
    for max_batch in [32, 1] {
        let repository = tempfile::tempdir()?;
        let folder = repository.path().join("echo");
        fs::create_dir_all(folder.join("1"))?;
        fs::write(folder.join("1/model.pt"), "")?;
        fs::write(folder.join("model.toml"), format!("[batching]\nmax_batch = {max_batch}\n"))?;
        let backend: Arc<dyn Backend> = Arc::new(FakeBackend);
        let found = Directory::open(repository.path())?.scan()?;
        let model = found.first().ok_or("no model")?;
        let files = model.versions.first().ok_or("no version")?;
        let registry = Arc::new(Registry::default());
        let slot = registry.get_or_insert(&model.name);
        let rules = Rules::default();
        let alone = Preparation::alone(&model.name, files, &rules);
        slot.swap(Some(prepare(backend.as_ref(), &alone)?.servable));
        let executors = ExecutorConfig { threads: 1, intra_op: 1, spare: 0, queue: QUEUE };
        let scheduler = Scheduler::start(executors, &backend)?;
        let mut rate = Rounds::default();
        for round in 0..=rounds {
            let mut left = runtime.block_on(admitted(&registry, JOBS))?;
            let began = Instant::now();
            runtime.block_on(async {
                while !left.is_empty() {
                    let window: Vec<_> = left
                        .drain(left.len().saturating_sub(WINDOW)..)
                        .map(|job| scheduler.submit(job))
                        .collect();
                    for reply in window {
                        assert_eq!(black_box(reply.await).expect("an answer").outputs.len(), 1);
                    }
                }
            });
            if round > 0 {
                rate.0.push(JOBS as f64 / began.elapsed().as_secs_f64());
            }
        }
        println!(
            "  in batches of up to {max_batch:2}: {:>9.0}/s ({:.0}..{:.0}), {:.2} us each   {}",
            rate.median(),
            rate.min(),
            rate.max(),
            1e6 / rate.median(),
            match max_batch {
                1 => "",
                _ if rate.median() >= TARGET => "met",
                _ => "MISSED",
            }
        );
        rows.push(json!({"max_batch": max_batch, "jobs_per_second": rate.json()}));
    }
    Ok(rows.into())
}

/// Calls that have their tickets, as they arrive at the scheduler.
async fn admitted(registry: &Arc<Registry>, count: usize) -> Result<Vec<Admitted<BoundCall>>> {
    let caught = Arc::new(Mutex::new(Vec::with_capacity(count)));
    let catch = {
        let caught = caught.clone();
        tower::service_fn(move |call: Admitted<BoundCall>| {
            caught.lock().unwrap().push(call);
            std::future::ready(Ok::<(), torchlane::error::Error>(()))
        })
    };
    let limit = LimitConfig {
        max_in_flight: count,
        queue_depth: 0,
        headroom: Headroom { high: 0.0, normal: 0.0, low: 0.0 },
        min_share: 0.05,
    };
    let tenants = Arc::new(Tenants::new(&Default::default()));
    let pressure = Pressure::new(PressureSettings::default(), Account::alone(1 << 30).all().clone());
    let mut stack = ResolveLayer::new(registry.clone(), tenants, pressure)
        .layer(PriorityLimitLayer::new(Limiter::new(limit)).layer(catch));
    for i in 0..count {
        let call = InferCall {
            request_id: String::new(),
            own_id: false,
            model: "echo".to_owned(),
            version: Default::default(),
            lane: Some(Lane::ALL[i % 4]),
            decided: Default::default(),
            tenant: "".into(),
            account: None,
            headers: Default::default(),
            purpose: Default::default(),
            deadline: Some(tokio::time::Instant::now() + Duration::from_secs(60)),
            inputs: vec![NamedTensor {
                name: "x".into(),
                tensor: HostTensor::zeros(DType::F32, [1, 16].as_slice().into())?,
            }],
            outputs: Vec::new(),
            received: tokio::time::Instant::now(),
            span: tracing::Span::none(),
            trace: None,
        };
        stack.call(call).await?;
    }
    let calls = std::mem::take(&mut *caught.lock().unwrap());
    Ok(calls)
}

/// A job of the queue alone.
struct Waiting {
    lane: Lane,
    tenant: u32,
    slot: SlotId,
    key: BatchKey,
    deadline: Option<tokio::time::Instant>,
}

impl Schedulable for Waiting {
    fn lane(&self) -> Lane {
        self.lane
    }
    fn tenant(&self) -> (TenantId, f64) {
        (TenantId(self.tenant), 1.0)
    }
    fn deadline(&self) -> Option<tokio::time::Instant> {
        self.deadline
    }
    fn rows(&self) -> usize {
        1
    }
    fn group(&self) -> GroupKey {
        GroupKey { slot: self.slot, version: VersionSelector::Live, batch: Some(self.key.clone()) }
    }
    fn max_batch(&self) -> usize {
        1
    }
    fn max_concurrency(&self) -> usize {
        0
    }
    fn batching(&self) -> Option<&Batching> {
        None
    }
    fn submitted(&self) -> tokio::time::Instant {
        tokio::time::Instant::now()
    }
    fn profile(&self) -> Option<(&Profile, RowClass)> {
        None
    }
}

/// Fills the queue with 100 models, 4 lanes and 8 tenants in a random order, then holds it at that length.
fn queue(rounds: usize) -> Result<Value> {
    println!("\nThe run queue: a million times one job out and one job in, at a steady length:");
    let slots: Vec<SlotId> =
        (0..100).map(|i| Ok(ModelSlot::new(format!("m{i}").parse()?).id())).collect::<Result<_>>()?;
    let key = batch_key()?;
    let mut rows: Vec<Value> = Vec::new();
    for length in [100, 1_000, 10_000, 100_000, 1_000_000] {
        let mut cost = Rounds::default();
        let mut resident = Vec::new();
        let mut random = fastrand::Rng::with_seed(1);
        let mut queue = RunQueue::new(QUEUE);
        let now = tokio::time::Instant::now();
        let mut next = || Waiting {
            lane: Lane::ALL[random.usize(..4)],
            tenant: random.u32(..8),
            slot: slots[random.usize(..slots.len())],
            key: key.clone(),
            deadline: random.bool().then(|| now + Duration::from_millis(random.u64(1_000..1_000_000))),
        };
        for _ in 0..rounds {
            while queue.waiting().iter().sum::<usize>() < length {
                queue.push(next());
            }
            let began = Instant::now();
            for _ in 0..1_000_000 {
                for job in queue.pop(now, 0).jobs {
                    let cost = Duration::from_micros(10);
                    let charge = Charge { lane: job.lane, tenant: TenantId(job.tenant), weight: 1.0, cost };
                    queue.charge(&[charge]);
                    queue.finished(job.slot, job.lane);
                }
                queue.push(next());
            }
            cost.0.push(began.elapsed().as_secs_f64() * 1e9 / 1e6);
            resident.push(process::resident(std::process::id())? as f64 / 1e6);
            let left = queue.drain().len();
            assert_eq!(left, length, "nothing is lost");
        }
        println!(
            "  {length:>9} waiting: {:>6.0} ns ({:.0}..{:.0}); resident {:.0} MB after the first million, {:.0} MB after the last",
            cost.median(),
            cost.min(),
            cost.max(),
            resident.first().copied().unwrap_or(f64::NAN),
            resident.last().copied().unwrap_or(f64::NAN),
        );
        rows.push(json!({"length": length, "ns_per_job": cost.json(), "resident_mb": resident}));
    }
    Ok(rows.into())
}

fn batch_key() -> Result<BatchKey> {
    use torchlane::model::{ArgKind, Argument, Binding, ModelManifest, Signature};
    let argument = Argument { name: "x".into(), kind: ArgKind::Tensor, has_default: false, skips: 0 };
    let signature = Arc::new(Signature::new(vec![argument], &[], &ModelManifest::default())?);
    let tensor = HostTensor::zeros(DType::F32, [1, 2].as_slice().into())?;
    let binding = Binding::new(&signature, &[NamedTensor { name: "x".into(), tensor }], 8)?;
    Ok(binding.key.ok_or("the model batches")?)
}
