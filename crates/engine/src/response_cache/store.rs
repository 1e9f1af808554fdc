//! The answers, bounded in bytes.

use std::sync::Arc;

use bytes::Bytes;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter, sync::Cache};
use torchlane_model::{
    ModelName, NamedTensor, Version,
    error::Result,
    tensor::{HostTensor, TensorError},
};

use super::key::Key;
use crate::{
    call::{InferCall, InferReply, Timing},
    registry::Registry,
    response_cache::{CacheCounts, CacheMetrics},
};

/// A request and its answer.
#[derive(Debug)]
struct Kept {
    model: ModelName,
    version: Version,
    inputs: Vec<NamedTensor>,
    /// Outputs that it asked for.
    wanted: Vec<String>,
    outputs: Vec<NamedTensor>,
    bytes: u64,
    /// Where it is counted when it goes.
    counts: CacheCounts,
}

/// Beside the tensors of an entry.
const OVERHEAD_BYTES: u64 = 512;
/// For the table's first size: answers are small where a cache pays.
const TYPICAL_BYTES: u64 = 4 << 10;

#[derive(Debug, Clone)]
struct ByBytes;

impl Weighter<Key, Arc<Kept>> for ByBytes {
    fn weight(&self, _: &Key, kept: &Arc<Kept>) -> u64 {
        kept.bytes
    }
}

/// Counts what goes for others.
#[derive(Debug, Clone)]
struct Counting;

impl Lifecycle<Key, Arc<Kept>> for Counting {
    type RequestState = ();

    fn begin_request(&self) {}

    fn on_evict(&self, (): &mut (), _: Key, kept: Arc<Kept>) {
        kept.counts.for_room.inc();
    }
}

/// Parts of the room that are locked and filled each by itself. Few of them, whatever the machine: an entry must fit into one.
const SHARDS: usize = 4;

/// Answers of all models. What was not asked for again goes first.
#[derive(Debug)]
pub struct ResponseCache {
    kept: Cache<Key, Arc<Kept>, ByBytes, DefaultHashBuilder, Counting>,
    longest: u64,
    metrics: CacheMetrics,
}

impl ResponseCache {
    /// An empty one for at most `bytes`, requests and answers together, that counts in `metrics`. An entry may take an eighth of
    /// it. `None` for 0 bytes.
    pub fn new(bytes: u64, metrics: CacheMetrics) -> Option<Arc<Self>> {
        let entries = usize::try_from(bytes / TYPICAL_BYTES).unwrap_or(usize::MAX).clamp(16, 1 << 20);
        let options = OptionsBuilder::new()
            .estimated_items_capacity(entries)
            .weight_capacity(bytes)
            .shards(SHARDS)
            .build()
            .ok()
            .filter(|_| bytes > 0)?;
        let kept = Cache::with_options(options, ByBytes, DefaultHashBuilder::default(), Counting);
        Some(Arc::new(Self { kept, longest: bytes / 8, metrics }))
    }

    /// Where a model's requests are counted.
    pub(super) fn counts(&self, model: &ModelName) -> CacheCounts {
        self.metrics.of(model.as_str())
    }

    /// Answers that are there now.
    pub fn entries(&self) -> usize {
        self.kept.len()
    }

    /// Bytes that are taken now.
    pub fn bytes(&self) -> u64 {
        self.kept.weight()
    }

    /// The answer to the same request.
    pub(super) fn find(&self, key: &Key, call: &InferCall) -> Option<InferReply> {
        let kept = self.kept.get(key)?;
        if kept.inputs != call.inputs || kept.wanted != call.outputs {
            return None;
        }
        Some(InferReply {
            version: kept.version,
            outputs: kept.outputs.clone(),
            timing: Timing { from_cache: true, ..Timing::default() },
        })
    }

    /// Keeps an answer. One that would take too much of the room is not kept, nor is a second one to the same request, which two
    /// callers had sent at once.
    pub(super) fn keep(&self, key: Key, model: &ModelName, request: &Request, reply: &InferReply) {
        if self.kept.contains_key(&key) {
            return;
        }
        let counts = self.counts(model);
        let size = |tensors: &[NamedTensor]| {
            tensors.iter().map(|one| (one.name.len() + one.tensor.data().len()) as u64).sum::<u64>()
        };
        let bytes = size(&request.inputs) + size(&reply.outputs) + OVERHEAD_BYTES;
        if bytes > self.longest {
            counts.too_large.inc();
            return;
        }
        let (Ok(inputs), Ok(outputs)) = (own(&request.inputs), own(&reply.outputs)) else { return };
        let kept = Kept {
            model: model.clone(),
            version: reply.version,
            inputs,
            wanted: request.wanted.clone(),
            outputs,
            bytes,
            counts: counts.clone(),
        };
        counts.kept.inc();
        self.kept.insert(key, Arc::new(kept));
    }

