//! The HTTP port. Three threads serve it, so that nothing keeps a probe waiting: `probes` accepts connections, reads the first
//! line of each, and answers probes itself; `metrics` answers scrapes; `http` has everything else: REST, the console.
//!
//! A connection stays with the thread that its first request leads to. Those of probes and scrapes carry one request, so that no
//! other work gets to their threads.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::{HeaderName, HeaderValue, header},
    response::Response,
};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::AsyncReadExt as _,
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::TcpConnectInfo;
use tower::util::{MapRequest, MapResponse};

use super::{
    accept::Accepting,
    activity::{Activity, Lively},
    heads::{Busy, Heads},
    io::HELLO,
    paced::Paced,
    peers::Peers,
    taking::InPieces,
};
use crate::{
    admission::Connected,
    api::http::{METRICS, PROBES},
    tasks::{Need, Tasks},
    telemetry,
    threads::OwnRuntime,
};

/// What the port shares with others, and how patient it is.
#[derive(Debug, Clone)]
pub(super) struct Wire {
    /// What is to be known of peers.
    pub(super) peers: Peers,
    /// Notes that something moves.
    pub(super) activity: Arc<Activity>,
    /// How long a connection may rest between two requests.
    pub(super) idle: Duration,
}

/// Says how long a connection is kept.
static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// Connections that a thread may have been handed and not yet taken up.
const HANDED: usize = 1024;

/// What each thread answers.
pub(super) struct Routers {
    pub(super) probes: Router,
    pub(super) metrics: Router,
    /// All of it: a client may keep its connection and ask for other things later.
    pub(super) all: Router,
}

/// A connection whose first bytes were read.
struct Begun<T> {
    stream: T,
    first: Vec<u8>,
    connected: Connected,
}

/// Starts the threads. They answer until `stop`, then end what is open; until `cut` at the latest. The result is there when they
/// have ended.
pub(super) fn start(
    listener: TcpListener,
    routers: Routers,
    stop: &CancellationToken,
    cut: &CancellationToken,
    wire: &Wire,
    tasks: &Tasks,
) -> std::io::Result<oneshot::Receiver<()>> {
    let (ending, ended) = oneshot::channel::<()>();
    // The last thread that ends drops it.
    let ending = Arc::new(ending);
    let Routers { probes, metrics, all } = routers;
    let metrics = hand_to("metrics", Serves { router: metrics, once: true }, stop, cut, wire, &ending)?;
    let others = hand_to("http", Serves { router: all, once: false }, stop, cut, wire, &ending)?;
    let door = Door {
        listener: Arc::new(listener.into_std()?),
        here: Serves { router: probes, once: true },
        to: Handing { metrics, others },
    };
    let (tasks, stop, wire) = (tasks.clone(), stop.clone(), wire.clone());
    thread("probes", cut, ending, async move {
        let accept = |_| door.clone().accept(stop.clone(), wire.clone());
        tasks.run("accept-http", Need::Essential, accept).await;
    })?;
    Ok(ended)
}

/// Runs `work` on a thread of its own, until `cut`.
fn thread(
    name: &str,
    cut: &CancellationToken,
    ending: Arc<oneshot::Sender<()>>,
    work: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let runtime = OwnRuntime::build(tokio::runtime::Builder::new_current_thread().enable_all())?;
    let cut = cut.clone();
    std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ending = ending;
        let _cut = runtime.block_on(cut.run_until_cancelled_owned(work));
    })?;
    Ok(())
}

/// A thread that serves the connections that it is handed.
fn hand_to(
    name: &str,
    serves: Serves,
    stop: &CancellationToken,
    cut: &CancellationToken,
    wire: &Wire,
    ending: &Arc<oneshot::Sender<()>>,
) -> std::io::Result<mpsc::Sender<Begun<std::net::TcpStream>>> {
    let (hand, mut handed) = mpsc::channel::<Begun<std::net::TcpStream>>(HANDED);
    let (stop, wire) = (stop.clone(), wire.clone());
    thread(name, cut, ending.clone(), async move {
        let connections = TaskTracker::new();
        while let Some(Begun { stream, first, connected }) = handed.recv().await {
            let Ok(stream) = TcpStream::from_std(stream) else { continue };
            let begun = Begun { stream, first, connected };
            connections.spawn(serves.clone().connection(begun, stop.clone(), wire.clone()));
        }
        connections.close();
        connections.wait().await;
    })?;
    Ok(hand)
}

/// Accepts connections, and knows where each belongs.
#[derive(Clone)]
struct Door {
    listener: Arc<std::net::TcpListener>,
    here: Serves,
    to: Handing,
}

#[derive(Clone)]
struct Handing {
    metrics: mpsc::Sender<Begun<std::net::TcpStream>>,
    others: mpsc::Sender<Begun<std::net::TcpStream>>,
}

