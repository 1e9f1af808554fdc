//! Where versions of models come from.

mod directory;

pub use directory::{Directory, Found, RepositoryError, VersionFiles};
