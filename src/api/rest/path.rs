//! What a path names. axum's own extractor refuses in plain text.

use axum::{
    extract::{FromRequestParts, rejection::PathRejection},
    http::request::Parts,
    response::Response,
};
use serde::de::DeserializeOwned;

use super::refusal::refusal;
use crate::error::{Error, Reason};

/// The same as axum's, but for how it refuses.
#[derive(Debug)]
pub(in crate::api) struct Path<T>(pub(in crate::api) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(named)) => Ok(Self(named)),
            Err(PathRejection::FailedToDeserializePathParams(wrong)) => Err(refusal(&Error::new(
                Reason::BadRequest,
                format!("the path cannot be read: {}", wrong.body_text()),
            ))),
            Err(_) => {
                Err(refusal(&Error::new(Reason::Internal, "a bug in torchlane: a route without its names")))
            }
        }
    }
}
