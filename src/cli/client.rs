//! A connection to a server, for the commands that talk to one.

use std::time::Duration;

use tonic::{Status, transport::Endpoint};

use super::Failure;
use crate::client::{self, ClientError, ErrorKind, Stub};

#[derive(Debug, Clone, clap::Args)]
pub(super) struct ServerArgs {
    /// Address of the gRPC server
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051", env = "TORCHLANE_ADDR")]
    addr: String,
}

impl ServerArgs {
    /// The address as it was given, if it is one that can be spoken to.
    pub(super) fn checked(&self) -> Result<&str, Failure> {
        self.endpoint().map(|_| self.addr.as_str())
    }

    fn endpoint(&self) -> Result<Endpoint, Failure> {
        client::endpoint(&self.addr).map_err(|error| Failure::Usage(format!("--addr {error}")))
    }

    /// One connection. A person at a terminal sees each refusal, so nothing is tried again.
    pub(super) async fn connect(&self) -> Result<Stub, Failure> {
        let channel = self.endpoint()?.connect().await.map_err(|_| {
            Failure::Failed(format!(
                "cannot reach torchlane at {}: is `torchlane serve` running there? (--addr)",
                self.addr
            ))
        })?;
        Ok(client::stub(channel))
    }
}

/// Runs a command's future.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::failed)?
        .block_on(work)
}

/// A refusal in one line: what, why, and when to try again.
pub(super) fn refused(status: Status) -> Failure {
    let error = ClientError::from(status);
    Failure::Failed(match error.kind() {
        // The clock of this side; the server's refusal may come a moment later.
        ErrorKind::DeadlineExceeded if error.reason().is_none() => {
            "no answer came within --timeout [DEADLINE_EXCEEDED]".to_owned()
        }
        ErrorKind::Unreachable | ErrorKind::Broken => {
            "what answers there does not speak gRPC, or hung up: is --addr the gRPC port?".to_owned()
        }
        _ => error.to_string(),
    })
}

/// Shows a spinner once the work has taken a second, if a person is looking.
pub(super) async fn with_spinner<T>(what: String, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    match tokio::time::timeout(Duration::from_secs(1), work.as_mut()).await {
        Ok(done) => done,
        Err(_) => {
            let spinner = indicatif::ProgressBar::new_spinner().with_message(what);
            spinner.enable_steady_tick(Duration::from_millis(100));
            let done = work.await;
            spinner.finish_and_clear();
            done
        }
    }
}

/// `1.5 ms`
pub(super) fn show_duration(duration: Option<prost_types::Duration>) -> String {
    let duration: Duration = duration.and_then(|d| d.try_into().ok()).unwrap_or_default();
    match duration.as_micros() {
        0..1000 => format!("{} us", duration.as_micros()),
        1000..1_000_000 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", duration.as_secs_f64()),
    }
}

/// `45.2 MB`
pub(super) fn show_bytes(bytes: u64) -> String {
    match bytes {
        0..1000 => format!("{bytes} B"),
        1000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}
