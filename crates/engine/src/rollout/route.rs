//! The tower layer that sends each request to a version, and to the live one where the new one fails it.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::{BoxFuture, Either};
use tokio::time::Instant;
use torchlane_model::{
    VersionWish,
    error::{Code, Error, Reason, Result},
};
use tower::{Layer, Service, ServiceExt as _};

use super::{Compared, Ending, Mirror, Side, Split};
use crate::{
    call::{InferCall, InferReply, Purpose},
    registry::Registry,
    rollout::RolloutMetrics,
};

/// Puts a [`Route`] around a service.
#[derive(Debug, Clone)]
pub struct RouteLayer {
    registry: Arc<Registry>,
    mirror: Arc<Mirror>,
    metrics: Arc<RolloutMetrics>,
}

impl RouteLayer {
    /// Looks splits up in `registry`; copies go through `mirror`.
    pub fn new(registry: Arc<Registry>, mirror: Arc<Mirror>, metrics: Arc<RolloutMetrics>) -> Self {
        Self { registry, mirror, metrics }
    }
}

impl<S> Layer<S> for RouteLayer {
    type Service = Route<S>;

    fn layer(&self, inner: S) -> Route<S> {
        Route { inner, to: self.clone() }
    }
}

/// Requests that name a version or a label, and those of models that nothing is rolled out of, pass through.
#[derive(Debug, Clone)]
pub struct Route<S> {
    inner: S,
    to: RouteLayer,
}

impl<S> Service<InferCall> for Route<S>
where
    S: Service<InferCall, Response = InferReply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = InferReply;
    type Error = Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<InferReply>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: InferCall) -> Self::Future {
        let is_open = call.version == VersionWish::Any;
        match is_open.then(|| self.to.registry.split(&call.model)).flatten() {
            None => Either::Left(self.inner.call(call)),
            Some(split) => {
                let routed = Routed { inner: self.inner.clone(), to: self.to.clone(), split };
                Either::Right(Box::pin(routed.answer(call)))
            }
        }
    }
}

/// One request of a model with a rollout.
struct Routed<S> {
    inner: S,
    to: RouteLayer,
    split: Arc<Split>,
}

impl<S> Routed<S>
where
    S: Service<InferCall, Response = InferReply, Error = Error> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    async fn answer(self, call: InferCall) -> Result<InferReply> {
        let side = self.split.side(&call);
        let mut copy = self.split.mirrors().then(|| call.clone());
        if copy.is_some() && self.keeps_state(&call) {
            copy = None;
            self.split.compared(Compared::Dropped);
            self.to.metrics.mirrored(&call.model, "dropped");
        }
        let (result, by) = match side {
            Side::Live => (self.run(Side::Live, call).await, Side::Live),
            Side::Candidate => self.try_candidate(call).await,
        };
        // After a fallback there is nothing to compare: the other version has failed already.
        if let (Some(copy), Ok(reply), true) = (copy, &result, by == side) {
            self.to.mirror.send(self.inner.clone(), self.split.clone(), copy, reply.clone(), by);
        }
        result
    }

    /// Whether one of the two versions keeps state: a copy would change it, and what it answers depends on what came before.
    fn keeps_state(&self, call: &InferCall) -> bool {
        let Some(slot) = self.to.registry.get(&call.model) else { return false };
        let sides = [VersionWish::Stable, VersionWish::Exactly(self.split.candidate())];
        sides.iter().any(|wish| slot.find(wish).0.lease().is_some_and(|lease| lease.stateful))
    }

    /// Runs a call on one side and notes how it ended, unless that is still open.
    async fn run(&self, side: Side, call: InferCall) -> Result<InferReply> {
        let mut watch = Watch::new(self, side, &call);
        let result = self.inner.clone().oneshot(call).await;
        match &result {
            Ok(reply) => watch.answered(reply),
            Err(error) => match blame(error) {
                Blame::Version if side == Side::Live => watch.end(Ending::Failed),
                Blame::Time => watch.end(Ending::Late),
                _ => watch.nothing(),
            },
        }
        result
    }

    /// The new version's answer, or else the live one's.
    async fn try_candidate(&self, call: InferCall) -> (Result<InferReply>, Side) {
        let (spare, model, deadline) = (call.clone(), call.model.clone(), call.deadline);
        let wish = VersionWish::Exactly(self.split.candidate());
        let tried = self.run(Side::Candidate, InferCall { version: wish, ..call }).await;
        let error = match tried {
            Ok(reply) => return (Ok(reply), Side::Candidate),
            Err(error) => error,
        };
        let in_time = deadline.is_none_or(|deadline| Instant::now() < deadline);
        if blame(&error) == Blame::Nobody || !in_time {
            return (Err(error), Side::Candidate);
        }
        let reply = self.inner.clone().oneshot(InferCall { purpose: Purpose::Again, ..spare }).await;
        if reply.is_ok() {
            // Only now is it the new version's own fault, and not that of what the caller sent.
            if !matches!(blame(&error), Blame::Time | Blame::Change) {
                self.split.ended(Side::Candidate, Ending::Failed, false);
                self.to.metrics.ended(&model, Side::Candidate, &Ending::Failed);
            }
            self.split.fell_back();
            self.to.metrics.fell_back(&model);
        }
        (reply, Side::Live)
    }
}

/// Whose doing a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blame {
    /// The version's, for all one can tell.
    Version,
    /// It does not take what was sent: the caller's, or that of a version that takes something else than the one before it.
    Input,
    /// It was, or would have been, too late.
    Time,
    /// The version is not there any more: the rollout has ended meanwhile.
    Change,
    /// The server's or the caller's.
    Nobody,
}

pub(super) fn blame(error: &Error) -> Blame {
    match error.reason() {
        Reason::UnknownVersion => Blame::Change,
        Reason::ForwardFailed | Reason::BreakerOpen | Reason::ModelNotReady | Reason::Internal => {
            Blame::Version
        }
        Reason::DeadlineExceeded => Blame::Time,
        reason if reason.code() == Code::InvalidArgument => Blame::Input,
        _ => Blame::Nobody,
    }
}

/// Sees how a call ends, also where its future is dropped at the deadline.
struct Watch<'a, S> {
    routed: &'a Routed<S>,
    side: Side,
    model: String,
    bytes: usize,
    received: Instant,
    deadline: Option<Instant>,
    is_open: bool,
}

impl<'a, S> Watch<'a, S> {
    fn new(routed: &'a Routed<S>, side: Side, call: &InferCall) -> Self {
        Self {
            routed,
            side,
            model: call.model.clone(),
            bytes: call.input_bytes(),
            received: call.received,
            deadline: call.deadline,
            is_open: true,
        }
    }

    fn answered(&mut self, reply: &InferReply) {
        let (total, bytes) = (self.received.elapsed(), self.bytes);
        self.end(Ending::Answered { total, timing: reply.timing, bytes });
    }

    fn end(&mut self, ending: Ending) {
        self.is_open = false;
        self.routed.split.ended(self.side, ending, false);
        self.routed.to.metrics.ended(&self.model, self.side, &ending);
    }

    /// It says nothing of the version.
    fn nothing(&mut self) {
        self.is_open = false;
    }
}

impl<S> Drop for Watch<'_, S> {
    fn drop(&mut self) {
        // A caller that leaves before its deadline says nothing.
        if self.is_open && self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            self.end(Ending::Late);
        }
    }
}
