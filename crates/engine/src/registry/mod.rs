//! Which version of which model is live.
//!
//! **Invariant**: a reader sees one complete, warmed version or none; nothing is held across an await. The only
//! code that names `arc_swap`.

mod beside;
mod lease;
mod served;
mod slot;
mod table;
mod usage;

pub use beside::Beside;
pub use lease::Lease;
pub use served::{InputShapes, Known, ServedShapes};
pub use slot::{ModelSlot, SlotId};
pub use table::Registry;
pub use usage::{Awaiting, InUse};
