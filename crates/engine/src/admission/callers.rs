//! What each caller holds of what all share: bytes of requests and answers, open calls, connections.
//!
//! **Invariant**: one caller holds at most its share of what the others leave. So there is always room for one more caller, however
//! much the others hold.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::pressure::{PressureSettings, Resource, Watched};
use crate::call::Door;

/// Calls that a caller may always have open, whatever others hold: enough for health checks.
const ALWAYS: u64 = 8;

/// Who is charged for what a request holds. Today it is the remote address; an authenticated principal can take its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Caller(IpAddr);

impl Caller {
    /// The caller at an address. IPv4 inside IPv6 is IPv4. Of IPv6 the first 64 bits count: one machine has all the rest.
    pub fn at(address: IpAddr) -> Self {
        Self(match address.to_canonical() {
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
            address => address,
        })
    }

    /// A caller of which nothing is known.
    pub const UNKNOWN: Self = Self(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V6(address) => write!(f, "{address}/64"),
            address => address.fmt(f),
        }
    }
}

/// How much there is of each, for all callers together.
#[derive(Debug, Clone, Copy)]
pub struct CallerLimits {
    /// Bytes of requests, and as many of answers.
    pub bytes: u64,
    /// Open calls.
    pub calls: u64,
    /// Connections to the gRPC port.
    pub grpc: u64,
    /// Connections to the HTTP port.
    pub http: u64,
    /// Requests whose work takes long enough to be done away from the threads of the wire, at once.
    pub heavy: usize,
    /// Share of what the others leave that one caller may hold, above 0 and up to 1.
    pub share: f64,
}

/// Something of which there is so much.
#[derive(Debug)]
pub(super) struct Budget {
    limit: u64,
    share: f64,
    held: AtomicU64,
}

impl Budget {
    fn new(limit: u64, share: f64) -> Self {
        Self { limit: limit.max(1), share, held: AtomicU64::new(0) }
    }

    /// What a caller may hold that holds `own` of it: its share of what the others leave.
    fn quota(&self, own: u64) -> u64 {
        let others = self.held.load(Ordering::Relaxed).saturating_sub(own);
        (self.limit.saturating_sub(others) as f64 * self.share).ceil() as u64
    }

    /// Adds `more` to what a caller holds. With `spare`, an eighth of the limit and of the quota is left alone. False, and
    /// nothing changes, where that would be too much.
    pub(super) fn take(&self, own: &AtomicU64, more: u64, spare: bool) -> bool {
        let most = |limit: u64| if spare { limit - limit / 8 } else { limit };
        let within = |now: u64| now.checked_add(more).filter(|sum| *sum <= most(self.limit));
        if self.held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within).is_err() {
            return false;
        }
        let mine = own.fetch_add(more, Ordering::Relaxed) + more;
        let fits = mine <= most(self.quota(mine));
        if !fits {
            self.give(own, more);
        }
        fits
    }

    /// Adds even where it is too much: it is there already.
    pub(super) fn force(&self, own: &AtomicU64, more: u64) {
        self.held.fetch_add(more, Ordering::Relaxed);
        own.fetch_add(more, Ordering::Relaxed);
    }

    pub(super) fn give(&self, own: &AtomicU64, less: u64) {
        own.fetch_sub(less, Ordering::Relaxed);
        self.held.fetch_sub(less, Ordering::Relaxed);
    }

    /// What the caller holds of what it may.
    fn ratio(&self, own: &AtomicU64) -> f64 {
        let own = own.load(Ordering::Relaxed);
        own as f64 / self.quota(own).max(1) as f64
    }

    fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }
}

/// All callers that have a connection, and what they hold together.
#[derive(Debug)]
pub struct Callers {
    pub(super) requests: Budget,
    pub(super) answers: Budget,
    calls: Budget,
    grpc: Budget,
    http: Budget,
    heavy: Arc<Semaphore>,
    heavy_each: usize,
    accounts: Mutex<HashMap<Caller, Weak<Account>>>,
}

