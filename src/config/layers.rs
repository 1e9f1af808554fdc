//! Puts the layers on top of each other and remembers where each value came from.

use std::path::{Path, PathBuf};

use figment::{
    Figment, Profile,
    error::{Actual, Kind},
    providers::{Env, Format as _, Serialized, Toml},
    value::{Dict, Value},
};
use thiserror::Error;

use super::Settings;
use crate::{model::redact, plain};

/// A configuration that cannot be used. One line.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("configuration: {0}")]
pub struct ConfigError(String);

impl ConfigError {
    fn new(message: &str) -> Self {
        Self(redact::text(message).into_owned())
    }
}

/// One value and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provenance {
    /// Its key, for instance `server.grace`.
    pub key: String,
    /// Its value, without secrets.
    pub value: String,
    /// `default`, a file, an environment variable, or a flag.
    pub source: String,
}

/// The merged settings.
#[derive(Debug, Clone)]
pub struct Layered {
    /// What holds.
    pub settings: Settings,
    /// Where it came from, by key.
    pub provenance: Vec<Provenance>,
}

/// The file that is read where none is named.
const DEFAULT_FILE: &str = "torchlane.toml";

/// Merges defaults, the file, the environment and `flags` (key, value as TOML or plain text).
///
/// # Errors
/// A file that is not there or not TOML, an unknown key, a value of the wrong type or out of range: with the place it
/// came from.
pub fn load(file: Option<&Path>, flags: &[(String, String)]) -> Result<Layered, ConfigError> {
    let file = match file {
        Some(path) if path.exists() && !path.is_file() => {
            return Err(ConfigError::new(&format!(
                "{} is not a file: name a file with --config",
                path.display()
            )));
        }
        Some(path) if !path.is_file() => {
            return Err(ConfigError::new(&format!(
                "{} does not exist: name a file with --config",
                path.display()
            )));
        }
        Some(path) => Some(path.to_owned()),
        None => Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.is_file()),
    };
    let mut figment = Figment::from(Serialized::defaults(Settings::default()));
    if let Some(path) = &file {
        figment = figment.merge(Toml::file_exact(path));
    }
    let env = Env::prefixed("TORCHLANE_").filter(|key| !is_no_setting(key.as_str())).split("__");
    figment = figment.merge(env);
    for (key, value) in flags {
        figment = figment.merge(Serialized::from(nested(key, value), Profile::Default).key_named(key));
    }
    let settings: Settings = figment.extract().map_err(|error| explain(&error, &figment))?;
    settings.validate().map_err(|(key, value, allowed)| {
        ConfigError::new(&format!("{key} = {value} is out of range: {allowed} ({})", source(&figment, key)))
    })?;
    let provenance = provenance(&figment)?;
    Ok(Layered { settings, provenance })
}

/// TORCHLANE_ADDR, TORCHLANE_CACHE and TORCHLANE_CONFIG are no settings of the server; and beside a Service whose name begins
/// with torchlane, Kubernetes sets TORCHLANE_SERVICE_HOST, TORCHLANE_GRPC_PORT, TORCHLANE_PORT_8080_TCP_ADDR and so on.
fn is_no_setting(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let of_a_service = || {
        let key = format!("_{key}");
        key.ends_with("_port")
            || ["_port_", "_service_host", "_service_port"].iter().any(|part| key.contains(part))
    };
    matches!(key.as_str(), "addr" | "cache" | "config") || (!key.contains("__") && of_a_service())
}

trait Named {
    fn key_named(self, key: &str) -> Flag;
}

/// A provider whose metadata names the flag.
struct Flag {
    inner: Serialized<Dict>,
    name: String,
}

impl Named for Serialized<Dict> {
    fn key_named(self, key: &str) -> Flag {
        Flag { inner: self, name: format!("flag for {key}") }
    }
}

impl figment::Provider for Flag {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named(self.name.clone())
    }

    fn data(&self) -> figment::error::Result<figment::value::Map<Profile, Dict>> {
        self.inner.data()
    }
}

