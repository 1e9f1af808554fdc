//! From a URL, the settings and the environment to a client of a store.

use std::{collections::BTreeMap, sync::Once, time::Duration};

use object_store::{
    BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig,
    aws::{AmazonS3Builder, AmazonS3ConfigKey},
    azure::{AzureConfigKey, MicrosoftAzureBuilder},
    gcp::{GoogleCloudStorageBuilder, GoogleConfigKey},
    http::HttpBuilder,
    list::PaginatedListStore,
    path::Path,
};
use torchlane_model::{
    error::{Reason, shown},
    redact,
};
use url::{Position, Url};

use super::error::FetchError;

/// Kinds of stores, by the section of their options.
pub(super) const SCHEMES: [&str; 4] = ["s3", "gs", "az", "http"];

/// Options of each kind of store.
pub type StoreOptions = BTreeMap<String, BTreeMap<String, String>>;

/// A store that is listed page by page.
pub(super) type Pages = Box<dyn PaginatedListStore>;

/// Where a repository is.
pub(super) struct Address {
    pub(super) client: Box<dyn ObjectStore>,
    /// The same store, where it has pages.
    pub(super) pages: Option<Pages>,
    /// What all its objects begin with.
    pub(super) prefix: Path,
    /// Without credentials: for messages and for the name of its place in the cache.
    pub(super) shown: String,
    /// One of [`SCHEMES`].
    pub(super) scheme: &'static str,
}

/// What is wrong with `options`: the section, and what is allowed there.
pub fn problem(options: &StoreOptions) -> Option<(String, &'static str)> {
    for (scheme, options) in options {
        if !SCHEMES.contains(&scheme.as_str()) {
            return Some((scheme.clone(), "one of s3, gs, az, http"));
        }
        // These are the environment's: settings lie in files. Headers have no place there.
        let is_secret =
            |key: &&String| redact::is_secret(key) && !key.to_ascii_lowercase().contains("headers");
        if let Some(key) = options.keys().find(is_secret) {
            return Some((format!("{scheme}.{key}"), "no credentials: they belong in the environment"));
        }
    }
    None
}

/// A client for `url`. Nothing is asked of the store yet.
///
/// # Errors
/// Not a URL of a store, or options that do not fit.
pub(super) fn connect(url: &str, options: &StoreOptions) -> Result<Address, FetchError> {
    let wrong = |text: &str, why: &str| {
        FetchError::new(Reason::LoadFailed, format!("repository {}: {why}", shown(text, 200)))
    };
    let parsed = Url::parse(url).map_err(|error| wrong("URL", &error.to_string()))?;
    let bare = &parsed[Position::BeforeScheme..Position::AfterScheme];
    let place = format!("{bare}://{}", parsed.host_str().unwrap_or_default());
    if !parsed.username().is_empty() && !bare.starts_with("abfs")
        || parsed.password().is_some()
        || parsed.query().is_some()
    {
        return Err(wrong(&place, "a URL holds no credentials and no query: give them in the environment"));
    }
    let scheme = match bare {
        "s3" | "s3a" => "s3",
        "gs" => "gs",
        "az" | "azure" | "abfs" | "abfss" => "az",
        "http" | "https" => "http",
        _ => return Err(wrong(&place, "use a directory, or a URL with s3, gs, az, http or https")),
    };
    if parsed.host_str().is_none_or(str::is_empty) {
        return Err(wrong(&place, "write it as s3://bucket/prefix"));
    }
    let prefix = Path::from_url_path(parsed.path()).map_err(|error| wrong(&place, &error.to_string()))?;
    let shown = parsed.as_str().trim_end_matches('/').to_owned();
    let none = BTreeMap::new();
    let (client, pages) = client(scheme, &parsed, options.get(scheme).unwrap_or(&none))
        .map_err(|error| wrong(&shown, &error.to_string()))?;
    Ok(Address { client, pages, prefix, shown, scheme })
}

