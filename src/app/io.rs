//! The threads that read and write the wire. Each runs a runtime of its own and shares nothing with the others: on few
//! cores that beats a pool that steals work. One task accepts connections and deals them out in turn.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::TcpConnectInfo;
use tower::util::MapRequest;

use super::{
    accept::Accepting,
    activity::{Activity, Lively},
    frames::Metered,
    peers::Peers,
    taking::{InPieces, Streams},
};
use crate::{
    admission::Connected,
    sched,
    telemetry::{Closed, Door},
    threads::OwnRuntime,
};

/// Connections that an I/O thread may have been dealt and not yet taken up.
const DEALT: usize = 1024;
/// Bytes that a client may send ahead, on a stream and on a connection: a few large tensors.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// About that much the newest connections of one caller may send ahead together. It waits in h2, where nothing counts it.
const CALLER_WINDOW: u64 = 64 << 20;
/// Each connection may send ahead that much (RFC 9113, section 6.9.2).
const LEAST_WINDOW: u32 = 65_535;
/// Streams that are reset because of what their client did, in the life of a connection. A good client that goes on sending a message
/// after it was refused makes some too.
const RESETS: usize = 1 << 16;

/// How much of the wire there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Threads.
    pub(super) threads: usize,
    /// Requests on one connection at once. Those of all connections are served in turn, so a flood on one keeps others
    /// waiting for so many at most.
    pub(super) streams: u32,
}

/// A connection on its way to its thread.
type Dealt = (std::net::TcpStream, Connected);

/// Time for a client to open the conversation.
pub(super) const HELLO: Duration = Duration::from_secs(10);

/// The running I/O threads.
#[derive(Debug)]
pub(super) struct IoThreads {
    deal: Mutex<Vec<mpsc::Sender<Dealt>>>,
    /// Each thread holds a sender until it ends.
    ended: tokio::sync::Mutex<mpsc::Receiver<()>>,
    peers: Peers,
}

impl IoThreads {
    /// Starts `limits.threads` threads that serve `service` until `stop`, and then until the open calls have ended or `kill`.
    ///
    /// What `enter` gives lives as long as its thread: the wire runs quick passes itself.
    pub(super) fn start<S>(
        service: S,
        enter: impl Fn() -> Box<dyn std::any::Any> + Clone + Send + 'static,
        limits: Limits,
        activity: &Arc<Activity>,
        stop: &CancellationToken,
        kill: &CancellationToken,
        peers: &Peers,
    ) -> std::io::Result<Self>
    where
        S: tower::Service<http::Request<hyper::body::Incoming>, Response = http::Response<tonic::body::Body>>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
        S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (mut deals, (runs, ended)) = (Vec::new(), mpsc::channel::<()>(1));
        for index in 0..limits.threads.max(1) {
            let (deal, mut dealt) = mpsc::channel::<Dealt>(DEALT);
            let (service, stop, kill, enter) = (service.clone(), stop.clone(), kill.clone(), enter.clone());
            let (activity, peers, runs) = (activity.clone(), peers.clone(), runs.clone());
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = OwnRuntime::build(builder.enable_all().on_thread_unpark(sched::wire_woke))?;
            std::thread::Builder::new().name(format!("io-{index}")).spawn(move || {
                let _runs = runs;
                let _entered = enter();
                runtime.block_on(async move {
                    let connections = TaskTracker::new();
                    while let Some((stream, connected)) = dealt.recv().await {
                        let Ok(stream) = TcpStream::from_std(stream) else { continue };
                        let (service, activity) = (service.clone(), activity.clone());
                        connections.spawn(connection(
                            (stream, connected),
                            service,
                            limits,
                            activity,
                            stop.clone(),
                            kill.clone(),
                            peers.clone(),
                        ));
                    }
                    connections.close();
                    connections.wait().await;
                });
            })?;
            deals.push(deal);
        }
        Ok(Self { deal: Mutex::new(deals), ended: tokio::sync::Mutex::new(ended), peers: peers.clone() })
    }

    /// Accepts connections and deals them out until `stop`.
    pub(super) async fn accept(self: Arc<Self>, listener: Arc<TcpListener>, stop: CancellationToken) {
        let (mut turn, mut accepting) = (0_usize, Accepting::new(Door::Grpc));
        while let Some((stream, connected)) = accepting.next(&listener, &self.peers, &stop).await {
            let Ok(stream) = stream.into_std() else { continue };
            turn = turn.wrapping_add(1);
            let next = {
                let deal = self.deal.lock();
                deal.get(turn % deal.len().max(1)).cloned()
            };
            let Some(deal) = next else { break };
            if deal.send((stream, connected)).await.is_err() {
                break;
            }
        }
    }

    /// Waits until every connection has ended.
    pub(super) async fn ended(&self) {
        self.deal.lock().clear();
        let _all_ended = self.ended.lock().await.recv().await;
    }
}

