//! From the name of a model to its slot, from named tensors to arguments, from a wish to a lane.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::future::BoxFuture;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use torchlane_model::{
    Binding, Lane, Signature, Version, VersionSelector, VersionWish,
    error::{Error, Reason, Result, shown},
};
use tower::{Layer, Service};

use super::{Pressure, Residents, Scope, Tenant, TenantPlace, Tenants, Wanted, not_ready};
use crate::{
    call::{BoundCall, InferCall},
    registry::{ModelSlot, Registry},
    sched::RowClass,
};

/// Puts a [`Resolve`] around a service.
#[derive(Debug, Clone)]
pub struct ResolveLayer {
    registry: Arc<Registry>,
    tenants: Arc<Tenants>,
    pressure: Arc<Pressure>,
    residents: Option<Arc<dyn Residents>>,
}

impl ResolveLayer {
    /// Looks models up in `registry` and callers in `tenants`; `pressure` may refuse a lane.
    pub fn new(registry: Arc<Registry>, tenants: Arc<Tenants>, pressure: Arc<Pressure>) -> Self {
        Self { registry, tenants, pressure, residents: None }
    }

    /// Models that are not in memory are asked of `residents`. Without, requests for them are refused.
    #[must_use]
    pub fn with_residents(mut self, residents: Arc<dyn Residents>) -> Self {
        self.residents = Some(residents);
        self
    }
}

impl<S> Layer<S> for ResolveLayer {
    type Service = Resolve<S>;

    fn layer(&self, inner: S) -> Resolve<S> {
        Resolve { inner, to: self.clone() }
    }
}

/// Refuses what cannot be served (unknown model, wrong tensors, a tenant over its rate, a lane that is shed) before it waits
/// for anything. A call whose model is not in memory waits until it is; the inner service must be ready without a
/// reservation then.
#[derive(Debug, Clone)]
pub struct Resolve<S> {
    inner: S,
    to: ResolveLayer,
}

impl<S> Service<InferCall> for Resolve<S>
where
    S: Service<BoundCall, Error = Error> + Clone,
{
    type Response = S::Response;
    type Error = Error;
    type Future = Resolving<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: InferCall) -> Self::Future {
        let state = match enter(&self.to, call).and_then(|entered| bind(&self.to, entered, Look::First)) {
            Ok(bound) => State::Calling { future: self.inner.call(bound) },
            Err(Stop::Refused(error)) => State::Refused { error: Some(error) },
            Err(Stop::Away(entered)) => match bring(&self.to, *entered) {
                Ok(bound) => State::Bringing { bound, inner: self.inner.clone() },
                Err(error) => State::Refused { error: Some(error) },
            },
        };
        Resolving { state }
    }
}

pin_project! {
    /// Waits for the model where it is not in memory, then for the inner service.
    pub struct Resolving<S: Service<BoundCall>> {
        #[pin]
        state: State<S>,
    }
}

impl<S: Service<BoundCall>> fmt::Debug for Resolving<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolving").finish_non_exhaustive()
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S: Service<BoundCall>> {
        Refused { error: Option<Error> },
        Bringing { bound: BoxFuture<'static, Result<BoundCall>>, inner: S },
        Calling { #[pin] future: S::Future },
    }
}

impl<S> Future for Resolving<S>
where
    S: Service<BoundCall, Error = Error>,
{
    type Output = Result<S::Response>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Calling { future } => return future.poll(cx),
                StateProj::Refused { error } => {
                    let again =
                        || Error::new(Reason::Internal, "a refusal was polled after it had been told");
                    return Poll::Ready(Err(error.take().unwrap_or_else(again)));
                }
                StateProj::Bringing { bound, inner } => match ready!(bound.as_mut().poll(cx)) {
                    Ok(bound) => State::Calling { future: inner.call(bound) },
                    Err(error) => State::Refused { error: Some(error) },
                },
            };
            this.state.set(next);
        }
    }
}

/// A call whose caller and model are known.
struct Entered {
    call: InferCall,
    tenant: Arc<Tenant>,
    place: TenantPlace,
    model: Arc<ModelSlot>,
}

/// Why a call is not bound.
enum Stop {
    Refused(Error),
    /// Its model is not in memory.
    Away(Box<Entered>),
}

/// How often a call has been looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    First,
    Last,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

fn enter(to: &ResolveLayer, call: InferCall) -> Result<Entered, Stop> {
    let (tenant, place) = to.tenants.admit(&call.tenant, call.purpose)?;
    let model = to.registry.get(&call.model).ok_or_else(|| unknown_model(&call.model, &to.registry))?;
    Ok(Entered { call, tenant, place, model })
}

