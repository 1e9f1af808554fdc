//! The layer: looks a request up before it waits for anything, and keeps its answer.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use torchlane_model::error::{Error, Reason};
use tower::{Layer, Service};

use super::{
    ResponseCache,
    key::{Key, hash},
    store::Request,
};
use crate::{
    call::{BoundCall, InferReply, Purpose},
    registry::ModelSlot,
};

/// Puts a [`Cached`] around a service.
#[derive(Debug, Clone)]
pub struct CachedLayer(Option<Arc<ResponseCache>>);

impl CachedLayer {
    /// Answers are kept in `cache`, if there is one.
    pub fn new(cache: Option<Arc<ResponseCache>>) -> Self {
        Self(cache)
    }
}

impl<S> Layer<S> for CachedLayer {
    type Service = Cached<S>;

    fn layer(&self, inner: S) -> Cached<S> {
        Cached { inner, cache: self.0.clone() }
    }
}

/// Answers requests that were answered before, for models that ask for it.
#[derive(Debug, Clone)]
pub struct Cached<S> {
    inner: S,
    cache: Option<Arc<ResponseCache>>,
}

/// What becomes of an answer.
struct Keeping {
    cache: Arc<ResponseCache>,
    key: Key,
    slot: Arc<ModelSlot>,
    request: Request,
    /// Looking for it took so long.
    lookup: Duration,
}

impl Keeping {
    /// Keeps it if the version that the request was looked up for stands there still: then it is the one that has answered.
    fn keep(self, reply: &InferReply) {
        let Some(lease) = self.slot.lease().filter(|lease| lease.serial == self.key.serial) else { return };
        let began = Instant::now();
        self.cache.keep(self.key, self.slot.name(), &self.request, reply);
        lease.statistics.missed(self.lookup, began.elapsed());
    }
}

enum Found {
    Answer(InferReply),
    Miss(Keeping),
    /// It is not to be kept.
    Not,
}

impl<S> Cached<S> {
    fn look_up(&self, bound: &BoundCall) -> Found {
        // What is tried, compared or repeated is to be run.
        let is_plain = matches!(bound.call.purpose, Purpose::Answer | Purpose::Step) && bound.trial.is_none();
        let Some(cache) = self.cache.as_ref().filter(|_| is_plain) else { return Found::Not };
        let Some(lease) = bound.slot.lease() else { return Found::Not };
        let may = lease.manifest.response_cache && !lease.stateful && bound.wanted.admits(lease.version);
        if !may {
            return Found::Not;
        }
        let counts = cache.counts(bound.slot.name());
        let began = Instant::now();
        let key = Key { serial: lease.serial, hash: hash(&bound.call) };
        let found = cache.find(&key, &bound.call);
        let lookup = began.elapsed();
        match found {
            Some(reply) => {
                counts.hits.inc();
                lease.statistics.hit(bound.call.received.elapsed(), lookup);
                Found::Answer(reply)
            }
            None => {
                counts.misses.inc();
                let (cache, slot) = (cache.clone(), (*bound.slot).clone());
                Found::Miss(Keeping { cache, key, slot, request: Request::of(&bound.call), lookup })
            }
        }
    }
}

impl<S> Service<BoundCall> for Cached<S>
where
    S: Service<BoundCall, Response = InferReply, Error = Error>,
{
    type Response = InferReply;
    type Error = Error;
    type Future = CachedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, bound: BoundCall) -> Self::Future {
        match self.look_up(&bound) {
            Found::Answer(reply) => CachedFuture { inner: None, reply: Some(reply), keeping: None },
            Found::Miss(keeping) => {
                CachedFuture { inner: Some(self.inner.call(bound)), reply: None, keeping: Some(keeping) }
            }
            Found::Not => CachedFuture { inner: Some(self.inner.call(bound)), reply: None, keeping: None },
        }
    }
}

pin_project! {
    /// The inner call, or an answer that was there.
    pub struct CachedFuture<F> {
        #[pin]
        inner: Option<F>,
        reply: Option<InferReply>,
        keeping: Option<Keeping>,
    }
}

impl<F> Future for CachedFuture<F>
where
    F: Future<Output = Result<InferReply, Error>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Some(inner) = this.inner.as_pin_mut() else {
            let again = || Error::new(Reason::Internal, "an answer was polled after it had been given");
            return Poll::Ready(this.reply.take().ok_or_else(again));
        };
        let reply = ready!(inner.poll(cx));
        if let (Ok(reply), Some(keeping)) = (&reply, this.keeping.take()) {
            keeping.keep(reply);
        }
        Poll::Ready(reply)
    }
}
