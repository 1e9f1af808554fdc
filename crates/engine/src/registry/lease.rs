//! A counted hold on one version.

use std::{ops::Deref, sync::Arc};

use crate::backend::Servable;

/// While a lease is held its version is not dropped. Leases are short: one batch, never across an await.
#[derive(Debug, Clone)]
pub struct Lease(Arc<Servable>);

impl Lease {
    pub(super) fn new(servable: Arc<Servable>) -> Self {
        Self(servable)
    }
}

impl Deref for Lease {
    type Target = Servable;

    fn deref(&self) -> &Servable {
        &self.0
    }
}
