//! Looks after what cannot look after itself: passes that do not end, and versions that only fail.

use std::{collections::HashMap, sync::Arc, time::Duration};

use crate::{
    admission::Breaker,
    api::health::Health,
    registry::{Registry, SlotId},
    sched::Scheduler,
};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Watches until it is dropped. `stuck_after` of zero: passes may take as long as they like.
pub(super) async fn watch(
    scheduler: Arc<Scheduler>,
    registry: Arc<Registry>,
    health: Health,
    stuck_after: Duration,
) {
    // The breakers that are open, each of one version: after a reload it is another.
    let mut open: HashMap<SlotId, Arc<Breaker>> = HashMap::new();
    let mut broken = false;
    loop {
        tokio::time::sleep(LOOK).await;
        if !stuck_after.is_zero() {
            for stuck in scheduler.give_up_stuck(stuck_after) {
                tracing::error!(
                    model = %stuck.model.name(), version = stuck.version.map(|version| version.0), executor = stuck.executor, running = ?stuck.running,
                    replaced = stuck.replaced, "a forward pass is stuck"
                );
            }
            // Nothing runs until a pass ends that may never end: send the traffic elsewhere, and replace this process.
            let now_broken = scheduler.healthy() == 0;
            if now_broken != broken {
                broken = now_broken;
                health.set_broken(broken).await;
            }
        }
        for slot in registry.all() {
            let Some(lease) = slot.lease() else {
                open.remove(&slot.id());
                continue;
            };
            let known = open.get(&slot.id()).is_some_and(|breaker| Arc::ptr_eq(breaker, &lease.breaker));
            let is_open = lease.breaker.is_open();
            if is_open && !known {
                open.insert(slot.id(), lease.breaker.clone());
                tracing::error!(model = %slot.name(), version = %lease.version, "it only fails: requests are refused but for trials");
                health.set_model(slot.name().as_str(), false).await;
            } else if !is_open && open.remove(&slot.id()).is_some() {
                tracing::info!(model = %slot.name(), version = %lease.version, "it serves again");
                health.set_model(slot.name().as_str(), true).await;
            }
        }
    }
}
