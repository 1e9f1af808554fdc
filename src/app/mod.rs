//! Configuration in, running process out. Every stack is put together here, in one place to read.

mod accept;
mod activity;
mod background;
mod check;
mod cpu;
mod descriptors;
mod drain;
mod frames;
mod from_settings;
mod heads;
mod health;
mod idle;
mod io;
mod paced;
mod peers;
mod repositories;
mod resources;
mod rollouts;
mod server;
mod signals;
mod stack;
mod taking;
mod transport;
mod watchdog;
mod web;

pub use check::{ModelCheck, check_models};
pub use cpu::{CpuPlan, cpu_quota};
pub use server::{StartError, serve, serve_until};
pub use signals::Beginning;
