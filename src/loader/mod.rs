//! From files to a servable: reading archives without running them, digests, signatures, and the threads that load.

pub mod archive;
mod digest;
mod pool;
pub mod seal;
pub mod summary;

pub use digest::{FileIdentity, digest};
pub use pool::{LoaderPool, Stopped};
