//! What scripts read: with `--json` a command prints one JSON document. An answer of the API has the fields of its message in
//! `proto/`, by their names there and all of them.

use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde::Serialize;
use serde_json::value::RawValue;

use super::Failure;
use crate::proto;

#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct JsonArgs {
    /// Print JSON, for scripts
    #[arg(long)]
    pub(super) json: bool,
}

/// Prints a document, in lines that a person can read too.
pub(super) fn print_json<T: Serialize>(value: &T) -> Result<(), Failure> {
    println!("{}", serde_json::to_string_pretty(value).map_err(Failure::failed)?);
    Ok(())
}

/// Prints an answer of the API.
pub(super) fn print_message<M: prost::Message>(name: &str, message: &M) -> Result<(), Failure> {
    println!("{}", written(name, message, serde_json::ser::PrettyFormatter::new())?);
    Ok(())
}

/// Prints an answer of the API on one line: one of several.
pub(super) fn print_line_of<M: prost::Message>(name: &str, message: &M) -> Result<(), Failure> {
    println!("{}", written(name, message, serde_json::ser::CompactFormatter)?);
    Ok(())
}

/// An answer of the API, for a place in another document.
pub(super) fn part<M: prost::Message>(name: &str, message: &M) -> Result<Box<RawValue>, Failure> {
    RawValue::from_string(written(name, message, serde_json::ser::CompactFormatter)?).map_err(Failure::failed)
}

/// `name` is the message's, in `torchlane.v1`.
fn written<M: prost::Message>(
    name: &str,
    message: &M,
    format: impl serde_json::ser::Formatter,
) -> Result<String, Failure> {
    const OPTIONS: SerializeOptions = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false)
        .stringify_64_bit_integers(false);
    let pool = DescriptorPool::decode(proto::DESCRIPTORS).map_err(Failure::failed)?;
    let descriptor = pool
        .get_message_by_name(&format!("torchlane.v1.{name}"))
        .ok_or_else(|| Failure::Failed(format!("a bug in torchlane: no message {name}")))?;
    let mut dynamic = DynamicMessage::new(descriptor);
    dynamic.transcode_from(message).map_err(Failure::failed)?;
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, format);
    dynamic.serialize_with_options(&mut serializer, &OPTIONS).map_err(Failure::failed)?;
    String::from_utf8(text).map_err(Failure::failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_all_its_fields_by_their_names_in_the_proto_file() {
        let model = proto::Model {
            name: "digits".into(),
            state: proto::ModelState::Ready.into(),
            bytes: u64::from(u32::MAX) + 1,
            live_since: Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
            ..proto::Model::default()
        };
        let text = written("Model", &model, serde_json::ser::CompactFormatter).unwrap();
        let told: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&told["name"], &told["state"]), (&"digits".into(), &"READY".into()));
        assert_eq!(told["bytes"], 4_294_967_296_u64, "a number, not a text");
        assert_eq!(told["live_since"], "2023-11-14T22:13:20Z");
        assert_eq!(told["last_error"], "", "fields without a value are there too");
        assert!(told["versions"].as_array().unwrap().is_empty());
    }
}
