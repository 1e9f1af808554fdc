//! What a request brings beside its message, by whichever door it comes in.

use std::{
    hash::{BuildHasher as _, Hasher as _},
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::{
    admission::Account,
    error::{Error, LOGGED, Reason, Result, shown},
    layers::{LONG, heavy, once},
    lifecycle::Asker,
    model::{Lane, UnknownLane, VersionWish},
    telemetry::Door,
};

/// Headers and times of a request.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    /// gRPC metadata, or HTTP headers.
    pub(super) headers: Arc<MetadataMap>,
    /// By the transport: `grpc-timeout`, `x-timeout-ms`.
    pub(super) deadline: Option<Instant>,
    /// When the message was there.
    pub(super) received: Instant,
    /// By which port it came.
    pub(super) door: Door,
    /// What its sender holds of what callers share.
    pub(super) account: Option<Arc<Account>>,
}

impl Arrival {
    /// Now.
    pub(super) fn new(door: Door, headers: Arc<MetadataMap>, deadline: Option<Instant>) -> Self {
        Self { headers, deadline, received: Instant::now(), door, account: None }
    }

    /// Of the sender that its connection left in its extensions.
    pub(super) fn of(self, extensions: &http::Extensions) -> Self {
        Self { account: extensions.get().cloned(), ..self }
    }

    /// The nearer one of the transport's deadline and what the message itself allows.
    pub(super) fn deadline_within(&self, timeout: Option<Duration>) -> Option<Instant> {
        let own = timeout.and_then(|timeout| self.received.checked_add(timeout));
        match (self.deadline, own) {
            (Some(transport), Some(own)) => Some(transport.min(own)),
            (transport, own) => transport.or(own),
        }
    }

    /// Does `work` on so many bytes of lists: here if they are few or nothing is known of the sender, else where it holds no others up.
    pub(super) async fn long<T: Send + 'static>(
        &self,
        bytes: usize,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        match &self.account {
            Some(account) if bytes > LONG => {
                let own = self.clone();
                heavy(account, self.deadline, move |_| work(&own)).await
            }
            _ => work(self),
        }
    }

    /// `x-priority`: a lane's name or number. 0 leaves it open.
    pub(super) fn lane(&self) -> Result<Option<Lane>> {
        let Some(value) = once(self.headers.as_ref().as_ref(), "x-priority")? else { return Ok(None) };
        let text = value.to_str().unwrap_or("(not ASCII)");
        if text == "0" {
            return Ok(None);
        }
        text.parse().map(Some).map_err(|error: UnknownLane| {
            Error::new(Reason::BadRequest, format!("x-priority: {error}")).with_field("x-priority")
        })
    }

    /// `x-tenant`; empty where it is not there.
    pub(super) fn tenant(&self) -> Result<Arc<str>> {
        let Some(value) = once(self.headers.as_ref().as_ref(), "x-tenant")? else { return Ok("".into()) };
        value.to_str().map(Arc::from).map_err(|_| {
            Error::new(Reason::BadRequest, "x-tenant is not printable ASCII").with_field("x-tenant")
        })
    }
}

/// Who asks for a change: the tenant that the call names, else where it comes from.
///
/// # Errors
/// It names two.
pub(super) fn asker(headers: &MetadataMap, from: Option<SocketAddr>) -> Result<Asker> {
    let tenant = once(headers.as_ref(), "x-tenant")?.and_then(|value| value.to_str().ok());
    let who = match (tenant, from) {
        (Some(tenant), _) => shown(tenant, LOGGED).into_owned(),
        (None, Some(address)) => address.to_string(),
        (None, None) => "unknown".to_owned(),
    };
    Ok(Asker::Caller(who.into()))
}

/// The version that a request wants.
pub(super) fn version(text: &str) -> Result<VersionWish> {
    VersionWish::parse(text).ok_or_else(|| {
        let message =
            format!("version '{}' is neither a number nor a label such as 'stable'", shown(text, 32));
        Error::new(Reason::BadRequest, message).with_field("version")
    })
}

/// The span of a request: it crosses to the executor thread and back.
pub(super) fn span(request_id: &str, model: &str) -> tracing::Span {
    tracing::info_span!(
        target: "torchlane::request", "infer",
        request_id = &*shown(request_id, LOGGED), model = &*shown(model, LOGGED),
        // Of those that are traced.
        trace_id = tracing::field::Empty
    )
}

/// Sixteen hexadecimal digits, not repeated within a process and unlikely across processes.
pub(super) fn fresh_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    static SEED: OnceLock<u64> = OnceLock::new();
    let seed = *SEED.get_or_init(|| std::collections::hash_map::RandomState::new().build_hasher().finish());
    // An odd multiplier is a bijection on u64.
    let count = NEXT.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    format!("{:016x}", seed ^ count)
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    #[test]
    fn made_up_ids_differ() {
        let ids: std::collections::HashSet<_> = (0..1000).map(|_| fresh_id()).collect();
        assert_eq!(ids.len(), 1000);
    }

    #[test]
    fn what_means_one_thing_may_be_there_once() {
        let mut headers = HeaderMap::new();
        assert_eq!(once(&headers, "x-tenant"), Ok(None));
        headers.append("x-tenant", "lab".parse().unwrap());
        headers.append("x-priority", "1".parse().unwrap());
        assert_eq!(once(&headers, "x-tenant").unwrap().unwrap(), "lab");
        headers.append("x-tenant", "lab".parse().unwrap());
        headers.append("x-priority", "".parse().unwrap());
        let headers = Arc::new(MetadataMap::from_headers(headers));
        let arrival = Arrival::new(Door::Grpc, headers.clone(), None);
        let errors =
            [arrival.tenant().unwrap_err(), arrival.lane().unwrap_err(), asker(&headers, None).unwrap_err()];
        for (error, field) in errors.iter().zip(["x-tenant", "x-priority", "x-tenant"]) {
            assert_eq!((error.reason(), error.field()), (Reason::BadRequest, Some(field)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_nearest_deadline_counts() {
        let transport = Instant::now() + Duration::from_millis(50);
        let arrival = |deadline| Arrival::new(Door::Grpc, Arc::default(), deadline);
        let within = |deadline, ms| {
            let by = arrival(deadline).deadline_within(Some(Duration::from_millis(ms)))?;
            Some((by - Instant::now()).as_millis())
        };
        assert_eq!((within(Some(transport), 20), within(Some(transport), 80)), (Some(20), Some(50)));
        assert_eq!(within(None, 80), Some(80));
        assert_eq!(arrival(None).deadline_within(None), None);
        assert_eq!(arrival(None).deadline_within(Some(Duration::MAX)), None, "further away than time goes");
    }
}
