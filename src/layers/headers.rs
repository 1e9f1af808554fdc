//! Headers, read in one way by all.

use http::{HeaderMap, HeaderValue};

use crate::error::{Error, Reason, Result};

/// The value of a header that means one thing. Of two, others on the way may have gone by the one and this server by the other.
///
/// # Errors
/// It is there more than once.
pub(crate) fn once<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<Option<&'a HeaderValue>> {
    let mut values = headers.get_all(name).iter();
    let value = values.next();
    if values.next().is_some() {
        let message = format!("{name} is there more than once: send it once");
        return Err(Error::new(Reason::BadRequest, message).with_field(name));
    }
    Ok(value)
}
