//! Configuration in, running process out. Every stack is put together here, in one place to read.

mod accept;
mod activity;
mod background;
mod cpu;
mod descriptors;
mod drain;
mod frames;
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
mod watchdog;
mod web;

pub use cpu::{CpuPlan, cpu_quota};
pub use server::{ModelCheck, StartError, check_models, serve, serve_until};
pub use signals::Beginning;