impl Callers {
    /// None yet.
    pub fn new(limits: CallerLimits) -> Arc<Self> {
        let budget = |limit| Budget::new(limit, limits.share);
        let heavy = limits.heavy.max(1);
        Arc::new(Self {
            requests: budget(limits.bytes),
            answers: budget(limits.bytes),
            calls: budget(limits.calls),
            grpc: budget(limits.grpc),
            http: budget(limits.http),
            heavy: Arc::new(Semaphore::new(heavy)),
            heavy_each: ((heavy as f64 * limits.share) as usize).clamp(1, heavy),
            accounts: Mutex::default(),
        })
    }

    /// What a caller holds: the same for all of its connections.
    pub fn account(self: &Arc<Self>, caller: Caller) -> Arc<Account> {
        let mut accounts = self.accounts.lock();
        if let Some(account) = accounts.get(&caller).and_then(Weak::upgrade) {
            return account;
        }
        let account = Arc::new(Account {
            all: self.clone(),
            caller,
            requests: AtomicU64::new(0),
            answers: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            grpc: AtomicU64::new(0),
            http: AtomicU64::new(0),
            heavy: Arc::new(Semaphore::new(self.heavy_each)),
            pressed: Mutex::new(None),
            is_pressed: AtomicBool::new(false),
        });
        accounts.insert(caller, Arc::downgrade(&account));
        account
    }

    /// A connection from an address, counted until the result is dropped. `None`: it would be one too many.
    pub fn connect(self: &Arc<Self>, door: Door, from: IpAddr) -> Option<Connected> {
        let account = self.account(Caller::at(from));
        let (all, own) = account.connections(door);
        all.take(own, 1, false).then(|| Connected { account: account.clone(), door })
    }

    /// Bytes of requests and answers now.
    pub fn bytes(&self) -> u64 {
        self.requests.held() + self.answers.held()
    }

    /// Calls that are open now.
    pub fn calls(&self) -> u64 {
        self.calls.held()
    }

    /// Connections by that port.
    pub fn connections(&self, door: Door) -> u64 {
        match door {
            Door::Grpc => self.grpc.held(),
            Door::Http => self.http.held(),
        }
    }

    /// How full the fullest caller's part is, of requests or answers. Notes it for each of them too: a caller that was refused and
    /// sends nothing more is calm.
    pub(super) fn fullest(&self, settings: &PressureSettings, now: Instant) -> f64 {
        let accounts: Vec<_> = self.accounts.lock().values().filter_map(Weak::upgrade).collect();
        accounts.iter().map(|account| account.press(settings, now).0).fold(0.0, f64::max)
    }
}

/// What one caller holds.
#[derive(Debug)]
pub struct Account {
    pub(super) all: Arc<Callers>,
    caller: Caller,
    pub(super) requests: AtomicU64,
    pub(super) answers: AtomicU64,
    calls: AtomicU64,
    grpc: AtomicU64,
    http: AtomicU64,
    heavy: Arc<Semaphore>,
    /// Lanes of this caller that are refused for the bytes that it holds.
    pressed: Mutex<Option<Watched>>,
    is_pressed: AtomicBool,
}

impl Account {
    /// Of the only caller there is: at most `limit` bytes, anything else without limit.
    pub fn alone(limit: u64) -> Arc<Self> {
        let most = u64::MAX >> 1;
        let limits = CallerLimits { bytes: limit, calls: most, grpc: most, http: most, heavy: 1, share: 1.0 };
        Callers::new(limits).account(Caller::UNKNOWN)
    }

    /// Whose it is.
    pub fn caller(&self) -> Caller {
        self.caller
    }

    /// All callers.
    pub fn all(&self) -> &Arc<Callers> {
        &self.all
    }

    /// Bytes of its requests and answers now.
    pub fn now(&self) -> u64 {
        self.requests.load(Ordering::Relaxed) + self.answers.load(Ordering::Relaxed)
    }

