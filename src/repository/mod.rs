//! Where versions of models come from.

mod directory;
mod kept;
mod settle;
mod source;
mod stamp;
mod store;

pub use directory::{Directory, Found, RepositoryError, VersionFiles};
pub use kept::Kept;
pub use settle::{Settle, Settled};
pub use source::Source;
pub use store::{FetchError, Mirror, MirrorConfig, StoreOptions, problem as store_options_problem};