/// `a.b = value` as nested tables. The value is read as TOML where it can be, as text else.
fn nested(key: &str, value: &str) -> Dict {
    let parsed: Option<Value> = toml::from_str::<toml::Table>(&format!("value = {value}"))
        .ok()
        .and_then(|mut table| table.remove("value"))
        .and_then(|value| Value::serialize(value).ok());
    let mut value = parsed.unwrap_or_else(|| Value::from(value));
    let mut path: Vec<&str> = key.split('.').collect();
    while path.len() > 1 {
        if let Some(last) = path.pop() {
            value = Value::from(Dict::from([(last.to_owned(), value)]));
        }
    }
    Dict::from([(path.pop().unwrap_or_default().to_owned(), value)])
}

fn source(figment: &Figment, key: &str) -> String {
    let Some(metadata) = figment.find_metadata(key) else { return "default".to_owned() };
    if metadata.name.contains("Settings") {
        return "default".to_owned();
    }
    if metadata.name.contains("environment") {
        return format!("environment variable {}", variable(key));
    }
    match &metadata.source {
        Some(figment::Source::File(path)) => path.display().to_string(),
        _ => metadata.name.to_string(),
    }
}

/// The environment variable of a setting.
fn variable(key: &str) -> String {
    format!("TORCHLANE_{}", key.to_uppercase().replace('.', "__"))
}

/// The setting that a misspelt key most likely means: the same letters with other separators, or nearly the same ones.
fn near(key: &str) -> Option<String> {
    let defaults = Figment::from(Serialized::defaults(Settings::default()));
    let known: Vec<String> = provenance(&defaults).ok()?.into_iter().map(|row| row.key).collect();
    // Its section was left out.
    if let Some(whole) = known.iter().find(|known| known.rsplit('.').next() == Some(key)) {
        return Some(whole.clone());
    }
    let letters = |key: &str| key.to_lowercase().replace(['.', '_', '-'], "");
    let wanted = letters(key);
    let distance = |known: &String| strsim::damerau_levenshtein(&letters(known), &wanted);
    let nearest = known.into_iter().map(|known| (distance(&known), known)).min()?;
    (nearest.0 <= wanted.len() / 5).then_some(nearest.1)
}

fn explain(error: &figment::Error, figment: &Figment) -> ConfigError {
    let error = error.clone().into_iter().next().unwrap_or_else(|| error.clone());
    let key = error.path.join(".");
    let show_actual = |got: &Actual| redact::setting(&key, &show_actual(got)).into_owned();
    let (key, what) = match &error.kind {
        Kind::UnknownField(field, known) => {
            let full = match key.as_str() {
                "" => field.clone(),
                key if key == field || key.ends_with(&format!(".{field}")) => key.to_owned(),
                key => format!("{key}.{field}"),
            };
            let from_environment =
                error.metadata.as_ref().is_some_and(|metadata| metadata.name.contains("environment"));
            let hint = match near(&full) {
                Some(near) if from_environment => format!("did you mean {}?", variable(&near)),
                Some(near) => format!("did you mean {near}?"),
                None => format!("known here are {}", known.join(", ")),
            };
            (full.clone(), format!("{full} is not a setting: {hint}"))
        }
        Kind::InvalidType(got, wanted) | Kind::InvalidValue(got, wanted) => {
            (key.clone(), format!("{key} is {}: write {}", show_actual(got), needed(wanted)))
        }
        Kind::UnknownVariant(got, known) => {
            (key.clone(), format!("{key} is '{got}': write one of {}", known.join(", ")))
        }
        Kind::Message(said) if said.contains("socket address") => (
            key.clone(),
            format!("{key}: write an IP address and a port, such as 0.0.0.0:50051 or [::]:50051"),
        ),
        other => {
            let what = plain::error(&other.to_string(), plain::Form::Toml);
            (key.clone(), if key.is_empty() { what } else { format!("{key}: {what}") })
        }
    };
    let from = match &error.metadata {
        Some(metadata) if metadata.name.contains("environment") => {
            format!("environment variable {}", variable(&key))
        }
        Some(metadata) => match &metadata.source {
            Some(figment::Source::File(path)) => path.display().to_string(),
            _ => metadata.name.to_string(),
        },
        None => source(figment, &key),
    };
    ConfigError::new(&format!("{what} ({from})").replace('\n', " "))
}

