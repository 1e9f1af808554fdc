//! Where log lines go and how they look.

use std::io::IsTerminal as _;

use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Pretty,
    /// One JSON object a line.
    Json,
}

/// Reads a filter.
///
/// # Errors
/// The filter, and what is wrong with it.
pub(crate) fn filter(level: &str) -> Result<EnvFilter, String> {
    EnvFilter::try_new(level).map_err(|error| format!("'{level}' ({error})"))
}

/// Lines that may wait for standard error to take them. Beyond, lines are lost: nobody waits for a reader of logs.
const BACKLOG: usize = 16 * 1024;

/// Starts logging to standard error. `level` is a filter as in `info,torchlane::access=off`. What has not been written
/// when the result is dropped has a second to be.
///
/// # Errors
/// The filter cannot be read, or logging was started already.
pub fn init_logging(format: LogFormat, level: &str) -> Result<WorkerGuard, String> {
    let filter = filter(level)?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(BACKLOG)
        .thread_name("log")
        .finish(std::io::stderr());
    let base = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        // A line that cannot be written (a full disk) is lost. Saying so on the same stream would panic.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Json => base.json().flatten_event(true).try_init(),
        LogFormat::Pretty => base.compact().try_init(),
    }
    .map_err(|error| error.to_string())?;
    Ok(guard)
}
