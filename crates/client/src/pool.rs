//! The connections of a client: one to each server, kept up by a task of its own. The ring says whose turn it is.
//!
//! A channel here is one connection and never comes back by itself, so that one place alone decides when a server is tried
//! again. A server that cannot be reached is left aside with a growing wait; the others take its share meanwhile. Calls
//! never wait for a server that is known to be gone.

use std::{
    collections::HashMap,
    error::Error as StdError,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use http::Uri;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::transport::Channel;

use super::{
    Backoff,
    address::{Address, CONNECT_TIMEOUT, Target},
    network::Network,
    ring::{Ring, State, Turn},
};

/// A peer that is gone without a word is noticed by pings: on a quiet connection after the one and the other.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Before a server that could not be reached is tried again.
const AGAIN: Backoff = Backoff { first: Duration::from_millis(200), longest: Duration::from_secs(10) };

/// A connection to one server.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) channel: Channel,
    /// An answer has come over it. One that ends before that is no better than none.
    is_proven: AtomicBool,
    /// Cancelled once it is known to be at its end.
    ended: CancellationToken,
}

impl Connection {
    /// An answer came over it.
    pub(super) fn prove(&self) {
        self.is_proven.store(true, Ordering::Relaxed);
    }
}

/// All connections. They end with it.
pub(super) struct Pool {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    network: Arc<dyn Network>,
    ring: Mutex<Ring<Arc<Connection>>>,
    /// Something in the ring is different.
    changed: Notify,
    tasks: TaskTracker,
}

impl Pool {
    /// Begins to connect to all of `targets`; addresses of names are looked up again each `resolve_every`. Must run within
    /// a tokio runtime.
    pub(super) fn start(network: Arc<dyn Network>, targets: Vec<Target>, resolve_every: Duration) -> Self {
        let tasks = TaskTracker::new();
        let shared =
            Arc::new(Shared { network, ring: Mutex::new(Ring::new()), changed: Notify::new(), tasks });
        let stop = CancellationToken::new();
        let follow = follow(shared.clone(), targets, resolve_every);
        shared.tasks.spawn(stop.clone().run_until_cancelled_owned(follow));
        Self { shared, _stop: stop.drop_guard() }
    }

    /// The connection whose turn it is; waits while one is on its way.
    ///
    /// # Errors
    /// No server can be reached, and why.
    pub(super) async fn pick(&self) -> Result<Arc<Connection>, String> {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            let turn = self.shared.ring.lock().next();
            match turn {
                Turn::To(connection) => return Ok(connection),
                Turn::Nobody(why) => return Err(why),
                Turn::Wait => changed.await,
            }
        }
    }

    /// Waits until each server is connected or known to be out of reach.
    ///
    /// # Errors
    /// None can be reached, and why.
    pub(super) async fn settle(&self) -> Result<(), String> {
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            let (is_settled, nobody) = {
                let ring = self.shared.ring.lock();
                (ring.is_settled(), ring.nobody())
            };
            match nobody {
                Some(why) => return Err(why),
                None if is_settled => return Ok(()),
                None => changed.await,
            }
        }
    }

    /// Nothing goes out over this connection any more: it is taken out, and made anew.
    pub(super) fn lost(&self, connection: &Arc<Connection>) {
        self.shared.ring.lock().lost(|other| Arc::ptr_eq(other, connection));
        connection.ended.cancel();
    }
}

impl Shared {
    fn put(&self, address: &Address, state: State<Arc<Connection>>) {
        self.ring.lock().put(address, state);
        self.changed.notify_waiters();
    }

    async fn connect(&self, address: &Address) -> Result<Connection, String> {
        let connect = async {
            let endpoint = address
                .endpoint()?
                .http2_keep_alive_interval(PING_EVERY)
                .keep_alive_timeout(PING_TIMEOUT)
                .keep_alive_while_idle(true);
            let mut stream = Some(self.network.dial(&address.dial).await?);
            // Once: whoever asks for another stream is told that this connection has ended.
            let once = tower::service_fn(move |_: Uri| {
                let stream = stream.take().map(TokioIo::new);
                std::future::ready(stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)))
            });
            Ok::<_, Box<dyn StdError + Send + Sync>>(endpoint.connect_with_connector(once).await?)
        };
        match timeout(CONNECT_TIMEOUT, connect).await {
            Ok(Ok(channel)) => {
                Ok(Connection { channel, is_proven: AtomicBool::new(false), ended: CancellationToken::new() })
            }
            Ok(Err(error)) => Err(root(&*error)),
            Err(_) => Err(format!("no connection within {CONNECT_TIMEOUT:?}")),
        }
    }
}

