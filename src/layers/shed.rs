//! Caps on open calls and on requests in the whole process: over them, calls are refused before their message is read.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures::future::{Either, Ready, ready};
use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use super::path;
use crate::{
    admission::Account,
    error::{Error, Reason, Result},
    proto,
    telemetry::{Door, Refusals},
};

/// The count, shared by all connections and I/O threads.
#[derive(Debug)]
pub struct RequestCap {
    now: AtomicUsize,
    most: usize,
}

impl RequestCap {
    /// At most `most` requests at once.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { now: AtomicUsize::new(0), most })
    }

    /// Counts a request until the result is dropped. `None`: it would be one too many.
    pub fn enter(self: &Arc<Self>) -> Option<Counted> {
        let counted = Counted(self.clone());
        let before = self.now.fetch_add(1, Ordering::Relaxed);
        (before < self.most).then_some(counted)
    }

    /// One more would be one too many.
    pub fn is_full(&self) -> bool {
        self.now.load(Ordering::Relaxed) >= self.most
    }

    /// No request is there now.
    pub fn is_idle(&self) -> bool {
        self.now.load(Ordering::Relaxed) == 0
    }
}

/// The refusal of a request that would be one too many.
pub(crate) fn too_many() -> Error {
    let message = "the server has as many requests as it may hold (server.max_requests)";
    Error::new(Reason::Overloaded, message).with_retry_after(Duration::from_millis(100))
}

/// The refusal of a call that would be one too many.
fn too_many_calls() -> Error {
    let message = "this address has as many open calls as it may: its share (server.caller_share) of what others leave of \
                   server.max_open_calls";
    Error::new(Reason::Overloaded, message).with_retry_after(Duration::from_millis(100))
}

/// A request that counts.
#[derive(Debug)]
pub struct Counted(Arc<RequestCap>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where requests of a call get a place once they are there; in the call's extensions.
#[derive(Debug, Clone)]
pub(super) struct Places {
    cap: Arc<RequestCap>,
    refusals: Refusals,
}

impl Places {
    pub(super) fn enter(&self) -> Result<Counted> {
        self.cap.enter().ok_or_else(too_many).inspect_err(|error| self.refusals.count(Door::Grpc, error))
    }
}

/// Refuses at once, never waits. Of requests only inference is counted: health and admin calls are never shed for those.
///
/// What it lets through holds no place yet: its message may never come. [`Arrived`](super::Arrived) takes one.
#[derive(Debug, Clone)]
pub struct Shed<S> {
    inner: S,
    places: Places,
}

impl<S> Shed<S> {
    /// By what is counted in `cap`; what is refused is counted in `refusals`.
    pub fn new(inner: S, cap: Arc<RequestCap>, refusals: Refusals) -> Self {
        Self { inner, places: Places { cap, refusals } }
    }
}

impl<S, B> Service<Request<B>> for Shed<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let is_inference = path::is_inference(request.uri().path());
        let account = request.extensions().get::<Arc<Account>>();
        let refused = if account.is_some_and(|account| account.has_too_many_calls()) {
            Some(too_many_calls())
        } else {
            (is_inference && self.places.cap.is_full()).then(too_many)
        };
        if let Some(error) = refused {
            if is_inference {
                self.places.refusals.count(Door::Grpc, &error);
            }
            return Either::Right(ready(Ok(proto::status(&error).into_http())));
        }
        if is_inference {
            request.extensions_mut().insert(self.places.clone());
        }
        Either::Left(self.inner.call(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admission::{Caller, CallerLimits, Callers},
        layers::Arrived,
    };

    #[tokio::test]
    async fn over_the_cap_is_refused_and_leaving_makes_room() {
        let cap = RequestCap::new(1);
        let inside = tower::service_fn(async |request: Request<()>| {
            let mut response = Response::new(Body::empty());
            *response.extensions_mut() = request.into_parts().0.extensions;
            Ok::<_, ()>(response)
        });
        let refusals = Refusals::default();
        let mut shed = Shed::new(inside, cap.clone(), refusals.clone());
        let infer = || Request::builder().uri(path::INFER[0]).body(()).unwrap();
        // Two calls begin; the one whose message is there first gets the place.
        let (first, second) = (shed.call(infer()).await.unwrap(), shed.call(infer()).await.unwrap());
        assert!(cap.is_idle(), "calls that have only begun hold nothing");
        let arrived = Arrived::new(first.extensions()).unwrap();
        assert_eq!(Arrived::new(second.extensions()).unwrap_err().reason(), Reason::Overloaded);
        let refused = shed.call(infer()).await.unwrap();
        assert_eq!(refused.headers()["grpc-status"], "8");
        assert_eq!(refusals.get(Door::Grpc, Reason::Overloaded), 2);
        let admin = Request::builder().uri("/torchlane.v1.ModelServer/ReloadModel").body(()).unwrap();
        assert!(!shed.call(admin).await.unwrap().headers().contains_key("grpc-status"), "not counted");
        let _sent_later = arrived.answered(10);
        assert!(cap.is_idle(), "an answer on its way holds no place");
        assert!(Arrived::new(second.extensions()).is_ok());
    }
    #[tokio::test]
    async fn open_calls_are_capped_for_each_caller() {
        let limits = CallerLimits { bytes: 1, calls: 40, grpc: 1, http: 1, heavy: 1, share: 0.5 };
        let callers = Callers::new(limits);
        let [flood, other] =
            ["10.0.0.1", "10.0.0.2"].map(|at| callers.account(Caller::at(at.parse().unwrap())));
        let inside = tower::service_fn(async |_: Request<()>| Ok::<_, ()>(Response::new(Body::empty())));
        let refusals = Refusals::default();
        let mut shed = Shed::new(inside, RequestCap::new(1), refusals.clone());
        let mut refused = async |account: &Arc<Account>, path: &str| {
            let mut request = Request::builder().uri(path).body(()).unwrap();
            request.extensions_mut().insert(account.clone());
            shed.call(request).await.unwrap().headers().contains_key("grpc-status")
        };
        let mut open: Vec<_> = (0..19).map(|_| flood.open_call()).collect();
        assert!(!refused(&flood, path::INFER[0]).await);
        open.push(flood.open_call());
        assert!(
            refused(&flood, path::INFER[0]).await && refused(&flood, "/grpc.health.v1.Health/Watch").await
        );
        assert!(!refused(&other, path::INFER[0]).await);
        assert_eq!(refusals.get(Door::Grpc, Reason::Overloaded), 1, "of inference");
        open.pop();
        assert!(!refused(&flood, path::INFER[0]).await);
    }
}
