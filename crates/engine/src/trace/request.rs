//! The span of a request, and those of its phases.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry::trace::{Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceId};
use opentelemetry_sdk::trace::Span;
use parking_lot::Mutex;
use tokio::time::Instant;
use torchlane_model::{Lane, Version};

use super::{
    Traces,
    attributes::{number, text, yes},
    clock::Clock,
    propagation,
};
use crate::call::{InferCall, Purpose, Timing};

/// What a traced request carries with it, shared by all who handle it.
#[derive(Debug)]
pub struct RequestTrace {
    traces: Arc<Traces>,
    context: SpanContext,
    /// 0: not known yet.
    rows: AtomicUsize,
    pass: Mutex<Option<Pass>>,
}

/// A pass that a request was in.
#[derive(Debug)]
pub(super) struct Pass {
    /// The batch's.
    pub(super) span: SpanContext,
    pub(super) began: Instant,
    pub(super) version: Version,
}

impl RequestTrace {
    /// It fits its model, and is so many rows of a batch.
    pub fn bound(&self, rows: usize) {
        self.rows.store(rows, Ordering::Relaxed);
    }

    pub(super) fn traces(&self) -> &Traces {
        &self.traces
    }

    pub(super) fn context(&self) -> &SpanContext {
        &self.context
    }

    /// It is in that pass. If it is run again, by another version or because another request broke the batch, the last
    /// pass counts.
    pub(super) fn runs(&self, pass: Pass) {
        *self.pass.lock() = Some(pass);
    }
}

/// How a request ended.
#[derive(Debug)]
pub struct RequestEnd<'a> {
    /// The caller's, or made up.
    pub request_id: &'a str,
    /// As the caller named it.
    pub model: &'a str,
    /// The one that answered, if any did.
    pub version: Option<Version>,
    /// That it was in.
    pub lane: Lane,
    /// Empty: it named none.
    pub tenant: &'a str,
    /// `ok`, or the reason of the error.
    pub outcome: &'static str,
    /// The error's message.
    pub error: Option<&'a str>,
    /// Where it was answered.
    pub timing: Option<Timing>,
}

/// The span of a traced request, until that ends.
#[derive(Debug)]
pub struct RequestSpan {
    span: Span,
    trace: Arc<RequestTrace>,
    clock: Clock,
}

impl RequestSpan {
    /// Begins the span of a request that is traced, and gives the request what others need for it. A step of an
    /// ensemble is traced if the whole is, and is a part of its span.
    pub fn begin(traces: &Arc<Traces>, call: &mut InferCall) -> Option<Box<Self>> {
        let (parent, kind) = match &call.trace {
            Some(whole) => (Some(whole.context.clone()), SpanKind::Internal),
            None if call.purpose == Purpose::Answer => {
                let caller = propagation::parent(&call.headers);
                if !traces.samples(caller.as_ref()) {
                    return None;
                }
                (caller, SpanKind::Server)
            }
            // It has been decided for the whole.
            None => return None,
        };
        let clock = Clock::now();
        let builder =
            SpanBuilder::from_name("infer").with_kind(kind).with_start_time(clock.wall(call.received));
        let span = traces.span(builder, parent);
        let context = span.span_context().clone();
        if call.trace.is_none() {
            // Whoever reads a line of the log finds the trace.
            call.span.record("trace_id", tracing::field::display(context.trace_id()));
        }
        let (rows, pass) = (AtomicUsize::new(0), Mutex::default());
        let trace = Arc::new(RequestTrace { traces: traces.clone(), context, rows, pass });
        call.trace = Some(trace.clone());
        Some(Box::new(Self { span, trace, clock }))
    }

    /// The trace that it belongs to.
    pub fn trace_id(&self) -> TraceId {
        self.trace.context.trace_id()
    }

    /// Ends it now, with a span for each phase that it went through.
    pub fn end(mut self, end: &RequestEnd<'_>) {
        let now = Instant::now();
        let pass = self.trace.pass.lock().take();
        let rows = self.trace.rows.load(Ordering::Relaxed);
        let version = end.version.or(pass.as_ref().map(|pass| pass.version));
        let texts = [
            ("request_id", end.request_id),
            ("model", end.model),
            ("lane", end.lane.as_str()),
            ("tenant", end.tenant),
            ("outcome", end.outcome),
        ];
        let known = texts.into_iter().filter(|(_, value)| !value.is_empty());
        self.span.set_attributes(known.map(|(key, value)| text(key, value)));
        self.span.set_attributes(version.map(|version| number("version", version.0)));
        self.span.set_attributes((rows > 0).then(|| number("rows", rows as u64)));
        self.span.set_attributes(end.timing.filter(|timing| timing.from_cache).map(|_| yes("from_cache")));
        if let Some(error) = end.error {
            self.span.set_status(Status::error(error.to_owned()));
        }
        match (end.timing, pass) {
            (Some(timing), Some(pass)) => self.phases(timing, pass),
            // What it failed in.
            (None, Some(pass)) => self.span.add_link(pass.span, Vec::new()),
            (_, None) => {}
        }
        self.span.end_with_timestamp(self.clock.wall(now));
    }

