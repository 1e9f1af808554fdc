//! Samples of live traffic, where the settings ask for them: requests and their answers, as the `samples.safetensors` of a
//! later version.
//!
//! Off unless `samples.record` says how many. Nothing is recorded of a tenant that forbids it. A request waits for nothing:
//! what the writer does not keep up with is left out. What is held in memory, and written, is bounded.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs, io,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    task::{Context, Poll, ready},
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tower::{Layer, Service};

use crate::{
    admission::Tenants,
    call::{InferCall, InferReply},
    config::SampleSettings,
    error::Error,
    model::{NamedTensor, Sample, Version, write_samples},
    threads,
};

/// All samples that are held in memory together.
const MOST_HELD: usize = 256 << 20;
/// Samples that may wait for the writer.
const QUEUE: usize = 16;
/// At the end: for the last file.
const PATIENCE: Duration = Duration::from_millis(500);
/// Its name, and its name until it is whole.
const FILE: &str = "samples.safetensors";
const PART: &str = ".samples.safetensors.part";

/// Picks requests, and hands them to a thread that writes.
#[derive(Debug)]
pub struct Sampler {
    settings: SampleSettings,
    tenants: Arc<Tenants>,
    taken: Mutex<HashMap<String, Taken>>,
    held: Arc<AtomicUsize>,
    queue: Option<mpsc::SyncSender<Recorded>>,
    writer: Option<JoinHandle<()>>,
}

/// What was taken of one model.
#[derive(Debug)]
struct Taken {
    /// The newest version that answered: answers of several do not belong into one file.
    version: Version,
    samples: usize,
}

#[derive(Debug)]
struct Recorded {
    model: String,
    version: Version,
    sample: Sample,
    bytes: usize,
}

impl Sampler {
    /// Starts the writer. `None` where nothing is to be recorded.
    ///
    /// # Errors
    /// The directory cannot be made, or the system gives no thread.
    pub fn start(settings: &SampleSettings, tenants: &Arc<Tenants>) -> io::Result<Option<Arc<Self>>> {
        if settings.record == 0 {
            return Ok(None);
        }
        let directory = settings.directory.clone();
        fs::create_dir_all(&directory).map_err(|error| {
            io::Error::new(error.kind(), format!("samples.directory {}: {error}", directory.display()))
        })?;
        let (queue, recorded) = mpsc::sync_channel(QUEUE);
        let held = Arc::new(AtomicUsize::new(0));
        let (per_model, freed) = (settings.record, held.clone());
        let writer = std::thread::Builder::new()
            .name("samples".to_owned())
            .spawn(move || write(&recorded, &directory, per_model, &freed))?;
        Ok(Some(Arc::new(Self {
            settings: settings.clone(),
            tenants: tenants.clone(),
            taken: Mutex::default(),
            held,
            queue: Some(queue),
            writer: Some(writer),
        })))
    }

    /// The request's tensors, if it may become a sample.
    fn inputs(&self, call: &InferCall) -> Option<Vec<NamedTensor>> {
        let full =
            self.taken.lock().get(&call.model).is_some_and(|taken| taken.samples >= self.settings.record);
        let fits = !full && call.outputs.is_empty() && self.has_room(call.input_bytes());
        (fits && self.tenants.get(&call.tenant).may_be_recorded()).then(|| call.inputs.clone())
    }

    fn has_room(&self, bytes: usize) -> bool {
        bytes as u64 <= self.settings.max_bytes.as_u64()
            && self.held.load(Ordering::Relaxed).saturating_add(bytes) <= MOST_HELD
    }

    fn offer(&self, model: String, inputs: Vec<NamedTensor>, reply: &InferReply) {
        let tensors = inputs.iter().chain(&reply.outputs);
        let bytes = tensors.map(|tensor| tensor.tensor.data().len()).sum();
        if !self.has_room(bytes) {
            return;
        }
        let version = reply.version;
        let mut taken = self.taken.lock();
        let taken = taken.entry(model.clone()).or_insert(Taken { version, samples: 0 });
        if version > taken.version {
            *taken = Taken { version, samples: 0 };
        }
        if version < taken.version || taken.samples >= self.settings.record {
            return;
        }
        let sample = Sample { inputs, outputs: reply.outputs.clone() };
        self.held.fetch_add(bytes, Ordering::Relaxed);
        let recorded = Recorded { model, version, sample, bytes };
        match self.queue.as_ref().map(|queue| queue.try_send(recorded)) {
            Some(Ok(())) => taken.samples += 1,
            _ => drop(self.held.fetch_sub(bytes, Ordering::Relaxed)),
        }
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.queue = None;
        if !threads::join(self.writer.take().into_iter().collect(), PATIENCE) {
            tracing::warn!("samples were still being written: the last file is left as it was");
        }
    }
}

