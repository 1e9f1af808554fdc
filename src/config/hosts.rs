//! `server.hosts` and `server.origins`: what they may be.

use http::Uri;

/// Any name, as a setting.
pub(crate) const ANY: &str = "*";

/// What is wrong with a setting of names. `None`: nothing.
pub(super) fn problem(names: &[String], origins: &[String]) -> Option<(&'static str, String, &'static str)> {
    let is_name = |name: &str| {
        let authority = format!("http://{name}/").parse::<Uri>();
        authority.is_ok_and(|uri| uri.host() == Some(name)) && without_port(name) == name
    };
    if let Some(bad) = names.iter().find(|name| *name != ANY && !is_name(name)) {
        return Some((
            "server.hosts",
            bad.clone(),
            "a name without scheme and port such as models.example, or '*' for any",
        ));
    }
    let is_origin = |origin: &str| {
        let parsed = url::Url::parse(origin).ok().map(|url| url.origin().ascii_serialization());
        parsed.is_some_and(|parsed| parsed.eq_ignore_ascii_case(origin))
    };
    let bad = origins.iter().find(|origin| !is_origin(origin))?;
    Some((
        "server.origins",
        bad.clone(),
        "a scheme, a host and its port where it is not the usual one, such as https://console.example",
    ))
}

/// `[::1]:80` and `name:80` without the port.
pub(crate) fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit())
                && (name.ends_with(']') || !name.contains(':')) =>
        {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_names_and_origins() {
        let of = |names: &[&str], origins: &[&str]| {
            let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
            problem(&owned(names), &owned(origins)).map(|(key, ..)| key)
        };
        assert_eq!(
            of(&["models.example", "*", "10.0.0.1", "[::1]"], &["https://a.example", "http://a:81"]),
            None
        );
        for name in ["", "models.example:80", "http://models.example", "a/b", "a b"] {
            assert_eq!(of(&[name], &[]), Some("server.hosts"), "{name}");
        }
        for origin in ["", "a.example", "https://a.example/", "https://a.example/x", "*", "null"] {
            assert_eq!(of(&[], &[origin]), Some("server.origins"), "{origin}");
        }
    }
}
