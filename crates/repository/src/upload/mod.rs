//! Models that come with a call: checked by their names alone, written beside what is there, and put in its place whole.
//!
//! **Invariant**: nothing is written before all of it is known to be allowed; what a model's directory holds is one upload or
//! another, never a mixture; an upload whose load has not succeeded leaves what was there before, even if the process is killed.

mod place;
mod rules;

pub use place::{Staged, Uploads};
pub use rules::{MOST_FILES, Upload};
