//! Which page asks for a change, as the rules of the port that it came by see it ([`Hosts`]).

use std::sync::Arc;

use axum::http::request::Parts;

use crate::{
    error::{Error, Reason, Result},
    layers::Hosts,
};

/// No page asks for this change, or one that may.
///
/// This is no authentication: who can call can do what calls can do.
///
/// # Errors
/// A page of another origin asks.
pub(super) fn own(parts: &Parts) -> Result<()> {
    let rules = parts.extensions.get::<Arc<Hosts>>();
    let missing = || Error::new(Reason::Internal, "a request came without the rules of its port");
    rules.ok_or_else(missing)?.admit_change(&parts.headers)
}
