//! From files to a servable: reading archives without running them, digests, signatures, and the threads that load.

pub mod archive;
mod digest;
mod known;
pub(crate) mod pace;
mod pool;
pub mod seal;
pub mod summary;
pub mod weights;

pub use digest::{FileIdentity, digest};
pub use known::{Known, Verified};
pub use pace::{Pace, Urgency};
pub use pool::{LoaderPool, Stopped};
