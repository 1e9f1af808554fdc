//! The REST routes for people: the page is served as it should be, and what it describes is what there is.

use super::{fake::repository, oip::call, server::Server};

#[tokio::test]
async fn the_page_is_one_file_that_may_load_nothing_but_what_it_describes() {
    let dir = repository(&[("m", "")]);
    // Turning the console off leaves it: it changes nothing that the routes would not.
    for console in [true, false] {
        let server = Server::fake(dir.path(), |settings| settings.console.enabled = console);
        server.ready().await;
        let page = call(&server, "GET", "/v2/docs", &[], b"").await;
        assert_eq!((page.status, page.headers["content-type"].as_str()), (200, "text/html; charset=utf-8"));
        let policy = &page.headers["content-security-policy"];
        for part in [
            "default-src 'none'",
            "script-src 'sha256-",
            "style-src 'sha256-",
            "connect-src 'self'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        ] {
            assert!(policy.contains(part) && !policy.contains("unsafe"), "{policy}");
        }
        assert_eq!(page.headers["x-content-type-options"], "nosniff");
        assert_eq!(page.headers["referrer-policy"], "no-referrer");
        assert_eq!(page.headers["cache-control"], "no-cache");
        let text = String::from_utf8(page.body).unwrap();
        assert!(text.starts_with("<!doctype html>") && text.contains("openapi.json"));
        let known = [("If-None-Match", page.headers["etag"].as_str())];
        let again = call(&server, "GET", "/v2/docs", &known, b"").await;
        assert_eq!((again.status, again.body.len()), (304, 0));
        let zipped = call(&server, "GET", "/v2/docs", &[("Accept-Encoding", "gzip")], b"").await;
        assert_eq!(zipped.headers["content-encoding"], "gzip");
        assert_eq!(call(&server, "POST", "/v2/docs", &[], b"").await.status, 405);
    }
}

#[tokio::test]
async fn whoever_looks_for_a_route_is_led_to_the_page() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    for (method, path) in [("GET", "/v2/model"), ("POST", "/v2/models/stats")] {
        let answer = call(&server, method, path, &[], b"").await.json();
        assert!(answer["error"].as_str().unwrap().contains("/v2/docs"), "{answer}");
    }
    let (_, console) = server.get("/").await;
    assert!(console.contains("href=\"v2/docs\""));
}

/// Which paths there are is compared beside the table of routes.
#[tokio::test]
async fn a_route_has_the_methods_that_are_described_and_no_others() {
    let dir = repository(&[("m", "")]);
    let server = Server::fake(dir.path(), |_| {});
    server.ready().await;
    let described = call(&server, "GET", "/v2/openapi.json", &[], b"").await.json();
    for (path, methods) in described["paths"].as_object().unwrap() {
        let filled = ["model", "version", "region", "repository"]
            .into_iter()
            .fold(path.clone(), |path, name| path.replace(&format!("{{{name}}}"), "1"));
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let is_described = methods.get(method.to_lowercase()).is_some();
            let status = call(&server, method, &filled, &[], b"{}").await.status;
            assert_eq!(status != 405, is_described, "{method} {path}: {status}");
        }
    }
}

#[tokio::test]
async fn every_body_that_is_json_has_a_schema_and_what_is_sent_an_example() {
    let described: serde_json::Value =
        serde_json::from_str(include_str!("../../src/api/rest/openapi.json")).unwrap();
    for (path, methods) in described["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let sent = &operation["requestBody"]["content"]["application/json"];
            assert!(sent.is_null() || sent.get("example").is_some(), "{method} {path} shows no request");
            for (status, response) in operation["responses"].as_object().unwrap() {
                for (kind, media) in response["content"].as_object().into_iter().flatten() {
                    assert!(media["schema"].is_object(), "{method} {path} {status} {kind}");
                }
            }
        }
    }
}
