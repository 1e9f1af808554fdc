//! Notices when models only take each other's place: most of those that are loaded had to go shortly before.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::Duration,
};

use tokio::time::Instant;

/// Loads of the last minute are looked at, and who was gone for less than that came back too soon.
const WINDOW: Duration = Duration::from_secs(60);
/// Fewer loads than this say nothing.
const LEAST: usize = 10;

/// Loads that requests asked for, and which of them were of models that had only just gone.
#[derive(Debug, Clone)]
pub struct Thrash<K> {
    gone: HashMap<K, Instant>,
    loads: VecDeque<(Instant, bool)>,
    on: bool,
}

impl<K> Default for Thrash<K> {
    fn default() -> Self {
        Self { gone: HashMap::new(), loads: VecDeque::new(), on: false }
    }
}

impl<K: Hash + Eq + Clone> Thrash<K> {
    /// A model had to go.
    pub fn evicted(&mut self, model: &K, now: Instant) {
        // Names of models that never come back are forgotten now and then, not at each call.
        if self.gone.len() >= 2 * self.loads.len().max(1024) {
            self.gone.retain(|_, at| now.saturating_duration_since(*at) < WINDOW);
        }
        self.gone.insert(model.clone(), now);
    }

    /// A request asked for a model and it was loaded. `Some`: from now on it is so, or not so any more.
    pub fn loaded(&mut self, model: &K, now: Instant) -> Option<bool> {
        let soon = |at: Instant| now.saturating_duration_since(at) < WINDOW;
        let back = self.gone.remove(model).is_some_and(soon);
        self.loads.push_back((now, back));
        while self.loads.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.loads.pop_front();
        }
        let is = self.is_on(now);
        let was = std::mem::replace(&mut self.on, is);
        (was != is).then_some(is)
    }

    /// Whether models only take each other's place: from half of the loads, until it is less than a quarter. Asking changes
    /// nothing: only a load says that it has turned.
    pub fn is_on(&self, now: Instant) -> bool {
        let within = |at: Instant| now.saturating_duration_since(at) < WINDOW;
        let (mut loads, mut back) = (0, 0);
        for (_, was_back) in self.loads.iter().filter(|(at, _)| within(*at)) {
            loads += 1;
            back += usize::from(*was_back);
        }
        let of = if self.on { 4 } else { 2 };
        loads >= LEAST && back * of >= loads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_and_ends_with_models_that_come_back_at_once() {
        let (mut thrash, begin) = (Thrash::default(), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        // First loads are none.
        assert!((0..20).all(|model| thrash.loaded(&model, at(0)).is_none()));
        // Each takes the place of the one before.
        let turned: Vec<_> = (0..20)
            .map(|i| {
                thrash.evicted(&(i % 2), at(1));
                thrash.loaded(&(i % 2), at(2))
            })
            .collect();
        assert_eq!(turned.iter().position(Option::is_some), Some(19), "20 of 40");
        assert_eq!((turned[19], thrash.is_on(at(3))), (Some(true), true));
        // Who asks how it stands does not take the word from the load that says so.
        assert!(!thrash.is_on(at(200)));
        // What was gone for longer is no sign of it.
        thrash.evicted(&7, at(3));
        for model in 10..20 {
            assert_eq!(thrash.loaded(&model, at(61)), None);
        }
        assert_eq!(thrash.loaded(&7, at(64)), Some(false), "0 of 11 within the last minute");
        assert!(!thrash.is_on(at(200)));
    }
}
