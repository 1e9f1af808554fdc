//! The HTTP port: probes, metrics.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::io::HELLO;

/// Answers until `stop`, then ends what is open: at once where nobody waits for an answer.
pub(super) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, most likely: others may close theirs.
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let (router, stop) = (TowerToHyperService::new(router.clone()), stop.clone());
        connections.spawn(async move {
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

    #[tokio::test(start_paused = true)]
    async fn half_a_request_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut half = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let stop = CancellationToken::new();
        let server = TaskTracker::new();
        server.spawn(serve(listener, Router::new(), stop.clone()));
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
