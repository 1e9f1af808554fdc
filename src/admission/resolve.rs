//! From the name of a model to its slot, from named tensors to arguments, from a wish to a lane.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use futures::future::{Either, Ready, ready};
use tokio::time::Instant;
use tower::{Layer, Service};

use super::{Pressure, Tenants};
use crate::{
    call::{BoundCall, InferCall, Purpose},
    error::{Error, Reason, Result, shown},
    model::{Binding, Version, VersionSelector, VersionWish},
    registry::{ModelSlot, Registry},
    sched::RowClass,
};

/// Puts a [`Resolve`] around a service.
#[derive(Debug, Clone)]
pub struct ResolveLayer {
    registry: Arc<Registry>,
    tenants: Arc<Tenants>,
    pressure: Arc<Pressure>,
}

impl ResolveLayer {
    /// Looks models up in `registry` and callers in `tenants`; `pressure` may refuse a lane.
    pub fn new(registry: Arc<Registry>, tenants: Arc<Tenants>, pressure: Arc<Pressure>) -> Self {
        Self { registry, tenants, pressure }
    }
}

impl<S> Layer<S> for ResolveLayer {
    type Service = Resolve<S>;

    fn layer(&self, inner: S) -> Resolve<S> {
        Resolve { inner, to: self.clone() }
    }
}

/// Refuses what cannot be served (unknown model, wrong tensors, a tenant over its rate, a lane that is shed) before it waits
/// for anything.
#[derive(Debug, Clone)]
pub struct Resolve<S> {
    inner: S,
    to: ResolveLayer,
}

impl<S> Service<InferCall> for Resolve<S>
where
    S: Service<BoundCall, Error = Error>,
{
    type Response = S::Response;
    type Error = Error;
    type Future = Either<S::Future, Ready<Result<S::Response>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, call: InferCall) -> Self::Future {
        match resolve(&self.to, call) {
            Ok(bound) => Either::Left(self.inner.call(bound)),
            Err(error) => Either::Right(ready(Err(error))),
        }
    }
}

fn resolve(to: &ResolveLayer, call: InferCall) -> Result<BoundCall> {
    let registry = to.registry.as_ref();
    let tenant = match call.purpose {
        Purpose::Answer | Purpose::Again => to.tenants.get(&call.tenant),
        Purpose::Shadow => to.tenants.shadow(),
    };
    let place = match call.purpose {
        Purpose::Answer => tenant.enter()?,
        Purpose::Again | Purpose::Shadow => tenant.stay(),
    };
    let model = registry.get(&call.model).ok_or_else(|| unknown_model(&call.model, registry))?;
    let (slot, wanted) = model.find(&call.version);
    let lease = slot.lease().ok_or_else(|| {
        let message =
            format!("model '{}' has no version live: it is loading, failed or was unloaded", slot.name());
        Error::new(Reason::ModelNotReady, message).with_retry_after(std::time::Duration::from_secs(1))
    })?;
    if !wanted.admits(lease.version) {
        return Err(version_not_loaded(&model, &call.version));
    }
    let lane = tenant.lane(call.lane.unwrap_or(lease.manifest.scheduling.default_lane));
    call.decided.set(lane);
    let now = Instant::now();
    to.pressure.admit(lane, now)?;
    // An answer is no longer than what the model returns.
    let mut asked = std::collections::HashSet::new();
    if let Some(twice) = call.outputs.iter().find(|name| !asked.insert(name.as_str())) {
        let shown = shown(twice, 64);
        let message = format!("output '{shown}' is asked for twice");
        return Err(Error::new(Reason::BadRequest, message).with_field("outputs"));
    }
    let binding = Binding::new(&lease.signature, &call.inputs, lease.max_batch)?;
    if lease.signature.outputs_declared() {
        let known = lease.signature.outputs();
        if let Some(bad) =
            call.outputs.iter().find(|name| known.iter().all(|o| o.name.as_ref() != name.as_str()))
        {
            let names = known.iter().map(|o| o.name.as_ref()).collect::<Vec<_>>().join(", ");
            let message = format!("the model has no output '{bad}': it returns {names}");
            return Err(Error::new(Reason::UnknownOutput, message).with_field("outputs"));
        }
    }
    // Last: what is refused for another reason is no trial.
    let trial = lease
        .breaker
        .admit(now)
        .map_err(|wait| breaker_open(slot.name().as_str(), lease.version).with_retry_after(wait))?;
    drop(lease);
    let class = RowClass::of(binding.padded_bytes(&call.inputs), binding.rows);
    Ok(BoundCall { call, slot, wanted, binding, class, lane, tenant, place, trial, ahead: None })
}

/// The refusal of a version whose breaker is open.
pub(crate) fn breaker_open(model: &str, version: Version) -> Error {
    let message = format!(
        "version {version} of model '{model}' has only failed or got stuck lately: it is tried now and then"
    );
    Error::new(Reason::BreakerOpen, message)
}

fn unknown_model(name: &str, registry: &Registry) -> Error {
    let (names, more) = registry.some_names(8);
    let known = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    let more = if more { ", ..." } else { "" };
    let shown = shown(name, 64);
    Error::new(Reason::UnknownModel, format!("no model '{shown}': this server has {known}{more}"))
        .with_field("model")
}

fn version_not_loaded(model: &Arc<ModelSlot>, wish: &VersionWish) -> Error {
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
pub(crate) fn version_gone(model: &str, wanted: VersionSelector, now: Version) -> Error {
    let wanted = match wanted {
        VersionSelector::Exactly(version) => version.to_string(),
        VersionSelector::Live => "stable".to_owned(),
    };
    let message = format!("version {wanted} of '{model}' is not live any more: version {now} is");
    Error::new(Reason::UnknownVersion, message).with_field("version")
}
