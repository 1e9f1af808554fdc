//! Loading.
pub mod archive;
