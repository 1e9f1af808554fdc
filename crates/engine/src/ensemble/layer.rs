//! The layer: a request for an ensemble becomes requests for its steps.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{
    StreamExt as _,
    future::{BoxFuture, Either, FutureExt as _},
    stream::FuturesUnordered,
};
use tokio::time::Instant;
use torchlane_model::{
    Binding, Lane, NamedTensor, Plan, Progress, Signature, Version, VersionWish,
    error::{Error, Reason, Result},
    tensor::HostTensor,
};
use tower::{Layer, Service, ServiceExt as _};

use crate::{
    admission::{Tenants, check_outputs},
    call::{DecidedLane, InferCall, InferReply, Purpose, Timing},
    registry::{Lease, ModelSlot, Registry},
};

/// What is said of a step that is an ensemble.
pub const NESTED: &str = "it is an ensemble itself: ensembles are not made of ensembles";

/// Puts an [`Ensemble`] around a service.
#[derive(Debug, Clone)]
pub struct EnsembleLayer<R> {
    registry: Arc<Registry>,
    tenants: Arc<Tenants>,
    steps: R,
}

impl<R> EnsembleLayer<R> {
    /// Ensembles are found in `registry`; their steps are sent to `steps`.
    pub fn new(registry: Arc<Registry>, tenants: Arc<Tenants>, steps: R) -> Self {
        Self { registry, tenants, steps }
    }
}

impl<S, R: Clone> Layer<S> for EnsembleLayer<R> {
    type Service = Ensemble<S, R>;

    fn layer(&self, inner: S) -> Ensemble<S, R> {
        Ensemble { inner, to: self.clone() }
    }
}

/// Answers requests for ensembles; all others go on.
#[derive(Debug, Clone)]
pub struct Ensemble<S, R> {
    inner: S,
    to: EnsembleLayer<R>,
}

impl<S, R> Service<InferCall> for Ensemble<S, R>
where
    S: Service<InferCall, Response = InferReply, Error = Error>,
    R: Service<InferCall, Response = InferReply, Error = Error> + Clone + Send + Sync + 'static,
    R::Future: Send,
{
    type Response = InferReply;
    type Error = Error;
    type Future = Either<S::Future, BoxFuture<'static, Result<InferReply>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: InferCall) -> Self::Future {
        match Run::of(&self.to, &call) {
            None => Either::Left(self.inner.call(call)),
            Some(run) => Either::Right(run.answer(call).boxed()),
        }
    }
}

/// One request for an ensemble.
struct Run<R> {
    to: EnsembleLayer<R>,
    slot: Arc<ModelSlot>,
    /// Which load of it: a reload meanwhile does not change the steps of a request.
    serial: u64,
    version: Version,
    plan: Arc<Plan>,
    signature: Arc<Signature>,
    default_lane: Lane,
}

/// Times of the steps, added up.
#[derive(Default)]
struct Spent {
    queue: Duration,
    batch_wait: Duration,
    compute: Duration,
}

