//! Where log lines go and how they look, and which are written: the last may change while the process runs.

use std::{
    collections::HashMap,
    io::IsTerminal as _,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{Event, Level, Metadata, callsite::Identifier, level_filters::LevelFilter};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    layer::{self, Layered, SubscriberExt as _},
    reload,
    util::SubscriberInitExt as _,
};

use crate::config::{LogFormat, filter, plain};

/// What the filter says, and nothing above a level.
type Filter = Layered<LevelFilter, EnvFilter, Registry>;

/// Which lines are written: the filter in `log.level`, lowered or raised. The log is the process's and not a server's, so this is
/// too. Clones are the same one.
#[derive(Debug, Clone)]
pub struct LogFilter {
    /// As the settings have it.
    base: Arc<str>,
    /// The most that is written now, of any target.
    now: Arc<Mutex<LevelFilter>>,
    handle: reload::Handle<Filter, Registry>,
}

static INSTALLED: OnceLock<LogFilter> = OnceLock::new();

impl LogFilter {
    /// That of the log which [`init_logging`] has started. `None`: the log is somebody else's.
    pub fn installed() -> Option<Self> {
        INSTALLED.get().cloned()
    }

    /// With what a subscriber needs to follow it.
    fn new(base: &str) -> Result<(Self, reload::Layer<Filter, Registry>), String> {
        let base = &plain(base)?;
        let (built, now) = build(base, None)?;
        let (layer, handle) = reload::Layer::new(built);
        Ok((Self { base: base.as_str().into(), now: Arc::new(Mutex::new(now)), handle }, layer))
    }

    /// The most that is written now: lines of some targets may be held to less.
    pub fn level(&self) -> LevelFilter {
        *self.now.lock()
    }

    /// Changes the level by what `change` makes of it, alone.
    ///
    /// Below what `log.level` says, nothing above the level is written. Above it, that is raised: up to INFO for every target that it
    /// does not name, and further for torchlane's own. At the level of `log.level` it is that again.
    ///
    /// # Errors
    /// What `change` says; or the log has ended.
    pub fn change<E: From<String>>(
        &self,
        change: impl FnOnce(LevelFilter) -> Result<LevelFilter, E>,
    ) -> Result<LevelFilter, E> {
        let mut now = self.now.lock();
        let wanted = change(*now)?;
        let (built, reached) = build(&self.base, Some(wanted)).map_err(E::from)?;
        self.handle.reload(built).map_err(|error| E::from(error.to_string()))?;
        *now = reached;
        Ok(reached)
    }
}

/// The filter `base` brought to a level, and the level that it has come to. `None`: as it is.
fn build(base: &str, wanted: Option<LevelFilter>) -> Result<(Filter, LevelFilter), String> {
    let most = |filter: &EnvFilter| filter.max_level_hint().unwrap_or(LevelFilter::TRACE);
    let env = filter(base)?;
    let own = most(&env);
    let wanted = wanted.unwrap_or(own);
    let env = if wanted <= own { env } else { filter(&raised(base, own, wanted))? };
    let reached = most(&env).min(wanted);
    Ok((env.and_then(wanted), reached))
}

fn raised(base: &str, own: LevelFilter, wanted: LevelFilter) -> String {
    // What comes later holds, for the same target.
    let mut text = base.to_owned();
    if own < LevelFilter::INFO {
        text += &format!(",{}", wanted.min(LevelFilter::INFO));
    }
    if wanted > LevelFilter::INFO {
        text += &format!(",torchlane={wanted}");
    }
    text
}

/// Libraries' lines are written once a second for each place in their code: what callers send makes some, as often as callers like.
/// Whoever asks for more than INFO gets all of those.
#[derive(Debug, Default)]
struct Sparse(Mutex<HashMap<Identifier, Instant>>);

impl Sparse {
    fn writes(&self, of: &Metadata<'_>, now: Instant) -> bool {
        if *of.level() > Level::INFO || of.target().starts_with("torchlane") {
            return true;
        }
        let mut written = self.0.lock();
        let recent = written.get(&of.callsite()).is_some_and(|last| now - *last < Duration::from_secs(1));
        if !recent {
            written.insert(of.callsite(), now);
        }
        !recent
    }
}

impl<S> layer::Filter<S> for Sparse {
    fn enabled(&self, _: &Metadata<'_>, _: &layer::Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &layer::Context<'_, S>) -> bool {
        self.writes(event.metadata(), Instant::now())
    }
}

/// Lines that may wait for standard error to take them. Beyond, lines are lost: nobody waits for a reader of logs.
const BACKLOG: usize = 16 * 1024;

