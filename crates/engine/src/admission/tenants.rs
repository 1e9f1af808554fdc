//! Who calls, and what they may have: a share of each lane, a highest lane, a rate, a number of requests at once.

use std::{
    collections::{BTreeMap, HashMap},
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use governor::{
    Quota, RateLimiter,
    clock::Clock,
    middleware::NoOpMiddleware,
    nanos::Nanos,
    state::{InMemoryState, direct::NotKeyed},
};
use parking_lot::RwLock;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use torchlane_model::{
    Lane, TenantId,
    error::{Error, Reason, Result},
};

use crate::call::Purpose;

/// What a tenant may have. `default` in the settings is for all that are not named there.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TenantSettings {
    /// Share of a lane's compute time beside other tenants that have work in it.
    pub weight: f64,
    /// Requests that ask for a more urgent lane are put into this one.
    pub max_lane: Lane,
    /// Requests a second, on average. 0: any number.
    pub rate: f64,
    /// Requests that may come at once within that rate. 0: a second's worth.
    pub burst: u32,
    /// Requests in the server at once, waiting ones included. 0: any number.
    pub max_in_flight: usize,
    /// Its requests and answers may be recorded as samples, where `samples.record` asks for any.
    pub record: bool,
}

impl Default for TenantSettings {
    fn default() -> Self {
        Self { weight: 1.0, max_lane: Lane::Critical, rate: 0.0, burst: 0, max_in_flight: 0, record: true }
    }
}

impl TenantSettings {
    /// What is wrong with it: the key, the value, what is allowed.
    pub fn problem(&self) -> Option<(&'static str, String, &'static str)> {
        if !(self.weight.is_finite() && (0.001..=1000.0).contains(&self.weight)) {
            return Some(("weight", self.weight.to_string(), "0.001 to 1000"));
        }
        if !(self.rate == 0.0 || (0.01..=1e6).contains(&self.rate)) {
            return Some(("rate", self.rate.to_string(), "0 (any), or 0.01 to 1000000 requests a second"));
        }
        None
    }
}

type Bucket = RateLimiter<NotKeyed, InMemoryState, PausableClock, NoOpMiddleware<Nanos>>;

/// Someone whose requests are counted together.
#[derive(Debug)]
pub struct Tenant {
    id: TenantId,
    /// As in metrics: `default` for all that are not named in the settings.
    label: Arc<str>,
    settings: TenantSettings,
    bucket: Option<Bucket>,
    in_flight: AtomicUsize,
    /// Of one request, in ns of an executor.
    mean_cost: AtomicU64,
    /// All of them so far, in ns.
    compute: AtomicU64,
}

/// A mean starts here until a request has run.
const FIRST_COST: Duration = Duration::from_millis(1);

impl Tenant {
    fn new(id: u32, label: &str, settings: TenantSettings) -> Self {
        let bucket = (settings.rate > 0.0).then(|| {
            let burst = if settings.burst > 0 { settings.burst } else { settings.rate.ceil() as u32 };
            let burst = NonZeroU32::new(burst).unwrap_or(NonZeroU32::MIN);
            let each = Duration::from_secs_f64(1.0 / settings.rate).max(Duration::from_nanos(1));
            let quota = Quota::with_period(each).unwrap_or(Quota::per_second(burst)).allow_burst(burst);
            RateLimiter::direct_with_clock(quota, PausableClock)
        });
        Self {
            id: TenantId(id),
            label: label.into(),
            settings,
            bucket,
            in_flight: AtomicUsize::new(0),
            mean_cost: AtomicU64::new(nanos(FIRST_COST)),
            compute: AtomicU64::new(0),
        }
    }

    /// Its identity.
    pub fn id(&self) -> TenantId {
        self.id
    }

    /// Its name in metrics.
    pub fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// Its share beside others.
    pub fn weight(&self) -> f64 {
        self.settings.weight
    }

