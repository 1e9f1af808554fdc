//! Reads `config.pbtxt`: protobuf's text format, held to the descriptors of `proto/inference/model_config.proto`.

use std::sync::LazyLock;

use miette::Diagnostic as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, text_format::FormatOptions};
use thiserror::Error;
use torchlane_model::{ManifestError, ModelManifest, plain};
use torchlane_proto::{self as proto, inference::ModelConfig};

use super::{Warning, manifest, text::Readable, warnings};

/// Its name in a model's directory.
pub const FILE: &str = "config.pbtxt";

/// Longest one that is read, in bytes.
pub const MOST_BYTES: u64 = 1 << 20;

/// Why a config cannot be read, or its model not be served. One line that begins with the file's name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Not the text format, or a field or value that a `ModelConfig` does not have.
    #[error("config.pbtxt:{line}:{column}: {problem}")]
    Syntax {
        /// From 1.
        line: usize,
        /// In characters, from 1.
        column: usize,
        /// What is wrong there.
        problem: String,
    },
    /// A field that answers would be wrong without.
    #[error("config.pbtxt: {field}: {why}")]
    Refused {
        /// Its full name, as `input[0].reshape`.
        field: String,
        /// Why, and what to do instead.
        why: String,
    },
    /// What it was mapped to cannot be kept: a number out of its range, a name used twice.
    #[error("config.pbtxt: {0}")]
    Manifest(ManifestError),
    /// A configuration in JSON, as callers send it, that is none.
    #[error("config: {0}")]
    Json(String),
    /// Too long, or nothing that could be read at all.
    #[error("config.pbtxt: {0}")]
    Unreadable(String),
}

impl ConfigError {
    pub(super) fn refused(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Refused { field: field.into(), why: why.into() }
    }
}

/// A `config.pbtxt` that could be read.
#[derive(Debug, Clone, PartialEq)]
pub struct TritonConfig {
    /// Knows which fields are set.
    message: DynamicMessage,
    config: ModelConfig,
}

/// Parses the text of a `config.pbtxt`.
///
/// # Errors
/// See [`ConfigError`].
pub fn parse(text: &str) -> Result<TritonConfig, ConfigError> {
    TritonConfig::parse(text)
}

impl TritonConfig {
    /// Parses the text of a `config.pbtxt`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        if text.len() as u64 > MOST_BYTES {
            return Err(ConfigError::Unreadable(format!("it is over {MOST_BYTES} bytes")));
        }
        let readable = Readable::new(text)?;
        let message = DynamicMessage::parse_text_format(descriptor()?, &readable.text).map_err(|error| {
            let label = error.labels().and_then(|mut labels| labels.next());
            // Only what is missing at the end has no place of its own.
            let offset = label.map_or(readable.text.trim_end().len(), |label| label.offset());
            let (line, column) = readable.place(text, offset);
            ConfigError::Syntax { line, column, problem: error.to_string().replace('\n', " ") }
        })?;
        let config = message.transcode_to().map_err(|error| ConfigError::Unreadable(error.to_string()))?;
        Ok(Self { message, config })
    }

    /// Parses a `ModelConfig` in JSON: what Triton's clients send with a load, and what
    /// [`to_json`](super::to_json) writes.
    ///
    /// # Errors
    /// It is no JSON, or has a field or value that a `ModelConfig` does not have.
    pub fn from_json(text: &str) -> Result<Self, ConfigError> {
        if text.len() as u64 > MOST_BYTES {
            return Err(ConfigError::Json(format!("it is over {MOST_BYTES} bytes")));
        }
        let wrong = |error: &dyn std::fmt::Display| {
            let error = plain::error(&error.to_string(), plain::Form::Json);
            ConfigError::Json(error.replace('\n', " "))
        };
        let mut json = serde_json::Deserializer::from_str(text);
        // Fields that are not known are errors by the library's default.
        let message = DynamicMessage::deserialize(descriptor()?, &mut json).map_err(|error| wrong(&error))?;
        json.end().map_err(|error| wrong(&error))?;
        let config = message.transcode_to().map_err(|error| wrong(&error))?;
        Ok(Self { message, config })
    }

    /// As the text of a `config.pbtxt`.
    pub fn to_text(&self) -> String {
        self.message.to_text_format_with_options(&FormatOptions::new().pretty(true))
    }

    /// What it says.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// What it comes to for the model in directory `model`, and what is not heeded. `labels` reads a file of labels, by its
    /// path below that directory.
    ///
    /// # Errors
    /// A field that cannot be mapped and cannot be done without, labels that cannot be read, or numbers out of range.
    pub fn manifest(
        &self,
        model: &str,
        labels: &dyn Fn(&str) -> Result<Vec<String>, String>,
    ) -> Result<(ModelManifest, Vec<Warning>), ConfigError> {
        // What it is for comes first: the fields of another framework's models mean nothing here.
        manifest::check_purpose(&self.config, model)?;
        let warnings = warnings::all(&self.message, &self.config)?;
        let manifest = manifest::map(&self.config, labels)?;
        manifest.check().map_err(ConfigError::Manifest)?;
        Ok((manifest, warnings))
    }
}

/// The message that a `config.pbtxt` is.
///
/// # Errors
/// The build's own descriptors lack it.
pub(super) fn descriptor() -> Result<MessageDescriptor, ConfigError> {
    static FOUND: LazyLock<Option<MessageDescriptor>> = LazyLock::new(|| {
        DescriptorPool::decode(proto::DESCRIPTORS).ok()?.get_message_by_name("inference.ModelConfig")
    });
    let missing =
        || ConfigError::Unreadable("a bug in torchlane: it has no inference.ModelConfig".to_owned());
    FOUND.clone().ok_or_else(missing)
}
