//! What is known of a model while it is not loaded: that a request may load it, what it was, and what its load takes.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::{Entry, Facts, Past, Turn};
use crate::{
    backend::Servable,
    error::{Error, Reason},
    lifecycle::beside::Side,
    model::{Generation, Lane, LoadMode, Version, VersionWish},
    repository::{Found, VersionFiles},
    residency::{GatePass, GatePlace, LaneGate, Standing},
};

/// After a load that a request asked for has failed, none is begun for this long, then for twice as long, and so on.
const AGAIN: Duration = Duration::from_secs(5);
/// As long where it failed for want of room or the like.
const SOON: Duration = Duration::from_secs(1);
/// Never longer than this.
const AGAIN_AT_MOST: Duration = Duration::from_secs(300);
/// Footprints of so many versions are remembered.
const REMEMBERED: usize = 8;

/// How far a load is that requests wait for.
#[derive(Debug, Clone)]
pub(in crate::lifecycle) enum Arrival {
    /// Under way.
    Coming,
    /// A version is live; others may still be loaded beside it.
    Live,
    /// All that should be loaded is.
    Done,
    /// It failed, and is not tried again for so long.
    Failed(Error, Duration),
}

/// A load that requests wait for, all of them for the same.
#[derive(Debug)]
pub(in crate::lifecycle) struct Demanded {
    gate: Arc<LaneGate>,
    /// Where it waits for its turn among other loads.
    place: GatePlace,
    /// The most urgent of those that wait for it.
    lane: Mutex<Lane>,
    /// While it has its turn.
    pass: Mutex<Option<GatePass>>,
    /// When it had its turn.
    pub(in crate::lifecycle) began: OnceLock<Instant>,
    pub(in crate::lifecycle) arrival: watch::Sender<Arrival>,
}

impl Demanded {
    /// A load that has entered `gate`.
    pub(in crate::lifecycle) fn new(gate: &Arc<LaneGate>, place: GatePlace, lane: Lane) -> Self {
        let (gate, lane, pass) = (gate.clone(), Mutex::new(lane), Mutex::default());
        Self { gate, place, lane, pass, began: OnceLock::new(), arrival: watch::Sender::new(Arrival::Coming) }
    }

    /// A request of that lane waits for it too.
    pub(in crate::lifecycle) fn raise(&self, lane: Lane) {
        let mut own = self.lane.lock();
        *own = lane.min(*own);
        self.gate.raise(self.place, lane);
    }

    /// It has its turn.
    pub(in crate::lifecycle) fn turn(&self, pass: Option<GatePass>) {
        *self.pass.lock() = pass;
    }

    /// Others have their turn while this load only waits. False: it had none.
    pub(in crate::lifecycle) fn step_out(&self) -> bool {
        self.pass.lock().take().is_some()
    }

    /// Waits for its turn again, before those of its lane that came later.
    pub(in crate::lifecycle) async fn step_in(&self) {
        let lane = *self.lane.lock();
        let pass = self.gate.enter_again(self.place, lane).pass().await;
        self.turn(pass);
    }
}

/// What a request finds that asks for a load.
#[derive(Debug)]
pub(in crate::lifecycle) enum Demand {
    /// It is loaded by now.
    Loaded,
    /// It is to be seen through by whoever asked.
    Begun(Arc<Demanded>),
    /// Others have asked before.
    UnderWay(Arc<Demanded>),
    /// It failed lately: when it is tried again.
    Failed(Error, Duration),
    /// Requests do not load it: it is being loaded, it was unloaded, or there is nothing to load.
    No,
}

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Rest {
    load: LoadMode,
    /// A request loads it.
    on_demand: bool,
    /// What was live when it was evicted.
    away: Option<Past>,
    demanded: Option<Arc<Demanded>>,
    failed: Option<Failure>,
    /// The last load failed, and nothing serves.
    broken: bool,
    /// What versions took, by the stamps of their files.
    footprints: Vec<(Version, u64, u64)>,
}

#[derive(Debug)]
struct Failure {
    error: Error,
    until: Instant,
    times: u32,
}

impl Rest {
    pub(super) fn load(&self) -> LoadMode {
        self.load
    }

    /// A request loads it, and nothing says that this would fail.
    pub(super) fn answers(&self) -> bool {
        self.on_demand && !self.broken
    }

    /// A load failed, and nothing serves.
    pub(super) fn broke(&mut self) {
        self.broken = true;
    }

    pub(super) fn take_away(&mut self) -> Option<Past> {
        self.away.take()
    }

