//! The end: signals, and answers that are still awaited or taken.

use std::{sync::Arc, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::oneshot,
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    activity::Activity,
    io::{IoThreads, SharedCap},
};

/// Time for what is cut off to end.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(500);

/// A peer on whose connection nothing moves for so long does not listen any more.
const DEAF: Duration = Duration::from_secs(3);

/// The signals that end the process.
#[derive(Debug)]
pub(super) struct Signals(Option<(Signal, Signal)>);

impl Signals {
    /// From here on a signal is kept until it is looked at. Within a runtime.
    pub(super) fn listen() -> Self {
        let both =
            signal(SignalKind::terminate()).and_then(|one| Ok((one, signal(SignalKind::interrupt())?)));
        Self(
            both.inspect_err(
                |error| tracing::error!(%error, "cannot listen for signals: end the process with SIGKILL"),
            )
            .ok(),
        )
    }

    /// Waits for SIGTERM or SIGINT.
    pub(super) async fn next(&mut self) -> &'static str {
        let Some((terminate, interrupt)) = &mut self.0 else { return std::future::pending().await };
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    }
}

/// Both ports, once nothing new is let in.
pub(super) struct Doors {
    /// Ends with the last gRPC connection.
    pub(super) accepting: JoinHandle<IoThreads>,
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
        let (accepting, cap) = (self.accepting, self.cap);
        let answered = async {
            let Ok(io) = accepting.await else { return };
            let _panicked = tokio::task::spawn_blocking(move || io.join()).await;
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