    /// A model has changed: what its versions that are gone have answered is dropped. It was not given any more before either,
    /// but it took room.
    pub fn forget_old(&self, model: &ModelName, registry: &Registry) {
        let slots = registry.get(model.as_str()).map(|slot| slot.all()).unwrap_or_default();
        let stand: Vec<u64> =
            slots.iter().filter_map(|slot| slot.lease()).map(|lease| lease.serial).collect();
        self.kept.retain(|key, kept| {
            let stays = kept.model != *model || stand.contains(&key.serial);
            if !stays {
                kept.counts.outdated.inc();
            }
            stays
        });
    }
}

/// What is kept of a request until its answer is there.
#[derive(Debug)]
pub(super) struct Request {
    inputs: Vec<NamedTensor>,
    wanted: Vec<String>,
}

impl Request {
    pub(super) fn of(call: &InferCall) -> Self {
        Self { inputs: call.inputs.clone(), wanted: call.outputs.clone() }
    }
}

/// Copies: a tensor may be a small part of a large buffer, which it would keep.
fn own(tensors: &[NamedTensor]) -> Result<Vec<NamedTensor>, TensorError> {
    let copies = tensors.iter().map(|NamedTensor { name, tensor }| {
        let data = Bytes::copy_from_slice(tensor.data());
        let tensor = HostTensor::from_backend(tensor.dtype(), tensor.shape().clone(), data)?;
        Ok(NamedTensor { name: name.clone(), tensor })
    });
    copies.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use torchlane_model::tensor::DType;

    fn tensor(bytes: usize, fill: u8) -> Vec<NamedTensor> {
        let shape = [i64::try_from(bytes).unwrap()].into_iter().collect();
        let tensor = HostTensor::new(DType::U8, shape, Bytes::from(vec![fill; bytes])).unwrap();
        vec![NamedTensor { name: "x".into(), tensor }]
    }

    fn keep(cache: &ResponseCache, serial: u64, number: u128, bytes: usize) {
        let request = Request { inputs: tensor(8, 0), wanted: Vec::new() };
        let reply = InferReply { version: Version(1), outputs: tensor(bytes, 1), timing: Timing::default() };
        cache.keep(Key { serial, hash: number }, &"m".parse().unwrap(), &request, &reply);
    }

    fn counted(metrics: &CacheMetrics) -> [u64; 4] {
        let counts = metrics.of("m");
        [counts.kept.get(), counts.too_large.get(), counts.for_room.get(), counts.outdated.get()]
    }

    #[test]
    fn what_is_kept_is_what_came_less_what_went() {
        let metrics = CacheMetrics::default();
        let cache = ResponseCache::new(64 << 10, metrics.clone()).unwrap();
        keep(&cache, 1, 0, 4000);
        keep(&cache, 1, 0, 4000);
        assert_eq!((counted(&metrics), cache.entries()), ([1, 0, 0, 0], 1), "the same request again");
        assert!((4000..5000).contains(&cache.bytes()), "{}", cache.bytes());
        keep(&cache, 1, 1, 9000);
        assert_eq!((counted(&metrics), cache.entries()), ([1, 1, 0, 0], 1), "more than an eighth");
        for number in 2..42 {
            keep(&cache, 1, number, 4000);
        }
        let [kept, _, for_room, outdated] = counted(&metrics);
        assert_eq!((kept, outdated), (41, 0));
        assert!(for_room > 20 && cache.bytes() <= 64 << 10, "{for_room} went, {} bytes", cache.bytes());
        assert_eq!(cache.entries() as u64, kept - for_room);
        // No version stands any more.
        cache.forget_old(&"other".parse().unwrap(), &Registry::default());
        assert_eq!(counted(&metrics)[3], 0);
        cache.forget_old(&"m".parse().unwrap(), &Registry::default());
        assert_eq!((counted(&metrics)[3], cache.entries(), cache.bytes()), (kept - for_room, 0, 0));
    }

    #[test]
    fn an_eighth_of_the_room_is_kept_on_every_machine() {
        let cache = ResponseCache::new(64 << 20, CacheMetrics::default()).unwrap();
        keep(&cache, 1, 1, (8 << 20) - 1024);
        assert_eq!(cache.entries(), 1);
    }

    #[test]
    fn no_room_is_no_cache() {
        assert!(ResponseCache::new(0, CacheMetrics::default()).is_none());
    }
}
