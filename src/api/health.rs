//! `grpc.health.v1.Health`, and what `/readyz` says.
//!
//! The service `""` is ready once the first models are, stays so during reloads, and goes false before draining. The
//! service `torchlane.v1.ModelServer` says that the process answers: it suits a liveness probe. Each model has its name.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tonic_health::{
    ServingStatus,
    pb::health_server::HealthServer,
    server::{HealthReporter, HealthService},
};

/// The API's own service name.
pub const API: &str = "torchlane.v1.ModelServer";

/// The handle by which the rest of the server says how it is.
#[derive(Debug, Clone)]
pub struct Health {
    reporter: HealthReporter,
    ready: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
    draining: Arc<AtomicBool>,
}

impl Health {
    /// Not ready, but alive.
    pub async fn new() -> (Self, HealthServer<HealthService>) {
        let reporter = HealthReporter::new();
        let service = HealthService::from_health_reporter(reporter.clone());
        let health =
            Self { reporter, ready: Arc::default(), broken: Arc::default(), draining: Arc::default() };
        health.set("", false).await;
        health.set(API, true).await;
        (health, HealthServer::new(service))
    }

    /// A model serves, or does not. One that is named like the API cannot speak for it.
    pub async fn set_model(&self, name: &str, serving: bool) {
        if name != API {
            self.set(name, serving).await;
        }
    }

    /// Nothing runs in this process: it is to be replaced. Or it runs again after all.
    pub async fn set_broken(&self, broken: bool) {
        self.broken.store(broken, Ordering::SeqCst);
        self.ready.store(!broken, Ordering::SeqCst);
        self.set("", !broken).await;
        self.set(API, !broken).await;
    }

    /// The first models are ready.
    pub async fn set_ready(&self) {
        self.ready.store(true, Ordering::SeqCst);
        self.set("", true).await;
    }

    /// The server is about to stop: send no new requests.
    pub async fn set_draining(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.ready.store(false, Ordering::SeqCst);
        self.set("", false).await;
        self.set(API, false).await;
    }

    /// What the service `""` says.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }

    /// Nothing runs in this process.
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// The server is about to stop.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    async fn set(&self, service: &str, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.reporter.set_service_status(service, status).await;
    }
}