    /// A version is live.
    pub(super) fn came(&mut self) {
        self.gone();
        if let Some(demanded) = &self.demanded {
            demanded.arrival.send_replace(Arrival::Live);
        }
    }

    /// Somebody unloaded it: requests do not load it.
    pub(super) fn gone(&mut self) {
        (self.on_demand, self.away, self.failed, self.broken) = (false, None, None, false);
    }
}

impl Facts {
    /// What was live is away from now on, and a request brings it back. It is no step: a rollback goes where it did.
    fn go_away(&mut self) -> Option<Version> {
        let (live, files) = self.live.take()?;
        let version = live.version;
        self.rest.away = Some(Past::new(live, files));
        self.rest.on_demand = true;
        Some(version)
    }
}

impl Entry {
    pub(in crate::lifecycle) fn set_load(&self, load: LoadMode) {
        self.facts.lock().rest.load = load;
    }

    pub(in crate::lifecycle) fn load(&self) -> LoadMode {
        self.facts.lock().rest.load
    }

    /// Whether a request would load it.
    pub(in crate::lifecycle) fn is_on_demand(&self) -> bool {
        self.facts.lock().rest.on_demand
    }

    /// Whether a request with that wish would load it, and nothing says that this would fail.
    pub(in crate::lifecycle) fn would_load(&self, wish: &VersionWish) -> bool {
        let facts = self.facts.lock();
        let is_there = match wish {
            VersionWish::Exactly(version) => facts.versions.contains(version),
            _ => true,
        };
        facts.rest.answers() && is_there
    }

    /// It is left to its first request. True: it was not before, or files have come that may mend what failed.
    pub(in crate::lifecycle) fn leave_to_requests(&self) -> bool {
        let mut facts = self.facts.lock();
        let news = facts.live.is_none() && (!facts.rest.on_demand || facts.rest.broken);
        if news {
            (facts.rest.on_demand, facts.rest.failed, facts.rest.broken) = (true, None, false);
            facts.last_error = None;
        }
        news
    }

    /// What was live when it was evicted, and its digest.
    pub(in crate::lifecycle) fn away(&self) -> Option<Past> {
        self.facts.lock().rest.away.clone()
    }

    /// The version that a request would load, as far as is known: the one that was evicted, else the newest.
    pub(in crate::lifecycle) fn would_come(&self) -> Option<Version> {
        let facts = self.facts.lock();
        let away = facts.rest.away.as_ref().map(|past| past.files.version);
        away.or(facts.versions.last().copied()).filter(|_| facts.rest.on_demand)
    }

    /// The files as they were when the model was last looked at.
    pub(in crate::lifecycle) fn last_found(&self) -> Option<Found> {
        self.facts.lock().synced.as_ref().map(|(found, _)| found.clone())
    }

    /// A request asks for the model. Where a load is to begin, `begin` makes the place at which all wait for it.
    pub(in crate::lifecycle) fn demand(&self, now: Instant, begin: impl FnOnce() -> Demanded) -> Demand {
        let mut facts = self.facts.lock();
        // Also where a version is live by now: others may still be loaded beside it.
        if let Some(demanded) = &facts.rest.demanded {
            return Demand::UnderWay(demanded.clone());
        }
        if facts.live.is_some() {
            return Demand::Loaded;
        }
        if !facts.rest.on_demand || facts.retired {
            return Demand::No;
        }
        if let Some(Failure { error, until, .. }) = facts.rest.failed.as_ref().filter(|f| f.until > now) {
            return Demand::Failed(error.clone(), until.saturating_duration_since(now));
        }
        let demanded = Arc::new(begin());
        facts.rest.demanded = Some(demanded.clone());
        Demand::Begun(demanded)
    }

    /// The load that requests wait for, if there is one.
    pub(in crate::lifecycle) fn demanded(&self) -> Option<Arc<Demanded>> {
        self.facts.lock().rest.demanded.clone()
    }

    /// The load has ended: those who wait are told.
    pub(in crate::lifecycle) fn demand_ended(&self, outcome: Result<(), Error>, now: Instant) {
        let mut facts = self.facts.lock();
        let Some(demanded) = facts.rest.demanded.take() else { return };
        let arrival = match outcome {
            Ok(()) => Arrival::Done,
            Err(error) => {
                // What was in the way may be gone soon; what is broken stays so until its files change.
                let is_broken = error.reason() == Reason::LoadFailed;
                let times = facts.rest.failed.as_ref().map_or(0, |failed| failed.times);
                let wait = if is_broken { AGAIN * 2_u32.saturating_pow(times.min(16)) } else { SOON };
                let (wait, times) = (wait.min(AGAIN_AT_MOST), times.saturating_add(is_broken.into()));
                if facts.live.is_none() {
                    facts.rest.failed = Some(Failure { error: error.clone(), until: now + wait, times });
                }
                Arrival::Failed(error, wait)
            }
        };
        drop(facts);
        demanded.arrival.send_replace(arrival);
    }

