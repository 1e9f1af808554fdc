//! Repositories in object stores: a bucket's prefix, or a web server's folder, laid out as a directory would be.
//!
//! A store is listed to see what there is, and a version's files come here only when it is to be loaded: a bucket may
//! hold a thousand models. They lie in a cache on disk, each content once, bounded in size. What has been listed and
//! fetched serves on while the store cannot be reached: the last listing is kept, and a version that is here needs no
//! network, a rollback among them.
//!
//! **Not here on purpose**: writing to a store, and credentials (the environment has them).

mod address;
mod cache;
mod download;
mod error;
mod evict;
mod index;
mod layout;
mod listing;
mod mirror;
mod part;

pub use address::{StoreOptions, problem};
pub use error::FetchError;
pub use mirror::{Mirror, MirrorConfig};
