//! The typed calls that the tower stack carries. Every front door makes an [`InferCall`]; everything after it is
//! shared.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::time::Instant;
use torchlane_model::{Binding, Lane, NamedTensor, Version, VersionSelector, VersionWish};

use crate::{
    admission::{Account, Ahead, Scope, Tenant, TenantPlace, Ticket, Trial},
    registry::InUse,
    sched::RowClass,
    trace::RequestTrace,
};

/// By which port a request comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    /// The gRPC port, whichever the API.
    Grpc,
    /// The HTTP port.
    Http,
}

impl Door {
    /// As in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
        }
    }
}

/// A request for one forward pass, decoded and not yet looked up.
#[derive(Debug, Clone)]
pub struct InferCall {
    /// The caller's, or made up by the server.
    pub request_id: String,
    /// The caller gave it.
    pub own_id: bool,
    /// Name of the model, as the caller wrote it.
    pub model: String,
    /// Version wanted.
    pub version: VersionWish,
    /// Lane asked for. `None`: the model's default.
    pub lane: Option<Lane>,
    /// Where the lane that it got is written down once that is decided.
    pub decided: DecidedLane,
    /// `x-tenant`, or empty.
    pub tenant: Arc<str>,
    /// What its sender holds of what callers share. `None`: it came by no connection.
    pub account: Option<Arc<Account>>,
    /// What came with the request beside its message.
    pub headers: Headers,
    /// What it is run for.
    pub purpose: Purpose,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// The tensors.
    pub inputs: Vec<NamedTensor>,
    /// Outputs wanted, in order. Empty: all.
    pub outputs: Vec<String>,
    /// When the request had been decoded.
    pub received: Instant,
    /// The request's span in the log: it crosses to the executor thread and back.
    pub span: tracing::Span,
    /// What its trace needs, where it is traced.
    pub trace: Option<Arc<RequestTrace>>,
}

/// What a request is run for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Purpose {
    /// To be answered.
    #[default]
    Answer,
    /// To be answered as a step of an ensemble: the whole has been counted among its tenant's.
    Step,
    /// To be answered, after another version has failed it: it has been counted among its tenant's already.
    Again,
    /// To be compared with an answer that was given: it is nobody's.
    Shadow,
}

/// The metadata of a request, shared between its copies.
#[derive(Debug, Clone, Default)]
pub struct Headers(Option<Arc<tonic::metadata::MetadataMap>>);

impl Headers {
    /// Of a request that came with these.
    pub fn new(headers: Arc<tonic::metadata::MetadataMap>) -> Self {
        Self(Some(headers))
    }

    /// The value of a header, where it is printable ASCII.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.as_ref()?.get(name)?.to_str().ok()
    }
}

/// The lane that a request got: what it asked for, or its model's default, but no higher than its tenant may go. Whoever
/// records the request hands it in without one and reads it afterwards.
#[derive(Debug, Clone, Default)]
pub struct DecidedLane(Arc<OnceLock<Lane>>);

impl DecidedLane {
    /// Writes it down, once.
    pub fn set(&self, lane: Lane) {
        let _once = self.0.set(lane);
    }

    /// `None`: the request was refused before.
    pub fn get(&self) -> Option<Lane> {
        self.0.get().copied()
    }
}

impl InferCall {
    /// Bytes of all its tensors.
    pub fn input_bytes(&self) -> usize {
        self.inputs.iter().map(|input| input.tensor.data().len()).sum()
    }
}

/// An [`InferCall`] whose model was found, whose tensors fit it, and whose lane is decided.
#[derive(Debug)]
pub struct BoundCall {
    /// The call.
    pub call: InferCall,
    /// The slot of the model that was chosen: that of its live version, or one beside it. Nothing is evicted from it until
    /// the call has ended.
    pub slot: InUse,
    /// Which version in it may answer.
    pub wanted: VersionSelector,
    /// Which tensor goes where.
    pub binding: Binding,
    /// How large its rows are, for the latency profile.
    pub class: RowClass,
    /// The lane, after defaults and caps.
    pub lane: Lane,
    /// Whose it is.
    pub tenant: Arc<Tenant>,
    /// Counts it among the tenant's until it has ended.
    pub place: TenantPlace,
    /// It is let through to see whether its version works again.
    pub trial: Option<Trial>,
    /// Counts its work among what is ahead of others until it has ended.
    pub ahead: Option<Ahead>,
}

impl BoundCall {
    /// Whose it is, and what it sends.
    pub fn scope(&self) -> Scope {
        Scope::of(self.tenant.id(), &self.call.inputs)
    }
}

/// Something that waits its turn in a lane.
pub trait Prioritized {
    /// Its lane.
    fn lane(&self) -> Lane;
    /// When it is of no use any more.
    fn deadline(&self) -> Option<Instant>;
    /// Whose it is.
    fn tenant(&self) -> &Arc<Tenant>;
}

impl Prioritized for BoundCall {
    fn lane(&self) -> Lane {
        self.lane
    }

    fn deadline(&self) -> Option<Instant> {
        self.call.deadline
    }

    fn tenant(&self) -> &Arc<Tenant> {
        &self.tenant
    }
}

/// A call that the priority limiter let in. The ticket goes where the work goes, and is freed with it.
#[derive(Debug)]
pub struct Admitted<R> {
    /// The call.
    pub call: R,
    /// The right to be in flight.
    pub ticket: Ticket,
    /// How long it waited for the ticket.
    pub queued: Duration,
}

/// The answer to an [`InferCall`].
#[derive(Debug, Clone)]
pub struct InferReply {
    /// Version that computed it.
    pub version: Version,
    /// The outputs wanted, in the order wanted.
    pub outputs: Vec<NamedTensor>,
    /// Where the time went.
    pub timing: Timing,
}

impl InferReply {
    /// Bytes of its tensors.
    pub fn output_bytes(&self) -> usize {
        self.outputs.iter().map(|output| output.tensor.data().len()).sum()
    }
}

/// Where the time of one request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timing {
    /// Waiting for a ticket.
    pub queue: Duration,
    /// Waiting for an executor, with the ticket in hand.
    pub batch_wait: Duration,
    /// The executor's time for the whole batch.
    pub compute: Duration,
    /// Items in the batch.
    pub batch_size: usize,
    /// It was answered from the response cache: nothing ran.
    pub from_cache: bool,
}
