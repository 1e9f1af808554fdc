//! The threads that load, how they give way to others, and what is known of archives that they read.

mod known;
pub(crate) mod pace;
mod pool;

pub use known::{Known, Verified};
pub use pace::{Pace, Urgency};
pub use pool::{LoaderPool, Stopped};
pub use torchlane_archive::{self as archive, FileIdentity, digest, weights};
pub use torchlane_repository::seal;