    /// The lane that it gets when it asks for `lane`.
    pub fn lane(&self, lane: Lane) -> Lane {
        lane.max(self.settings.max_lane)
    }

    /// Whether its requests and answers may be kept.
    pub fn may_be_recorded(&self) -> bool {
        self.settings.record
    }

    /// Seconds of an executor that one of its requests costs, over its weight.
    pub fn turn(&self) -> f64 {
        self.mean_cost.load(Ordering::Relaxed) as f64 * 1e-9 / self.settings.weight
    }

    /// That many requests of it cost so much each.
    pub fn charge(&self, each: Duration, requests: u32) {
        self.compute.fetch_add(nanos(each * requests), Ordering::Relaxed);
        // Lost updates between executors only make the mean a little slower.
        let mean = self.mean_cost.load(Ordering::Relaxed);
        let next = mean - mean / 16 + nanos(each) / 16;
        self.mean_cost.store(next.max(1), Ordering::Relaxed);
    }

    /// Time of executors that it has had.
    pub fn compute(&self) -> Duration {
        Duration::from_nanos(self.compute.load(Ordering::Relaxed))
    }

    /// Lets a request in, until the result is dropped.
    ///
    /// # Errors
    /// Over its rate, or over its number of requests at once.
    pub fn enter(self: &Arc<Self>) -> Result<TenantPlace> {
        let place = TenantPlace(self.clone());
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed);
        let most = self.settings.max_in_flight;
        if most > 0 && now >= most {
            let message =
                format!("tenant '{}' has {most} requests here already (tenants.*.max_in_flight)", self.label);
            let error = Error::new(Reason::TenantLimit, message);
            return Err(error.with_retry_after(Duration::from_millis(100)));
        }
        if let Some(Err(early)) = self.bucket.as_ref().map(RateLimiter::check) {
            let wait = early.wait_time_from(PausableClock.now());
            let message = format!(
                "tenant '{}' sends more than {} requests a second (tenants.*.rate)",
                self.label, self.settings.rate
            );
            return Err(Error::new(Reason::RateLimited, message).with_retry_after(wait));
        }
        Ok(place)
    }

    /// Counts a request that needs no leave: it has been let in before, or it is the server's own.
    pub fn stay(self: &Arc<Self>) -> TenantPlace {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        TenantPlace(self.clone())
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// One request of a tenant that is in the server.
#[derive(Debug)]
pub struct TenantPlace(Arc<Tenant>);

impl Drop for TenantPlace {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// tokio's clock, which tests can pause, for the token buckets.
#[derive(Debug, Clone, Copy, Default)]
struct PausableClock;

impl Clock for PausableClock {
    /// Since the first look at it.
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        let start = *START.get_or_init(Instant::now);
        nanos(Instant::now().saturating_duration_since(start)).into()
    }
}

/// Accounts for names that no setting knows. Names are the callers' to make up: beyond this those make room that have
/// nothing in the server, and if all have, new names share one account.
const MADE_UP: usize = 1024;

/// All tenants.
#[derive(Debug)]
pub struct Tenants {
    named: HashMap<String, Arc<Tenant>>,
    default: TenantSettings,
    /// Those that no setting names, as they come.
    others: RwLock<Others>,
    /// Of those without a name, and of those that are too many.
    rest: Arc<Tenant>,
    /// Copies of requests that are run to compare versions.
    shadow: Arc<Tenant>,
}

/// In metrics.
const SHADOW: &str = "(shadow)";

#[derive(Debug, Default)]
struct Others {
    accounts: HashMap<String, Arc<Tenant>>,
    /// How many there have been.
    made: u32,
    /// Time of executors that those had which are gone.
    gone: Duration,
    warned: Option<Instant>,
}

/// Between two warnings that there are too many names.
const WARN: Duration = Duration::from_secs(60);

impl Others {
    fn make_room(&mut self) {
        let gone = &mut self.gone;
        self.accounts.retain(|_, tenant| {
            let busy = Arc::strong_count(tenant) > 1;
            *gone += if busy { Duration::ZERO } else { tenant.compute() };
            busy
        });
        if self.warned.is_some_and(|warned| warned.elapsed() < WARN) {
            return;
        }
        self.warned = Some(Instant::now());
        tracing::warn!(target: "torchlane::admission",
            kept = self.accounts.len(),
            "more than {MADE_UP} values of x-tenant that no setting knows: accounts of idle ones are dropped"
        );
    }
}

impl Tenants {
    /// Those of the settings.
    pub fn new(settings: &BTreeMap<String, TenantSettings>) -> Self {
        let default = settings.get("default").copied().unwrap_or_default();
        let named = settings
            .iter()
            .filter(|(name, _)| *name != "default")
            .zip(1..)
            .map(|((name, settings), id)| (name.clone(), Arc::new(Tenant::new(id, name, *settings))))
            .collect();
        let rest = Arc::new(Tenant::new(0, "default", default));
        let shadow = TenantSettings { max_lane: Lane::Low, ..TenantSettings::default() };
        let shadow = Arc::new(Tenant::new(u32::MAX, SHADOW, shadow));
        Self { named, default, others: RwLock::default(), rest, shadow }
    }

    /// The account of copies of requests that are run to compare versions: no caller pays for them.
    pub fn shadow(&self) -> Arc<Tenant> {
        self.shadow.clone()
    }

    /// Time of executors by label: each tenant of the settings, and `default` for all others together.
    pub fn compute(&self) -> Vec<(Arc<str>, Duration)> {
        let others = self.others.read();
        let others: Duration =
            others.gone + others.accounts.values().map(|tenant| tenant.compute()).sum::<Duration>();
        let named = self.named.values().map(|tenant| (tenant.label().clone(), tenant.compute()));
        let shadow = (self.shadow.label().clone(), self.shadow.compute());
        let shadow = Some(shadow).filter(|(_, compute)| !compute.is_zero());
        named.chain([(self.rest.label().clone(), self.rest.compute() + others)]).chain(shadow).collect()
    }

    /// Lets a request in: whose it is, and its place, which counts until it is dropped.
    ///
    /// # Errors
    /// What a caller sent is over its rate, or over its number of requests at once. Nothing else needs leave: it follows from a
    /// request that has been let in.
    pub fn admit(&self, name: &str, purpose: Purpose) -> Result<(Arc<Tenant>, TenantPlace)> {
        let tenant = match purpose {
            Purpose::Answer | Purpose::Step | Purpose::Again => self.get(name),
            Purpose::Shadow => self.shadow(),
        };
        let place = match purpose {
            Purpose::Answer => tenant.enter()?,
            Purpose::Step | Purpose::Again | Purpose::Shadow => tenant.stay(),
        };
        Ok((tenant, place))
    }

    /// The tenant of that name; empty for callers that give none.
    pub fn get(&self, name: &str) -> Arc<Tenant> {
        if name.is_empty() {
            return self.rest.clone();
        }
        if let Some(tenant) = self.named.get(name) {
            return tenant.clone();
        }
        if let Some(tenant) = self.others.read().accounts.get(name) {
            return tenant.clone();
        }
        let mut others = self.others.write();
        if let Some(tenant) = others.accounts.get(name) {
            return tenant.clone();
        }
        if others.accounts.len() >= MADE_UP {
            others.make_room();
        }
        if others.accounts.len() >= MADE_UP {
            return self.rest.clone();
        }
        others.made = others.made.wrapping_add(1);
        let named = u32::try_from(self.named.len()).unwrap_or(u32::MAX);
        let id = named.saturating_add(1).saturating_add(others.made);
        let tenant = Arc::new(Tenant::new(id, "default", self.default));
        others.accounts.insert(name.to_owned(), tenant.clone());
        tenant
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(settings: &[(&str, TenantSettings)]) -> Tenants {
        Tenants::new(&settings.iter().map(|(name, settings)| ((*name).to_owned(), *settings)).collect())
    }

    #[test]
    fn names_lead_to_accounts() {
        let gold = TenantSettings { weight: 4.0, ..TenantSettings::default() };
        let batch = TenantSettings { max_lane: Lane::Low, ..TenantSettings::default() };
        let tenants = tenants(&[("gold", gold), ("default", batch)]);
        assert_eq!(tenants.get("gold").weight(), 4.0);
        assert_eq!(tenants.get("gold").lane(Lane::Critical), Lane::Critical);
        assert_eq!(tenants.get("someone").lane(Lane::Critical), Lane::Low);
        assert_eq!(tenants.get("").lane(Lane::Low), Lane::Low);
        assert_eq!(tenants.get("someone").id(), tenants.get("someone").id());
        let ids = ["", "gold", "someone", "else"].map(|name| tenants.get(name).id());
        assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 4);
        let busy: Vec<_> = (0..MADE_UP - 3).map(|i| tenants.get(&i.to_string())).collect();
        tenants.get("idle").charge(Duration::from_secs(1), 1);
        let kept = tenants.get("kept");
        assert_ne!(kept.id(), TenantId(0));
        let after = ["a", "b"].map(|name| tenants.get(name));
        assert!(after.iter().all(|tenant| tenant.id() != TenantId(0)), "the idle made room");
        let more: Vec<_> = (0..10).map(|i| tenants.get(&format!("more {i}"))).collect();
        assert_eq!(tenants.get("one too many").id(), TenantId(0), "{} are busy", busy.len() + more.len());
        let others = tenants.compute().into_iter().find(|(label, _)| &**label == "default").unwrap();
        assert_eq!(others.1, Duration::from_secs(1), "time stays counted");
    }

    #[tokio::test(start_paused = true)]
    async fn rates_and_numbers_are_held() {
        let slow = TenantSettings { rate: 10.0, burst: 2, ..TenantSettings::default() };
        let few = TenantSettings { max_in_flight: 1, ..TenantSettings::default() };
        let tenants = tenants(&[("slow", slow), ("few", few)]);
        let slow = tenants.get("slow");
        drop((slow.enter().unwrap(), slow.enter().unwrap()));
        let error = slow.enter().unwrap_err();
        assert_eq!(error.reason(), Reason::RateLimited);
        let wait = error.retry_after().unwrap();
        assert!(wait > Duration::from_millis(50) && wait <= Duration::from_millis(100), "{wait:?}");
        tokio::time::advance(Duration::from_millis(100)).await;
        slow.enter().unwrap();
        assert!(slow.enter().is_err());
        let few = tenants.get("few");
        let place = few.enter().unwrap();
        assert_eq!(few.enter().unwrap_err().reason(), Reason::TenantLimit);
        drop(place);
        few.enter().unwrap();
    }

    #[test]
    fn costs_are_over_the_weight() {
        let settings = TenantSettings { weight: 2.0, ..TenantSettings::default() };
        let tenant = Tenant::new(1, "t", settings);
        (0..200).for_each(|_| tenant.charge(Duration::from_millis(8), 1));
        assert!((tenant.turn() - 4e-3).abs() < 1e-4, "{}", tenant.turn());
    }

    #[test]
    fn settings_are_checked() {
        let problem = |change: fn(&mut TenantSettings)| {
            let mut settings = TenantSettings::default();
            change(&mut settings);
            settings.problem()
        };
        assert!(problem(|_| {}).is_none());
        assert_eq!(problem(|s| s.weight = 0.0).unwrap().0, "weight");
        assert_eq!(problem(|s| s.weight = f64::NAN).unwrap().0, "weight");
        assert_eq!(problem(|s| s.rate = -1.0).unwrap().0, "rate");
    }
}
