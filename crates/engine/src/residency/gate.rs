//! Loads that requests wait for begin in the order of their lanes, a few at once.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use torchlane_model::Lane;

/// Few at once; of those that wait the most urgent is next, and of one lane whoever came first.
#[derive(Debug)]
pub struct LaneGate {
    state: Mutex<State>,
}

/// Tells those apart that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GatePlace(u64);

#[derive(Debug)]
struct State {
    free: usize,
    next: u64,
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    lane: Lane,
    place: u64,
    granted: oneshot::Sender<GatePass>,
}

/// The right to be one of the few, until it is dropped.
#[derive(Debug)]
pub struct GatePass {
    gate: Arc<LaneGate>,
}

/// A place in the line.
#[derive(Debug)]
pub struct GateWait {
    place: GatePlace,
    granted: oneshot::Receiver<GatePass>,
}

impl GateWait {
    /// By this it can be moved up.
    pub fn place(&self) -> GatePlace {
        self.place
    }

    /// Waits for its turn. `None`: there is no gate any more.
    pub async fn pass(self) -> Option<GatePass> {
        self.granted.await.ok()
    }
}

impl LaneGate {
    /// At most `at_once` pass at a time.
    pub fn new(at_once: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { free: at_once.max(1), next: 0, waiting: Vec::new() }) })
    }

    /// Takes a place in the line.
    pub fn enter(self: &Arc<Self>, lane: Lane) -> GateWait {
        let mut state = self.state.lock();
        let place = GatePlace(state.next);
        state.next += 1;
        drop(state);
        self.enter_again(place, lane)
    }

    /// Goes back to a place that it had before, after it let others pass.
    pub fn enter_again(self: &Arc<Self>, place: GatePlace, lane: Lane) -> GateWait {
        let (grant, granted) = oneshot::channel();
        self.state.lock().waiting.push(Waiting { lane, place: place.0, granted: grant });
        self.let_in();
        GateWait { place, granted }
    }

    /// Somebody more urgent waits for the same: it keeps its place among those of the new lane.
    pub fn raise(&self, place: GatePlace, lane: Lane) {
        let mut state = self.state.lock();
        if let Some(waiting) = state.waiting.iter_mut().find(|waiting| waiting.place == place.0) {
            waiting.lane = waiting.lane.min(lane);
        }
    }

    fn let_in(self: &Arc<Self>) {
        loop {
            let mut state = self.state.lock();
            let first = state.waiting.iter().enumerate().min_by_key(|(_, w)| (w.lane, w.place));
            let Some(first) = first.map(|(at, _)| at).filter(|_| state.free > 0) else { return };
            let Waiting { granted, .. } = state.waiting.swap_remove(first);
            state.free -= 1;
            drop(state);
            // Whoever has left gives its pass back at once, and the next round has it.
            let _left = granted.send(GatePass { gate: self.clone() });
        }
    }
}

impl Drop for GatePass {
    fn drop(&mut self) {
        self.gate.state.lock().free += 1;
        self.gate.let_in();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_most_urgent_is_next_and_can_be_moved_up() {
        let gate = LaneGate::new(1);
        let first = gate.enter(Lane::Low).pass().await.unwrap();
        let low = gate.enter(Lane::Low);
        let left = gate.enter(Lane::Critical);
        let normal = gate.enter(Lane::Normal);
        let high = gate.enter(Lane::High);
        gate.raise(low.place(), Lane::High);
        drop(left);
        drop(first);
        let mut order = Vec::new();
        let mut waits = [("low", low.granted), ("normal", normal.granted), ("high", high.granted)];
        for _ in 0..3 {
            let granted: Vec<_> =
                waits.iter_mut().filter_map(|(name, wait)| Some((*name, wait.try_recv().ok()?))).collect();
            assert_eq!(granted.len(), 1, "one at a time");
            order.extend(granted.iter().map(|(name, _)| *name));
        }
        assert_eq!(order, ["low", "high", "normal"]);
    }
}
