//! Signals. They are caught from the first moment on, and kept until they are looked at.

use std::io;

use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
};

/// What the process is asked for.
#[derive(Debug)]
pub(super) struct Signals {
    ends: Option<Ends>,
    others: Option<Others>,
}

/// The signals that end the process.
#[derive(Debug)]
pub(super) struct Ends {
    terminate: Signal,
    interrupt: Signal,
}

/// The signals that do not.
#[derive(Debug)]
pub(super) struct Others {
    hang_up: Signal,
    user: [Signal; 2],
}

/// What a signal asks for that does not end the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// A look at the repositories (SIGHUP).
    Look,
    /// Nothing (SIGUSR1, SIGUSR2).
    Nothing(&'static str),
}

/// A process that has just begun: signals are caught, nothing else is done.
#[derive(Debug)]
pub struct Beginning {
    pub(super) runtime: Runtime,
    pub(super) signals: Signals,
}

impl Beginning {
    /// To be called first: without it a signal ends the process at once or, for the first process of a container, is lost.
    ///
    /// # Errors
    /// The system gives no runtime.
    pub fn now() -> io::Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().thread_name("main").build()?;
        let signals = {
            let _within = runtime.enter();
            Signals::listen()
        };
        Ok(Self { runtime, signals })
    }
}

impl Signals {
    /// From here on a signal is kept until it is looked at. Within a runtime.
    fn listen() -> Self {
        let ends = || {
            Ok(Ends {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            })
        };
        let others = || {
            let user = [signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?];
            Ok(Others { hang_up: signal(SignalKind::hangup())?, user })
        };
        let kept = |error: &io::Error| {
            tracing::error!(%error, "cannot listen for signals: end the process with SIGKILL");
        };
        Self { ends: ends().inspect_err(kept).ok(), others: others().inspect_err(kept).ok() }
    }

    /// Those that do not end the process are for somebody else to wait for.
    pub(super) fn take_others(&mut self) -> Option<Others> {
        self.others.take()
    }

    /// Waits for SIGTERM or SIGINT.
    pub(super) async fn next(&mut self) -> &'static str {
        let Some(Ends { terminate, interrupt }) = &mut self.ends else { return std::future::pending().await };
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    }
}

impl Others {
    pub(super) async fn next(&mut self) -> Wish {
        let [first, second] = &mut self.user;
        tokio::select! {
            _ = self.hang_up.recv() => Wish::Look,
            _ = first.recv() => Wish::Nothing("SIGUSR1"),
            _ = second.recv() => Wish::Nothing("SIGUSR2"),
        }
    }
}