impl Door {
    /// Accepts until `stop`, then waits for what is open here.
    async fn accept(self, stop: CancellationToken, wire: Wire) {
        let Self { listener, here, to } = self;
        let listener = match listener.try_clone().and_then(TcpListener::from_std) {
            Ok(listener) => listener,
            Err(error) => return tracing::error!(%error, "cannot listen for HTTP"),
        };
        let (connections, mut accepting) = (TaskTracker::new(), Accepting::new(telemetry::Door::Http));
        while let Some((stream, connected)) = accepting.next(&listener, &wire.peers, &stop).await {
            let (here, to, stop, wire) = (here.clone(), to.clone(), stop.clone(), wire.clone());
            connections.spawn(async move {
                let begun = stop.run_until_cancelled(timeout(HELLO, Begun::read(stream, connected))).await;
                if let Some(Ok(Some((begun, of)))) = begun {
                    to.hand(begun, of, here, stop, wire).await;
                }
            });
        }
        // Threads that are handed connections end when nothing can be handed to them any more.
        drop(to);
        connections.close();
        connections.wait().await;
    }
}

impl Handing {
    async fn hand(self, begun: Begun<TcpStream>, of: Of, here: Serves, stop: CancellationToken, wire: Wire) {
        let there = match of {
            Of::Probe => {
                drop(self);
                return here.connection(begun, stop, wire).await;
            }
            Of::Metrics => self.metrics,
            Of::Others => self.others,
        };
        let Begun { stream, first, connected } = begun;
        if let Ok(stream) = stream.into_std() {
            let _ending = there.send(Begun { stream, first, connected }).await;
        }
    }
}

/// What a first line asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Probe,
    Metrics,
    Others,
}

impl Of {
    /// By the first bytes of a request. `None`: they do not say yet.
    fn read(first: &[u8]) -> Option<Self> {
        /// No method that a probe uses is longer.
        const METHOD: usize = 8;
        let Some(space) = first.iter().position(|byte| *byte == b' ') else {
            return (first.len() > METHOD).then_some(Self::Others);
        };
        let target = first.get(space + 1..).unwrap_or_default();
        let ends = target.iter().position(|byte| matches!(byte, b' ' | b'?' | b'\r' | b'\n'));
        let known = PROBES.map(|path| (path, Self::Probe)).into_iter().chain([(METRICS, Self::Metrics)]);
        match ends {
            Some(ends) => {
                let path = target.get(..ends).unwrap_or_default();
                let known = known.into_iter().find(|(known, _)| known.as_bytes() == path);
                Some(known.map_or(Self::Others, |(_, of)| of))
            }
            None => {
                let may_be = known.into_iter().any(|(known, _)| known.as_bytes().starts_with(target));
                (!may_be).then_some(Self::Others)
            }
        }
    }
}

impl Begun<TcpStream> {
    /// Reads until it is known what the connection begins with. `None`: it ended before.
    async fn read(mut stream: TcpStream, connected: Connected) -> Option<(Self, Of)> {
        let mut first = Vec::with_capacity(32);
        loop {
            if stream.read_buf(&mut first).await.ok()? == 0 {
                return None;
            }
            if let Some(of) = Of::read(&first) {
                return Some((Self { stream, first, connected }, of));
            }
        }
    }
}

/// What a thread does with a connection.
#[derive(Clone)]
struct Serves {
    router: Router,
    /// The connection ends with its first answer.
    once: bool,
}

