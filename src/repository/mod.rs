//! Where versions of models come from.

mod directory;
mod kept;
mod source;
mod store;

pub use directory::{Directory, Found, RepositoryError, VersionFiles};
pub use kept::Kept;
pub use source::Source;
pub use store::{FetchError, Mirror, MirrorConfig, StoreOptions, problem as store_options_problem};
