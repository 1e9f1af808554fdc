//! Looks after what cannot look after itself: passes that do not end. Says in the log when versions only fail; what health says
//! of them is computed where it is reported.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    admission::Breaker,
    registry::{Registry, SlotId},
    sched::Scheduler,
    tasks::Pulse,
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Watches until it is dropped. `stuck_after` of zero: passes may take as long as they like.
pub(super) async fn watch(
    scheduler: Arc<Scheduler>,
    registry: Arc<Registry>,
    stuck_after: Duration,
    pulse: Pulse,
) {
    // The breakers that are open, each of one version: after a reload it is another.
    let mut open: HashMap<SlotId, Arc<Breaker>> = HashMap::new();
    loop {
        tokio::time::sleep(LOOK).await;
        if !stuck_after.is_zero() {
            for stuck in scheduler.give_up_stuck(stuck_after) {
                tracing::error!(
                    model = %stuck.model.name(), version = stuck.version.map(|version| version.0), executor = stuck.executor, running = ?stuck.running,
                    replaced = stuck.replaced, "a forward pass is stuck"
                );
            }
        }
        let slots = registry.all();
        open.retain(|id, _| slots.iter().any(|slot| slot.id() == *id));
        for slot in slots {
            let Some(lease) = slot.lease() else {
                open.remove(&slot.id());
                continue;
            };
            let known = open.get(&slot.id()).is_some_and(|breaker| Arc::ptr_eq(breaker, &lease.breaker));
            let is_open = lease.breaker.is_open();
            if is_open && !known {
                open.insert(slot.id(), lease.breaker.clone());
                tracing::error!(model = %slot.name(), version = %lease.version, "it only fails: requests are refused but for trials");
            } else if !is_open && open.remove(&slot.id()).is_some() {
                tracing::info!(model = %slot.name(), version = %lease.version, "it serves again");
            }
        }
        pulse.beat();
    }
}
