//! Who may be in flight: the priority limiter as a tower layer, and what stands before it.
//!
//! **Invariant**: a ticket is freed exactly once; a caller that leaves frees its waiting place, never a running
//! one; no lane starves.

mod backlog;
mod breaker;
mod callers;
mod control;
mod deadline;
mod forecast;
mod in_flight;
mod limit;
mod pressure;
mod residents;
mod resolve;
mod tenants;

pub use breaker::{Asked, Breaker, Scope, Trial};
pub use callers::{Account, Caller, CallerLimits, Callers, Connected, HeavyPlace, OpenCall};
pub use control::{ControlLane, ControlPlace, Errand};
pub use deadline::{Deadline, DeadlineLayer};
pub use forecast::{Ahead, Deadlines, Forecast, ForecastLayer, Forecaster, Underway};
pub use in_flight::{HeldAnswer, MessageBytes};
pub use limit::{Headroom, LimitConfig, LimitSnapshot, Limiter, PriorityLimit, PriorityLimitLayer, Ticket};
pub use pressure::{Pressure, PressureSettings, Resource};
pub use residents::not_ready;
pub use residents::{Residents, Wanted};
pub use resolve::{Resolve, ResolveLayer};
pub use resolve::{breaker_open, check_outputs, unknown_model, version_gone, version_not_loaded};
pub use tenants::{Tenant, TenantPlace, TenantSettings, Tenants};
