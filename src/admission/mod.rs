//! Who may be in flight: the priority limiter as a tower layer, and what stands before it.
//!
//! **Invariant**: a ticket is freed exactly once; a caller that leaves frees its waiting place, never a running
//! one; no lane starves.

mod control;
mod deadline;
mod forecast;
mod limit;
mod resolve;
mod tenants;

pub use control::{ControlLane, ControlPlace};
pub use deadline::{Deadline, DeadlineLayer};
pub use forecast::{Ahead, Deadlines, Forecast, ForecastLayer, Forecaster};
pub use limit::{Headroom, LimitConfig, LimitSnapshot, Limiter, PriorityLimit, PriorityLimitLayer, Ticket};
pub(crate) use resolve::version_not_live;
pub use resolve::{Resolve, ResolveLayer};
pub use tenants::{Tenant, TenantPlace, TenantSettings, Tenants};