/// What is needed, with an example where the words alone do not show its form.
fn needed(wanted: &str) -> String {
    match plain::expected(wanted, plain::Form::Toml).as_str() {
        "a list" => "a list such as ['models']".to_owned(),
        "a table" => "a table of settings".to_owned(),
        words => words.to_owned(),
    }
}

fn show_actual(got: &Actual) -> String {
    match got {
        Actual::Bool(value) => value.to_string(),
        Actual::Unsigned(value) => value.to_string(),
        Actual::Signed(value) => value.to_string(),
        Actual::Float(value) => value.to_string(),
        Actual::Str(value) => format!("'{value}'"),
        other => format!("a {}", plain::found(&other.to_string(), plain::Form::Toml)),
    }
}

fn provenance(figment: &Figment) -> Result<Vec<Provenance>, ConfigError> {
    let merged: Dict = figment.extract().map_err(|error| explain(&error, figment))?;
    let mut rows = Vec::new();
    flatten("", &merged, &mut |key, value| {
        let value = redact::setting(&key, &show(value)).into_owned();
        rows.push(Provenance { value, source: source(figment, &key), key });
    });
    Ok(rows)
}

fn flatten(prefix: &str, dict: &Dict, emit: &mut impl FnMut(String, &Value)) {
    for (name, value) in dict {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            Value::Dict(_, inner) => flatten(&key, inner, emit),
            value => emit(key, value),
        }
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(_, text) => text.clone(),
        other => serde_json::to_string(other).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str, flags: &[(&str, &str)]) -> Result<Layered, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("torchlane.toml");
        std::fs::write(&path, text).unwrap();
        let flags: Vec<_> = flags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        load(Some(&path), &flags)
    }

    fn row<'a>(layered: &'a Layered, key: &str) -> &'a Provenance {
        layered.provenance.iter().find(|row| row.key == key).unwrap()
    }

    #[test]
    fn later_layers_win_and_are_named() {
        let text = "[server]\ngrace = '5s'\nmax_message_bytes = '1MiB'\n[admission]\nmin_share = 0.1\n";
        let layered = with_file(text, &[("server.grace", "7s"), ("repositories", "['a', 'b']")]).unwrap();
        assert_eq!(layered.settings.server.grace.as_secs(), 7);
        assert_eq!(layered.settings.server.max_message_bytes, bytesize::ByteSize::mib(1));
        assert_eq!(layered.settings.repositories.len(), 2);
        assert_eq!(row(&layered, "server.grace").source, "flag for server.grace");
        assert!(row(&layered, "admission.min_share").source.ends_with("torchlane.toml"));
        assert_eq!(row(&layered, "server.reflection").source, "default");
        assert_eq!(row(&layered, "server.reflection").value, "true");
    }

    #[test]
    fn bad_keys_and_values_are_named_with_their_place() {
        let cases = [
            ("[server]\ngraze = '5s'", "server.graze is not a setting: did you mean server.grace?"),
            ("[server]\nunheard_of = '5s'", "server.unheard_of is not a setting: known here are grpc_addr,"),
            ("[tenants.a]\nwieght = 2", "is not a setting: known here are weight,"),
            ("[server]\nmax_streams = {}", "server.max_streams is a table: write a whole number"),
            ("[server]\ngrace = 'soon'", "'soon' is not a duration"),
            ("[server]\ngrace = 5", "write a duration such as"),
            (
                "[admission]\nmax_in_flight = 'many'",
                "admission.max_in_flight is 'many': write a whole number, 0 or more",
            ),
            (
                "[admission]\nmax_in_flight = -1",
                "admission.max_in_flight is -1: write a whole number, 0 or more",
            ),
            ("[server]\nmax_message_bytes = '64XB'", "is '64XB': write a size such as '64MiB'"),
            ("[log]\nformat = 'yaml'", "log.format is 'yaml': write one of pretty, json"),
            ("repositories = 'models'", "repositories is 'models': write a list such as ['models']"),
            ("server = 5", "server is 5: write a table of settings"),
            ("[server]\ngrpc_addr = 'localhost:1'", "such as 0.0.0.0:50051"),
            ("[admission]\nmin_share = 0.9", "admission.min_share = 0.9 is out of range: 0 to 0.3"),
            ("[pressure]\nmemory = 1.5", "pressure.memory = 1.5 is out of range: 0 (not looked at) to 1"),
            (
                "[server]\nmax_in_flight_bytes = '64MiB'",
                "server.max_in_flight_bytes = 64.0 MiB (write '256MiB') is out of range",
            ),
            ("nonsense", "torchlane.toml"),
        ];
        for (text, expect) in cases {
            let error = with_file(text, &[]).unwrap_err().to_string();
            assert!(error.contains(expect), "{text}: {error}");
            assert!(error.contains("torchlane.toml") && !error.contains('\n'), "{error}");
        }
        let error = with_file("", &[("server.grpc_addr", "here")]).unwrap_err().to_string();
        assert!(error.contains("server.grpc_addr") && error.contains("flag"), "{error}");
    }

    #[test]
    fn a_setting_in_other_letters_is_known() {
        for (wrong, right) in [
            ("server_grace", "server.grace"),
            ("servergrace", "server.grace"),
            ("log_level", "log.level"),
            ("server.drain-delay", "server.drain_delay"),
            ("memory.budgte", "memory.budget"),
            ("executor.threads", "executors.threads"),
            ("watch_interval", "watch.interval"),
            ("max_message_bytes", "server.max_message_bytes"),
        ] {
            assert_eq!(near(wrong).as_deref(), Some(right), "{wrong}");
        }
        for far in ["unheard_of", "x", "color"] {
            assert_eq!(near(far), None, "{far}");
        }
        assert_eq!(variable("server.grace"), "TORCHLANE_SERVER__GRACE");
    }

    #[test]
    fn what_kubernetes_sets_is_no_setting() {
        for name in [
            "PORT",
            "SERVICE_HOST",
            "SERVICE_PORT",
            "SERVICE_PORT_GRPC",
            "PORT_50051_TCP_ADDR",
            "GRPC_SERVICE_HOST",
            "WEB_PORT",
        ] {
            assert!(is_no_setting(name), "{name}");
        }
        assert!(!is_no_setting("SERVER__GRACE") && !is_no_setting("PORTS"));
    }

    #[test]
    fn no_secret_is_shown() {
        let secret = "repositories = ['s3://KEY:geheim@bucket/x']\n[store.options.s3]\nproxy_url = 'http://u:geheim@proxy:1'\n\
                      [store.options.http]\ndefault_headers = 'Authorization: geheim'";
        let layered = with_file(secret, &[("telemetry.otlp_endpoint", "http://h:1/?key=geheim")]).unwrap();
        assert!(
            layered.provenance.iter().all(|row| !row.value.contains("geheim")),
            "{:?}",
            layered.provenance
        );
        assert_eq!(row(&layered, "repositories").value, "[\"s3://***@bucket/x\"]");
        for wrong in [
            "repositories = 's3://KEY:geheim@bucket/x'",
            "[telemetry]\notlp_endpoint = 'http://u:geheim@h:1'",
            "[server]\ngrace = 'https://u:geheim@h/'",
            "[store.options.http]\ndefault_headers = ['geheim']",
            "[oip]\nuploads = 's3://KEY:geheim@bucket'",
        ] {
            let error = with_file(wrong, &[]).unwrap_err().to_string();
            assert!(!error.contains("geheim"), "{error}");
        }
    }

    #[test]
    fn a_named_file_must_be_there() {
        assert!(load(Some(Path::new("no/such.toml")), &[]).unwrap_err().to_string().contains("no/such.toml"));
    }
}
