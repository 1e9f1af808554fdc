//! What stands around every gRPC call before its message is read: built here, and nowhere else.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::io::SharedCap;
use crate::{
    admission::Callers,
    layers::{Conform, CountBytes, End, Guard, Hosts, Inflate, ReadDeadline, Shed},
    telemetry::Refusals,
};

/// What the layers share with others.
pub(super) struct Transport {
    /// Of messages, in bytes, compressed or not.
    pub(super) longest: usize,
    /// Deadlines further away are brought forward to it.
    pub(super) max_deadline: Duration,
    /// The server stops.
    pub(super) closing: CancellationToken,
    /// What each caller holds.
    pub(super) callers: Arc<Callers>,
    /// Loads may bring files.
    pub(super) takes_uploads: bool,
    /// Requests at once, of both ports.
    pub(super) cap: SharedCap,
    /// Names and pages that may call.
    pub(super) hosts: Hosts,
    /// Where refused inference is counted: it never becomes a request that others could count.
    pub(super) refusals: Refusals,
}

/// The layers around calls that `S` answers.
pub(super) type Around<S> = Guard<Conform<Shed<CountBytes<End<ReadDeadline<Inflate<S>>>>>>>;

impl Transport {
    /// From the inside: a call meets the last line first.
    pub(super) fn around<S>(self, calls: S) -> Around<S> {
        let Self { longest, max_deadline, closing, callers, takes_uploads, cap, hosts, refusals } = self;
        let count = || refusals.clone();
        // Messages come out inflated, piece by piece: what stands outside counts what the network brings.
        let calls = Inflate::new(calls, longest, count());
        // Holds the message itself to the deadline and to a pace: it may never come.
        let calls = ReadDeadline::new(calls, max_deadline, count());
        // Ends streams with the server. Nothing outside waits for a stream.
        let calls = End::new(calls, closing);
        // Counts bytes for their caller while they are read and held, whatever becomes of the call.
        let calls = CountBytes::new(calls, &callers, count()).with_uploads(takes_uploads);
        // Refuses calls over the caps before a byte of their message is read.
        let calls = Shed::new(calls, cap, count());
        // Refuses what is no gRPC call, or comes from a foreign page, before it counts as a call.
        let calls = Conform::new(calls, hosts, count());
        // Turns a panic of any of them into a status, and gives tonic's own refusals a reason.
        Guard::new(calls, refusals)
    }
}
