//! Secrets in settings and in what is said of them.
//!
//! People put keys into URLs (`s3://KEY:SECRET@bucket`, `https://account/container?sig=...`) although they belong in the
//! environment. Everything that shows a setting, a repository or an error about one goes through here, so such a key reaches no
//! terminal, log or caller.

use std::borrow::Cow;

/// In place of a secret.
const HIDDEN: &str = "***";

/// Words in the names of options that hold secrets.
const SECRET: [&str; 9] = [
    "secret",
    "password",
    "token",
    "access_key",
    "account_key",
    "master_key",
    "sas",
    "headers",
    "authorization",
];

/// Whether the option of that name holds a secret.
pub fn is_secret(option: &str) -> bool {
    let option = option.to_ascii_lowercase();
    SECRET.iter().any(|word| option.contains(word))
}

/// The value of a setting as it may be shown.
pub fn setting<'a>(key: &str, value: &'a str) -> Cow<'a, str> {
    let name = key.rsplit('.').next().unwrap_or(key);
    if is_secret(name) && !value.is_empty() {
        return HIDDEN.into();
    }
    let is_address = ["url", "endpoint", "proxy"].iter().any(|word| name.to_ascii_lowercase().contains(word));
    match value.rsplit_once('@') {
        // `user:password@proxy:3128` is an address without its scheme.
        Some((_, host)) if is_address && !value.contains(":/") => format!("{HIDDEN}@{host}").into(),
        _ => text(value),
    }
}

/// A text without the credentials and queries of the URLs in it.
pub fn text(text: &str) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(":/") {
        let (before, behind) = rest.split_at(at);
        let slashes =
            1 + behind.get(1..).unwrap_or_default().bytes().take_while(|byte| *byte == b'/').count();
        let (separator, behind) = behind.split_at(slashes);
        let ends = |c: char| c.is_whitespace() || "'\"`)<>".contains(c);
        let (url, behind) = behind.split_at(behind.find(ends).unwrap_or(behind.len()));
        let scheme = before.rsplit(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        shown.push_str(before);
        shown.push_str(separator);
        if scheme.is_empty() {
            shown.push_str(url)
        } else {
            without_secrets(scheme, url, &mut shown)
        }
        rest = behind;
    }
    if shown.is_empty() {
        return text.into();
    }
    shown.push_str(rest);
    shown.into()
}

/// What follows the slashes of a URL.
fn without_secrets(scheme: &str, url: &str, shown: &mut String) {
    let (user, behind) = url.split_at(user_ends(url));
    // The name in front of the host is a container of Azure, and no secret.
    if scheme.starts_with("abfs") && !user.contains(':') {
        shown.push_str(user);
    } else if !user.is_empty() {
        shown.push_str(HIDDEN);
    }
    match behind.split_once('?') {
        Some((path, query)) if !query.is_empty() => {
            shown.push_str(path);
            shown.push('?');
            shown.push_str(HIDDEN);
        }
        _ => shown.push_str(behind),
    }
}

/// Where the credentials in front of the host end: at an `@`. 0: there are none.
fn user_ends(url: &str) -> usize {
    let authority = url.split(['/', '?', '#']).next().unwrap_or_default();
    if let Some(at) = authority.rfind('@') {
        return at;
    }
    // Keys of S3 may have slashes. What a host has behind its colon is a port.
    let has_key = authority.split_once(':').is_some_and(|(_, key)| {
        !authority.starts_with('[') && !key.bytes().all(|byte| byte.is_ascii_digit())
    });
    if has_key { url.rfind('@').unwrap_or(0) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_their_credentials_and_queries() {
        for (said, shown) in [
            ("s3://AKIA:geheim@bucket/x", "s3://***@bucket/x"),
            ("s3://AKIA:ge/he?im@bucket/x", "s3://***@bucket/x"),
            ("s3:/AKIA:geheim@bucket/x", "s3:/***@bucket/x"),
            ("https://geheim@h:1/x", "https://***@h:1/x"),
            ("https://h/c?sv=1&sig=geheim", "https://h/c?***"),
            ("[\"https://u:geheim@h/x\",\"models\"]", "[\"https://***@h/x\",\"models\"]"),
            ("a https://u:geheim@h, b http://h?geheim c", "a https://***@h, b http://h?*** c"),
            ("(https://a/k?sig=geheim)", "(https://a/k?***)"),
            ("abfss://container:geheim@account/x", "abfss://***@account/x"),
        ] {
            assert_eq!(text(said), shown);
            assert!(!shown.contains("geheim"));
        }
        for same in [
            "",
            "models",
            "s3://bucket:9000/models@2/x",
            "http://[::1]:9/m@2",
            "http://127.0.0.1:4317",
            "abfss://container@account.dfs.core.windows.net/x",
            "why? a: b@c",
            "file:///srv/models",
        ] {
            assert_eq!(text(same), same);
        }
    }

    #[test]
    fn what_is_secret_by_its_name_is_not_shown() {
        for (key, value, shown) in [
            ("store.options.http.default_headers", "Authorization: geheim", "***"),
            ("store.options.s3.aws_secret_access_key", "geheim", "***"),
            ("store.options.s3.proxy_url", "u:geheim@proxy:3128", "***@proxy:3128"),
            ("store.options.s3.endpoint", "http://u:geheim@h:9", "http://***@h:9"),
            ("store.options.s3.region", "eu@x", "eu@x"),
            ("store.options.http.default_headers", "", ""),
            ("integrity.trusted_keys", "[\"ed25519:abc\"]", "[\"ed25519:abc\"]"),
        ] {
            assert_eq!(setting(key, value), shown, "{key}");
        }
    }
}
