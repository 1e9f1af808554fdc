//! Sheds the lowest lanes while a resource is short: first LOW, then NORMAL too. HIGH and CRITICAL go on, and so does what
//! was let in before: it frees what is short. Pure but for the lock around it and a log line for each change.
//!
//! Memory and CPUs go by what is used, not by who uses it: where models alone fill the memory, LOW stays out until that changes. Bytes
//! of messages go by caller: only the lanes of the one that holds them are refused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use torchlane_model::{
    Lane,
    error::{Error, Reason, Result},
};

use super::{Account, Callers};

/// A lane is let in again once the ratio has been so far below where its refusal began...
const GAP: f64 = 0.05;
/// ...for so long.
const CALM: Duration = Duration::from_secs(2);
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// By how many lanes are refused.
const REFUSED: [&str; 3] = ["nothing", "LOW", "NORMAL and LOW"];

/// `[pressure]`: shares of a limit from which LOW is refused; NORMAL is from half way between that and the limit. 0: the
/// resource is not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PressureSettings {
    /// Memory, of the cgroup's limit; without one this process's resident memory, of the machine's.
    pub memory: f64,
    /// Bytes of requests, of what their caller may hold of `server.max_in_flight_bytes`: only its own lanes are refused.
    pub in_flight_bytes: f64,
    /// Time in which some task waits for a CPU (PSI). A busy server makes that pressure itself, and its lanes are ordered
    /// already: of use where others share the machine.
    pub cpu: f64,
}

impl Default for PressureSettings {
    fn default() -> Self {
        Self { memory: 0.9, in_flight_bytes: 0.5, cpu: 0.0 }
    }
}

impl PressureSettings {
    fn share(&self, resource: Resource) -> f64 {
        match resource {
            Resource::Memory => self.memory,
            Resource::InFlightBytes => self.in_flight_bytes,
            Resource::Cpu => self.cpu,
        }
    }
}

/// Something that may be short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Resident memory.
    Memory,
    /// Bytes of request messages.
    InFlightBytes,
    /// Time of CPUs.
    Cpu,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Memory, Self::InFlightBytes, Self::Cpu];

    /// As in settings and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::InFlightBytes => "in_flight_bytes",
            Self::Cpu => "cpu",
        }
    }
}

/// The ratios from which one lane is refused, and two. A share of 0 is never reached.
fn limits(share: f64) -> [f64; 2] {
    if share > 0.0 { [share, f64::midpoint(share, 1.0)] } else { [f64::INFINITY; 2] }
}

/// One lane's refusal because of one resource.
#[derive(Debug, Clone, Copy)]
struct Trigger {
    at: f64,
    /// While it is on: when it goes off, unless the ratio is near again before.
    until: Option<Instant>,
}

impl Trigger {
    /// Below this it is calm.
    fn calm(&self) -> f64 {
        self.at - GAP.min(self.at / 2.0)
    }

    fn read(&mut self, ratio: f64, now: Instant) {
        if ratio >= self.at || (self.until.is_some() && ratio >= self.calm()) {
            self.until = Some(now + CALM);
        } else if self.until.is_some_and(|until| until <= now) {
            self.until = None;
        }
    }
}

#[derive(Debug)]
pub(super) struct Watched {
    resource: Resource,
    ratio: Option<f64>,
    triggers: [Trigger; 2],
}

impl Watched {
    pub(super) fn new(resource: Resource, share: f64) -> Self {
        Self { resource, ratio: None, triggers: limits(share).map(|at| Trigger { at, until: None }) }
    }

    pub(super) fn read(&mut self, ratio: f64, now: Instant) {
        self.ratio = Some(ratio);
        self.triggers.iter_mut().for_each(|trigger| trigger.read(ratio, now));
    }

    /// Lanes refused because of it. The upper trigger is never on alone: its ratios are higher.
    pub(super) fn level(&self) -> usize {
        self.triggers.iter().filter(|trigger| trigger.until.is_some()).count()
    }
}

