//! `grpc.health.v1.Health`, and what `/livez` and `/readyz` say. All of it is computed from how things stand now: whoever
//! reports it first, nothing that happened in between is forgotten or said twice.
//!
//! The service `""` is ready once the first models are, stays so during reloads, and goes false before draining. The
//! service `torchlane.v1.ModelServer` says that the process answers: it suits a liveness probe. Each model has its name.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Mutex;
use tonic_health::pb::health_server::HealthServer;

use super::statuses::Statuses;

/// The API's own service name.
pub const API: &str = "torchlane.v1.ModelServer";

/// How the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The first models are not there yet.
    Loading,
    /// It serves.
    Ready,
    /// It is to be replaced.
    Broken,
    /// It is about to stop.
    Draining,
}

/// The one rule. The end of a server is not called off, and what is broken is not ready.
const fn condition(loaded: bool, draining: bool, broken: bool) -> Condition {
    match (draining, broken, loaded) {
        (true, _, _) => Condition::Draining,
        (false, true, _) => Condition::Broken,
        (false, false, true) => Condition::Ready,
        (false, false, false) => Condition::Loading,
    }
}

/// What keeps the process from serving for as long as it lives, if anything does.
type Trouble = Box<dyn Fn() -> Option<String> + Send + Sync>;

/// The handle by which the rest of the server says how it is.
#[derive(Debug, Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    loaded: AtomicBool,
    draining: AtomicBool,
    trouble: Trouble,
    /// What was reported last. Its lock keeps reports in the order in which they were computed.
    reported: Mutex<Reported>,
}

struct Reported {
    statuses: Statuses,
    services: HashMap<String, bool>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Health")
            .field("loaded", &self.loaded)
            .field("draining", &self.draining)
            .finish_non_exhaustive()
    }
}

impl Reported {
    fn set(&mut self, service: &str, serving: bool) {
        if self.services.insert(service.to_owned(), serving) != Some(serving) {
            self.statuses.set(service, serving);
        }
    }

    /// One that is gone is not known any more. A watch of it goes on and says so.
    fn forget(&mut self, service: &str) {
        if self.services.remove(service).is_some() {
            self.statuses.forget(service);
        }
    }
}

impl Health {
    /// Not ready, but alive. `trouble` says what keeps the process from serving, as it is now.
    pub async fn new(
        trouble: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> (Self, HealthServer<Statuses>) {
        let statuses = Statuses::default();
        let service = HealthServer::new(statuses.clone());
        let reported = Mutex::new(Reported { statuses, services: HashMap::new() });
        let (loaded, draining, trouble) = (AtomicBool::new(false), AtomicBool::new(false), Box::new(trouble));
        let health = Self(Arc::new(Inner { loaded, draining, trouble, reported }));
        health.report().await;
        (health, service)
    }

    /// The first models are ready.
    pub async fn set_ready(&self) {
        self.0.loaded.store(true, Ordering::SeqCst);
        self.report().await;
    }

    /// The server is about to stop: send no new requests.
    pub async fn set_draining(&self) {
        self.0.draining.store(true, Ordering::SeqCst);
        self.report().await;
    }

    /// How the server is.
    pub fn condition(&self) -> Condition {
        let (loaded, draining) = (&self.0.loaded, &self.0.draining);
        condition(loaded.load(Ordering::SeqCst), draining.load(Ordering::SeqCst), self.trouble().is_some())
    }

    /// What keeps the process from serving for as long as it lives, if anything does.
    pub fn trouble(&self) -> Option<String> {
        (self.0.trouble)()
    }

    /// Whether anything keeps the process from serving for as long as it lives.
    pub fn is_broken(&self) -> bool {
        self.trouble().is_some()
    }

    /// What the service `""` says.
    pub fn is_ready(&self) -> bool {
        self.condition() == Condition::Ready
    }

    /// Reports how the server is.
    pub async fn report(&self) {
        let mut reported = self.0.reported.lock().await;
        // Computed with the lock held, so that an older answer never comes last.
        let now = self.condition();
        reported.set("", now == Condition::Ready);
        reported.set(API, matches!(now, Condition::Loading | Condition::Ready));
    }

    /// Reports whether a model serves. `serves` is asked with the order of reports kept; `None`: there is no such model.
    pub async fn report_model(&self, model: &str, serves: impl FnOnce() -> Option<bool>) {
        // A model that is named like the API cannot speak for it.
        if model == API {
            return;
        }
        let mut reported = self.0.reported.lock().await;
        match serves() {
            Some(serves) => reported.set(model, serves),
            None => reported.forget(model),
        }
    }

    /// Names of the models that were reported last.
    pub async fn reported_models(&self) -> Vec<String> {
        let reported = self.0.reported.lock().await;
        reported.services.keys().filter(|name| !name.is_empty() && *name != API).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use tonic::Request;
    use tonic_health::pb::{HealthCheckRequest, health_server::Health as _};

    use super::*;

    #[test]
    fn nothing_makes_a_server_ready_that_ends_or_is_broken() {
        for (loaded, draining, broken, expected) in [
            (false, false, false, Condition::Loading),
            (true, false, false, Condition::Ready),
            (true, false, true, Condition::Broken),
            (false, false, true, Condition::Broken),
            (true, true, false, Condition::Draining),
            (true, true, true, Condition::Draining),
            (false, true, false, Condition::Draining),
        ] {
            assert_eq!(condition(loaded, draining, broken), expected);
        }
    }

    #[tokio::test]
    async fn what_comes_back_while_the_server_ends_does_not_make_it_ready() {
        let broken = Arc::new(AtomicBool::new(true));
        let is_broken = broken.clone();
        let trouble = move || is_broken.load(Ordering::SeqCst).then(|| "stuck".to_owned());
        let (health, _service) = Health::new(trouble).await;
        health.set_ready().await;
        assert_eq!((health.is_ready(), health.condition()), (false, Condition::Broken));
        health.set_draining().await;
        broken.store(false, Ordering::SeqCst);
        health.report().await;
        assert_eq!((health.is_ready(), health.condition()), (false, Condition::Draining));
        let reported = health.0.reported.lock().await;
        assert_eq!((reported.services[""], reported.services[API]), (false, false));
    }

    #[tokio::test]
    async fn a_model_that_is_gone_is_not_known_any_more() {
        let (health, _server) = Health::new(|| None).await;
        let service = health.0.reported.lock().await.statuses.clone();
        let check = async |name: &str| {
            let asked = Request::new(HealthCheckRequest { service: name.to_owned() });
            service.check(asked).await.ok().map(|answer| answer.into_inner().status)
        };
        assert_eq!(check("m").await, None);
        health.report_model("m", || Some(true)).await;
        assert_eq!((check("m").await, health.reported_models().await), (Some(1), vec!["m".to_owned()]));
        health.report_model("m", || Some(false)).await;
        assert_eq!(check("m").await, Some(2));
        health.report_model("m", || None).await;
        assert_eq!((check("m").await, health.reported_models().await.len()), (None, 0));
        health.report_model(API, || Some(false)).await;
        assert_eq!(check(API).await, Some(1), "no model speaks for the API");
    }
}
