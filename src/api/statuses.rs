//! `grpc.health.v1.Health` over a list of statuses by service.
//!
//! A client that watches a service which is not there yet keeps its stream: it gets SERVICE_UNKNOWN, and the status once there is
//! one (health.proto). tonic's own service ends such a watch, and clients of grpc-go then retry for ever. A watch adds nothing to
//! the list, so it does not grow with names that callers make up.

use std::{collections::BTreeMap, sync::Arc};

use futures::{StreamExt as _, stream, stream::BoxStream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus, health_server::Health,
};

use crate::{
    error::{Error, Reason, shown},
    proto,
};

type List = BTreeMap<String, ServingStatus>;

/// The list; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Statuses(Arc<watch::Sender<List>>);

impl Statuses {
    /// A service serves, or does not.
    pub fn set(&self, service: &str, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.0.send_if_modified(|list| list.insert(service.to_owned(), status) != Some(status));
    }

    /// A service is gone. Those who watch it go on: it may come back.
    pub fn forget(&self, service: &str) {
        self.0.send_if_modified(|list| list.remove(service).is_some());
    }

    fn get(&self, service: &str) -> Option<ServingStatus> {
        self.0.borrow().get(service).copied()
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for Statuses {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        let unknown = || {
            let message = format!(
                "no service '{}': '' is the server, {} the API, and a model has its name",
                shown(service, 64),
                super::health::API
            );
            proto::status(&Error::new(Reason::UnknownModel, message))
        };
        Ok(Response::new(answer(self.get(service).ok_or_else(unknown)?)))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let (service, changes) = (request.into_inner().service, self.0.subscribe());
        let statuses = stream::unfold((service, changes, None), async |(service, mut changes, last)| {
            loop {
                let now = changes.borrow_and_update().get(&service).copied();
                let now = now.unwrap_or(ServingStatus::ServiceUnknown);
                if last != Some(now) {
                    return Some((Ok(answer(now)), (service, changes, Some(now))));
                }
                changes.changed().await.ok()?;
            }
        });
        Ok(Response::new(statuses.boxed()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.to_owned() })
    }

    #[tokio::test]
    async fn a_watch_of_what_is_not_there_waits_for_it() {
        let statuses = Statuses::default();
        let mut watch = statuses.watch(of("m")).await.unwrap().into_inner();
        let mut next = async || ServingStatus::try_from(watch.next().await.unwrap().unwrap().status).unwrap();
        assert_eq!(next().await, ServingStatus::ServiceUnknown);
        statuses.set("other", true);
        assert!(futures::poll!(std::pin::pin!(next())).is_pending(), "nothing changed for this one");
        statuses.set("m", false);
        assert_eq!(next().await, ServingStatus::NotServing);
        statuses.set("m", false);
        statuses.set("m", true);
        assert_eq!(next().await, ServingStatus::Serving);
        statuses.forget("m");
        assert_eq!(next().await, ServingStatus::ServiceUnknown);
        assert_eq!(statuses.0.borrow().len(), 1, "a watch adds nothing");
    }

    #[tokio::test]
    async fn a_check_says_how_it_is_or_that_it_is_not_there() {
        let statuses = Statuses::default();
        statuses.set("m", true);
        assert_eq!(statuses.check(of("m")).await.unwrap().into_inner().status, 1);
        let unknown = statuses.check(of("x\ny")).await.unwrap_err();
        assert_eq!(unknown.code(), tonic::Code::NotFound);
        assert!(unknown.message().starts_with(r"no service 'x\ny'"), "{unknown}");
    }
}