    /// What a load takes until the version is live, by the last one.
    pub(in crate::lifecycle) fn load_takes(&self) -> Option<Duration> {
        let phases = self.facts.lock().last_phases?;
        Some(phases.verify + phases.load + phases.warm_up)
    }

    /// What that version took when it was loaded from these very files.
    pub(in crate::lifecycle) fn footprint(&self, files: &VersionFiles) -> Option<u64> {
        let facts = self.facts.lock();
        let same =
            |(version, stamp, _): &&(Version, u64, u64)| *version == files.version && *stamp == files.stamp;
        facts.rest.footprints.iter().find(same).map(|(_, _, bytes)| *bytes)
    }

    pub(in crate::lifecycle) fn remember_footprint(&self, files: &VersionFiles, bytes: u64) {
        let footprints = &mut self.facts.lock().rest.footprints;
        footprints.retain(|(version, _, _)| *version != files.version);
        footprints.push((files.version, files.stamp, bytes));
        if footprints.len() > REMEMBERED {
            footprints.remove(0);
        }
    }

    /// How it stands when another model needs room.
    pub(in crate::lifecycle) fn standing(&self) -> Standing {
        let changing = self.turn.try_lock().is_err();
        let facts = self.facts.lock();
        let used = self.slots(&facts).any(|slot| slot.in_use() + slot.awaiting() > 0);
        Standing {
            last: self.slot.last_use(),
            pinned: facts.rest.load == LoadMode::Pinned,
            busy: changing || used || facts.live.is_none(),
        }
    }

    fn slots<'a>(&'a self, facts: &'a Facts) -> impl Iterator<Item = &'a crate::registry::ModelSlot> {
        let beside = facts.beside.values().map(|side| side.slot.as_ref());
        std::iter::once(self.slot.as_ref()).chain(beside)
    }

    /// Closes the slots of all its versions and takes what is in them, if nobody uses any: requests that come from now on
    /// ask for a load. `None`: somebody uses one, or nothing is live. The caller has the model's turn.
    pub(in crate::lifecycle) fn evict_idle(&self, generation: Generation) -> Option<Evicted> {
        let mut facts = self.facts.lock();
        if facts.live.is_none() || facts.rest.load == LoadMode::Pinned {
            return None;
        }
        let mut closed = Vec::new();
        for slot in self.slots(&facts) {
            if !slot.close_if_idle() {
                closed.into_iter().for_each(crate::registry::ModelSlot::reopen);
                return None;
            }
            closed.push(slot);
        }
        let version = facts.go_away()?;
        facts.generation = generation;
        let sides = std::mem::take(&mut facts.beside).into_values().collect();
        self.publish(&facts);
        let old = self.slot.swap(None);
        self.slot.reopen();
        Some(Evicted { version, old, sides })
    }

    /// Lets no request in any more, so that what is live can go once those that are in have ended. Those that come wait
    /// for what is loaded next. The caller has the model's turn.
    pub(in crate::lifecycle) fn step_aside(&self) -> Option<Version> {
        let mut facts = self.facts.lock();
        let version = facts.go_away()?;
        self.slot.close();
        Some(version)
    }

    /// A turn and a generation without waiting for either. `None`: it is being changed, or somebody waits to change it.
    pub(in crate::lifecycle) fn free_turn(&self) -> Option<(Turn<'_>, Generation)> {
        let turn = self.turn.try_lock().ok()?;
        self.begin_quietly().map(|generation| (turn, generation))
    }

    /// Waits until no change is under way, and none that somebody asked for waits.
    pub(in crate::lifecycle) async fn changed(&self) {
        let mut newest = self.newest.subscribe();
        drop(newest.wait_for(|newest| newest.waiting == 0).await);
        drop(self.turn.lock().await);
    }

    /// Waits until nobody brings it in line with what is on disk, and keeps others from it.
    pub(in crate::lifecycle) async fn sync_in_turn(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.syncing.clone().lock_owned().await
    }
}

/// What was taken from a model.
#[derive(Debug)]
pub(in crate::lifecycle) struct Evicted {
    /// The one that was live.
    pub(in crate::lifecycle) version: Version,
    pub(in crate::lifecycle) old: Option<Arc<Servable>>,
    pub(in crate::lifecycle) sides: Vec<Side>,
}