/// The samples of one model, until there are enough.
struct Set {
    version: Version,
    samples: Vec<Sample>,
    bytes: usize,
}

/// Takes samples until nobody gives any more, and writes each model's file anew whenever it has caught up.
fn write(recorded: &mpsc::Receiver<Recorded>, directory: &Path, per_model: usize, held: &AtomicUsize) {
    let mut sets: BTreeMap<String, Set> = BTreeMap::new();
    while let Ok(first) = recorded.recv() {
        let mut changed = BTreeSet::new();
        for Recorded { model, version, sample, bytes } in std::iter::once(first).chain(recorded.try_iter()) {
            let fresh = || Set { version, samples: Vec::new(), bytes: 0 };
            let set = sets.entry(model.clone()).or_insert_with(fresh);
            if set.version != version {
                held.fetch_sub(std::mem::replace(set, fresh()).bytes, Ordering::Relaxed);
            }
            set.samples.push(sample);
            set.bytes += bytes;
            changed.insert(model);
        }
        for model in changed {
            let Some(set) = sets.get(&model) else { continue };
            let path = directory.join(&model);
            match put(&path, &set.samples) {
                Ok(()) => {
                    tracing::info!(model, version = %set.version, samples = set.samples.len(), "samples written to {}", path.display());
                }
                Err(error) => {
                    tracing::warn!(model, %error, "samples cannot be written to {}", path.display())
                }
            }
            if set.samples.len() >= per_model {
                held.fetch_sub(set.bytes, Ordering::Relaxed);
                sets.remove(&model);
            }
        }
    }
}

/// Puts a whole file in place, or leaves what was there. Requests are their callers' business: nobody else may read it.
fn put(directory: &Path, samples: &[Sample]) -> io::Result<()> {
    let bytes = write_samples(samples).map_err(io::Error::other)?;
    fs::create_dir_all(directory)?;
    let part = directory.join(PART);
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    fs::rename(part, directory.join(FILE))
}

/// Puts a [`Sampled`] around a service.
#[derive(Debug, Clone)]
pub struct SampleLayer(Option<Arc<Sampler>>);

impl SampleLayer {
    /// Hands what it sees to `sampler`, if there is one.
    pub fn new(sampler: Option<Arc<Sampler>>) -> Self {
        Self(sampler)
    }
}

impl<S> Layer<S> for SampleLayer {
    type Service = Sampled<S>;

    fn layer(&self, inner: S) -> Sampled<S> {
        Sampled { inner, sampler: self.0.clone() }
    }
}

/// Looks at requests that go by, and at their answers.
#[derive(Debug, Clone)]
pub struct Sampled<S> {
    inner: S,
    sampler: Option<Arc<Sampler>>,
}

impl<S> Service<InferCall> for Sampled<S>
where
    S: Service<InferCall, Response = InferReply, Error = Error>,
{
    type Response = InferReply;
    type Error = Error;
    type Future = Sampling<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: InferCall) -> Self::Future {
        let picked = self.sampler.as_ref().and_then(|sampler| {
            let inputs = sampler.inputs(&call)?;
            Some(Picked { sampler: sampler.clone(), model: call.model.clone(), inputs })
        });
        Sampling { inner: self.inner.call(call), picked }
    }
}

pin_project! {
    /// The inner call; what it answers may become a sample.
    pub struct Sampling<F> {
        #[pin]
        inner: F,
        picked: Option<Picked>,
    }
}

struct Picked {
    sampler: Arc<Sampler>,
    model: String,
    inputs: Vec<NamedTensor>,
}

impl<F> Future for Sampling<F>
where
    F: Future<Output = Result<InferReply, Error>>,
{
    type Output = Result<InferReply, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        if let (Some(Picked { sampler, model, inputs }), Ok(reply)) = (this.picked.take(), &result) {
            sampler.offer(model, inputs, reply);
        }
        Poll::Ready(result)
    }
}