    /// All that is left of the times is how long each phase took: they are laid out from the beginning of the pass.
    fn phases(&self, timing: Timing, pass: Pass) {
        let Timing { queue, batch_wait, compute, batch_size, .. } = timing;
        let before = |at: Instant, time: Duration| at.checked_sub(time).unwrap_or(at);
        let began = pass.began;
        let submitted = before(began, batch_wait);
        let phase = |builder: SpanBuilder, from: Instant, until: Instant| {
            let builder = builder.with_start_time(self.clock.wall(from));
            let mut span = self.trace.traces.span(builder, Some(self.trace.context.clone()));
            span.end_with_timestamp(self.clock.wall(until));
        };
        phase(SpanBuilder::from_name("queue"), before(submitted, queue), submitted);
        phase(SpanBuilder::from_name("batch_wait"), submitted, began);
        let compute_span = SpanBuilder::from_name("compute")
            .with_attributes([number("batch_size", batch_size as u64)])
            .with_links(vec![Link::with_context(pass.span)]);
        phase(compute_span, began, began + compute);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::{Value, trace::SpanId};
    use opentelemetry_sdk::trace::SpanData;

    use torchlane_model::{ModelName, VersionWish};

    use super::*;
    use crate::{
        call::{DecidedLane, Headers},
        sched::Parts,
        trace::{
            BatchSpan, Passing, Went,
            kept::{Kept, attribute},
            propagation::tests::headers,
        },
    };

    const MS: Duration = Duration::from_millis(1);
    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn call(headers: Headers) -> InferCall {
        InferCall {
            request_id: "r1".to_owned(),
            own_id: true,
            model: "m".to_owned(),
            version: VersionWish::Any,
            lane: None,
            decided: DecidedLane::default(),
            tenant: "".into(),
            account: None,
            headers,
            purpose: Purpose::Answer,
            deadline: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            received: Instant::now(),
            span: tracing::Span::none(),
            trace: None,
        }
    }

    fn ok(timing: Timing) -> RequestEnd<'static> {
        RequestEnd {
            request_id: "r1",
            model: "m",
            version: Some(Version(4)),
            lane: Lane::High,
            tenant: "",
            outcome: "ok",
            error: None,
            timing: Some(timing),
        }
    }

    /// Runs a pass over the traced ones of `calls`.
    fn pass(calls: &[&InferCall], began: Instant, outcome: Result<Went, &str>) {
        let model: ModelName = "m".parse().unwrap();
        let traced = calls.iter().filter_map(|call| call.trace.as_deref());
        let passing = Passing { model: &model, version: Version(4), requests: calls.len(), began };
        if let Some(span) = BatchSpan::begin(traced, &passing) {
            span.end(began + MS * 5, outcome);
        }
    }

    fn went() -> Went {
        Went { rows: 3, padded_rows: 4, took: Parts { input: MS, infer: MS * 3, output: MS } }
    }

    #[test]
    fn a_caller_decides_and_else_the_share_does() {
        let traced = |sample, parent: &str| {
            let (_, traces) = Kept::traces(sample);
            let mut call = call(headers(&[("traceparent", parent)]));
            let span = RequestSpan::begin(&traces, &mut call);
            assert_eq!(span.is_some(), call.trace.is_some());
            span.is_some()
        };
        let unsampled = SAMPLED.replace("-01", "-00");
        assert!(traced(0.0, SAMPLED), "the caller's span is traced");
        assert!(!traced(1.0, &unsampled), "the caller's span is not");
        assert!(traced(1.0, "nonsense") && !traced(0.0, "nonsense"), "no caller's span");
    }