    /// How full its part is, 0 to 1: of requests or of answers, whichever is fuller.
    pub fn ratio(&self) -> f64 {
        self.all.requests.ratio(&self.requests).max(self.all.answers.ratio(&self.answers))
    }

    /// Its answers take more than half of what they may: it is not waited for as long as otherwise.
    pub fn is_short(&self) -> bool {
        self.all.answers.ratio(&self.answers) > 0.5
    }

    /// Its connections to the gRPC port.
    pub fn grpc_connections(&self) -> u64 {
        self.grpc.load(Ordering::Relaxed)
    }

    /// One more call would be one too many.
    pub fn has_too_many_calls(&self) -> bool {
        let own = self.calls.load(Ordering::Relaxed);
        own >= ALWAYS && (own >= self.all.calls.quota(own) || self.all.calls.held() >= self.all.calls.limit)
    }

    /// A call is open until the result is dropped. It counts even where it is one too many: it is refused, which takes a moment.
    pub fn open_call(self: &Arc<Self>) -> OpenCall {
        self.all.calls.force(&self.calls, 1);
        OpenCall(self.clone())
    }

    /// Waits for a place for work that takes long: first among this caller's, then among all.
    pub async fn heavy(&self) -> HeavyPlace {
        // Neither is ever closed.
        let own = self.heavy.clone().acquire_owned().await.ok();
        HeavyPlace { _own: own, _all: self.all.heavy.clone().acquire_owned().await.ok() }
    }

    fn connections(&self, door: Door) -> (&Budget, &AtomicU64) {
        match door {
            Door::Grpc => (&self.all.grpc, &self.grpc),
            Door::Http => (&self.all.http, &self.http),
        }
    }

    /// How full its part is, and how many of its lanes are refused for that, from the lowest.
    pub(super) fn press(&self, settings: &PressureSettings, now: Instant) -> (f64, usize) {
        let ratio = self.ratio();
        if settings.in_flight_bytes <= 0.0 {
            return (ratio, 0);
        }
        // Most callers never come near, and wait for no lock.
        if ratio < settings.in_flight_bytes && !self.is_pressed.load(Ordering::Relaxed) {
            return (ratio, 0);
        }
        let mut pressed = self.pressed.lock();
        let watched =
            pressed.get_or_insert_with(|| Watched::new(Resource::InFlightBytes, settings.in_flight_bytes));
        watched.read(ratio, now);
        let level = watched.level();
        if level == 0 {
            *pressed = None;
        }
        self.is_pressed.store(level > 0, Ordering::Relaxed);
        (ratio, level)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut accounts = self.all.accounts.lock();
        // Another may have been made since.
        if accounts.get(&self.caller).is_some_and(|account| account.strong_count() == 0) {
            accounts.remove(&self.caller);
        }
    }
}

/// A connection that counts.
#[derive(Debug)]
pub struct Connected {
    account: Arc<Account>,
    door: Door,
}

impl Connected {
    /// Of whom it is.
    pub fn account(&self) -> &Arc<Account> {
        &self.account
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let (all, own) = self.account.connections(self.door);
        all.give(own, 1);
    }
}

/// A call that counts.
#[derive(Debug)]
pub struct OpenCall(Arc<Account>);

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.all.calls.give(&self.0.calls, 1);
    }
}

/// A place for work that takes long.
#[derive(Debug)]
pub struct HeavyPlace {
    _own: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    fn limits(share: f64) -> CallerLimits {
        CallerLimits { bytes: 1000, calls: 100, grpc: 8, http: 4, heavy: 2, share }
    }

    fn at(address: &str) -> Caller {
        Caller::at(address.parse().unwrap())
    }

