//! Keeps pages of other origins from changing things here through somebody's browser.
//!
//! A browser that can reach this server sends it what any page asks for, answers of which the page may not read, but which would
//! be carried out. It says with each such request which origin the page is of; programs say nothing. This is no authentication:
//! whoever can call can still do what calls can do.

use axum::http::{HeaderMap, header};

use super::arrival::once;
use crate::error::{Error, Reason, Result, shown};

/// The request comes from no page, or from one that this server sent.
///
/// # Errors
/// It names two origins, or comes from a page of another one: the host and port in `origin` are not those in `host`.
pub(super) fn own(headers: &HeaderMap) -> Result<()> {
    let Some(origin) = once(headers, header::ORIGIN.as_str())? else { return Ok(()) };
    let origin = origin.to_str().unwrap_or("(not ASCII)");
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    // `null`, which sandboxed pages have, names no host.
    let from = origin.split_once("://").map(|(_scheme, from)| from);
    if let (Some(from), Some(host)) = (from, host)
        && from.eq_ignore_ascii_case(host)
    {
        return Ok(());
    }
    let message = format!(
        "a page of '{}' may not change anything here: a proxy in front of this server must leave the header Host as it is",
        shown(origin, 64)
    );
    Err(Error::new(Reason::Forbidden, message).with_field("origin"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_this_host_and_port_are_its_own() {
        let is_own = |host: &str, origin: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            own(&headers).is_ok()
        };
        for (host, origin) in [
            ("127.0.0.1:8080", None),
            ("127.0.0.1:8080", Some("http://127.0.0.1:8080")),
            ("models.example", Some("https://models.example")),
            ("Models.example", Some("https://models.EXAMPLE")),
            ("[::1]:8080", Some("http://[::1]:8080")),
        ] {
            assert!(is_own(host, origin), "{host} {origin:?}");
        }
        for (host, origin) in [
            ("127.0.0.1:8080", "http://127.0.0.1:8081"),
            ("127.0.0.1:8080", "http://localhost:8080"),
            ("models.example", "https://models.example.evil.example"),
            ("models.example", "null"),
            ("models.example", "models.example"),
            ("models.example", ""),
        ] {
            assert!(!is_own(host, Some(origin)), "{host} {origin}");
        }
        let mut two = HeaderMap::new();
        for (name, value) in
            [(header::HOST, "h:1"), (header::ORIGIN, "http://h:1"), (header::ORIGIN, "http://h:2")]
        {
            two.append(name, value.parse().unwrap());
        }
        assert_eq!(own(&two).unwrap_err().field(), Some("origin"));
        let mut alone = HeaderMap::new();
        alone.insert(header::ORIGIN, "http://x".parse().unwrap());
        assert_eq!(own(&alone).unwrap_err().reason(), Reason::Forbidden);
    }
}
