//! Who connects: each connection gets the account of its address, or is closed at once where that has too many.

use std::{net::SocketAddr, sync::Arc};

use super::taking::Outward;
use crate::{
    admission::{Callers, Connected},
    telemetry::{Closed, ConnectionMetrics, Door, Untaken},
};

/// What both ports need to know of their peers.
#[derive(Debug, Clone)]
pub(super) struct Peers {
    pub(super) callers: Arc<Callers>,
    /// Counts answers that are given up.
    pub(super) untaken: Untaken,
    /// Counts connections that are closed.
    pub(super) connections: ConnectionMetrics,
}

impl Peers {
    /// A connection that was accepted. `None`: it is one too many, of its address or of all.
    pub(super) fn connect(&self, door: Door, from: SocketAddr) -> Option<Connected> {
        let connected = self.callers.connect(door, from.ip());
        if connected.is_none() {
            self.connections.count(door, Closed::TooMany);
            tracing::debug!(%from, door = door.as_str(), "too many connections");
        }
        connected
    }

    /// What is to be known of answers on that connection.
    pub(super) fn outward(&self, connected: &Connected) -> Outward {
        Outward { untaken: self.untaken.clone(), room: connected.account().clone() }
    }
}
