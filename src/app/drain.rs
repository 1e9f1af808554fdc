//! The end: answers that are still awaited or taken.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    activity::Activity,
    io::{IoThreads, SharedCap},
    signals::Signals,
};

/// Time for what is cut off to end.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(500);

/// A peer on whose connection nothing moves for so long does not listen any more.
const DEAF: Duration = Duration::from_secs(3);

/// Both ports, once nothing new is let in.
pub(super) struct Doors {
    /// Ends when no gRPC connection is accepted any more.
    pub(super) accepting: JoinHandle<()>,
    /// They end with their last connection.
    pub(super) io: Arc<IoThreads>,
    /// Requests of both.
    pub(super) cap: SharedCap,
    /// Ends the gRPC connections that are left, and lets HTTP only end what is open.
    pub(super) killed: CancellationToken,
    /// There when HTTP has ended.
    pub(super) web: oneshot::Receiver<()>,
    /// Ends HTTP.
    pub(super) cut: CancellationToken,
    pub(super) grpc_moves: Arc<Activity>,
    pub(super) http_moves: Arc<Activity>,
}

impl Doors {
    /// Waits until requests are answered and their answers taken, by peers that listen; until `grace_ends`, or a further signal.
    pub(super) async fn close(
        self,
        nothing_runs: impl Fn() -> bool,
        grace_ends: Instant,
        signals: &mut Signals,
    ) {
        let (accepting, io, cap) = (self.accepting, self.io, self.cap);
        let answered = async {
            let _ended = accepting.await;
            io.ended().await;
            // Those by HTTP.
            becomes(|| cap.is_idle()).await;
        };
        tokio::pin!(answered);
        let mut is_answered = false;
        let cut_off = tokio::select! {
            () = answered.as_mut() => {
                is_answered = true;
                None
            }
            // What is left are peers that do not answer. An answer that is still being taken moves something now and then.
            () = becomes(|| nothing_runs() && self.grpc_moves.rest() >= DEAF) => None,
            () = sleep_until(grace_ends) => Some("the grace time ended"),
            _again = signals.next() => Some("a further signal came"),
        };
        self.killed.cancel();
        if let Some(why) = cut_off {
            tracing::warn!("requests were still running when {why}: they are cut off");
            let _in_time = timeout(LAST_WORDS, self.web).await;
        } else {
            let nobody_listens = async {
                // What was answered this moment has not moved anything yet.
                sleep(LAST_WORDS).await;
                becomes(|| self.http_moves.rest() >= DEAF).await;
            };
            let cut_off = tokio::select! {
                _ended = self.web => None,
                () = nobody_listens => None,
                () = sleep_until(grace_ends.max(Instant::now() + LAST_WORDS)) => Some("the grace time ended"),
                _again = signals.next() => Some("a further signal came"),
            };
            if let Some(why) = cut_off {
                tracing::warn!("answers were still being taken when {why}: they are cut off");
            }
        }
        self.cut.cancel();
        if !is_answered {
            let _in_time = timeout(LAST_WORDS, answered).await;
        }
    }
}

/// Waits until it is so.
async fn becomes(so: impl Fn() -> bool) {
    while !so() {
        sleep(Duration::from_millis(20)).await;
    }
}
