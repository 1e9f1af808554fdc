//! What runs next, on which thread, with what.
//!
//! **Invariant**: a job gets exactly one reply; expired or cancelled jobs never run; a refused submit gives the job
//! back as an error to its caller. The order is decided again at each dispatch, over all models at once.

mod dispatch;
mod executor;
mod forward;
mod idle;
mod job;
mod order;
mod padding;
mod planner;
mod profile;
mod queue;
mod quick;
mod rows;
mod runner;
mod statistics;
mod trial;

pub use dispatch::Dispatch;
pub use executor::{ExecutorConfig, Scheduler, SchedulerSnapshot, StuckPass};
pub use forward::{alone, by_leaf, guarded, rename};
pub use job::{Job, PendingReply};
pub use order::{LaneQueue, Place, Shares};
pub use planner::{PlanInput, rows_to_take};
pub use profile::{Cost, Measured, PassTime, Profile, ProfilePoint, RowClass};
pub use queue::{Charge, GroupKey, Handle, Popped, QueueConfig, RunQueue, Schedulable};
pub use quick::{QUICK, Quick, wire_woke};
pub use rows::{Goes, Rows, Verdict};
pub use statistics::{Counts, Failure, Parts, Statistics, Total};
pub use trial::trial;
