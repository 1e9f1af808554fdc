//! What every version must satisfy before it may serve, whatever its model.

use std::sync::Arc;

use crate::loader::{Known, archive::safety::Safety, seal::Integrity};

/// Made from the settings once; the same for every load.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// What its files are held to.
    pub integrity: Integrity,
    /// What archives may ask for.
    pub safety: Safety,
    /// Archives that were read through already.
    pub known: Arc<Known>,
}