/// What is behind an error, without those that only pass it on.
fn root(error: &(dyn StdError + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |&cause| cause.source());
    causes.last().map(|cause| cause.to_string()).unwrap_or_default()
}

/// Keeps the ring's members what the targets stand for, and a task for each. Those tasks end with this.
async fn follow(shared: Arc<Shared>, targets: Vec<Target>, resolve_every: Duration) {
    let mut keepers: HashMap<Address, DropGuard> = HashMap::new();
    let mut known: Vec<Vec<Address>> = targets
        .iter()
        .map(|target| match target {
            Target::Fixed(address) => vec![address.clone()],
            Target::Name(_) => Vec::new(),
        })
        .collect();
    // Those that need no looking up do not wait for the others.
    enlist(&shared, &known, &mut keepers);
    loop {
        for (target, known) in targets.iter().zip(&mut known) {
            let Target::Name(name) = target else { continue };
            match look_up(&shared, name).await {
                Ok(addresses) => *known = addresses,
                // What it was before is better than nothing.
                Err(why) => {
                    tracing::debug!(%why, "no addresses");
                    shared.ring.lock().found_none(why);
                    shared.changed.notify_waiters();
                }
            }
        }
        enlist(&shared, &known, &mut keepers);
        if targets.iter().all(|target| matches!(target, Target::Fixed(_))) {
            // The keepers are held until somebody ends this.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(resolve_every).await;
    }
}

async fn look_up(shared: &Shared, name: &str) -> Result<Vec<Address>, String> {
    let found = timeout(CONNECT_TIMEOUT, shared.network.resolve(name)).await;
    let found = found.map_err(|_| format!("{name}: not resolved within {CONNECT_TIMEOUT:?}"))?;
    let found = found.map_err(|error| format!("{name}: {error}"))?;
    if found.is_empty() {
        return Err(format!("{name} has no addresses"));
    }
    let address = |at: std::net::SocketAddr| Address { dial: at.to_string(), authority: name.to_owned() };
    Ok(found.into_iter().map(address).collect())
}

/// Makes the known addresses the ring's members: tasks of those that are new begin, of those that are gone end.
fn enlist(shared: &Arc<Shared>, known: &[Vec<Address>], keepers: &mut HashMap<Address, DropGuard>) {
    let addresses = known.concat();
    keepers.retain(|address, _| addresses.contains(address));
    let new = shared.ring.lock().update(&addresses);
    for address in new {
        let stop = CancellationToken::new();
        let keep = keep(shared.clone(), address.clone());
        shared.tasks.spawn(stop.clone().run_until_cancelled_owned(keep));
        keepers.insert(address, stop.drop_guard());
    }
    shared.changed.notify_waiters();
}

/// Keeps up the connection to one server.
async fn keep(shared: Arc<Shared>, address: Address) {
    let mut failures = 0_u32;
    loop {
        let why = match shared.connect(&address).await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                shared.put(&address, State::Ready(connection.clone()));
                connection.ended.cancelled().await;
                if connection.is_proven.load(Ordering::Relaxed) {
                    // It was good until now: the server may well be back already.
                    failures = 0;
                    continue;
                }
                "the connection ended before anything was answered".to_owned()
            }
            Err(why) => why,
        };
        failures = failures.saturating_add(1);
        let wait = AGAIN.wait(failures, fastrand::f64());
        tracing::debug!(address = %address.dial, %why, failures, ?wait, "left aside");
        // It stays so until it is connected: nobody waits for it.
        shared.put(&address, State::Aside(why));
        tokio::time::sleep(wait).await;
    }
}