impl Serves {
    /// Answers until `stop`, then ends what is open: at once where nobody waits for an answer.
    async fn connection(self, begun: Begun<TcpStream>, stop: CancellationToken, wire: Wire) {
        let Wire { peers, activity, idle } = wire;
        let Begun { stream, first, connected } = begun;
        let (account, outward) = (connected.account().clone(), peers.outward(&connected));
        // Who asks for a change of a model is written down.
        let from =
            TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: stream.peer_addr().ok() };
        let busy = Busy::default();
        let (begins, ends) = (busy.clone(), busy.clone());
        let router = MapRequest::new(self.router, move |mut request: http::Request<Incoming>| {
            begins.begin();
            request.extensions_mut().insert(from.clone());
            request.extensions_mut().insert(account.clone());
            request
        });
        // So that clients need not find out by a request that fails.
        let keeps = HeaderValue::try_from(format!("timeout={}", idle.as_secs())).ok().filter(|_| !self.once);
        let router = MapResponse::new(router, move |mut response: Response| {
            if let Some(keeps) =
                keeps.clone().filter(|_| !response.headers().contains_key(header::CONNECTION))
            {
                response.headers_mut().insert(&KEEP_ALIVE, keeps);
            }
            response.map(|body| ends.until_end(body))
        });
        let router = TowerToHyperService::new(InPieces(router));
        let (rest, answers) = stream.into_split();
        let stream = tokio::io::join(std::io::Cursor::new(first).chain(rest), answers);
        let stream = Paced::new(Lively { inner: stream, activity }, outward);
        let mut builder = http1::Builder::new();
        // hyper has one clock for a connection that rests and for half a head. The latter has a shorter one of its own.
        builder.timer(TokioTimer::new()).header_read_timeout(idle).keep_alive(!self.once);
        let connection = builder.serve_connection(TokioIo::new(Heads::new(stream, busy)), router);
        tokio::pin!(connection);
        tokio::select! {
            // First what was read: a request that came before the stop is answered.
            biased;
            _ended = connection.as_mut() => return,
            () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ended = connection.await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;
    use crate::{
        admission::Account,
        telemetry::{ConnectionMetrics, Untaken},
    };

    fn wire() -> Wire {
        let peers = Peers {
            callers: Account::alone(1).all().clone(),
            untaken: Untaken::default(),
            connections: ConnectionMetrics::default(),
        };
        Wire { peers, activity: Activity::new(), idle: Duration::from_secs(75) }
    }

    #[test]
    fn the_first_bytes_say_where_a_connection_belongs() {
        for (first, of) in [
            ("GET /livez HTTP/1.1\r\n", Some(Of::Probe)),
            ("HEAD /readyz?verbose HTTP/1.1\r\n", Some(Of::Probe)),
            ("GET /readyz\r\n", Some(Of::Probe)),
            ("GET /metrics HTTP/1.1\r\n", Some(Of::Metrics)),
            ("POST /v2/models/m/infer HTTP/1.1", Some(Of::Others)),
            ("GET / HT", Some(Of::Others)),
            ("GET /x", Some(Of::Others)),
            ("GET /livezz", Some(Of::Others)),
            ("GET http://host/livez HTTP/1.1", Some(Of::Others)),
            ("\u{16}\u{3}\u{1}\u{2}\u{0}\u{1}\u{0}\u{1}\u{fc}", Some(Of::Others)),
            ("PROPFINDING", Some(Of::Others)),
            ("", None),
            ("GE", None),
            ("GET ", None),
            ("GET /m", None),
            ("GET /livez", None),
        ] {
            assert_eq!(Of::read(first.as_bytes()), of, "{first:?}");
            // However it is cut, it never says something else first.
            for cut in 0..first.len() {
                let sooner = first.as_bytes().get(..cut).and_then(Of::read);
                assert!(sooner.is_none() || sooner == of, "{first:?} cut at {cut}");
            }
        }
    }

    /// Sends each part when there is an answer to the one before; how long it then takes until the connection is closed.
    async fn closed_after(parts: &[&[u8]]) -> (u64, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, from) = listener.accept().await.unwrap();
        let wire = wire();
        let connected = wire.peers.connect(telemetry::Door::Http, from).unwrap();
        let serves = Serves { router: Router::new(), once: false };
        let (first, later) = parts.split_first().unwrap();
        let begun = Begun { stream, first: first.to_vec(), connected };
        let server = TaskTracker::new();
        server.spawn(serves.connection(begun, CancellationToken::new(), wire));
        let mut answers = Vec::new();
        for part in later {
            client.read_buf(&mut answers).await.unwrap();
            client.write_all(part).await.unwrap();
        }
        let began = tokio::time::Instant::now();
        client.read_to_end(&mut answers).await.unwrap();
        server.close();
        server.wait().await;
        (began.elapsed().as_secs(), String::from_utf8(answers).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn half_a_request_is_not_waited_for_and_a_connection_may_rest() {
        let (whole, half) = (&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &b"GET / HT"[..]);
        assert_eq!(closed_after(&[half]).await.0, HELLO.as_secs());
        assert_eq!(closed_after(&[whole, half]).await.0, HELLO.as_secs(), "nor for half of a later one");
        let (rested, answers) = closed_after(&[whole, whole]).await;
        assert_eq!(rested, 75);
        assert_eq!(answers.matches("keep-alive: timeout=75\r\n").count(), 2, "{answers}");
    }

    #[tokio::test]
    async fn probes_and_scrapes_are_answered_while_the_thread_of_other_requests_is_held() {
        use axum::routing::get;
        let (release, held) = std::sync::mpsc::channel::<()>();
        let held = Arc::new(parking_lot::Mutex::new(held));
        let (begins, mut begun) = mpsc::channel(1);
        let [livez, _] = PROBES;
        let all = Router::new().route(
            "/v2",
            get(async move || {
                begins.send(()).await.unwrap();
                let _released = held.lock().recv();
                "v2"
            }),
        );
        let routers = Routers {
            probes: Router::new().route(livez, get(async || "alive")),
            metrics: Router::new().route(METRICS, get(async || "metrics")),
            all,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, cut) = (CancellationToken::new(), CancellationToken::new());
        let tasks = Tasks::new(crate::tasks::TaskMetrics::default(), tokio::runtime::Handle::current());
        let ended = start(listener, routers, &stop, &cut, &wire(), &tasks).unwrap();
        let ask = async |path: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
            stream
        };
        let answer = async |mut stream: TcpStream| {
            let mut text = String::new();
            stream.read_to_string(&mut text).await.unwrap();
            text
        };
        let slow = ask("/v2").await;
        begun.recv().await.unwrap();
        for (path, text) in [("/livez", "alive"), ("/metrics", "metrics"), ("/livez?again", "alive")] {
            let told = answer(ask(path).await).await;
            assert!(told.starts_with("HTTP/1.1 200") && told.ends_with(text), "{path}: {told}");
        }
        drop(release);
        stop.cancel();
        assert!(answer(slow).await.ends_with("v2"));
        let _dropped = ended.await;
    }
}