/// How short things are, and who is refused for it.
#[derive(Debug)]
pub struct Pressure {
    settings: PressureSettings,
    callers: Arc<Callers>,
    watched: Mutex<[Watched; 3]>,
    level: AtomicUsize,
    /// Of what all callers share: not of the bytes of one.
    shared: AtomicUsize,
}

impl Pressure {
    /// Nothing is short yet.
    pub fn new(settings: PressureSettings, callers: Arc<Callers>) -> Arc<Self> {
        let watched = Resource::ALL.map(|resource| Watched::new(resource, settings.share(resource)));
        let (level, shared) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { settings, callers, watched: Mutex::new(watched), level, shared })
    }

    /// Whether readings of that resource count.
    pub fn watches(&self, resource: Resource) -> bool {
        self.settings.share(resource) > 0.0
    }

    /// Notes that `ratio` of a resource's limit is used.
    pub fn read(&self, resource: Resource, ratio: f64, now: Instant) {
        if !self.watches(resource) {
            return;
        }
        let mut watched = self.watched.lock();
        watched.iter_mut().filter(|w| w.resource == resource).for_each(|w| w.read(ratio, now));
        let shared = watched.iter().filter(|w| w.resource != Resource::InFlightBytes);
        self.shared.store(shared.map(Watched::level).max().unwrap_or(0), Ordering::Relaxed);
        let level = watched.iter().map(Watched::level).max().unwrap_or(0);
        // Still under the lock, so that the lines come in the order of the changes.
        let before = self.level.swap(level, Ordering::Relaxed);
        let (resource, refused) = (resource.as_str(), REFUSED.get(level).copied());
        let ratio = (1000.0 * ratio).round() / 1000.0;
        if level > before {
            tracing::warn!(target: "torchlane::admission", resource, ratio, refused, "more pressure");
        } else if level < before {
            tracing::info!(target: "torchlane::admission", resource, ratio, refused, "less pressure");
        }
    }

    /// Notes the bytes of messages that are here now, of the caller that has most of what it may.
    pub fn read_in_flight(&self, now: Instant) {
        self.read(Resource::InFlightBytes, self.callers.fullest(&self.settings, now), now);
    }

    /// Lets a request in. Takes no lock of all callers unless there is a refusal.
    ///
    /// # Errors
    /// Its lane is refused for now.
    pub fn admit(&self, lane: Lane, account: Option<&Account>, now: Instant) -> Result<()> {
        if let Some(account) = account {
            // Bytes come faster than samples are taken. That they have gone, the next sample sees in time.
            let (ratio, own) = account.press(&self.settings, now);
            if own > 0 {
                self.read(Resource::InFlightBytes, ratio, now);
            }
            if refuses(own, lane) {
                return Err(refusal(lane, Resource::InFlightBytes, self.settings.in_flight_bytes, ratio));
            }
        }
        if refuses(self.shared.load(Ordering::Relaxed), lane) {
            return self.shared_refusal(lane).map_or(Ok(()), Err);
        }
        Ok(())
    }

    /// Lanes that are refused now, from the lowest: 0, 1 (LOW) or 2 (NORMAL and LOW); of some caller, where it is for its bytes.
    pub fn level(&self) -> usize {
        self.level.load(Ordering::Relaxed)
    }

    /// The last reading of each resource that is looked at, of its limit.
    pub fn ratios(&self) -> Vec<(Resource, f64)> {
        self.watched.lock().iter().filter_map(|watched| Some((watched.resource, watched.ratio?))).collect()
    }

    /// Bytes of messages in the process.
    pub fn in_flight_bytes(&self) -> u64 {
        self.callers.bytes()
    }

    /// What callers hold.
    pub fn callers(&self) -> &Arc<Callers> {
        &self.callers
    }

    /// `None` where it is over by now.
    fn shared_refusal(&self, lane: Lane) -> Option<Error> {
        let watched = self.watched.lock();
        let mut shared = watched.iter().filter(|watched| watched.resource != Resource::InFlightBytes);
        let why = shared.find(|watched| refuses(watched.level(), lane))?;
        Some(refusal(lane, why.resource, self.settings.share(why.resource), why.ratio?))
    }
}

