//! What tells requests apart: a hash of everything that the answer depends on.

use std::{
    hash::{BuildHasher as _, Hasher as _},
    sync::OnceLock,
};

use xxhash_rust::xxh3::Xxh3;

use crate::call::InferCall;

/// Of a version as it was loaded, and of a request for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// [`Servable::serial`](crate::backend::Servable::serial).
    pub(super) serial: u64,
    pub(super) hash: u128,
}

/// Of the tensors and of which outputs are wanted. It differs from process to process, so that nobody can look for two requests
/// with one hash beforehand.
pub(super) fn hash(call: &InferCall) -> u128 {
    static SEED: OnceLock<u64> = OnceLock::new();
    let seed = *SEED.get_or_init(|| std::collections::hash_map::RandomState::new().build_hasher().finish());
    let mut hasher = Xxh3::with_seed(seed);
    let mut part = |bytes: &[u8]| {
        // With its length: two parts are not one with another border.
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    for output in &call.outputs {
        part(output.as_bytes());
    }
    part(&[]);
    for input in &call.inputs {
        part(input.name.as_bytes());
        part(input.tensor.dtype().as_str().as_bytes());
        for size in input.tensor.shape() {
            part(&size.to_le_bytes());
        }
        part(input.tensor.data());
    }
    hasher.digest128()
}
