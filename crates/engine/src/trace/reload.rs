//! The span of a load or reload, and those of its phases.

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Span as _, SpanBuilder, Status};

use torchlane_model::{
    ModelName, Version,
    error::{Error, Reason},
};

use super::{
    Traces,
    attributes::{number, text},
};

/// A load or reload that has just ended.
#[derive(Debug)]
pub struct ReloadEnd<'a> {
    /// The model.
    pub model: &'a ModelName,
    /// The version that was loaded, or should have been.
    pub version: Version,
    /// What was live before.
    pub previous: Option<Version>,
    /// Who or what asked for it.
    pub asker: &'a str,
    /// Phases by name, in their order, and `rested` and `total`. Of one that failed, `total` alone has a length.
    pub phases: &'a [(&'static str, Duration)],
    /// Why it failed; the message names the phase.
    pub error: Option<&'a Error>,
}

impl Traces {
    /// Tells of a load or reload. Each is traced: there are few, and they say why others were slow.
    ///
    /// Its phases stand at its end, one behind the other. What is left before them was spent waiting: for its turn, for its
    /// files, for room.
    pub fn reload(&self, reload: &ReloadEnd<'_>) {
        let ReloadEnd { model, version, previous, asker, phases, error } = reload;
        let now = SystemTime::now();
        let ago = |time: Duration| now.checked_sub(time).unwrap_or(now);
        let total =
            phases.iter().find(|(name, _)| *name == "total").map_or(Duration::ZERO, |(_, took)| *took);
        let builder = SpanBuilder::from_name("reload").with_start_time(ago(total)).with_attributes([
            text("model", model.as_str()),
            number("version", version.0),
            text("asker", asker),
            text("outcome", error.map_or("ok", |error| error.reason().as_str())),
        ]);
        let mut span = self.span(builder, None);
        span.set_attributes(previous.map(|previous| number("previous", previous.0)));
        // What made room for something newer has not failed.
        if let Some(error) = error
            && !matches!(error.reason(), Reason::Superseded | Reason::ShuttingDown)
        {
            span.set_status(Status::error(error.message().to_owned()));
        }
        let mut after = Duration::ZERO;
        for (name, took) in phases.iter().copied().rev() {
            match name {
                "total" => {}
                // It is part of the others.
                "rested" => {
                    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                    span.set_attribute(number("rested_ms", millis));
                }
                _ if took.is_zero() => {}
                name => {
                    let builder = SpanBuilder::from_name(name).with_start_time(ago(after + took));
                    let mut phase = self.span(builder, Some(span.span_context().clone()));
                    phase.end_with_timestamp(ago(after));
                    after += took;
                }
            }
        }
        span.end_with_timestamp(now);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::Value;

    use super::{
        super::kept::{Kept, attribute},
        *,
    };

    const MS: Duration = Duration::from_millis(1);

    fn end<'a>(
        model: &'a ModelName,
        phases: &'a [(&'static str, Duration)],
        error: Option<&'a Error>,
    ) -> ReloadEnd<'a> {
        let (version, previous) = (Version(3), Some(Version(2)));
        ReloadEnd { model, version, previous, asker: "start", phases, error }
    }

    #[test]
    fn phases_follow_each_other_to_the_end_and_what_was_waited_for_is_before_them() {
        let (kept, traces) = Kept::traces(0.0);
        let phases = [
            ("check", Duration::ZERO),
            ("verify", MS * 10),
            ("load", MS * 20),
            ("warm_up", MS * 30),
            ("swap", MS),
            ("drain", MS * 5),
            ("rested", MS * 7),
            ("total", MS * 100),
        ];
        traces.reload(&end(&"m".parse().unwrap(), &phases, None));
        let whole = kept.span("reload");
        let spans = kept.spans();
        let names: Vec<_> = spans.iter().rev().skip(1).map(|span| span.name.as_ref()).collect();
        assert_eq!(names, ["verify", "load", "warm_up", "swap", "drain"], "a phase of no length is none");
        let mut from = whole.start_time + MS * (100 - 66);
        for (span, took) in spans.iter().rev().skip(1).zip([10, 20, 30, 1, 5]) {
            assert_eq!(span.parent_span_id, whole.span_context.span_id());
            assert_eq!((span.start_time, span.end_time), (from, from + MS * took), "{}", span.name);
            from = span.end_time;
        }
        assert_eq!((from, whole.end_time), (whole.end_time, whole.start_time + MS * 100));
        assert_eq!(attribute(&whole, "rested_ms"), Some(&Value::I64(7)));
        assert_eq!(attribute(&whole, "previous"), Some(&Value::I64(2)));
        assert_eq!(whole.status, Status::Unset);
    }

    #[test]
    fn a_failure_says_why() {
        let (kept, traces) = Kept::traces(0.0);
        let error = Error::new(Reason::LoadFailed, "load failed: broken weights");
        let phases = [("load", Duration::ZERO), ("total", MS * 9)];
        traces.reload(&end(&"m".parse().unwrap(), &phases, Some(&error)));
        let whole = kept.span("reload");
        assert_eq!(whole.status, Status::error("load failed: broken weights"));
        assert_eq!(attribute(&whole, "outcome").map(ToString::to_string).as_deref(), Some("LOAD_FAILED"));
        assert_eq!(kept.spans().len(), 1);
    }
}