impl<R> Run<R>
where
    R: Service<InferCall, Response = InferReply, Error = Error> + Clone + Send + Sync + 'static,
    R::Future: Send,
{
    /// `None`: the call is for no ensemble.
    fn of(to: &EnsembleLayer<R>, call: &InferCall) -> Option<Self> {
        let (slot, admits) = to.registry.get(&call.model)?.find(&call.version);
        let lease = slot.lease().filter(|lease| admits.admits(lease.version))?;
        let plan = lease.ensemble.clone()?;
        let (serial, version, signature) = (lease.serial, lease.version, lease.signature.clone());
        let default_lane = lease.manifest.scheduling.default_lane;
        Some(Self { to: to.clone(), slot, serial, version, plan, signature, default_lane })
    }

    async fn answer(self, call: InferCall) -> Result<InferReply> {
        // Its steps do not count once more.
        let (tenant, _place) = self.to.tenants.admit(&call.tenant, call.purpose)?;
        let lane = tenant.lane(call.lane.unwrap_or(self.default_lane));
        call.decided.set(lane);
        let mut tensors = self.begin(&call)?;
        let mut spent = Spent::default();
        {
            let mut progress = Progress::new(&self.plan);
            let mut running = FuturesUnordered::new();
            for step in progress.begin() {
                running.push(self.step(step, &call, lane, &tensors)?);
            }
            // The first failure ends the request; what runs beside is dropped, and with it its waiting places.
            while let Some((step, reply)) = running.next().await {
                let reply: InferReply = reply.map_err(|error| self.of_step(step, error))?;
                spent.queue += reply.timing.queue;
                spent.batch_wait += reply.timing.batch_wait;
                spent.compute += reply.timing.compute;
                self.take(step, reply.outputs, &mut tensors)?;
                for next in progress.done(step) {
                    running.push(self.step(next, &call, lane, &tensors)?);
                }
            }
        }
        let outputs = self.outputs(&call, &tensors)?;
        self.count(&call, &spent);
        let Spent { queue, batch_wait, compute } = spent;
        let timing = Timing { queue, batch_wait, compute, batch_size: 1, from_cache: false };
        Ok(InferReply { version: self.version, outputs, timing })
    }

    /// The tensors of the request, where the steps find them. What is wrong with the request itself is said before anything runs.
    fn begin(&self, call: &InferCall) -> Result<Vec<Option<HostTensor>>> {
        // By the binding, not by names: of a single input the name may be left out.
        let binding = Binding::new(&self.signature, &call.inputs, 1)?;
        check_outputs(&self.signature, &call.outputs)?;
        let mut tensors = vec![None; self.plan.tensors()];
        for (argument, at) in self.signature.arguments().iter().zip(&binding.leaves) {
            let place = self.plan.input(&argument.name).and_then(|number| tensors.get_mut(number));
            if let (Some(place), Some(input)) = (place, call.inputs.get(*at)) {
                *place = Some(input.tensor.clone());
            }
        }
        Ok(tensors)
    }

    /// A step that has all its tensors, on its way.
    fn step(
        &self,
        step: usize,
        call: &InferCall,
        lane: Lane,
        tensors: &[Option<HostTensor>],
    ) -> Result<BoxFuture<'static, (usize, Result<InferReply>)>> {
        let Some(of) = self.plan.steps().get(step) else { return Err(bug("a step that is none")) };
        let version = VersionWish::parse(&of.version).unwrap_or_default();
        // Not left to its module, which would fail: that would count against a version that is well.
        let slot = self.to.registry.get(&of.model).map(|slot| slot.find(&version).0);
        if slot.and_then(|slot| slot.lease()).is_some_and(|lease| lease.ensemble.is_some()) {
            return Err(self.of_step(step, Error::new(Reason::ForwardFailed, NESTED)));
        }
        let inputs = self.plan.takes(step).iter().map(|(own, number)| {
            let tensor =
                tensors.get(*number).cloned().flatten().ok_or_else(|| bug("a tensor that is not there"))?;
            Ok(NamedTensor { name: own.clone(), tensor })
        });
        let part = InferCall {
            request_id: call.request_id.clone(),
            own_id: call.own_id,
            model: of.model.clone(),
            version,
            lane: Some(lane),
            decided: DecidedLane::default(),
            tenant: call.tenant.clone(),
            account: call.account.clone(),
            headers: call.headers.clone(),
            purpose: if call.purpose == Purpose::Answer { Purpose::Step } else { call.purpose },
            deadline: call.deadline,
            inputs: inputs.collect::<Result<_>>()?,
            outputs: self.plan.makes(step).iter().map(|(own, _)| own.clone()).collect(),
            received: Instant::now(),
            span: call.span.clone(),
            trace: call.trace.clone(),
        };
        let steps = self.to.steps.clone();
        Ok(async move { (step, steps.oneshot(part).await) }.boxed())
    }

    /// Puts the outputs of a step where others find them.
    fn take(&self, step: usize, outputs: Vec<NamedTensor>, tensors: &mut [Option<HostTensor>]) -> Result<()> {
        // They come in the order in which they were asked for.
        for ((_, number), output) in self.plan.makes(step).iter().zip(outputs) {
            *tensors.get_mut(*number).ok_or_else(|| bug("a tensor without a place"))? = Some(output.tensor);
        }
        Ok(())
    }

    /// The outputs that are wanted, in the order wanted, as they are declared.
    fn outputs(&self, call: &InferCall, tensors: &[Option<HostTensor>]) -> Result<Vec<NamedTensor>> {
        let output = |(name, number): (&str, usize)| {
            let tensor =
                tensors.get(number).cloned().flatten().ok_or_else(|| bug("an output that was not made"))?;
            // No warm-up has seen it, and the models that make it may be other ones by now.
            let spec = self.signature.outputs().iter().find(|spec| *spec.name == *name);
            if let Some(why) = spec.and_then(|spec| spec.contradicts(&tensor)) {
                return Err(Error::new(Reason::ForwardFailed, format!("output '{name}' {why}")));
            }
            Ok(NamedTensor { name: name.to_owned(), tensor })
        };
        if call.outputs.is_empty() {
            return self.plan.outputs().map(output).collect();
        }
        let wanted = call.outputs.iter();
        wanted.filter_map(|name| self.plan.outputs().find(|(own, _)| own == name)).map(output).collect()
    }

    fn count(&self, call: &InferCall, spent: &Spent) {
        if let Some(lease) = self.lease() {
            let waited = spent.queue + spent.batch_wait;
            lease.statistics.ran_elsewhere(call.received.elapsed(), waited, spent.compute);
        }
    }

    /// The load that the request began with, while it stands there.
    fn lease(&self) -> Option<Lease> {
        self.slot.lease().filter(|lease| lease.serial == self.serial)
    }

    /// Names the step. What is wrong with the ensemble itself, or with what it finds, is not the caller's doing.
    fn of_step(&self, step: usize, error: Error) -> Error {
        let model = self.plan.steps().get(step).map_or("", |step| step.model.as_str());
        let place = format!("step {step} ({model})");
        let misfit = match error.reason() {
            Reason::UnknownModel | Reason::UnknownVersion => {
                let message = format!("{place}: {}", error.message());
                return Error::new(Reason::ModelNotReady, message).with_retry_after(Duration::from_secs(1));
            }
            // Which tensors go in and come out is the ensemble's word.
            Reason::MissingInput | Reason::UnknownInput | Reason::DuplicateInput | Reason::UnknownOutput => {
                true
            }
            Reason::WrongDatatype => self.knows_datatypes(step),
            _ => false,
        };
        if misfit {
            let message = format!("{place}: the ensemble does not fit the model: {}", error.message());
            return Error::new(Reason::ForwardFailed, message);
        }
        error.within(place).without_field()
    }

    /// Whether callers have no say in the datatypes that go into a step: they come from other steps, or are declared.
    fn knows_datatypes(&self, step: usize) -> bool {
        self.plan.takes(step).iter().all(|(_, number)| {
            let mut inputs = self.signature.inputs().iter();
            let input = inputs.find(|input| self.plan.input(&input.name) == Some(*number));
            input.is_none_or(|input| input.dtype.is_some())
        })
    }
}

fn bug(what: &str) -> Error {
    Error::new(Reason::Internal, format!("a bug in torchlane: an ensemble met {what}"))
}
