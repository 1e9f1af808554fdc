//! What every version must satisfy before it may serve, whatever its model.

use crate::loader::archive::safety::Safety;

/// Made from the settings once; the same for every load.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// What archives may ask for.
    pub safety: Safety,
}
