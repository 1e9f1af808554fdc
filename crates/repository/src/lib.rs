//! Where versions of models come from: directories, object stores, uploads; and what their files say of themselves: seals, and
//! Triton's descriptions.

#![deny(unsafe_code)]

mod description;
mod directory;
pub mod files;
mod inside;
mod kept;
mod metrics;
pub mod seal;
mod set;
mod settle;
mod source;
mod stamp;
mod store;
mod text;
pub mod triton;
mod upload;
mod version_files;

pub use directory::{Directory, RepositoryError};
pub use kept::Kept;
pub use metrics::{RepositoryMetrics, StoreMetrics};
pub use set::{Look, Repositories, Repository, Trouble};
pub use settle::{Settle, Settled};
pub use source::Source;
pub use store::{FetchError, Mirror, MirrorConfig, StoreOptions, problem as store_options_problem};
pub use text::{MOST_TEXT, read_text};
pub use upload::{MOST_FILES, Staged, Upload, Uploads};
pub use version_files::{Aside, Found, VersionFiles};
