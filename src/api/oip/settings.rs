//! Trace and log settings, by Triton's names. What makes sense while a server runs can be changed, by whoever may load models.

use std::net::SocketAddr;

use tracing::level_filters::LevelFilter;

use super::OpenInference;
use crate::{
    admission::unknown_model,
    api::arrival::{Arrival, asker},
    error::{Error, Reason, Result, shown},
    telemetry::TraceRate,
};

/// A setting of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) enum LogValue {
    Bool(bool),
    Number(u64),
    Text(String),
    /// Of no kind that a setting has.
    None,
}

/// The settings of the log, each by its key.
pub(in crate::api) type LogSettings = [(&'static str, LogValue); 6];

/// The settings of traces, each by its key.
pub(in crate::api) type TraceSettings = [(&'static str, String); 5];

impl<S> OpenInference<S> {
    /// What the server logs, after it was changed by `wanted`, where something is.
    ///
    /// # Errors
    /// A setting that there is not, that cannot be changed, or contradicts another. Then none is changed.
    pub(in crate::api) fn log_settings(
        &self,
        wanted: &[(String, LogValue)],
        (arrival, from): (&Arrival, Option<SocketAddr>),
    ) -> Result<LogSettings> {
        let log = self.with.log.as_ref();
        let now = log.map_or_else(LevelFilter::current, |log| log.level());
        if wanted.iter().all(|wish| is_so(&log_told(now), wish)) {
            return Ok(log_told(now));
        }
        let log = log.ok_or_else(|| {
            Error::new(
                Reason::Unimplemented,
                "the log of this process is not torchlane's to change (log.level)",
            )
            .with_field("settings")
        })?;
        let asker = asker(&arrival.headers, from)?;
        let say = |level: LevelFilter| {
            tracing::info!(target: "torchlane::settings", %asker, %level, "log settings changed");
        };
        let mut before = LevelFilter::OFF;
        // What another caller changes meanwhile is not lost.
        let changed = log.change(|now| {
            let level = log_level(now, wanted).map_err(Refused)?;
            before = now;
            if level < now {
                say(level);
            }
            Ok::<_, Refused>(level)
        });
        let level = changed.map_err(|Refused(error)| error)?;
        if level > before {
            say(level);
        }
        Ok(log_told(level))
    }

    /// What the server traces, after it was changed by `wanted`, where something is. They are the same for every model.
    ///
    /// # Errors
    /// An unknown model; a setting that there is not, or that cannot be changed, or only for a model. Then none is changed.
    pub(in crate::api) fn trace_settings(
        &self,
        model: &str,
        wanted: &[(String, Vec<String>)],
        (arrival, from): (&Arrival, Option<SocketAddr>),
    ) -> Result<TraceSettings> {
        let registry = &self.with.registry;
        if !model.is_empty() && registry.get(model).is_none() {
            return Err(unknown_model(model, registry));
        }
        let sampling = self.with.traces.as_ref().map(|traces| traces.sampling());
        let told = trace_told(sampling.map(|sampling| sampling.rate()));
        let is_so = |(key, values): &(String, Vec<String>)| {
            told.iter().any(|(known, value)| known == key && values.as_slice() == [value.as_str()])
        };
        if wanted.iter().all(is_so) {
            return Ok(told);
        }
        if !model.is_empty() {
            return Err(refused("what is traced is the server's to say, not a model's: leave the model out"));
        }
        let sampling = sampling
            .ok_or_else(|| refused("there is no collector to send traces to: set telemetry.otlp_endpoint"))?;
        let mut rate = sampling.rate();
        for wish in wanted.iter().filter(|wish| !is_so(wish)) {
            change_rate(&mut rate, sampling.begin(), wish)?;
        }
        let asker = asker(&arrival.headers, from)?;
        sampling.set(rate);
        let TraceRate { on, share } = rate;
        tracing::info!(target: "torchlane::settings", %asker, on, share, "trace settings changed");
        Ok(trace_told(Some(rate)))
    }
}

/// What cannot be changed while the server runs.
fn refused(message: &'static str) -> Error {
    Error::new(Reason::Unimplemented, message).with_field("settings")
}

fn bad(message: String) -> Error {
    Error::new(Reason::BadRequest, message).with_field("settings")
}

/// A change of the log that is not made.
struct Refused(Error);

impl From<String> for Refused {
    fn from(problem: String) -> Self {
        Self(Error::new(Reason::Internal, format!("the log cannot be changed: {problem}")))
    }
}

fn log_told(level: LevelFilter) -> LogSettings {
    let verbose = u64::from(level >= LevelFilter::DEBUG) + u64::from(level >= LevelFilter::TRACE);
    [
        ("log_file", LogValue::Text(String::new())),
        ("log_info", LogValue::Bool(level >= LevelFilter::INFO)),
        ("log_warning", LogValue::Bool(level >= LevelFilter::WARN)),
        ("log_error", LogValue::Bool(level >= LevelFilter::ERROR)),
        ("log_verbose_level", LogValue::Number(verbose)),
        ("log_format", LogValue::Text("default".to_owned())),
    ]
}

fn is_so(told: &LogSettings, (key, value): &(String, LogValue)) -> bool {
    told.iter().any(|(known, now)| known == key && now == value)
}

/// The level at which all that is wanted is so. Levels contain each other: who turns one off turns off those above it, who turns
/// one on those below it.
fn log_level(now: LevelFilter, wanted: &[(String, LogValue)]) -> Result<LevelFilter> {
    let (mut least, mut most) = (LevelFilter::OFF, LevelFilter::TRACE);
    for (key, value) in wanted {
        let (on, off) = match key.as_str() {
            "log_error" => (LevelFilter::ERROR, LevelFilter::OFF),
            "log_warning" => (LevelFilter::WARN, LevelFilter::ERROR),
            "log_info" => (LevelFilter::INFO, LevelFilter::WARN),
            "log_verbose_level" => {
                let LogValue::Number(verbose @ 0..=2) = value else {
                    return Err(bad("log_verbose_level is 0, 1 (debug) or 2 (trace)".to_owned()));
                };
                match verbose {
                    0 => most = most.min(LevelFilter::INFO),
                    1 => (least, most) = (least.max(LevelFilter::DEBUG), most.min(LevelFilter::DEBUG)),
                    _ => least = LevelFilter::TRACE,
                }
                continue;
            }
            _ if is_so(&log_told(now), &(key.clone(), value.clone())) => continue,
            "log_file" => return Err(refused("log_file: the log goes to standard error, and nowhere else")),
            "log_format" => {
                return Err(refused("log_format cannot be changed while the server runs: see log.format"));
            }
            _ => return Err(bad(format!("there is no log setting '{}'", shown(key, 64)))),
        };
        match value {
            LogValue::Bool(true) => least = least.max(on),
            LogValue::Bool(false) => most = most.min(off),
            _ => return Err(bad(format!("{key} is true or false"))),
        }
    }
    if least > most {
        let message = "these log settings contradict each other: log_verbose_level above 0 needs log_info, that needs log_warning, that log_error";
        return Err(bad(message.to_owned()));
    }
    Ok(now.clamp(least, most))
}

fn trace_told(rate: Option<TraceRate>) -> TraceSettings {
    let is_on = rate.is_some_and(|rate| rate.on);
    let one_in = rate.and_then(TraceRate::one_in).unwrap_or(0);
    [
        ("trace_file", String::new()),
        ("trace_level", if is_on { TIMESTAMPS } else { OFF }.to_owned()),
        ("trace_rate", one_in.to_string()),
        ("trace_count", "-1".to_owned()),
        ("log_frequency", "0".to_owned()),
    ]
}

const OFF: &str = "OFF";
const TIMESTAMPS: &str = "TIMESTAMPS";

/// No value is what held at the start.
fn change_rate(rate: &mut TraceRate, begin: TraceRate, (key, values): &(String, Vec<String>)) -> Result<()> {
    let values: Vec<&str> = values.iter().map(String::as_str).collect();
    match (key.as_str(), values.as_slice()) {
        ("trace_level", []) => rate.on = begin.on,
        ("trace_level", [OFF]) => rate.on = false,
        ("trace_level", [TIMESTAMPS]) => rate.on = true,
        ("trace_level", levels) if levels.contains(&"TENSORS") => {
            return Err(refused("trace_level TENSORS: traces have times, not tensors"));
        }
        ("trace_level", _) => return Err(bad(format!("trace_level is {OFF} or {TIMESTAMPS}"))),
        ("trace_rate", []) => rate.share = begin.share,
        ("trace_rate", [text]) => {
            let one_in: u32 = text.parse().map_err(|_| {
                bad("trace_rate is a whole number: one request in so many is traced, 0: none".to_owned())
            })?;
            rate.share = if one_in == 0 { 0.0 } else { f64::from(one_in).recip() };
        }
        ("trace_rate", _) => return Err(bad("trace_rate has one value".to_owned())),
        ("trace_file", _) => {
            return Err(refused("trace_file: traces go to a collector: see telemetry.otlp_endpoint"));
        }
        ("trace_count" | "log_frequency", _) => {
            return Err(refused(
                "trace_count and log_frequency are of files: traces go to a collector without an end",
            ));
        }
        _ => return Err(bad(format!("there is no trace setting '{}'", shown(key, 64)))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(now: LevelFilter, wanted: &[(&str, LogValue)]) -> Result<LevelFilter> {
        let wanted: Vec<_> = wanted.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
        log_level(now, &wanted)
    }

    #[test]
    fn levels_of_the_log_contain_each_other() {
        use LogValue::{Bool, Number};
        let (off, error, warn) = (LevelFilter::OFF, LevelFilter::ERROR, LevelFilter::WARN);
        let (info, debug, trace) = (LevelFilter::INFO, LevelFilter::DEBUG, LevelFilter::TRACE);
        for (now, wanted, then) in [
            (info, vec![("log_verbose_level", Number(1))], debug),
            (info, vec![("log_verbose_level", Number(2))], trace),
            (trace, vec![("log_verbose_level", Number(1))], debug),
            (trace, vec![("log_verbose_level", Number(0))], info),
            (warn, vec![("log_verbose_level", Number(0))], warn),
            (info, vec![("log_info", Bool(false))], warn),
            (debug, vec![("log_warning", Bool(false))], error),
            (debug, vec![("log_error", Bool(false))], off),
            (off, vec![("log_info", Bool(true))], info),
            (info, vec![("log_info", Bool(false)), ("log_error", Bool(true))], warn),
            (off, vec![("log_verbose_level", Number(1)), ("log_info", Bool(true))], debug),
            (info, vec![], info),
        ] {
            assert_eq!(level(now, &wanted).unwrap(), then, "{now} {wanted:?}");
            for (key, value) in wanted {
                assert!(is_so(&log_told(then), &(key.to_owned(), value)), "what is asked for is so");
            }
        }
        for wanted in [
            vec![("log_info", Bool(true)), ("log_warning", Bool(false))],
            vec![("log_verbose_level", Number(1)), ("log_info", Bool(false))],
            vec![("log_verbose_level", Number(3))],
            vec![("log_verbose_level", Bool(true))],
            vec![("log_info", Number(1))],
            vec![("log_colour", Bool(true))],
        ] {
            assert_eq!(level(info, &wanted).unwrap_err().reason(), Reason::BadRequest, "{wanted:?}");
        }
        let text = |key, value: &str| [(key, LogValue::Text(value.to_owned()))];
        assert_eq!(level(info, &text("log_file", "")), Ok(info), "it is so already");
        assert_eq!(level(info, &text("log_file", "x")).unwrap_err().reason(), Reason::Unimplemented);
        assert_eq!(level(info, &text("log_format", "ISO8601")).unwrap_err().reason(), Reason::Unimplemented);
    }

    #[test]
    fn trace_settings_are_a_rate() {
        let begin = TraceRate { on: true, share: 0.01 };
        let changed = |key: &str, values: &[&str]| {
            let mut rate = TraceRate { on: false, share: 0.5 };
            let values = values.iter().map(|value| (*value).to_owned()).collect();
            change_rate(&mut rate, begin, &(key.to_owned(), values)).map(|()| rate)
        };
        assert_eq!(changed("trace_rate", &["4"]), Ok(TraceRate { on: false, share: 0.25 }));
        assert_eq!(changed("trace_rate", &["0"]), Ok(TraceRate { on: false, share: 0.0 }));
        assert_eq!(changed("trace_rate", &[]), Ok(TraceRate { on: false, share: 0.01 }));
        assert_eq!(changed("trace_level", &["TIMESTAMPS"]), Ok(TraceRate { on: true, share: 0.5 }));
        assert!(changed("trace_level", &[]).unwrap().on);
        for (key, values, reason) in [
            ("trace_rate", &["-1"][..], Reason::BadRequest),
            ("trace_rate", &["0.5"], Reason::BadRequest),
            ("trace_rate", &["1", "2"], Reason::BadRequest),
            ("trace_level", &["MAX"], Reason::BadRequest),
            ("trace_level", &["TIMESTAMPS", "TENSORS"], Reason::Unimplemented),
            ("trace_file", &["x"], Reason::Unimplemented),
            ("trace_count", &["5"], Reason::Unimplemented),
            ("log_frequency", &["5"], Reason::Unimplemented),
            ("trace_colour", &["red"], Reason::BadRequest),
        ] {
            assert_eq!(changed(key, values).unwrap_err().reason(), reason, "{key} {values:?}");
        }
        let told = trace_told(Some(TraceRate { on: true, share: 0.01 }));
        assert_eq!((told[1].1.as_str(), told[2].1.as_str()), ("TIMESTAMPS", "100"));
        assert_eq!(trace_told(None)[1].1, "OFF");
    }
}
