//! From settings to what makes and sends spans, and its end.

use std::{sync::Arc, time::Duration};

use http::Uri;
use opentelemetry::{
    Context, InstrumentationScope, Key, KeyValue,
    trace::{SpanBuilder, SpanContext, TraceContextExt as _, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{SpanExporter, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracer, SdkTracerProvider, Span, SpanProcessor},
};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tonic::transport::Endpoint;
use torchlane_model::{human_duration, redact};

use super::{queue::Bounded, rate::Sampling};
use crate::trace::SpanMetrics;

/// `[telemetry]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySettings {
    /// URL of a collector that takes OTLP over gRPC, such as `http://127.0.0.1:4317`. Empty: no traces.
    pub otlp_endpoint: String,
    /// Share of the requests that are traced whose caller has not decided it. A caller's own decision is followed.
    pub sample: f64,
    /// Longest that the collector may take to accept a connection, and for each message.
    #[serde(with = "human_duration")]
    pub timeout: Duration,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        Self { otlp_endpoint: String::new(), sample: 0.01, timeout: Duration::from_secs(5) }
    }
}

impl TelemetrySettings {
    /// What is wrong: key, value, and what is allowed.
    pub fn problem(&self) -> Option<(&'static str, String, &'static str)> {
        let Self { otlp_endpoint, sample, .. } = self;
        if !otlp_endpoint.is_empty() && !is_collector(otlp_endpoint) {
            let allowed =
                "'' or a URL such as http://127.0.0.1:4317; credentials go into OTEL_EXPORTER_OTLP_HEADERS";
            let key = "telemetry.otlp_endpoint";
            return Some((key, redact::setting(key, otlp_endpoint).into_owned(), allowed));
        }
        let is_share = (0.0..=1.0).contains(sample);
        (!is_share).then(|| ("telemetry.sample", sample.to_string(), "0 (none) to 1 (all)"))
    }
}

fn is_collector(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    matches!(uri.scheme_str(), Some("http" | "https"))
        && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
}

/// Why no spans can be sent. One line.
#[derive(Debug, Error)]
#[error("cannot send traces to {endpoint}: {cause} (telemetry.otlp_endpoint)")]
pub struct TraceError {
    endpoint: String,
    cause: String,
}

/// What is wrong, and what that comes from.
fn with_causes(error: &dyn std::error::Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(deeper) = cause {
        text = format!("{text}: {deeper}");
        cause = deeper.source();
    }
    text
}

/// Makes spans and sends them to a collector.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    sampling: Sampling,
}

impl Traces {
    /// Sends to the collector that the settings name; `None` where they name none. The runtime that this is called in
    /// carries the connection, which is made with the first spans: a collector that is away keeps no server from starting.
    ///
    /// # Errors
    /// An endpoint that cannot be one, or TLS without any certificate authority on this machine.
    pub fn start(
        settings: &TelemetrySettings,
        metrics: &SpanMetrics,
    ) -> Result<Option<Arc<Self>>, TraceError> {
        let TelemetrySettings { otlp_endpoint, sample, timeout } = settings;
        if otlp_endpoint.is_empty() {
            return Ok(None);
        }
        let wrong = |cause| TraceError { endpoint: redact::text(otlp_endpoint).into_owned(), cause };
        let endpoint = Endpoint::new(otlp_endpoint.clone()).map_err(|error| wrong(with_causes(&error)))?;
        let channel = endpoint.connect_timeout(*timeout).timeout(*timeout).connect_lazy();
        let exporter = SpanExporter::builder().with_tonic().with_channel(channel).build();
        let exporter = exporter.map_err(|error| wrong(with_causes(&error)))?;
        Ok(Some(Arc::new(Self::new(Bounded::new(exporter, metrics.clone()), *sample))))
    }

    /// Hands spans to `processor`.
    pub(super) fn new(processor: impl SpanProcessor + 'static, sample: f64) -> Self {
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            // What is not to be traced never comes as far.
            .with_sampler(Sampler::AlwaysOn)
            .with_resource(resource())
            .build();
        let scope =
            InstrumentationScope::builder("torchlane").with_version(env!("CARGO_PKG_VERSION")).build();
        let tracer = provider.tracer_with_scope(scope);
        Self { provider, tracer, sampling: Sampling::new(sample) }
    }

    /// Whether a request is traced: as its caller's span is, else by chance. None is while tracing is off.
    pub(super) fn samples(&self, parent: Option<&SpanContext>) -> bool {
        self.sampling.takes(parent.map(SpanContext::is_sampled))
    }

    /// Which requests are traced, and what changes that.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// Begins a span.
    pub(super) fn span(&self, builder: SpanBuilder, parent: Option<SpanContext>) -> Span {
        let context = match parent {
            // Whether it is remote is its own to say.
            Some(parent) => Context::new().with_remote_span_context(parent),
            None => Context::new(),
        };
        self.tracer.build_with_context(builder, &context)
    }

    /// Sends what has not been sent, and makes no more spans. What has not gone within `limit` is lost.
    pub async fn finish(self: Arc<Self>, limit: Duration) {
        let flush = move || self.provider.shutdown_with_timeout(limit);
        // The library waits in the way of threads, and the runtime has to go on meanwhile: it carries the connection.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(flush).await {
            tracing::warn!(target: "torchlane::telemetry", %error, "the last spans were not sent");
        }
    }

    #[cfg(test)]
    pub(super) fn provider(&self) -> &SdkTracerProvider {
        &self.provider
    }
}

/// Who sends: what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, and where they give no name, torchlane.
fn resource() -> Resource {
    let version = || KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    let found = Resource::builder().with_attribute(version()).build();
    let name = found.get_ref(&Key::from_static_str("service.name"));
    if name.is_some_and(|name| !name.as_str().starts_with("unknown_service")) {
        return found;
    }
    Resource::builder().with_attribute(version()).with_service_name("torchlane").build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(otlp_endpoint: &str, sample: f64) -> TelemetrySettings {
        TelemetrySettings { otlp_endpoint: otlp_endpoint.to_owned(), sample, ..TelemetrySettings::default() }
    }

    #[test]
    fn only_a_collector_and_a_share_are_taken() {
        for good in ["", "http://127.0.0.1:4317", "https://collector.example"] {
            assert_eq!(settings(good, 0.5).problem(), None, "{good}");
        }
        for bad in ["127.0.0.1:4317", "collector", "ftp://x", "http://", "https://me:secret@collector"] {
            let (key, value, _) = settings(bad, 0.5).problem().unwrap();
            assert_eq!(key, "telemetry.otlp_endpoint", "{bad}");
            assert!(!value.contains("secret"), "{value}");
        }
        for share in [-0.1, 1.1, f64::NAN] {
            assert_eq!(settings("", share).problem().unwrap().0, "telemetry.sample");
        }
    }

    #[test]
    fn without_an_endpoint_there_is_nothing() {
        assert!(Traces::start(&settings("", 1.0), &SpanMetrics::default()).unwrap().is_none());
    }

    #[tokio::test]
    async fn a_collector_that_is_away_keeps_nobody_waiting() {
        // A port that is taken, and that nobody listens on.
        let taken = tokio::net::TcpSocket::new_v4().unwrap();
        taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let endpoint = format!("http://{}", taken.local_addr().unwrap());
        let metrics = SpanMetrics::default();
        let traces = Traces::start(&settings(&endpoint, 1.0), &metrics).unwrap().unwrap();
        drop(traces.span(SpanBuilder::from_name("x"), None));
        traces.finish(Duration::from_secs(20)).await;
        assert_eq!(metrics.counts(), [0, 1, 0], "said to be lost");
    }
}
