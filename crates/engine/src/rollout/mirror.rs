//! Copies of requests for the version that did not answer them: to compare, never to answer.
//!
//! They run in the lowest lane, on an account of their own, and in tasks that no caller waits for. There are few of them at
//! once, and none while the server is short of anything: a copy that is not run is only noted.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{runtime::Handle, time::timeout};
use tokio_util::task::TaskTracker;
use torchlane_model::{Lane, VersionWish, error::Error};
use tower::{Service, ServiceExt as _};

use super::{
    Compared, Ending, Side, Split, difference,
    route::{Blame, blame},
};
use crate::{
    admission::Pressure,
    call::{DecidedLane, InferCall, InferReply, Purpose},
    rollout::RolloutMetrics,
};

/// Copies at once.
const AT_ONCE: usize = 64;
/// Bytes of their inputs together.
const AT_ONCE_BYTES: usize = 64 << 20;
/// A copy that has no answer after this long is given up.
const PATIENCE: Duration = Duration::from_secs(10);
/// Answers of more bytes are compared on a thread of their own.
const LARGE: usize = 1 << 20;

/// Runs copies.
#[derive(Debug)]
pub struct Mirror {
    tasks: TaskTracker,
    runtime: Handle,
    pressure: Arc<Pressure>,
    metrics: Arc<RolloutMetrics>,
    copies: AtomicUsize,
    bytes: AtomicUsize,
}

impl Mirror {
    /// Copies run in tasks of `runtime`: not on a thread that reads requests.
    pub fn new(
        tasks: TaskTracker,
        runtime: Handle,
        pressure: Arc<Pressure>,
        metrics: Arc<RolloutMetrics>,
    ) -> Arc<Self> {
        let (copies, bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { tasks, runtime, pressure, metrics, copies, bytes })
    }

    /// Has `call`, which was answered by one version with `reply`, run by the other one, and compares. Returns at once.
    pub(super) fn send<S>(
        self: &Arc<Self>,
        infer: S,
        split: Arc<Split>,
        call: InferCall,
        reply: InferReply,
        by: Side,
    ) where
        S: Service<InferCall, Response = InferReply, Error = Error> + Send + 'static,
        S::Future: Send,
    {
        let model = call.model.clone();
        let Some(place) = self.place(call.input_bytes()) else {
            split.compared(Compared::Dropped);
            return self.metrics.mirrored(&model, "dropped");
        };
        let (other, version) = match by {
            Side::Live => (Side::Candidate, VersionWish::Exactly(split.candidate())),
            Side::Candidate => (Side::Live, VersionWish::Stable),
        };
        let copy = InferCall {
            version,
            lane: Some(Lane::Low),
            decided: DecidedLane::default(),
            purpose: Purpose::Shadow,
            // It is bounded by our patience: a deadline would count among those of callers.
            deadline: None,
            span: tracing::Span::none(),
            trace: None,
            // It is not for what its caller holds that it runs or not.
            account: None,
            ..call
        };
        let metrics = self.metrics.clone();
        let work = async move {
            let bytes = copy.input_bytes();
            let result = timeout(PATIENCE, infer.oneshot(copy)).await;
            let outcome = match result {
                Ok(Ok(shadow)) => {
                    if other == Side::Candidate {
                        let total = Duration::ZERO;
                        split.ended(other, Ending::Answered { total, timing: shadow.timing, bytes }, true);
                    }
                    let apart = match by {
                        Side::Live => compare(reply, shadow).await,
                        Side::Candidate => compare(shadow, reply).await,
                    };
                    if split.compared(Compared::By(apart)) { "different" } else { "same" }
                }
                // The live version answered the same request.
                Ok(Err(error))
                    if other == Side::Candidate && matches!(blame(&error), Blame::Version | Blame::Input) =>
                {
                    split.ended(other, Ending::Failed, true);
                    "failed"
                }
                _ => {
                    split.compared(Compared::Dropped);
                    "dropped"
                }
            };
            metrics.mirrored(&model, outcome);
            drop(place);
        };
        self.tasks.spawn_on(work, &self.runtime);
    }

    /// `None`: there are enough, or the server has other worries.
    fn place(self: &Arc<Self>, bytes: usize) -> Option<Place> {
        if self.pressure.level() > 0 {
            return None;
        }
        let place = Place { mirror: self.clone(), bytes };
        let copies = self.copies.fetch_add(1, Ordering::Relaxed);
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        // Counted first and given back by the drop, so that two at once do not both find the last place.
        (copies < AT_ONCE && before.saturating_add(bytes) <= AT_ONCE_BYTES).then_some(place)
    }
}

/// One copy that runs.
struct Place {
    mirror: Arc<Mirror>,
    bytes: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.mirror.copies.fetch_sub(1, Ordering::Relaxed);
        self.mirror.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

async fn compare(live: InferReply, other: InferReply) -> f64 {
    let bytes = live.output_bytes();
    if bytes <= LARGE {
        return difference(&live.outputs, &other.outputs);
    }
    let work = move || difference(&live.outputs, &other.outputs);
    // Nothing in it panics, and nothing aborts it but the end of the process.
    tokio::task::spawn_blocking(work).await.unwrap_or(f64::INFINITY)
}
