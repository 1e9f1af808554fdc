//! The caller's span, from the headers of W3C's trace context (<https://www.w3.org/TR/trace-context/>): gRPC metadata and
//! HTTP headers alike.

use opentelemetry::{
    Context,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{SpanContext, TraceContextExt as _},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use crate::call::Headers;

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// A longer state is left out. It goes into each span of the trace, and vendors are asked to pass on no more than this
/// (section 3.3.1.5).
const LONGEST_STATE: usize = 512;

/// The span that the caller is in; `None` where it names none, or none that can be read.
pub(super) fn parent(headers: &Headers) -> Option<SpanContext> {
    headers.get(TRACEPARENT)?;
    let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &Carrier(headers));
    let parent = context.span().span_context().clone();
    parent.is_valid().then_some(parent)
}

struct Carrier<'a>(&'a Headers);

impl Extractor for Carrier<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).filter(|value| key != TRACESTATE || value.len() <= LONGEST_STATE)
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT, TRACESTATE]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Arc;

    use tonic::metadata::MetadataMap;

    use super::*;

    pub(in crate::trace) fn headers(pairs: &[(&'static str, &str)]) -> Headers {
        let mut map = MetadataMap::new();
        for (name, value) in pairs {
            map.insert(*name, value.parse().unwrap());
        }
        Headers::new(Arc::new(map))
    }

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_callers_span_is_read_with_its_decision_and_state() {
        let found = parent(&headers(&[(TRACEPARENT, PARENT), (TRACESTATE, "vendor=opaque")])).unwrap();
        assert_eq!(found.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(found.span_id().to_string(), "00f067aa0ba902b7");
        assert!(found.is_sampled() && found.is_remote());
        assert_eq!(found.trace_state().get("vendor"), Some("opaque"));
        let unsampled = PARENT.replace("-01", "-00");
        assert!(!parent(&headers(&[(TRACEPARENT, unsampled.as_str())])).unwrap().is_sampled());
    }

    #[test]
    fn what_cannot_be_read_is_no_parent() {
        let (flagless, version) = (&PARENT[..52], PARENT.replacen("00", "ff", 1));
        let zero = "00-00000000000000000000000000000000-00f067aa0ba902b7-01";
        for text in ["", "nonsense", zero, flagless, version.as_str()] {
            assert_eq!(parent(&headers(&[(TRACEPARENT, text)])), None, "{text}");
        }
        assert_eq!(parent(&Headers::default()), None);
        assert_eq!(parent(&headers(&[(TRACESTATE, "vendor=opaque")])), None);
    }

    #[test]
    fn a_state_that_is_too_long_is_left_out() {
        let state = |length: usize| format!("v={}", "x".repeat(length - 2));
        let kept = |state: &str| {
            let found = parent(&headers(&[(TRACEPARENT, PARENT), (TRACESTATE, state)])).unwrap();
            found.trace_state().get("v").is_some()
        };
        assert!(kept(&state(200)));
        assert!(!kept(&format!("{},{},{}", state(200), state(200), state(200).replace('v', "w"))));
    }
}
