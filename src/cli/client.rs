//! A connection to a server, for the commands that talk to one.

use std::time::Duration;

use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::Failure;
use crate::client::{self, ClientError, ErrorKind, Stub};

#[derive(Debug, Clone, clap::Args)]
pub(super) struct ServerArgs {
    /// Address of the gRPC server
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051", env = "TORCHLANE_ADDR")]
    addr: String,
}

impl ServerArgs {
    pub(super) fn addr(&self) -> &str {
        &self.addr
    }

    /// The address as it was given, if it is one that can be spoken to.
    pub(super) fn checked(&self) -> Result<&str, Failure> {
        self.endpoint().map(|_| self.addr.as_str())
    }

    fn endpoint(&self) -> Result<Endpoint, Failure> {
        client::endpoint(&self.addr).map_err(|error| Failure::Usage(format!("--addr {error}")))
    }

    /// One connection. A person at a terminal sees each refusal, so nothing is tried again.
    pub(super) async fn connect(&self) -> Result<Stub, Failure> {
        self.channel().await.map(client::stub)
    }

    /// The same, for other services than torchlane's own.
    pub(super) async fn channel(&self) -> Result<Channel, Failure> {
        self.endpoint()?.connect().await.map_err(|_| {
            Failure::Failed(format!(
                "cannot reach torchlane at {}: is `torchlane serve` running there? (--addr)",
                self.addr
            ))
        })
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
