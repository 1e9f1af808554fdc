//! Work of a request that takes milliseconds and more runs on threads of its own: on those of the wire it would keep all others
//! waiting. Each caller has few places for it, so that one caller never has all of them.

use std::sync::{Arc, Weak};

use tokio::time::{Instant, timeout_at};

use crate::{
    admission::Account,
    error::{Error, Reason, Result},
    threads,
};

/// Beyond so many bytes, reading or writing lists and JSON takes more than a millisecond or so.
pub(crate) const LONG: usize = 256 << 10;

/// Whether the result of some work is still wanted.
#[derive(Debug)]
pub(crate) struct Wanted(Weak<()>);

impl Wanted {
    /// False once the caller has left.
    pub(crate) fn is(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// # Errors
    /// It is not.
    pub(crate) fn check(&self) -> Result<()> {
        if self.is() { Ok(()) } else { Err(Error::new(Reason::Cancelled, "the caller has left")) }
    }
}

/// Runs `work` for that caller once there is a place for it, and waits for it `until` then. Its place is taken until it ends, also
/// where the caller leaves: long work looks at [`Wanted`] now and then.
///
/// # Errors
/// What `work` says; it took too long; or it panicked.
pub(crate) async fn heavy<T: Send + 'static>(
    account: &Account,
    until: Option<Instant>,
    work: impl FnOnce(&Wanted) -> Result<T> + Send + 'static,
) -> Result<T> {
    let result = placed(account, work);
    match until {
        Some(until) => timeout_at(until, result).await.unwrap_or_else(|_| {
            let message = "the deadline passed while the message was read or its answer written";
            Err(Error::new(Reason::DeadlineExceeded, message))
        }),
        None => result.await,
    }
}

async fn placed<T: Send + 'static>(
    account: &Account,
    work: impl FnOnce(&Wanted) -> Result<T> + Send + 'static,
) -> Result<T> {
    let place = account.heavy().await;
    let waits = Arc::new(());
    let wanted = Wanted(Arc::downgrade(&waits));
    let done = tokio::task::spawn_blocking(move || {
        let _place = place;
        // Not so urgent as passes and the wire. Where the system does not allow it, it is.
        let _best_effort = threads::step_back();
        work(&wanted)
    });
    let result = done.await;
    drop(waits);
    result.unwrap_or_else(|_panicked| {
        Err(Error::new(Reason::Internal, "a bug in torchlane: the server's log says where"))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn who_leaves_is_not_worked_for() {
        let account = Account::alone(1);
        let (seen, sees) = std::sync::mpsc::channel();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let work = heavy(&account, None, move |wanted| {
            begun.send(()).unwrap();
            while wanted.is() {
                std::thread::sleep(Duration::from_millis(1));
            }
            seen.send(wanted.check().is_err()).unwrap();
            Ok(())
        });
        tokio::select! {
            _never = work => unreachable!(),
            _begun = begins => {}
        }
        assert!(sees.recv_timeout(Duration::from_secs(10)).unwrap());
        // Its place is free again.
        assert_eq!(heavy(&account, None, |_| Ok(7)).await.unwrap(), 7);
        let failed: Result<()> = heavy(&account, None, |_| panic!("bug")).await;
        assert_eq!(failed.unwrap_err().reason(), Reason::Internal);
        let (go_on, waits) = std::sync::mpsc::channel::<()>();
        let until = Instant::now() + Duration::from_millis(10);
        let work = move |_: &Wanted| Ok(waits.recv().is_err());
        let late = heavy(&account, Some(until), work).await;
        assert_eq!(late.unwrap_err().reason(), Reason::DeadlineExceeded);
        drop(go_on);
    }
}
