//! The Open Inference Protocol with Triton's extensions: what its doors (gRPC here, REST in [`super::rest`]) have in common.
//!
//! A door decodes a request into an [`Incoming`](incoming::Incoming), this makes an [`InferCall`] of it, and everything after
//! that is shared with torchlane's own API: one stack, one order, the same metrics. The answer comes back as an
//! [`Outgoing`](outgoing::Outgoing).

mod classes;
pub mod grpc;
pub(super) mod incoming;
mod models;
pub(super) mod outgoing;
pub(super) mod parameters;
mod regions;
mod repository;
mod settings;
mod uploads;

use std::sync::Arc;

use tokio::time::Instant;
use tower::{Service, ServiceExt as _};

use super::{arrival::Arrival, health::Health};
use crate::{
    admission::{ControlLane, ControlPlace, Errand, MessageBytes, Residents, Wanted},
    call::{InferCall, InferReply},
    error::{Error, Result},
    lifecycle::Manager,
    model::{Lane, VersionWish, check_names},
    registry::Registry,
    telemetry::{Door, LogFilter, Refusals, Traces},
};

use incoming::{Data, Incoming};
use outgoing::Outgoing;
pub(crate) use regions::MOST as MOST_REGIONS;
pub use regions::Regions;
pub(super) use regions::{no_cuda, no_cuda_region};
pub(super) use settings::LogValue;
pub(super) use uploads::{FILE, LoadParameter};

/// What the protocol's calls are answered from.
#[derive(Debug)]
pub struct Resources {
    /// Models and their versions.
    pub registry: Arc<Registry>,
    /// What changes them.
    pub manager: Arc<Manager>,
    /// Where changes wait for their turn.
    pub control: ControlLane,
    /// Brings models that are not in memory.
    pub residents: Arc<dyn Residents>,
    /// How the server is.
    pub health: Health,
    /// Shared memory of callers.
    pub regions: Regions,
    /// Where requests are counted that could not be made out.
    pub refusals: Refusals,
    /// What is traced, where there is a collector.
    pub traces: Option<Arc<Traces>>,
    /// What is logged, where the log is torchlane's own.
    pub log: Option<LogFilter>,
}

/// The protocol over a stack that infers.
#[derive(Debug, Clone)]
pub struct OpenInference<S> {
    infer: S,
    with: Arc<Resources>,
}

impl<S> OpenInference<S> {
    /// Requests go to `infer`, everything else to `with`.
    pub fn new(infer: S, with: Resources) -> Self {
        Self { infer, with: Arc::new(with) }
    }

    /// How the server is.
    pub(super) fn health(&self) -> &Health {
        &self.with.health
    }

    /// Shared memory of callers.
    pub(super) fn regions(&self) -> &Regions {
        &self.with.regions
    }

    /// Notes a request that could not be made out.
    pub(super) fn refused(&self, door: Door, error: &Error) {
        self.with.refusals.count(door, error);
    }

    /// Whether a load may bring files.
    pub(super) fn takes_uploads(&self) -> bool {
        self.with.manager.takes_uploads()
    }

    /// Loads a model that is left to its next request, as such a request would.
    pub(super) async fn bring(&self, model: &str, deadline: Option<Instant>) -> Result<()> {
        if let Some(model) = self.with.manager.on_demand(model) {
            let (version, lane) = (VersionWish::default(), Lane::Normal);
            self.with.residents.bring(Wanted { model, version, lane, deadline }).await?;
        }
        Ok(())
    }

    /// Runs a change in its own lane and within its deadline.
    async fn controlled<T, W>(
        &self,
        errand: Errand,
        deadline: Option<Instant>,
        work: impl FnOnce(Arc<Manager>, ControlPlace) -> W,
    ) -> Result<T>
    where
        T: Send + 'static,
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let late = "the deadline passed; the change goes on: see the repository index";
        let manager = self.with.manager.clone();
        self.with.control.run(errand, deadline, late, |place| work(manager, place)).await
    }
}

impl<S> OpenInference<S>
where
    S: Service<InferCall, Response = InferReply, Error = Error> + Clone,
{
    /// What is in shared memory is read only where the model has such an input. A model that is not in memory yet says so later.
    fn before_reading(&self, incoming: &Incoming) -> Result<()> {
        if !incoming.inputs.iter().any(|input| matches!(input.data, Data::Region(_))) {
            return Ok(());
        }
        match self.lease(&incoming.model, &incoming.version) {
            // An ensemble's own inputs are looked at by itself.
            Ok(lease) if lease.ensemble.is_none() => {
                let names: Vec<_> = incoming.inputs.iter().map(|input| input.name.as_str()).collect();
                check_names(&lease.signature, &names)
            }
            // Whatever else is wrong with it is said where all requests are looked at.
            _ => Ok(()),
        }
    }

    /// Answers one request, whose bytes are counted in `counted`.
    pub(super) async fn infer(
        &self,
        incoming: Incoming,
        arrival: &Arrival,
        counted: Option<&MessageBytes>,
    ) -> Result<Outgoing> {
        let refused = |error: &Error| self.refused(arrival.door, error);
        self.before_reading(&incoming).inspect_err(refused)?;
        let (call, form) = incoming.into_call(arrival, &self.with.regions, counted).inspect_err(refused)?;
        let model = call.model.clone();
        let reply = self.infer.clone().oneshot(call).await?;
        // Names of classes are those of the version that has answered. One that was replaced meanwhile has none any more.
        let has_classes = form.outputs.iter().any(|wanted| wanted.parameters.classes > 0);
        let lease = has_classes.then(|| {
            let slot = self.with.registry.get(&model)?;
            slot.find(&VersionWish::Exactly(reply.version))
                .0
                .lease()
                .filter(|lease| lease.version == reply.version)
        });
        let lease = lease.flatten();
        // All scores are looked at.
        let scores = if has_classes { reply.output_bytes() } else { 0 };
        let write = move |_: &_| {
            let specs = lease.as_ref().map_or(&[][..], |lease| lease.signature.outputs());
            Outgoing::new(reply, form, specs)
        };
        arrival.long(scores, write).await
    }
}
