//! Settings.

pub mod human_duration;