    #[test]
    fn a_caller_is_a_machine() {
        assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
        assert_ne!(at("10.0.0.1"), at("10.0.0.2"));
        assert_eq!(at("2001:db8::1"), at("2001:db8::2:3:4:5"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(
            (at("2001:db8::7").to_string(), at("10.0.0.1").to_string()),
            ("2001:db8::/64".to_owned(), "10.0.0.1".to_owned())
        );
    }

    #[test]
    fn there_is_room_for_one_more_caller_however_many_there_are() {
        let callers = Callers::new(limits(0.5));
        let mut held = Vec::new();
        for i in 0..6 {
            let account = callers.account(at(&format!("10.0.0.{i}")));
            let mut own = 0;
            while callers.requests.take(&account.requests, 1, false) {
                own += 1;
            }
            held.push((own, account));
        }
        let got: Vec<_> = held.iter().map(|(own, _)| *own).collect();
        assert_eq!(got, [500, 250, 125, 63, 31, 16], "half of what the others leave, rounded up");
        let (_, first) = held.swap_remove(0);
        callers.requests.give(&first.requests, 500);
        assert!(callers.requests.take(&held[1].1.requests, 100, false), "what is free is shared anew");
    }

    #[test]
    fn connections_and_calls_are_counted_until_they_end() {
        let callers = Callers::new(limits(0.5));
        let (one, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let held: Vec<_> = (0..5).filter_map(|_| callers.connect(Door::Grpc, one)).collect();
        assert_eq!((held.len(), callers.connections(Door::Grpc)), (4, 4));
        let http = callers.connect(Door::Http, one).unwrap();
        let second = callers.connect(Door::Grpc, other).unwrap();
        let account = held[0].account().clone();
        assert!(Arc::ptr_eq(&account, http.account()) && !Arc::ptr_eq(&account, second.account()));
        let calls: Vec<_> = (0..50).map(|_| account.open_call()).collect();
        assert!(account.has_too_many_calls() && !second.account().has_too_many_calls());
        drop((calls, held, http));
        assert!(!account.has_too_many_calls());
        drop((account, second));
        assert_eq!(
            (callers.calls(), callers.connections(Door::Grpc), callers.accounts.lock().len()),
            (0, 0, 0)
        );
    }

    #[test]
    fn health_checks_get_in_where_others_hold_everything() {
        let callers = Callers::new(CallerLimits { calls: 4, ..limits(1.0) });
        let flood = callers.account(at("10.0.0.1"));
        let _held: Vec<_> = (0..20).map(|_| flood.open_call()).collect();
        assert!(flood.has_too_many_calls() && !callers.account(at("10.0.0.2")).has_too_many_calls());
    }

    #[test]
    fn one_caller_never_has_all_places_for_work_that_takes_long() {
        let callers = Callers::new(limits(0.5));
        let (one, other) = (callers.account(at("10.0.0.1")), callers.account(at("10.0.0.2")));
        let first = one.heavy().now_or_never().unwrap();
        let mut second = Box::pin(one.heavy());
        assert!((&mut second).now_or_never().is_none());
        assert!(other.heavy().now_or_never().is_some());
        drop(first);
        assert!(second.now_or_never().is_some());
    }

    proptest! {
        /// Whatever is taken and given back: nobody is over its quota by taking, and the sums agree.
        #[test]
        fn sums_agree(share in 0.05..=1.0, steps in prop::collection::vec((0_usize..4, 1_u64..400, any::<bool>()), 1..80)) {
            let callers = Callers::new(limits(share));
            let accounts: Vec<_> = (0..4).map(|i| callers.account(at(&format!("10.0.0.{i}")))).collect();
            let mut held = [0_u64; 4];
            for (who, bytes, take) in steps {
                let own = &accounts[who].requests;
                let others: u64 = held.iter().sum::<u64>() - held[who];
                if take {
                    let fits = (held[who] + bytes) as f64 <= ((1000 - others) as f64 * share).ceil();
                    prop_assert_eq!(callers.requests.take(own, bytes, false), fits);
                    held[who] += if fits { bytes } else { 0 };
                } else {
                    let less = bytes.min(held[who]);
                    callers.requests.give(own, less);
                    held[who] -= less;
                }
                prop_assert_eq!(own.load(Ordering::Relaxed), held[who]);
                prop_assert_eq!(callers.bytes(), held.iter().sum::<u64>());
            }
        }
    }
}
