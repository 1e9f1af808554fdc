//! The one task that reports how the server and its models are: at each change of a model, and again and again, because
//! breakers and executors give no sign.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, timeout_at},
};

use crate::{api::health::Health, lifecycle::Manager, tasks::Pulse};

/// Between two looks at everything.
const LOOK: Duration = Duration::from_millis(250);

/// Reports until it is dropped.
pub(super) async fn report(manager: Arc<Manager>, health: Health, pulse: Pulse) {
    let (_, mut changes) = manager.watch();
    loop {
        report_all(&manager, &health).await;
        pulse.beat();
        let look = Instant::now() + LOOK;
        loop {
            match timeout_at(look, changes.recv()).await {
                Ok(Ok(event)) => {
                    let model = event.model.name.as_str();
                    health.report_model(model, || manager.serves(model)).await;
                }
                // Time to look, or more has changed than is remembered.
                Err(_) | Ok(Err(RecvError::Lagged(_))) => break,
                Ok(Err(RecvError::Closed)) => return,
            }
        }
    }
}

async fn report_all(manager: &Manager, health: &Health) {
    health.report().await;
    let before = health.reported_models().await;
    let now = manager.all_serve();
    let names = now.iter().map(|(name, _)| name.as_str());
    let gone = before.iter().map(String::as_str).filter(|name| manager.serves(name).is_none());
    for name in names.chain(gone) {
        health.report_model(name, || manager.serves(name)).await;
    }
}
