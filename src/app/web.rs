//! The HTTP port: probes, metrics, REST. It has a thread of its own: what is parsed there keeps neither the gRPC wire nor what
//! looks after the server waiting.

use std::sync::Arc;

use axum::Router;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::TcpConnectInfo;
use tower::util::MapRequest;

use super::{
    activity::{Activity, Lively},
    io::HELLO,
    paced::Paced,
    peers::Peers,
    taking::InPieces,
};
use crate::telemetry::Door;

/// What is to be known of peers, and who notes that something moves.
type Wire = (Peers, Arc<Activity>);

/// Starts the thread. It answers until `stop`, then ends what is open; until `cut` at the latest. The result is there when it
/// has ended.
pub(super) fn start(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
    cut: CancellationToken,
    wire: Wire,
) -> std::io::Result<oneshot::Receiver<()>> {
    let listener = listener.into_std()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ending, ended) = oneshot::channel::<()>();
    std::thread::Builder::new().name("http".to_owned()).spawn(move || {
        let _ending = ending;
        runtime.block_on(async {
            match TcpListener::from_std(listener) {
                Ok(listener) => {
                    let _cut = cut.run_until_cancelled(serve(listener, router, stop, wire)).await;
                }
                Err(error) => tracing::error!(%error, "cannot listen for HTTP"),
            }
        });
    })?;
    Ok(ended)
}

/// Answers until `stop`, then ends what is open: at once where nobody waits for an answer.
async fn serve(listener: TcpListener, router: Router, stop: CancellationToken, (peers, activity): Wire) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, remote)) = accepted else {
            // Out of file descriptors, most likely: others may close theirs.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let Some(connected) = peers.connect(Door::Http, remote) else { continue };
        let _best_effort = stream.set_nodelay(true);
        // Who asks for a change of a model is written down.
        let from = TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: Some(remote) };
        let (account, outward) = (connected.account().clone(), peers.outward(&connected));
        let router = MapRequest::new(router.clone(), move |mut request: http::Request<Incoming>| {
            request.extensions_mut().insert(from.clone());
            request.extensions_mut().insert(account.clone());
            request
        });
        let (router, stop) = (TowerToHyperService::new(InPieces(router)), stop.clone());
        let stream = Paced::new(Lively { inner: stream, activity: activity.clone() }, outward);
        connections.spawn(async move {
            let _connected = connected;
            let mut builder = http1::Builder::new();
            // Half a request does not stay open for ever, nor does a connection that says nothing.
            builder.timer(TokioTimer::new()).header_read_timeout(HELLO);
            let connection = builder.serve_connection(TokioIo::new(stream), router);
            tokio::pin!(connection);
            tokio::select! {
                _ended = connection.as_mut() => return,
                () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            let _ended = connection.await;
        });
    }
    connections.close();
    connections.wait().await;
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };

    use super::*;
    use crate::{
        admission::Account,
        telemetry::{ConnectionMetrics, Untaken},
    };

    #[tokio::test(start_paused = true)]
    async fn half_a_request_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut half = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let stop = CancellationToken::new();
        let peers = Peers {
            callers: Account::alone(1).all().clone(),
            untaken: Untaken::default(),
            connections: ConnectionMetrics::default(),
        };
        let server = TaskTracker::new();
        server.spawn(serve(listener, Router::new(), stop.clone(), (peers, Activity::new())));
        half.write_all(b"GET / HT").await.unwrap();
        let began = tokio::time::Instant::now();
        let mut answer = Vec::new();
        half.read_to_end(&mut answer).await.unwrap();
        assert_eq!(began.elapsed().as_secs(), HELLO.as_secs());
        stop.cancel();
        server.close();
        server.wait().await;
    }
}
