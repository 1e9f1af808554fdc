//! The files of the page.

use axum::{Router, http::HeaderMap, routing::get};

use crate::api::file::File;

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const SVG: &str = "image/svg+xml";

/// Path, type and text of each.
const FILES: &[(&str, &str, &str)] = &[
    ("/", HTML, include_str!("console.html")),
    ("/console", HTML, include_str!("console.html")),
    ("/console/console.css", CSS, include_str!("console.css")),
    ("/console/drawer.css", CSS, include_str!("drawer.css")),
    ("/console/overview.css", CSS, include_str!("overview.css")),
    ("/console/trial.css", CSS, include_str!("trial.css")),
    ("/console/icon.svg", SVG, include_str!("icon.svg")),
    ("/console/console.js", JS, include_str!("console.js")),
    ("/console/about.js", JS, include_str!("about.js")),
    ("/console/actions.js", JS, include_str!("actions.js")),
    ("/console/answer.js", JS, include_str!("answer.js")),
    ("/console/api.js", JS, include_str!("api.js")),
    ("/console/bar.js", JS, include_str!("bar.js")),
    ("/console/chart.js", JS, include_str!("chart.js")),
    ("/console/confirm.js", JS, include_str!("confirm.js")),
    ("/console/dom.js", JS, include_str!("dom.js")),
    ("/console/drawer.js", JS, include_str!("drawer.js")),
    ("/console/format.js", JS, include_str!("format.js")),
    ("/console/history.js", JS, include_str!("history.js")),
    ("/console/lanes.js", JS, include_str!("lanes.js")),
    ("/console/link.js", JS, include_str!("link.js")),
    ("/console/models.js", JS, include_str!("models.js")),
    ("/console/notice.js", JS, include_str!("notice.js")),
    ("/console/pad.js", JS, include_str!("pad.js")),
    ("/console/rates.js", JS, include_str!("rates.js")),
    ("/console/request.js", JS, include_str!("request.js")),
    ("/console/resources.js", JS, include_str!("resources.js")),
    ("/console/rollout.js", JS, include_str!("rollout.js")),
    ("/console/trial.js", JS, include_str!("trial.js")),
    ("/console/troubles.js", JS, include_str!("troubles.js")),
];

/// A route for each.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, &(path, content_type, text)| {
        let file = File::new(content_type, text);
        router.route(path, get(move |headers: HeaderMap| std::future::ready(file.answer(&headers))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_script_that_is_named_is_served_and_nothing_comes_from_elsewhere() {
        let served = |path: &str| FILES.iter().any(|(served, ..)| *served == path);
        for (path, _, text) in FILES {
            for (at, _) in text.match_indices("from './").chain(text.match_indices("import './")) {
                let name = text[at..].split('\'').nth(1).unwrap().trim_start_matches("./");
                assert!(served(&format!("/console/{name}")), "{path} imports {name}");
            }
            for attribute in ["src=\"", "href=\""] {
                for (at, _) in text.match_indices(attribute) {
                    let target = text[at + attribute.len()..].split('"').next().unwrap();
                    // Below where the page is: a proxy may have all of it below a path of its own.
                    let is_ours = target.starts_with('#') || served(&format!("/{target}"));
                    assert!(
                        is_ours || target.starts_with("v2/") || target == "metrics",
                        "{path} names {target}"
                    );
                }
            }
            for root in ["'/", "`/", "\"/"] {
                for (at, _) in text.match_indices(root) {
                    let target = text[at + 1..].split(['\'', '"', '`', '$']).next().unwrap();
                    assert!(
                        target == "/" || !served(target) && !target.starts_with("/v2"),
                        "{path} names {target} by the root"
                    );
                }
            }
            let elsewhere = text.matches("://").count() - text.matches("http://www.w3.org/2000/svg").count();
            assert_eq!(elsewhere, 0, "{path} names another place");
            assert!(
                !text.contains(" style=\"") && !text.contains("innerHTML"),
                "{path}: the policy forbids it"
            );
        }
    }
}
