//! `/v2/docs`: the routes for people. One page that loads nothing but `/v2/openapi.json`, of which it is made, and lets each route
//! be tried.
//!
//! Its parts are files of this folder, put together once. Style and script stand in the page, and the policy names them by their
//! digests: nothing else runs, not even what a model's name would smuggle in.

use std::sync::LazyLock;

use axum::{
    http::{HeaderMap, HeaderValue, header},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};

use crate::api::file::File;

/// Where style and script go.
const FRAME: &str = include_str!("page.html");

/// The console's, so that both look the same, and what is the page's own.
const STYLES: [&str; 2] = [include_str!("../../console/console.css"), include_str!("page.css")];

/// One module, in this order.
const SCRIPTS: [&str; 4] = [
    include_str!("elements.js"),
    include_str!("schema.js"),
    include_str!("trial.js"),
    include_str!("page.js"),
];

struct Page {
    html: String,
    policy: String,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let (style, script) = (STYLES.concat(), SCRIPTS.concat());
    let digest = |text: &str| STANDARD.encode(Sha256::digest(text));
    let policy = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        digest(&script),
        digest(&style)
    );
    Page { html: FRAME.replace("/* style */", &style).replace("/* script */", &script), policy }
});

static FILE: LazyLock<File> = LazyLock::new(|| File::new("text/html; charset=utf-8", &PAGE.html));

pub(super) async fn page(headers: HeaderMap) -> Response {
    let mut response = FILE.answer(&headers);
    // It is ASCII: without it nothing would run at all.
    let policy =
        HeaderValue::try_from(PAGE.policy.as_str()).unwrap_or(HeaderValue::from_static("default-src 'none'"));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_names_no_other_place() {
        let html = &PAGE.html;
        assert!(!html.contains("/* style */") && !html.contains("/* script */"));
        assert_eq!((html.matches("<style>").count(), html.matches("</style>").count()), (1, 1));
        assert_eq!((html.matches("<script").count(), html.matches("</script>").count()), (1, 1));
        let elsewhere = html.matches("://").count() - html.matches("http://www.w3.org/2000/svg").count();
        assert_eq!(elsewhere, 0);
        assert!(!html.contains(" style=\"") && !html.contains("innerHTML"), "the policy forbids it");
        assert!(!html.contains("import ") && !html.contains("src=\""), "it is one file");
    }

    #[test]
    fn the_policy_lets_in_what_stands_in_the_page() {
        let within = |open: &str, close: &str| {
            let (_, rest) = PAGE.html.split_once(open).unwrap();
            rest.split_once(close).unwrap().0.to_owned()
        };
        for text in [within("<style>", "</style>"), within("<script type=\"module\">", "</script>")] {
            let source = format!("'sha256-{}'", STANDARD.encode(Sha256::digest(&text)));
            assert!(PAGE.policy.contains(&source), "{source} {}", PAGE.policy);
        }
        assert!(!PAGE.policy.contains("unsafe"));
    }
}
