//! One request on its way through the scheduler.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};
use torchlane_model::{
    Batching, Lane, ModelManifest, TenantId,
    error::{Error, Reason, Result},
};

use super::{GroupKey, Handle, Profile, RowClass, Schedulable, executor::Shared, statistics::Answered};
use crate::{
    admission::Ticket,
    backend::Servable,
    call::{BoundCall, InferReply},
};

/// What a job came to; an answer with what is to be counted of it.
type Replied = Result<(InferReply, Answered)>;

/// A request that may run. It holds its ticket until it is dropped, so "in flight" ends when the work does.
#[derive(Debug)]
pub struct Job {
    /// The request.
    pub bound: BoundCall,
    /// How long it waited for its ticket.
    pub queued: Duration,
    /// When it entered the run queue.
    pub submitted: Instant,
    pub(super) max_batch: usize,
    pub(super) max_concurrency: usize,
    /// It shares no pass: the batch that it was in failed.
    pub(super) alone: bool,
    /// Where it asks for more than a `max_batch`.
    manifest: Option<Arc<ModelManifest>>,
    reply: oneshot::Sender<Replied>,
    _ticket: Option<Ticket>,
}

/// What the live version says of batches when a job is submitted.
#[derive(Debug, Default)]
pub(super) struct Limits {
    max_batch: usize,
    max_concurrency: usize,
    manifest: Option<Arc<ModelManifest>>,
}

impl Limits {
    pub(super) fn of(servable: &Servable) -> Self {
        let Batching { max_delay, buckets, .. } = &servable.manifest.batching;
        // Most models ask for neither: their jobs do not all count up and down one counter.
        let asks = !max_delay.is_zero() || !buckets.is_empty();
        let manifest = asks.then(|| servable.manifest.clone());
        Self { max_batch: servable.max_batch(), max_concurrency: servable.max_concurrency(), manifest }
    }
}

impl Job {
    /// A job and the end at which its reply arrives.
    pub(super) fn new(
        bound: BoundCall,
        ticket: Option<Ticket>,
        queued: Duration,
        limits: Limits,
    ) -> (Self, oneshot::Receiver<Replied>) {
        let (reply, receiver) = oneshot::channel();
        let Limits { max_batch, max_concurrency, manifest } = limits;
        let submitted = Instant::now();
        let job = Self {
            bound,
            queued,
            submitted,
            max_batch,
            max_concurrency,
            alone: false,
            manifest,
            reply,
            _ticket: ticket,
        };
        (job, receiver)
    }

    /// Its caller has left.
    pub(super) fn is_cancelled(&self) -> bool {
        self.reply.is_closed()
    }

    /// Answers. A caller that has left does not hear it.
    pub(super) fn reply(self, result: Replied) {
        let _caller_left = self.reply.send(result);
    }
}

impl Schedulable for Job {
    fn lane(&self) -> Lane {
        self.bound.lane
    }

    fn deadline(&self) -> Option<Instant> {
        self.bound.call.deadline
    }

    fn tenant(&self) -> (TenantId, f64) {
        (self.bound.tenant.id(), self.bound.tenant.weight())
    }

    fn rows(&self) -> usize {
        self.bound.binding.rows
    }

    fn group(&self) -> GroupKey {
        GroupKey {
            slot: self.bound.slot.id(),
            version: self.bound.wanted,
            batch: self.bound.binding.key.clone().filter(|_| !self.alone),
        }
    }

    fn max_batch(&self) -> usize {
        self.max_batch
    }

    fn max_concurrency(&self) -> usize {
        self.max_concurrency
    }

    fn batching(&self) -> Option<&Batching> {
        self.manifest.as_deref().map(|manifest| &manifest.batching)
    }

    fn submitted(&self) -> Instant {
        self.submitted
    }

    fn profile(&self) -> Option<(&Profile, RowClass)> {
        Some((self.bound.slot.profile(), self.bound.class))
    }
}

/// The reply to come. Dropping it takes the job out of the queue, unless it runs already.
#[derive(Debug)]
pub struct PendingReply {
    pub(super) receiver: oneshot::Receiver<Replied>,
    pub(super) waiting: Option<(Arc<Shared>, Handle)>,
}

impl Future for PendingReply {
    type Output = Result<InferReply>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let received = ready!(Pin::new(&mut self.receiver).poll(cx));
        self.waiting = None;
        let stopped = || {
            let message = "the server stopped before this request ran: try another replica";
            Error::new(Reason::ShuttingDown, message)
        };
        let (reply, answered) = received.map_err(|_| stopped())??;
        answered.count();
        Poll::Ready(Ok(reply))
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        if let Some((shared, handle)) = self.waiting.take() {
            shared.cancel(handle);
        }
    }
}
