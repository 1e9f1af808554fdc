//! A client's settings.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tonic::metadata::{Ascii, MetadataValue};

use super::{
    Client, ClientError, Defaults, Priority, RetryPolicy,
    address::Target,
    call::Caller,
    network::{Network, System},
    pool::Pool,
    retry::Budget,
};

/// Of inferences that do not say.
const DEADLINE: Duration = Duration::from_secs(30);
/// Between two looks at what addresses a name has.
const RESOLVE_EVERY: Duration = Duration::from_secs(30);

/// What a [`Client`] is made from.
#[derive(Debug, Clone)]
#[must_use = "a client is made by `build` or `connect`"]
pub struct ClientBuilder {
    endpoints: Vec<String>,
    deadline: Option<Duration>,
    priority: Priority,
    tenant: Option<String>,
    retry: RetryPolicy,
    resolve_every: Duration,
}

impl ClientBuilder {
    pub(super) fn new() -> Self {
        Self {
            endpoints: Vec::new(),
            deadline: Some(DEADLINE),
            priority: Priority::Unspecified,
            tenant: None,
            retry: RetryPolicy::default(),
            resolve_every: RESOLVE_EVERY,
        }
    }

    /// Adds a server: `http://HOST:PORT` or `HOST:PORT`; or servers: `dns:///NAME:PORT` stands for each address that the
    /// name has. Calls go to all of them in turn.
    pub fn endpoint(mut self, endpoint: impl Into<String>) -> Self {
        self.endpoints.push(endpoint.into());
        self
    }

    /// Adds several.
    pub fn endpoints<E: Into<String>>(mut self, endpoints: impl IntoIterator<Item = E>) -> Self {
        self.endpoints.extend(endpoints.into_iter().map(Into::into));
        self
    }

    /// How often names are looked up again. Default: every 30 s.
    pub fn resolve_every(mut self, every: Duration) -> Self {
        // Never without a pause.
        self.resolve_every = every.max(Duration::from_millis(10));
        self
    }

    /// Time for each inference that does not say, and for looking at models, all tries included. Default: 30 s. `None`: any
    /// time. Reloads and streams have no deadline.
    pub fn deadline(mut self, deadline: impl Into<Option<Duration>>) -> Self {
        self.deadline = deadline.into();
        self
    }

    /// The priority of each inference that does not say. Default: what the model's settings say.
    pub fn priority(mut self, priority: Priority) -> Self {
        self.priority = priority;
        self
    }

    /// Who calls (metadata `x-tenant`): printable ASCII. Default: nobody in particular.
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// What is tried again, and when.
    pub fn retry(mut self, policy: RetryPolicy) -> Self {
        self.retry = policy;
        self
    }

    /// Makes the client, which connects by itself from then on.
    ///
    /// # Errors
    /// No endpoint, one that is no address, a tenant that is not printable ASCII, or no tokio runtime to live in.
    pub fn build(self) -> Result<Client, ClientError> {
        self.build_on(Arc::new(System))
    }

    /// Makes the client and waits until each server is connected or known to be out of reach: so that the first calls do
    /// not all go to the first server, and a wrong address is noticed now.
    ///
    /// # Errors
    /// As [`ClientBuilder::build`], or none of the servers can be reached.
    pub async fn connect(self) -> Result<Client, ClientError> {
        let client = self.build()?;
        client.caller.pool.settle().await.map_err(ClientError::unreachable)?;
        Ok(client)
    }

    pub(super) fn build_on(self, network: Arc<dyn Network>) -> Result<Client, ClientError> {
        if self.endpoints.is_empty() {
            return Err(ClientError::invalid("a client needs an endpoint, such as http://127.0.0.1:50051"));
        }
        if tokio::runtime::Handle::try_current().is_err() {
            let message = "a client is made within a tokio runtime: its connections live there";
            return Err(ClientError::invalid(message));
        }
        let targets =
            self.endpoints.iter().map(|text| text.parse::<Target>()).collect::<Result<Vec<_>, _>>()?;
        let tenant = match &self.tenant {
            None => None,
            Some(tenant) => Some(tenant.parse::<MetadataValue<Ascii>>().map_err(|_| {
                ClientError::invalid(format!("the tenant {tenant:?} is not printable ASCII"))
            })?),
        };
        let caller = Caller {
            pool: Pool::start(network, targets, self.resolve_every),
            budget: Mutex::new(Budget::new(&self.retry)),
            policy: self.retry,
            tenant,
        };
        let defaults = Defaults { deadline: self.deadline, priority: self.priority };
        Ok(Client { caller: Arc::new(caller), defaults })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_cannot_be_is_said_before_anything_is_sent() {
        let builder = || Client::builder().endpoint("127.0.0.1:1");
        assert!(builder().build().is_ok());
        for (builder, expect) in [
            (Client::builder(), "needs an endpoint"),
            (builder().endpoint("nowhere"), "'nowhere'"),
            (builder().endpoint("https://host:1"), "plaintext"),
            (builder().tenant("a\nb"), "printable ASCII"),
        ] {
            let error = builder.build().unwrap_err();
            assert!(error.to_string().contains(expect), "{error}");
        }
    }

    #[test]
    fn without_a_runtime_it_says_so() {
        let error = Client::builder().endpoint("127.0.0.1:1").build().unwrap_err();
        assert!(error.to_string().contains("tokio runtime"), "{error}");
    }
}