fn client(
    scheme: &'static str,
    url: &Url,
    options: &BTreeMap<String, String>,
) -> object_store::Result<(Box<dyn ObjectStore>, Option<Pages>)> {
    use_ring();
    // Whole downloads have patience of their own.
    let whole = "1 day";
    Ok(match scheme {
        "s3" => {
            let mut builder = AmazonS3Builder::from_env()
                .with_url(url.as_str())
                .with_retry(retry())
                .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), whole);
            for (key, value) in options {
                builder = builder.with_config(key.to_ascii_lowercase().parse()?, value);
            }
            paged(builder.build()?)
        }
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::from_env()
                .with_url(url.as_str())
                .with_retry(retry())
                .with_config(GoogleConfigKey::Client(ClientConfigKey::Timeout), whole);
            for (key, value) in options {
                builder = builder.with_config(key.to_ascii_lowercase().parse()?, value);
            }
            paged(builder.build()?)
        }
        "az" => {
            let mut builder = MicrosoftAzureBuilder::from_env()
                .with_url(url.as_str())
                .with_retry(retry())
                .with_config(AzureConfigKey::Client(ClientConfigKey::Timeout), whole);
            for (key, value) in options {
                builder = builder.with_config(key.to_ascii_lowercase().parse()?, value);
            }
            paged(builder.build()?)
        }
        _ => {
            // Whoever writes http:// means it.
            let plain = if url.scheme() == "http" { "true" } else { "false" };
            let mut builder = HttpBuilder::new()
                .with_url(&url[..Position::BeforePath])
                .with_retry(retry())
                .with_config(ClientConfigKey::Timeout, whole)
                .with_config(ClientConfigKey::AllowHttp, plain);
            for (key, value) in options {
                builder = builder.with_config(key.to_ascii_lowercase().parse()?, value);
            }
            (Box::new(builder.build()?), None)
        }
    })
}

fn paged(store: impl ObjectStore + PaginatedListStore + Clone) -> (Box<dyn ObjectStore>, Option<Pages>) {
    (Box::new(store.clone()), Some(Box::new(store)))
}

/// Of single requests. Short: a download is tried again as a whole, for as long as the settings say.
fn retry() -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: Duration::from_millis(100),
        max_backoff: Duration::from_secs(1),
        ..BackoffConfig::default()
    };
    RetryConfig { backoff, max_retries: 2, retry_timeout: Duration::from_secs(10) }
}

/// The TLS library is built without cryptography of its own: it is told once which to use.
fn use_ring() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // An error says that there is one already.
        let _installed = rustls::crypto::ring::default_provider().install_default();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_become_clients() {
        let cases = [
            ("s3://bucket/models/prod/", "s3", "models/prod", "s3://bucket/models/prod"),
            ("gs://bucket", "gs", "", "gs://bucket"),
            ("http://127.0.0.1:9/m", "http", "m", "http://127.0.0.1:9/m"),
            ("https://models.example/a%20b", "http", "a b", "https://models.example/a%20b"),
        ];
        for (url, scheme, prefix, shown) in cases {
            let address = connect(url, &StoreOptions::new()).unwrap();
            let got = (address.scheme, address.prefix.as_ref(), address.shown.as_str());
            assert_eq!(got, (scheme, prefix, shown));
        }
    }

    #[test]
    fn urls_that_cannot_be_used_say_why_and_keep_secrets() {
        let cases = [
            ("ftp://h/x", "s3, gs, az, http"),
            ("s3:///x", "s3://bucket/prefix"),
            ("https://user:geheim@h/x", "environment"),
            ("https://geheim@h/x", "environment"),
            ("https://h/x?sig=geheim", "environment"),
        ];
        for (url, says) in cases {
            let error = connect(url, &StoreOptions::new()).err().unwrap().to_string();
            assert!(error.contains(says) && !error.contains("geheim"), "{url}: {error}");
        }
        let odd = StoreOptions::from([("s3".to_owned(), [("colour".to_owned(), "red".to_owned())].into())]);
        let error = connect("s3://b/x", &odd).err().unwrap().to_string();
        assert!(error.contains("colour"), "{error}");
    }

    #[test]
    fn credentials_are_no_options() {
        let of = |scheme: &str, key: &str| {
            let options =
                StoreOptions::from([(scheme.to_owned(), [(key.to_owned(), "v".to_owned())].into())]);
            problem(&options).map(|(key, _)| key)
        };
        assert_eq!(of("s3", "endpoint"), None);
        assert_eq!(of("s3", "aws_secret_access_key").as_deref(), Some("s3.aws_secret_access_key"));
        assert_eq!(of("az", "account_key").as_deref(), Some("az.account_key"));
        assert_eq!(of("s4", "endpoint").as_deref(), Some("s4"));
    }
}