/// Windows of a stream and of the connection itself, for the last one of so many of its caller.
fn windows(connections: u64) -> (u32, u32) {
    let part = u32::try_from(CALLER_WINDOW / connections.max(1)).unwrap_or(u32::MAX);
    let connection = part.clamp(LEAST_WINDOW, CONNECTION_WINDOW);
    (connection.min(STREAM_WINDOW), connection)
}

/// The bytes that open every HTTP/2 connection (RFC 9113, section 3.4).
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();

/// A connection that has said hello. One that says nothing is given up: pings find out who is gone only after that.
async fn greeted(mut stream: TcpStream, activity: Arc<Activity>) -> Option<impl AsyncRead + AsyncWrite> {
    let mut preface = [0; PREFACE];
    tokio::time::timeout(HELLO, stream.read_exact(&mut preface)).await.ok()?.ok()?;
    let (rest, answers) = stream.into_split();
    Some(Lively { inner: tokio::io::join(std::io::Cursor::new(preface).chain(rest), answers), activity })
}

async fn connection<S>(
    (stream, connected): (TcpStream, Connected),
    service: S,
    limits: Limits,
    activity: Arc<Activity>,
    stop: CancellationToken,
    kill: CancellationToken,
    peers: Peers,
) where
    S: tower::Service<http::Request<hyper::body::Incoming>, Response = http::Response<tonic::body::Body>>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (stream_window, connection_window) = windows(connected.account().grpc_connections());
    let mut builder = hyper::server::conn::http2::Builder::new(Streams(peers.outward(&connected)));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams)
        .initial_stream_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_header_list_size(16 * 1024)
        .max_pending_accept_reset_streams(4 * limits.streams as usize)
        .max_local_error_reset_streams(RESETS)
        .keep_alive_interval(Some(Duration::from_secs(30)))
        .keep_alive_timeout(Duration::from_secs(20));
    // Who asks for a change of a model is written down.
    let from = TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: stream.peer_addr().ok() };
    let account = connected.account().clone();
    let remote = from.remote_addr;
    let service = MapRequest::new(service, move |mut request: http::Request<_>| {
        request.extensions_mut().insert(from.clone());
        request.extensions_mut().insert(account.clone());
        request
    });
    let greeted = tokio::select! {
        greeted = greeted(stream, activity) => greeted,
        () = stop.cancelled() => return,
    };
    let Some(stream) = greeted else { return };
    let metrics = peers.connections.clone();
    let stream = Metered::new(stream, PREFACE, move || {
        metrics.count(Door::Grpc, Closed::Frames);
        tracing::debug!(from = ?remote, "too many frames that bring no work");
    });
    let connection =
        builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(InPieces(service)));
    tokio::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                return;
            }
            // GOAWAY: the client sends nothing new here, open calls end.
            () = stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
            () = kill.cancelled() => return,
        }
    }
}

/// Binds, or says what to do about it.
pub(super) async fn bind(addr: SocketAddr, flag: &str) -> Result<TcpListener, String> {
    TcpListener::bind(addr).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            format!("{addr} is in use by another process: stop it, or choose another with {flag}")
        }
        std::io::ErrorKind::PermissionDenied => {
            format!("{addr} may not be listened on: choose a port above 1023 with {flag}")
        }
        _ => format!("cannot listen on {addr} ({error}): choose another address with {flag}"),
    })
}

/// Shared by all services of a process.
pub(super) type SharedCap = Arc<crate::layers::RequestCap>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_connections_of_one_caller_have_little_each() {
        assert_eq!(windows(1), (STREAM_WINDOW, CONNECTION_WINDOW));
        assert_eq!(windows(4), windows(1));
        assert_eq!(windows(64), (1 << 20, 1 << 20));
        assert_eq!(windows(100_000), (LEAST_WINDOW, LEAST_WINDOW));
        let all: u64 = (1..=4096).map(|connections| u64::from(windows(connections).1)).sum();
        assert!(all < 1 << 30, "{all}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let began = tokio::time::Instant::now();
        assert!(greeted(accepted, Activity::new()).await.is_none());
        assert_eq!(began.elapsed().as_secs(), HELLO.as_secs());
        drop(silent);
    }
}
