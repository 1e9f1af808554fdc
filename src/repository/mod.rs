//! Where versions of models come from.

mod description;
mod directory;
mod inside;
mod kept;
mod set;
mod settle;
mod source;
mod stamp;
mod store;
mod text;
mod upload;

pub use directory::{Aside, Directory, Found, RepositoryError, VersionFiles};
pub use kept::Kept;
pub use set::{Look, Repositories, Repository, Trouble};
pub use settle::{Settle, Settled};
pub use source::Source;
pub use store::{FetchError, Mirror, MirrorConfig, StoreOptions, problem as store_options_problem};
pub use text::{MOST_TEXT, read_text};
pub use upload::{MOST_FILES, Staged, Upload, Uploads};
