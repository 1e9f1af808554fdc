//! What every version must satisfy before it may serve, whatever its model.

/// Made from the settings once; the same for every load.
#[derive(Debug, Clone, Default)]
pub struct Rules {}
