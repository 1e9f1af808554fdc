//! Triton's model repositories: `config.pbtxt` is read into a [`ModelManifest`](torchlane_model::ModelManifest), and any model can be
//! described as a `ModelConfig`, which is what Triton's clients ask for.
//!
//! **Invariant**: no field of a config is passed over in silence. Each is mapped, has nothing to say here, is warned of by its
//! name, or is refused (`fields.rs` has them all): refused where answers would be wrong without it, warned of where they would
//! only come otherwise than Triton's. What is meant for other frameworks than TorchScript is refused.
//!
//! Names and meanings are those of the Triton Inference Server, 25.x (`protobuf/model_config.proto` of its `common` repository,
//! `src/model_config_utils.cc` of `core`, `src/libtorch.cc` of `pytorch_backend`).

mod config;
mod describe;
mod dtype;
mod fields;
mod manifest;
mod names;
mod naming;
mod parameters;
mod text;
mod warnings;

#[cfg(test)]
mod tests;

pub use config::{ConfigError, FILE, MOST_BYTES, TritonConfig, parse};
pub use describe::{describe, platform, to_json, to_text};
pub use dtype::{data_type, dtype};
pub use names::{ARCHIVE, NamedFiles, is_ensemble};
pub use naming::name_arguments;
pub use parameters::decided;
pub use warnings::Warning;
