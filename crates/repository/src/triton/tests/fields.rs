//! No field of a `ModelConfig` is passed over in silence: each has a fate, and keeps it.

use std::collections::{BTreeSet, HashMap};

use prost_reflect::{DynamicMessage, Kind, MapKey, MessageDescriptor, Value};
use torchlane_model::{Lane, ModelManifest, VersionPolicy, tensor::DType};

use super::{super::*, labels};
use crate::triton::{
    config::descriptor,
    fields::{FIELDS, Fate, fate},
};

/// Fields that must have a fate: all that are no messages, and messages that have one themselves.
fn deciding(message: &MessageDescriptor, path: &str, into: &mut Vec<String>) {
    for field in message.fields() {
        let path = if path.is_empty() { field.name().to_owned() } else { format!("{path}.{}", field.name()) };
        let kind = match field.kind() {
            Kind::Message(entry) if field.is_map() => entry.map_entry_value_field().kind(),
            kind => kind,
        };
        match kind.as_message() {
            Some(inner) if fate(&path).is_none() && inner.fields().len() > 0 => deciding(inner, &path, into),
            _ => into.push(path),
        }
    }
}

/// A message in which the field at `path` is set to something, and those that it lies in.
fn with(message: &MessageDescriptor, path: &[&str]) -> DynamicMessage {
    let field = message.get_field_by_name(path[0]).unwrap();
    let value = |kind: Kind| match (&kind, &path[1..]) {
        (Kind::Message(inner), []) => Value::Message(DynamicMessage::new(inner.clone())),
        (Kind::Message(inner), below) => Value::Message(with(inner, below)),
        (Kind::Bool, _) => Value::Bool(true),
        (Kind::Int32, _) => Value::I32(1),
        (Kind::Int64, _) => Value::I64(1),
        (Kind::Uint32, _) => Value::U32(1),
        (Kind::Uint64, _) => Value::U64(1),
        (Kind::String, _) => Value::String("some".to_owned()),
        (Kind::Enum(_), _) => Value::EnumNumber(1),
        (other, _) => panic!("no value for {other:?}"),
    };
    let value = match field.kind() {
        Kind::Message(entry) if field.is_map() => {
            let key = match entry.map_entry_key_field().kind() {
                Kind::String => MapKey::String("some".to_owned()),
                _ => MapKey::U64(1),
            };
            Value::Map(HashMap::from([(key, value(entry.map_entry_value_field().kind()))]))
        }
        kind if field.is_list() => Value::List(vec![value(kind)]),
        kind => value(kind),
    };
    let mut message = DynamicMessage::new(message.clone());
    message.set_field(&field, value);
    message
}

/// The path in the name of a field: `input[0].dims` is `input.dims`.
fn path_of(shown: &str) -> String {
    let mut depth = 0;
    let outside = |c: &char| {
        depth += i32::from(*c == '[');
        let outside = depth == 0;
        depth -= i32::from(*c == ']');
        outside
    };
    shown.chars().filter(outside).collect()
}

#[test]
fn every_field_of_the_descriptor_is_in_the_table_and_no_other() {
    let mut deciding_fields = Vec::new();
    deciding(&descriptor().unwrap(), "", &mut deciding_fields);
    let there: BTreeSet<&str> = deciding_fields.iter().map(String::as_str).collect();
    let known: BTreeSet<&str> = FIELDS.iter().map(|(path, _)| *path).collect();
    assert_eq!(known.len(), FIELDS.len(), "a field is listed twice");
    let (new, stale): (Vec<_>, Vec<_>) =
        (there.difference(&known).collect(), known.difference(&there).collect());
    assert!(new.is_empty() && stale.is_empty(), "without a fate: {new:?}; no longer there: {stale:?}");
}

