//! Files in the binary. A browser keeps them, and asks each time whether they are still the same.

use axum::{
    body::Body,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
};
use xxhash_rust::xxh3::xxh3_64;

use super::rest::answer::with_type;

/// A text with its type.
#[derive(Debug, Clone)]
pub(super) struct File {
    content_type: &'static str,
    text: &'static str,
    /// Weak: a compressed answer is the same file.
    tag: HeaderValue,
}

impl File {
    /// With its tag.
    pub(super) fn new(content_type: &'static str, text: &'static str) -> Self {
        Self { content_type, text, tag: tag(text) }
    }

    /// It, or that it is the same as before.
    pub(super) fn answer(&self, headers: &HeaderMap) -> Response {
        let mut response = with_type(self.content_type, Body::from(self.text));
        if self.is_known(headers) {
            response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.tag.clone());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }

    /// The browser has this very text.
    fn is_known(&self, headers: &HeaderMap) -> bool {
        let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
        let own = self.tag.to_str().map(opaque).unwrap_or_default();
        let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
        known.flat_map(|tags| tags.split(',')).any(|tag| tag.trim() == "*" || opaque(tag) == own)
    }
}

fn tag(text: &str) -> HeaderValue {
    let tag = format!("W/\"{:016x}\"", xxh3_64(text.as_bytes()));
    HeaderValue::try_from(tag).unwrap_or(HeaderValue::from_static("W/\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_a_file_gets_no_second_one() {
        let file = File::new("text/javascript", "let x = 1;");
        let status = |known: &str| {
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, known.parse().unwrap())]);
            file.answer(&headers).status().as_u16()
        };
        let tag = file.tag.to_str().unwrap();
        let strong = tag.trim_start_matches("W/");
        assert!(tag.starts_with("W/\"") && tag.ends_with('"'), "{tag}");
        for known in [tag, strong, "*", format!("\"other\", {tag}").as_str()] {
            assert_eq!(status(known), 304, "{known}");
        }
        for unknown in ["\"other\"", "W/\"\"", strong.trim_matches('"')] {
            assert_eq!(status(unknown), 200, "{unknown}");
        }
        assert_eq!(file.answer(&HeaderMap::new()).status(), 200);
    }
}
