//! Has rollouts looked at, again and again.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{lifecycle::Manager, tasks::Pulse};

/// Between two looks. The tests may be looked at as often as one likes.
const LOOK: Duration = Duration::from_millis(500);

/// Looks until it is dropped.
pub(super) async fn look_after(manager: Arc<Manager>, pulse: Pulse) {
    loop {
        tokio::time::sleep(LOOK).await;
        manager.look_at_rollouts(Instant::now());
        pulse.beat();
    }
}