#[test]
fn every_field_has_the_fate_that_the_table_gives_it() {
    for (path, fate) in FIELDS {
        let message = with(&descriptor().unwrap(), &path.split('.').collect::<Vec<_>>());
        let config = message.transcode_to().unwrap();
        let found = warnings::all(&message, &config);
        match fate {
            // What it is mapped to is the next test's.
            Fate::Mapped => assert!(found.is_ok(), "{path}"),
            Fate::Idle => assert_eq!(found, Ok(Vec::new()), "{path}"),
            Fate::Warned(why) => {
                let warnings = found.unwrap();
                let warned = warnings.iter().any(|w| path_of(&w.field) == *path && w.why == *why);
                assert!(warned, "{path}: {warnings:?}");
            }
            Fate::Refused(why) => match found {
                Err(ConfigError::Refused { field, why: told }) => {
                    assert_eq!((path_of(&field).as_str(), told.as_str()), (*path, *why));
                }
                other => panic!("{path}: {other:?}"),
            },
        }
    }
}

/// How it shows that a field is mapped.
enum Shows {
    /// In the manifest: the check holds with the text, and not without.
    Manifest(fn(&ModelManifest) -> bool),
    /// Such a value is refused, by the field's name or that of the message it is in.
    Refusal,
    /// Such a value is warned of.
    Warning,
}

use Shows::{Manifest, Refusal, Warning};

const ENSEMBLE: &str = "platform: 'ensemble' output { name: 'y' } ensemble_scheduling { step {
    model_name: 'a' model_version: 3 input_map { key: 'in' value: 'x' } output_map { key: 'out' value: 'y' } } }";

const MAPPED: &[(&str, &str, Shows)] = &[
    ("name", "name: 'other'", Refusal),
    ("platform", "platform: 'tensorrt_plan'", Refusal),
    ("backend", "backend: 'onnxruntime'", Refusal),
    ("runtime", "runtime: 'model.py'", Refusal),
    ("default_model_filename", "default_model_filename: 'a/b.pt'", Refusal),
    ("parameters", "parameters { key: 'SOME' value { string_value: 'x' } }", Warning),
    (
        "version_policy.latest.num_versions",
        "version_policy { latest { num_versions: 3 } }",
        Manifest(|m| m.versions.policy() == VersionPolicy::Latest(3)),
    ),
    (
        "version_policy.all",
        "version_policy { all {} }",
        Manifest(|m| m.versions.policy() == VersionPolicy::All),
    ),
    (
        "version_policy.specific.versions",
        "version_policy { specific { versions: [ 1, 3 ] } }",
        Manifest(|m| m.versions.policy() == VersionPolicy::Only(vec![1, 3])),
    ),
    ("max_batch_size", "max_batch_size: 8", Manifest(|m| m.batching.max_batch() == 8)),
    ("input.name", "input { name: 'a' }", Manifest(|m| m.inputs.iter().any(|i| i.name == "a"))),
    (
        "input.data_type",
        "input { name: 'a' data_type: TYPE_INT64 }",
        Manifest(|m| m.inputs.iter().any(|i| i.dtype == Some(DType::I64))),
    ),
    (
        "input.dims",
        "input { name: 'a' dims: [ 4, 5 ] }",
        Manifest(|m| m.inputs.iter().any(|i| i.shape == Some(vec![4, 5]))),
    ),
    ("input.reshape.shape", "input { name: 'a' dims: [ 4, 1 ] reshape { shape: 4 } }", Refusal),
    ("output.name", "output { name: 'a' }", Manifest(|m| m.outputs.iter().any(|o| o.name == "a"))),
    (
        "output.data_type",
        "output { name: 'a' data_type: TYPE_INT64 }",
        Manifest(|m| m.outputs.iter().any(|o| o.dtype == Some(DType::I64))),
    ),
    (
        "output.dims",
        "output { name: 'a' dims: [ 4, 5 ] }",
        Manifest(|m| m.outputs.iter().any(|o| o.shape == Some(vec![4, 5]))),
    ),
    (
        "output.label_filename",
        "output { name: 'a' label_filename: 'labels.txt' }",
        Manifest(|m| m.outputs.iter().any(|o| o.labels == ["cat", "dog"])),
    ),
    ("output.reshape.shape", "output { name: 'a' dims: [ 4 ] reshape { shape: [ 4, 1 ] } }", Refusal),
    ("instance_group.count", "instance_group { count: 3 }", Manifest(|m| m.scheduling.max_concurrency == 3)),
    ("instance_group.kind", "instance_group { kind: KIND_GPU }", Warning),
    (
        "instance_group.passive",
        "instance_group [ { count: 1 }, { count: 2 passive: true } ]",
        Manifest(|m| m.scheduling.max_concurrency == 1),
    ),
    (
        "dynamic_batching.max_queue_delay_microseconds",
        "dynamic_batching { max_queue_delay_microseconds: 500 }",
        Manifest(|m| m.batching.max_delay.as_micros() == 500),
    ),
    ("response_cache.enable", "response_cache { enable: true }", Manifest(|m| m.response_cache)),
    ("ensemble_scheduling.step.model_name", ENSEMBLE, Manifest(|m| m.steps.iter().any(|s| s.model == "a"))),
    (
        "ensemble_scheduling.step.model_version",
        ENSEMBLE,
        Manifest(|m| m.steps.iter().any(|s| s.version == "3")),
    ),
    (
        "ensemble_scheduling.step.input_map",
        ENSEMBLE,
        Manifest(|m| m.steps.iter().any(|s| s.inputs.get("in").is_some_and(|tensor| tensor == "x"))),
    ),
    (
        "ensemble_scheduling.step.output_map",
        ENSEMBLE,
        Manifest(|m| m.steps.iter().any(|s| s.outputs.get("out").is_some_and(|tensor| tensor == "y"))),
    ),
    ("dynamic_batching.priority_levels", "dynamic_batching { priority_levels: 1 }", Refusal),
    (
        "dynamic_batching.default_priority_level",
        "dynamic_batching { priority_levels: 4 default_priority_level: 1 }",
        Manifest(|m| m.scheduling.default_lane == Lane::Critical),
    ),
    (
        "model_warmup.batch_size",
        "max_batch_size: 8 model_warmup { batch_size: 4 inputs { key: 'x' value { dims: 3 } } }",
        Manifest(|m| m.warmup.shapes.iter().any(|shapes| shapes["x"] == [4, 3])),
    ),
    (
        "model_warmup.inputs.dims",
        "model_warmup { inputs { key: 'x' value { dims: [ 3 ] } } }",
        Manifest(|m| m.warmup.shapes.iter().any(|shapes| shapes["x"] == [3])),
    ),
    (
        "model_warmup.inputs.zero_data",
        "model_warmup { inputs { key: 'x' value { dims: 3 zero_data: true } } }",
        Manifest(|m| m.warmup.shapes.len() == 1),
    ),
    (
        "model_warmup.inputs.random_data",
        "model_warmup { inputs { key: 'x' value { dims: 3 random_data: true } } }",
        Manifest(|m| m.warmup.shapes.len() == 1),
    ),
];