    #[test]
    fn a_request_has_its_phases_and_is_linked_with_its_batch() {
        let (kept, traces) = Kept::traces(0.0);
        let (mut first, mut second) = (call(headers(&[("traceparent", SAMPLED)])), call(Headers::default()));
        let span = RequestSpan::begin(&traces, &mut first).unwrap();
        assert!(RequestSpan::begin(&traces, &mut second).is_none());
        first.trace.as_ref().unwrap().bound(3);
        let began = first.received + MS * 30;
        pass(&[&second, &first], began, Ok(went()));
        let waited = Timing { queue: MS * 10, batch_wait: MS * 5, ..Timing::default() };
        span.end(&ok(Timing { compute: MS * 5, batch_size: 3, ..waited }));

        let (request, batch, compute) = (kept.span("infer"), kept.span("batch"), kept.span("compute"));
        assert_eq!(request.parent_span_id, SpanId::from_hex("00f067aa0ba902b7").unwrap());
        assert!(request.parent_span_is_remote);
        assert_eq!((request.span_kind.clone(), request.status.clone()), (SpanKind::Server, Status::Unset));
        for (key, value) in [("lane", "HIGH"), ("outcome", "ok"), ("request_id", "r1"), ("model", "m")] {
            assert_eq!(attribute(&request, key).map(Value::as_str).as_deref(), Some(value));
        }
        assert_eq!(attribute(&request, "rows"), Some(&Value::I64(3)));
        assert_eq!(attribute(&request, "version"), Some(&Value::I64(4)));
        assert_eq!(attribute(&request, "tenant"), None, "there is none");

        let at = |span: &SpanData| {
            let since = |time: std::time::SystemTime| time.duration_since(request.start_time).unwrap();
            (since(span.start_time), since(span.end_time))
        };
        assert_eq!(at(&kept.span("queue")), (MS * 15, MS * 25));
        assert_eq!(at(&kept.span("batch_wait")), (MS * 25, MS * 30));
        assert_eq!(at(&compute), (MS * 30, MS * 35));
        for name in ["queue", "batch_wait", "compute"] {
            let phase = kept.span(name);
            assert_eq!(phase.parent_span_id, request.span_context.span_id(), "{name}");
            assert_eq!(phase.span_context.trace_id(), request.span_context.trace_id(), "{name}");
        }

        assert_eq!(batch.parent_span_id, SpanId::INVALID, "it is no request's child");
        let links = |span: &SpanData| -> Vec<_> {
            span.links.iter().map(|link| link.span_context.span_id()).collect()
        };
        assert_eq!(links(&batch), [request.span_context.span_id()], "the other is not traced");
        assert_eq!(links(&compute), [batch.span_context.span_id()]);
        assert_eq!(attribute(&batch, "requests"), Some(&Value::I64(2)));
        assert_eq!(attribute(&batch, "padded_rows"), Some(&Value::I64(4)));
    }

    #[test]
    fn a_failure_leads_to_the_last_pass_that_it_was_in() {
        let (kept, traces) = Kept::traces(1.0);
        let mut call = call(Headers::default());
        let span = RequestSpan::begin(&traces, &mut call).unwrap();
        pass(&[&call], call.received, Err("together"));
        pass(&[&call], call.received, Err("alone"));
        let failed = RequestEnd {
            version: None,
            outcome: "FORWARD_FAILED",
            error: Some("the model failed: alone"),
            timing: None,
            ..ok(Timing::default())
        };
        span.end(&failed);
        let request = kept.span("infer");
        let alone = kept.spans().into_iter().find(|span| span.status == Status::error("alone")).unwrap();
        let linked: Vec<_> = request.links.iter().map(|link| link.span_context.clone()).collect();
        assert_eq!(linked, [alone.span_context]);
        assert_eq!(attribute(&request, "version"), Some(&Value::I64(4)), "that ran");
        assert_eq!(request.status, Status::error("the model failed: alone"));
        assert_eq!(kept.spans().len(), 3, "it has no phases");
    }

    #[test]
    fn a_step_is_a_part_of_its_whole() {
        let (kept, traces) = Kept::traces(0.0);
        let mut whole = call(headers(&[("traceparent", SAMPLED)]));
        let whole_span = RequestSpan::begin(&traces, &mut whole).unwrap();
        let mut step =
            InferCall { purpose: Purpose::Again, trace: whole.trace.clone(), ..call(whole.headers.clone()) };
        let step_span = RequestSpan::begin(&traces, &mut step).unwrap();
        pass(&[&step], step.received, Ok(went()));
        step_span.end(&ok(Timing { compute: MS * 5, batch_size: 3, ..Timing::default() }));
        whole_span.end(&ok(Timing { compute: MS * 5, batch_size: 1, ..Timing::default() }));

        let of = |kind| {
            let mut spans = kept.spans().into_iter();
            spans.find(|span| span.name == "infer" && span.span_kind == kind).unwrap()
        };
        let (whole, step) = (of(SpanKind::Server), of(SpanKind::Internal));
        assert_eq!(step.parent_span_id, whole.span_context.span_id());
        assert_eq!(step.span_context.trace_id(), whole.span_context.trace_id());
        let compute = kept.span("compute");
        assert_eq!(compute.parent_span_id, step.span_context.span_id(), "the whole was in no pass");
    }

    #[test]
    fn steps_and_copies_of_what_is_not_traced_are_not() {
        let (_, traces) = Kept::traces(1.0);
        for purpose in [Purpose::Again, Purpose::Shadow] {
            let mut part = InferCall { purpose, ..call(headers(&[("traceparent", SAMPLED)])) };
            assert!(RequestSpan::begin(&traces, &mut part).is_none());
        }
    }

    #[test]
    fn what_the_cache_answers_says_so_and_has_no_phases() {
        let (kept, traces) = Kept::traces(1.0);
        let mut call = call(Headers::default());
        let span = RequestSpan::begin(&traces, &mut call).unwrap();
        span.end(&ok(Timing { from_cache: true, ..Timing::default() }));
        assert_eq!(attribute(&kept.span("infer"), "from_cache"), Some(&Value::Bool(true)));
        assert_eq!(kept.spans().len(), 1);
    }

    #[test]
    fn a_pass_without_a_traced_request_has_no_span() {
        let (kept, _) = Kept::traces(1.0);
        pass(&[&call(Headers::default())], Instant::now(), Ok(went()));
        assert_eq!(kept.spans().len(), 0);
    }
}
