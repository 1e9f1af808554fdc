//! Ensembles: models that are made of others. Their `model.toml` names the steps, and how tensors go from one to the next.
//!
//! An ensemble is a model like any other: it has versions, a signature, statistics, and is changed by reloads. It runs nothing
//! itself: each step is a request of its own to its model, with the lane and the deadline of the whole, so that steps of many
//! requests share batches as any requests do. Tensors are handed on as they are, without copies.

mod layer;

pub use layer::NESTED;
pub use layer::{Ensemble, EnsembleLayer};
