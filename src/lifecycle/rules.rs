//! What every version must satisfy before it may serve, whatever its model.

use std::sync::Arc;

use crate::loader::Known;

/// Made from the settings once; the same for every load.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Archives that were read through already.
    pub known: Arc<Known>,
}
