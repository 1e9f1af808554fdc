//! Where versions of models come from.

mod directory;
mod settle;
mod stamp;

pub use directory::{Directory, Found, RepositoryError, VersionFiles};
pub use settle::{Settle, Settled};
