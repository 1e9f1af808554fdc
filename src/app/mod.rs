//! Configuration in, running process out. Every stack is put together here, in one place to read.

mod activity;
mod check;
mod cpu;
mod drain;
mod idle;
mod io;
mod paced;
mod repositories;
mod resources;
mod rollouts;
mod server;
mod stack;
mod taking;
mod watchdog;
mod web;

pub use check::{ModelCheck, check_models};
pub use cpu::{CpuPlan, cpu_quota};
pub use server::{StartError, Starting, serve_until};