fn refusal(lane: Lane, resource: Resource, share: f64, ratio: f64) -> Error {
    let [low, normal] = limits(share).map(|at| Trigger { at, until: None });
    let trigger = if lane == Lane::Low { low } else { normal };
    let whose = if resource == Resource::InFlightBytes { "this address's share" } else { "its limit" };
    let message = format!(
        "{lane} is refused until {name} has been below {:.0} % of {whose} for {} s: now {:.0} % (pressure.{name})",
        100.0 * trigger.calm(),
        CALM.as_secs(),
        100.0 * ratio,
        name = resource.as_str(),
    );
    Error::new(Reason::ResourcePressure, message).with_retry_after(RETRY_AFTER)
}

/// Whether `lane` is one of the lowest `level` lanes.
fn refuses(level: usize, lane: Lane) -> bool {
    Lane::ALL.iter().rev().take(level).any(|refused| *refused == lane)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::admission::{Caller, CallerLimits, MessageBytes};

    fn ms(now: Instant, ms: u64) -> Instant {
        now + Duration::from_millis(ms)
    }

    fn pressure(memory: f64, in_flight_bytes: f64) -> (Arc<Pressure>, Arc<Account>) {
        let bytes = Account::alone(1000);
        let settings = PressureSettings { memory, in_flight_bytes, cpu: 0.0 };
        (Pressure::new(settings, bytes.all().clone()), bytes)
    }

    #[test]
    fn lanes_go_from_the_lowest_and_come_back_when_it_has_been_calm() {
        let (pressure, _) = pressure(0.8, 0.0);
        let start = Instant::now();
        let refused = || Lane::ALL.map(|lane| pressure.admit(lane, None, start).is_err());
        let mut now = start;
        for (after_ms, ratio, level) in [
            (0, 0.79, 0),
            (1, 0.80, 1),
            (1, 0.95, 2),
            (0, 0.86, 2),
            (1000, 0.1, 2),
            (999, 0.1, 2),
            // Near again just before it would have been calm for long enough.
            (1, 0.86, 2),
            (1999, 0.76, 2),
            (1, 0.76, 1),
            (1999, 0.74, 1),
            (0, 0.76, 1),
            (1999, 0.74, 1),
            (1, 0.74, 0),
            (0, 0.79, 0),
        ] {
            now = ms(now, after_ms);
            pressure.read(Resource::Memory, ratio, now);
            assert_eq!(pressure.level(), level, "{ratio} after {:?}", now - start);
            assert_eq!(refused(), [false, false, level > 1, level > 0]);
        }
    }

    #[test]
    fn readings_that_flap_change_it_once() {
        let (pressure, _) = pressure(0.9, 0.0);
        let start = Instant::now();
        for i in 0..200 {
            pressure.read(Resource::Memory, if i % 15 == 0 { 0.91 } else { 0.2 }, ms(start, i * 100));
            assert_eq!(pressure.level(), 1);
        }
    }

    #[test]
    fn bytes_count_at_once_and_the_worst_resource_holds() {
        let (pressure, bytes) = pressure(0.5, 0.5);
        let now = Instant::now();
        let message = MessageBytes::new(bytes.clone());
        assert!(message.add(499));
        let admit = |lane, now| pressure.admit(lane, Some(&bytes), now);
        admit(Lane::Low, now).unwrap();
        assert!(message.add(1));
        let error = admit(Lane::Low, now).unwrap_err();
        assert_eq!((error.reason(), error.retry_after()), (Reason::ResourcePressure, Some(RETRY_AFTER)));
        assert_eq!(
            error.message(),
            "LOW is refused until in_flight_bytes has been below 45 % of this address's share for 2 s: now 50 % \
             (pressure.in_flight_bytes)"
        );
        admit(Lane::Normal, now).unwrap();
        pressure.read(Resource::Memory, 0.9, now);
        let error = admit(Lane::Normal, now).unwrap_err();
        assert!(error.message().contains("memory has been below 70 % of its limit"), "{error}");
        admit(Lane::High, now).unwrap();
        drop(message);
        pressure.read_in_flight(ms(now, 2000));
        assert_eq!(pressure.level(), 2);
        pressure.read(Resource::Memory, 0.0, ms(now, 2000));
        assert_eq!(pressure.level(), 0);
        assert_eq!(pressure.ratios(), [(Resource::Memory, 0.0), (Resource::InFlightBytes, 0.0)]);
        admit(Lane::Low, ms(now, 2000)).unwrap();
    }

    #[test]
    fn bytes_of_one_caller_refuse_no_other() {
        let limits = CallerLimits { bytes: 1000, calls: 10, grpc: 10, http: 10, heavy: 1, share: 0.5 };
        let callers = Callers::new(limits);
        let [greedy, other] =
            ["10.0.0.1", "10.0.0.2"].map(|at| callers.account(Caller::at(at.parse().unwrap())));
        let pressure = Pressure::new(PressureSettings::default(), callers);
        let (held, now) = (MessageBytes::new(greedy.clone()), Instant::now());
        assert!(held.add(500) && !held.add(1), "half of what there is");
        assert!(pressure.admit(Lane::Normal, Some(&greedy), now).is_err());
        pressure.admit(Lane::High, Some(&greedy), now).unwrap();
        for account in [Some(&*other), None] {
            pressure.admit(Lane::Low, account, now).unwrap();
        }
        assert_eq!(pressure.level(), 2, "it is told all the same");
        drop(held);
        pressure.read_in_flight(ms(now, 1999));
        assert!(pressure.admit(Lane::Low, Some(&greedy), ms(now, 1999)).is_err());
        pressure.read_in_flight(ms(now, 2000));
        pressure.admit(Lane::Low, Some(&greedy), ms(now, 2000)).unwrap();
    }

    #[test]
    fn what_is_not_looked_at_refuses_nobody() {
        let (pressure, bytes) = pressure(0.0, 0.0);
        let message = MessageBytes::new(bytes.clone());
        assert!(message.add(1000));
        for resource in Resource::ALL {
            pressure.read(resource, 1.0, Instant::now());
        }
        pressure.admit(Lane::Low, Some(&bytes), Instant::now()).unwrap();
        assert!(pressure.ratios().is_empty() && pressure.in_flight_bytes() == 1000);
    }

    /// Said of the whole history instead of step by step: on if a reading reached `at` and no calm has passed since.
    fn naive(history: &[(Instant, f64)], at: f64, calm: f64) -> bool {
        let Some(reached) = history.iter().rposition(|(_, ratio)| *ratio >= at) else { return false };
        let since = &history[reached..];
        !(0..since.len()).any(|end| {
            let near = since[..=end].iter().rposition(|(_, ratio)| *ratio >= calm).unwrap();
            since[end].0 - since[near].0 >= CALM
        })
    }

    proptest! {
        #[test]
        fn it_is_what_the_history_says(
            share in 0.01..=1.0,
            readings in prop::collection::vec((0_u64..1500, 0.0..=1.0), 1..60),
        ) {
            let (pressure, _) = pressure(share, 0.0);
            let (mut now, mut history) = (Instant::now(), Vec::new());
            for (after_ms, ratio) in readings {
                now = ms(now, after_ms);
                history.push((now, ratio));
                pressure.read(Resource::Memory, ratio, now);
                let on = |at: f64| naive(&history, at, (at - 0.05).max(at / 2.0));
                let level = usize::from(on(share)) + usize::from(on((share + 1.0) / 2.0));
                prop_assert_eq!(pressure.level(), level);
            }
        }
    }
}