/// Waits for the model and binds the call to it.
fn bring(to: &ResolveLayer, entered: Entered) -> Result<BoxFuture<'static, Result<BoundCall>>> {
    let Entered { call, tenant, model, .. } = &entered;
    let Some(residents) = &to.residents else { return Err(not_ready(model.name())) };
    // The model may have another default: it is not known yet.
    let lane = tenant.lane(call.lane.unwrap_or(Lane::Normal));
    to.pressure.admit(lane, call.account.as_deref(), Instant::now())?;
    let wanted =
        Wanted { model: model.clone(), version: call.version.clone(), lane, deadline: call.deadline };
    let (brought, to) = (residents.bring(wanted), to.clone());
    Ok(Box::pin(async move {
        let _stays_until_bound = brought.await?;
        bind(&to, entered, Look::Last).map_err(|stop| match stop {
            Stop::Refused(error) => error,
            // Somebody unloaded it at once.
            Stop::Away(entered) => not_ready(entered.model.name()),
        })
    }))
}

fn bind(to: &ResolveLayer, entered: Entered, look: Look) -> Result<BoundCall, Stop> {
    let (found, wanted) = entered.model.find(&entered.call.version);
    let Some((slot, lease)) = found.enter().and_then(|slot| slot.lease().map(|lease| (slot, lease))) else {
        return Err(Stop::Away(Box::new(entered)));
    };
    if !wanted.admits(lease.version) {
        // It may be one that is just being loaded beside the live one.
        return Err(match (look, &to.residents) {
            (Look::First, Some(_)) => Stop::Away(Box::new(entered)),
            _ => version_not_loaded(&entered.model, &entered.call.version).into(),
        });
    }
    let Entered { call, tenant, place, model } = entered;
    model.touch(call.received);
    let lane = tenant.lane(call.lane.unwrap_or(lease.manifest.scheduling.default_lane));
    call.decided.set(lane);
    let now = Instant::now();
    to.pressure.admit(lane, call.account.as_deref(), now)?;
    let binding = Binding::new(&lease.signature, &call.inputs, lease.max_batch())?;
    if let Some(trace) = &call.trace {
        trace.bound(binding.rows);
    }
    check_outputs(&lease.signature, &call.outputs)?;
    // Last: what is refused for another reason is no trial.
    let trial = lease
        .breaker
        .admit(now, || Scope::of(tenant.id(), &call.inputs))
        .map_err(|wait| breaker_open(slot.name().as_str(), lease.version).with_retry_after(wait))?;
    drop(lease);
    let class = RowClass::of(binding.padded_bytes(&call.inputs), binding.rows);
    Ok(BoundCall { call, slot, wanted, binding, class, lane, tenant, place, trial, ahead: None })
}

/// That the outputs that are wanted are there, each asked for once: an answer is no longer than what the model returns.
pub fn check_outputs(signature: &Signature, wanted: &[String]) -> Result<()> {
    let mut asked = std::collections::HashSet::new();
    if let Some(twice) = wanted.iter().find(|name| !asked.insert(name.as_str())) {
        let message = format!("output '{}' is asked for twice", shown(twice, 64));
        return Err(Error::new(Reason::BadRequest, message).with_field("outputs"));
    }
    let known = signature.outputs();
    let unknown = |name: &&String| known.iter().all(|output| *output.name != ***name);
    match wanted.iter().find(unknown).filter(|_| signature.outputs_declared()) {
        None => Ok(()),
        Some(bad) => {
            let names = known.iter().map(|output| output.name.as_ref()).collect::<Vec<_>>().join(", ");
            let message = format!("the model has no output '{}': it returns {names}", shown(bad, 64));
            Err(Error::new(Reason::UnknownOutput, message).with_field("outputs"))
        }
    }
}

/// The refusal of a version whose breaker is open.
pub fn breaker_open(model: &str, version: Version) -> Error {
    let message = format!(
        "version {version} of model '{model}' has only failed or got stuck lately: it is tried now and then"
    );
    Error::new(Reason::BreakerOpen, message)
}

/// The refusal of a model that nobody knows.
pub fn unknown_model(name: &str, registry: &Registry) -> Error {
    let (names, more) = registry.some_names(8);
    let known = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let known = if known.is_empty() { "none" } else { &known };
    let more = if more { ", ..." } else { "" };
    let shown = shown(name, 64);
    Error::new(Reason::UnknownModel, format!("no model '{shown}': this server has {known}{more}"))
        .with_field("model")
}

/// The refusal of a version that is not loaded.
pub fn version_not_loaded(model: &Arc<ModelSlot>, wish: &VersionWish) -> Error {
    let loaded: Vec<_> =
        model.all().iter().filter_map(|slot| Some(slot.lease()?.version.to_string())).take(8).collect();
    let which = match wish {
        VersionWish::Labelled(label) => {
            format!("no version of '{}' has the label '{label}', or it", model.name())
        }
        other => format!("version {other} of '{}'", model.name()),
    };
    let are = if loaded.len() == 1 { "is" } else { "are" };
    let message = format!("{which} is not live: version {} {are}", loaded.join(", "));
    Error::new(Reason::UnknownVersion, message).with_field("version")
}

/// The refusal of a version that was replaced while the request waited.
pub fn version_gone(model: &str, wanted: VersionSelector, now: Version) -> Error {
    let wanted = match wanted {
        VersionSelector::Exactly(version) => version.to_string(),
        VersionSelector::Live => "stable".to_owned(),
    };
    let message = format!("version {wanted} of '{model}' is not live any more: version {now} is");
    Error::new(Reason::UnknownVersion, message).with_field("version")
}
