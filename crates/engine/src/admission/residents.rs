//! Models that are not in memory: what a request asks for, and who brings it.

use std::fmt;

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::time::Instant;
use torchlane_model::{
    Lane, ModelName, VersionWish,
    error::{Error, Reason, Result},
};

use crate::registry::{Awaiting, ModelSlot};

/// What a request waits for.
#[derive(Debug)]
pub struct Wanted {
    /// The slot of the model's live version.
    pub model: Arc<ModelSlot>,
    /// The version that it asks for.
    pub version: VersionWish,
    /// Its lane, as far as it is known before the model is.
    pub lane: Lane,
    /// When it is of no use any more.
    pub deadline: Option<Instant>,
}

/// Brings models into memory when requests ask for them.
pub trait Residents: Send + Sync + fmt::Debug {
    /// Waits until the model is there, within the deadline. What came is not evicted as long as the result is held. The
    /// load begins with the call, and goes on when the future is dropped.
    fn bring(&self, wanted: Wanted) -> BoxFuture<'static, Result<Awaiting>>;
}

/// The refusal of a model that is not there and that no request brings.
pub fn not_ready(model: &ModelName) -> Error {
    let message = format!(
        "model '{model}' has no version live: it is loading, failed or was unloaded; the repository index says which \
         (GetModel, RepositoryIndex, POST /v2/repository/index)"
    );
    Error::new(Reason::ModelNotReady, message).with_retry_after(std::time::Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_calls_is_told_where_to_look() {
        let error = not_ready(&"m".parse().unwrap());
        for door in ["GetModel", "RepositoryIndex", "/v2/repository/index"] {
            assert!(error.message().contains(door), "{error}");
        }
    }
}