#[test]
fn every_field_that_is_mapped_makes_a_difference() {
    const BASE: &str = "input { name: 'x' data_type: TYPE_FP32 dims: 3 }\n";
    let read = |text: &str| TritonConfig::parse(&format!("{BASE}{text}")).unwrap().manifest("m", &labels);
    let (without, none) = read("").unwrap();
    assert!(none.is_empty());
    for (path, text, shows) in MAPPED {
        match (shows, read(text)) {
            (Manifest(holds), Ok((with, _))) => assert!(holds(&with) && !holds(&without), "{path}: {with:?}"),
            (Refusal, Err(ConfigError::Refused { field, .. })) => {
                let (message, _) = path.rsplit_once('.').unwrap_or((*path, ""));
                assert!(path_of(&field).starts_with(message), "{path}: {field}");
            }
            (Warning, Ok((_, warnings))) => {
                assert!(warnings.iter().any(|w| path_of(&w.field) == *path), "{path}: {warnings:?}");
            }
            (_, other) => panic!("{path}: {other:?}"),
        }
    }
    let shown: BTreeSet<&str> = MAPPED.iter().map(|(path, ..)| *path).collect();
    let mapped = FIELDS.iter().filter(|(_, fate)| *fate == Fate::Mapped).map(|(path, _)| *path);
    assert_eq!(shown, mapped.collect::<BTreeSet<_>>(), "each mapped field has a row above");
}

#[test]
fn the_page_for_people_has_every_field() {
    let page = std::fs::read_to_string("../../docs/reference/triton.md").unwrap();
    for (path, _) in FIELDS {
        assert!(page.contains(&format!("`{path}`")), "docs/reference/triton.md does not have `{path}`");
    }
}