/// Starts logging to standard error. `level` is a filter as in `info,torchlane::access=off`. What has not been written
/// when the result is dropped has a second to be.
///
/// # Errors
/// The filter cannot be read, or logging was started already.
pub fn init_logging(format: LogFormat, level: &str) -> Result<WorkerGuard, String> {
    let (filter, layer) = LogFilter::new(level)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(BACKLOG)
        .thread_name("log")
        .finish(std::io::stderr());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        // A line that cannot be written (a full disk) is lost. Saying so on the same stream would panic.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    let filtered = tracing_subscriber::registry().with(layer);
    match format {
        LogFormat::Json => {
            filtered.with(lines.json().flatten_event(true).with_filter(Sparse::default())).try_init()
        }
        LogFormat::Pretty => filtered.with(lines.compact().with_filter(Sparse::default())).try_init(),
    }
    .map_err(|error| error.to_string())?;
    let _first = INSTALLED.set(filter);
    Ok(guard)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// What was written.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Which of some lines are written, as letters: of torchlane, of others (upper case), of a target that the filter names (digits).
    fn written(lines: &Lines) -> String {
        lines.0.lock().clear();
        tracing::error!(target: "torchlane::x", "e");
        tracing::warn!(target: "torchlane::x", "w");
        tracing::info!(target: "torchlane::x", "i");
        tracing::debug!(target: "torchlane::x", "d");
        tracing::trace!(target: "torchlane::x", "t");
        tracing::error!(target: "hyper", "E");
        tracing::warn!(target: "hyper", "W");
        tracing::info!(target: "hyper", "I");
        tracing::debug!(target: "hyper", "D");
        // Never written: it would be written for each stream that a client resets.
        tracing::warn!(target: "h2::proto", "R");
        tracing::error!(target: "torchlane::access", "1");
        tracing::info!(target: "torchlane::access", "2");
        String::from_utf8(lines.0.lock().clone()).unwrap().replace('\n', "")
    }

    #[test]
    fn levels_are_lowered_and_raised_around_the_setting_and_come_back_to_it() {
        let lines = Lines::default();
        let writer = lines.clone();
        let (filter, layer) = LogFilter::new("info,torchlane::access=off").unwrap();
        let plain = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .without_time()
            .with_level(false)
            .with_target(false)
            .with_ansi(false);
        let _here = tracing::subscriber::set_default(tracing_subscriber::registry().with(layer).with(plain));
        let own = written(&lines);
        assert_eq!((own.as_str(), filter.level()), ("ewiEWI", LevelFilter::INFO));
        for (level, expected) in [
            (LevelFilter::OFF, ""),
            (LevelFilter::ERROR, "eE"),
            (LevelFilter::WARN, "ewEW"),
            (LevelFilter::INFO, "ewiEWI"),
            (LevelFilter::DEBUG, "ewidEWI"),
            (LevelFilter::TRACE, "ewidtEWI"),
            (LevelFilter::INFO, "ewiEWI"),
        ] {
            assert_eq!(filter.change(|_| Ok::<_, String>(level)), Ok(level));
            assert_eq!(written(&lines), expected, "{level}");
        }
        assert_eq!(filter.change(|_| Err("no".to_owned())), Err("no".to_owned()));
        assert_eq!(filter.level(), LevelFilter::INFO);
    }

    #[test]
    fn a_level_that_is_none_is_refused() {
        for (level, is) in [
            ("info", "info"),
            ("WARNING", "warn"),
            ("warn,torchlane::access=off", "warn,torchlane::access=off"),
            (" error , h2=Warning", "error,h2=warn"),
        ] {
            assert_eq!(plain(level).as_deref(), Ok(is), "{level}");
        }
        for level in [
            "",
            " ",
            "inof",
            "verbose",
            "torchlane",
            "info,",
            "info,h2",
            "h2=",
            "=info",
            "h2=loud",
            "info,,warn",
            "3",
        ] {
            let error = filter(level).unwrap_err();
            assert!(error.contains("off, error, warn, info, debug, trace"), "{level}: {error}");
        }
    }

    #[test]
    fn a_filter_is_raised_no_further_than_it_must_be() {
        let to = |base, own, wanted| raised(base, own, wanted);
        assert_eq!(to("warn", LevelFilter::WARN, LevelFilter::INFO), "warn,info");
        assert_eq!(to("off", LevelFilter::OFF, LevelFilter::WARN), "off,warn");
        assert_eq!(to("error", LevelFilter::ERROR, LevelFilter::DEBUG), "error,info,torchlane=debug");
        assert_eq!(to("info,h2=off", LevelFilter::INFO, LevelFilter::TRACE), "info,h2=off,torchlane=trace");
        let (_, reached) = build("warn,h2=info", Some(LevelFilter::ERROR)).unwrap();
        assert_eq!(reached, LevelFilter::ERROR);
        assert_eq!(build("torchlane=debug", None).unwrap().1, LevelFilter::DEBUG);
    }

    #[test]
    fn a_library_says_the_same_once_a_second() {
        let lines = Lines::default();
        let writer = lines.clone();
        let plain = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .without_time()
            .with_level(false)
            .with_target(false)
            .with_ansi(false)
            .with_filter(Sparse::default());
        let _here = tracing::subscriber::set_default(tracing_subscriber::registry().with(plain));
        for _ in 0..100 {
            tracing::warn!(target: "h2::proto", "a");
            tracing::warn!(target: "h2::proto", "b");
            tracing::debug!(target: "h2::proto", "d");
            tracing::warn!(target: "torchlane::x", "w");
        }
        let count = |letter: char| {
            String::from_utf8(lines.0.lock().clone()).unwrap().chars().filter(|c| *c == letter).count()
        };
        // One second may begin while they are written.
        assert!((1..=2).contains(&count('a')) && (1..=2).contains(&count('b')));
        assert_eq!((count('d'), count('w')), (100, 100));
    }
}
