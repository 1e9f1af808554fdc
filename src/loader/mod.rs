//! From files to a servable: digests, signatures, and the threads that load.

mod known;
pub(crate) mod pace;
mod pool;
pub mod seal;
pub mod summary;

pub use known::{Known, Verified};
pub use pace::{Pace, Urgency};
pub use pool::{LoaderPool, Stopped};
pub use torchlane_archive::{self as archive, FileIdentity, digest, weights};
