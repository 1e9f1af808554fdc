//! One call: its tries, each over the connection whose turn it is, within one deadline.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
};

use super::{
    ClientError, ErrorKind, RetryPolicy, Stub,
    pool::{Connection, Pool},
    retry::{Budget, Failure},
    stub,
};

/// Longest timeout that goes over the wire (three years): gRPC has room for eight digits.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(99_999_999);

/// What calls share.
pub(super) struct Caller {
    pub(super) pool: Pool,
    pub(super) policy: RetryPolicy,
    pub(super) budget: Mutex<Budget>,
    pub(super) tenant: Option<MetadataValue<Ascii>>,
}

/// What the tries of one call share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// No try goes on or begins after it.
    pub(super) deadline: Option<Instant>,
    /// Running it twice is no worse than once.
    pub(super) may_repeat: bool,
}

impl Terms {
    /// A call that must end within `time` from now.
    pub(super) fn within(time: Option<Duration>, may_repeat: bool) -> Self {
        // What is beyond the end of time is no deadline.
        Self { deadline: time.and_then(|time| Instant::now().checked_add(time)), may_repeat }
    }

    fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

impl Caller {
    /// Sends `message` until it is answered or there is no use in trying again.
    pub(super) async fn call<M, T, F>(
        &self,
        terms: Terms,
        message: M,
        send: impl Fn(Stub, Request<M>) -> F,
    ) -> Result<T, ClientError>
    where
        M: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut tries = 0;
        loop {
            tries += 1;
            let attempt = self.attempt(terms, message.clone(), &send);
            let outcome = match terms.deadline {
                None => attempt.await,
                Some(deadline) => timeout_at(deadline, attempt).await.unwrap_or_else(|_| Err(late())),
            };
            let (error, failure) = match outcome {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            let next = {
                let mut budget = self.budget.lock();
                self.policy.next(&mut budget, failure, tries, terms.left(), fastrand::f64())
            };
            let Some(wait) = next else { return Err(error.after(tries)) };
            tracing::debug!(%error, tries, ?wait, "trying again");
            // The clock's ticks are longer than nothing.
            if !wait.is_zero() {
                sleep(wait).await;
            }
        }
    }

    async fn attempt<M, T, F>(
        &self,
        terms: Terms,
        message: M,
        send: &impl Fn(Stub, Request<M>) -> F,
    ) -> Result<T, (ClientError, Failure)>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let connection = self.connection().await.map_err(|error| (error, Failure::Nobody))?;
        // It may have taken a while to come by.
        let left = terms.left();
        if left.is_some_and(|left| left.is_zero()) {
            return Err(late());
        }
        let request = self.dress(message, left);
        match send(stub(connection.channel.clone()), request).await {
            Ok(response) => {
                connection.prove();
                self.budget.lock().answered();
                Ok(response.into_inner())
            }
            Err(status) => {
                let error = ClientError::from(status);
                self.judge(&connection, &error);
                let failure = failure(&error, terms.may_repeat);
                Err((error, failure))
            }
        }
    }

    /// The connection for a call.
    ///
    /// # Errors
    /// No server can be reached.
    pub(super) async fn connection(&self) -> Result<Arc<Connection>, ClientError> {
        self.pool.pick().await.map_err(ClientError::unreachable)
    }

    /// A request with its metadata.
    pub(super) fn dress<M>(&self, message: M, left: Option<Duration>) -> Request<M> {
        let mut request = Request::new(message);
        if let Some(left) = left {
            request.set_timeout(left.min(LONGEST_TIMEOUT));
        }
        if let Some(tenant) = &self.tenant {
            request.metadata_mut().insert("x-tenant", tenant.clone());
        }
        request
    }

    /// What an error says of the connection that it came over.
    pub(super) fn judge(&self, connection: &Arc<Connection>, error: &ClientError) {
        match error.kind() {
            ErrorKind::Unreachable | ErrorKind::Broken => self.pool.lost(connection),
            // Slow is not dead, and pings tell.
            ErrorKind::DeadlineExceeded if error.reason().is_none() => {}
            _ => connection.prove(),
        }
    }
}

fn late() -> (ClientError, Failure) {
    (ClientError::late(), Failure::Final)
}

/// What an error says about trying again.
fn failure(error: &ClientError, may_repeat: bool) -> Failure {
    match error.kind() {
        ErrorKind::Unreachable => Failure::NotSent,
        ErrorKind::Broken if may_repeat => Failure::Broken,
        // A server that says so has not run it. A proxy, which gives no reason, may have sent it on.
        ErrorKind::Unavailable if may_repeat || error.reason().is_some() => {
            Failure::Refused(error.retry_after())
        }
        // Full for now. Without a time to come back it is a limit that stays.
        ErrorKind::ResourceExhausted => {
            error.retry_after().map_or(Failure::Final, |after| Failure::Refused(Some(after)))
        }
        _ => Failure::Final,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use torchlane_model::error::{Error, Reason};
    use torchlane_proto as proto;

    #[test]
    fn what_is_safe_and_useful_is_tried_again() {
        let refused = |reason, after: Option<Duration>| {
            let error = Error::new(reason, "no");
            let error = match after {
                Some(after) => error.with_retry_after(after),
                None => error,
            };
            failure(&ClientError::from(proto::status(&error)), false)
        };
        let soon = Some(Duration::from_millis(30));
        assert_eq!(refused(Reason::QueueFull, soon), Failure::Refused(soon));
        assert_eq!(refused(Reason::BreakerOpen, soon), Failure::Refused(soon));
        assert_eq!(refused(Reason::ShuttingDown, None), Failure::Refused(None));
        assert_eq!(refused(Reason::MessageTooLarge, None), Failure::Final);
        // The answer would come too late, whenever it is asked again.
        assert_eq!(refused(Reason::DeadlineExceeded, soon), Failure::Final);
        for reason in [Reason::WrongShape, Reason::UnknownModel, Reason::ForwardFailed, Reason::Superseded] {
            assert_eq!(refused(reason, soon), Failure::Final, "{reason}");
        }
    }

    #[test]
    fn what_may_have_run_is_sent_again_only_where_that_does_no_harm() {
        let broken = ClientError::new(ErrorKind::Broken, "reset");
        assert_eq!((failure(&broken, true), failure(&broken, false)), (Failure::Broken, Failure::Final));
        let proxy = ClientError::from(Status::unavailable("upstream reset"));
        assert_eq!((failure(&proxy, true), failure(&proxy, false)), (Failure::Refused(None), Failure::Final));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_beyond_the_end_of_time_is_none() {
        assert!(Terms::within(Some(Duration::MAX), true).deadline.is_none());
        let terms = Terms::within(Some(Duration::from_secs(2)), true);
        assert_eq!(terms.left(), Some(Duration::from_secs(2)));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(terms.left(), Some(Duration::ZERO));
    }
}
