//! Attributes of spans. They are named as the labels of metrics and the fields of log lines are.

use opentelemetry::KeyValue;

use torchlane_model::error::{LOGGED, shown};

/// What a caller wrote may be long: the beginning of it.
pub(super) fn text(key: &'static str, value: &str) -> KeyValue {
    KeyValue::new(key, shown(value, LOGGED).into_owned())
}

pub(super) fn number(key: &'static str, value: u64) -> KeyValue {
    KeyValue::new(key, i64::try_from(value).unwrap_or(i64::MAX))
}

pub(super) fn yes(key: &'static str) -> KeyValue {
    KeyValue::new(key, true)
}
