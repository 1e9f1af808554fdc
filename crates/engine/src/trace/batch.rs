//! The span of a pass on an executor.

use std::time::Duration;

use opentelemetry::trace::{Link, Span as _, SpanBuilder, Status};
use opentelemetry_sdk::trace::Span;
use smallvec::SmallVec;
use tokio::time::Instant;
use torchlane_model::{ModelName, Version};

use super::{
    RequestTrace,
    attributes::{number, text},
    clock::Clock,
    request::Pass,
};
use crate::sched::Parts;

/// A pass that begins.
#[derive(Debug)]
pub struct Passing<'a> {
    /// Whose.
    pub model: &'a ModelName,
    /// The version that runs.
    pub version: Version,
    /// Traced or not.
    pub requests: usize,
    /// When.
    pub began: Instant,
}

/// A pass that went well.
#[derive(Debug)]
pub struct Went {
    /// Of its requests.
    pub rows: usize,
    /// With what was added to fill it up.
    pub padded_rows: usize,
    /// Its parts.
    pub took: Parts<Duration>,
}

/// The span of a pass, until that ends. It belongs to all of its requests alike, so it is no child of one of them: it links to
/// those that are traced, and their `compute` to it.
#[derive(Debug)]
pub struct BatchSpan {
    span: Span,
    clock: Clock,
}

impl BatchSpan {
    /// Begins it for those of its requests that are traced; `None` if none is.
    pub fn begin<'a>(traced: impl Iterator<Item = &'a RequestTrace>, pass: &Passing<'_>) -> Option<Self> {
        let traced: SmallVec<[&RequestTrace; 8]> = traced.collect();
        let traces = traced.first()?.traces();
        let clock = Clock::now();
        let Passing { model, version, requests, began } = *pass;
        let builder = SpanBuilder::from_name("batch")
            .with_start_time(clock.wall(began))
            .with_attributes([
                text("model", model.as_str()),
                number("version", version.0),
                number("requests", requests as u64),
                text("executor", std::thread::current().name().unwrap_or_default()),
            ])
            .with_links(traced.iter().map(|request| Link::with_context(request.context().clone())).collect());
        let span = traces.span(builder, None);
        for request in traced {
            request.runs(Pass { span: span.span_context().clone(), began, version });
        }
        Some(Self { span, clock })
    }

    /// Ends it, with what became of it or why it failed.
    pub fn end(mut self, at: Instant, outcome: Result<Went, &str>) {
        match outcome {
            Ok(Went { rows, padded_rows, took: Parts { input, infer, output } }) => {
                let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
                self.span.set_attributes([
                    number("rows", rows as u64),
                    number("padded_rows", padded_rows as u64),
                    number("input_us", micros(input)),
                    number("infer_us", micros(infer)),
                    number("output_us", micros(output)),
                ]);
            }
            Err(error) => self.span.set_status(Status::error(error.to_owned())),
        }
        self.span.end_with_timestamp(self.clock.wall(at));
    }
}
