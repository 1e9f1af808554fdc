//! torchlane.
#![forbid(unsafe_code)]
pub mod loader;
