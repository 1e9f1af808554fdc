//! What may be loaded at once: the books of the memory budget, who has to go first, and in which order loads begin that
//! requests wait for.
//!
//! **Invariant**: what is booked never exceeds the budget; what is pinned or in use never has to go.

mod gate;
mod ledger;
mod memory;
mod metrics;
mod thrash;

pub use gate::{GatePass, GatePlace, GateWait, LaneGate};
pub use ledger::{Ledger, LineId, Shortage, Standing, Verdict};
pub use memory::{Memory, MemorySnapshot, Order, ReloadPolicy, Reservation, Room};
pub use metrics::ResidencyMetrics;
pub use thrash::Thrash;
