//! A load generator: what `torchlane bench` and `make bench-isolation` send, and how they time it.
//!
//! Open loops send when the plan says, not when the answer before is there, and time is counted from when a request should
//! have gone out: a server that stalls is charged for the requests that it kept waiting, and so is a generator that is late
//! (coordinated omission). Closed loops time each call from its own start.

mod plot;
mod report;
mod run;
mod spec;
mod target;

pub use plot::{percentiles, svg};
pub use report::{Latency, LoadReport, Report};
pub use run::{RunConfig, run};
pub use spec::{Arrivals, LoadSpec, Pace};
pub use target::{Protocol, TargetError};
