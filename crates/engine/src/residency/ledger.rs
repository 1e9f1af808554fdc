//! The books of the memory budget. Pure: what is in use and when it last was, the caller says.

use std::collections::BTreeMap;

/// What one version of a model takes, or will take once it is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LineId(u64);

#[derive(Debug, Clone)]
struct Line<K> {
    model: K,
    bytes: u64,
    /// Its load is under way.
    loading: bool,
}

/// All lines of one model together.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    bytes: u64,
    lines: usize,
    loading: usize,
}

/// How a model stands, when there is need of room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// When it was last used, on any clock that only goes forward. The smallest goes first.
    pub last: u64,
    /// It never has to go.
    pub pinned: bool,
    /// Requests are in it or wait for it, or it is being changed: it cannot go now.
    pub busy: bool,
}

/// Why there never will be room, as things are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortage {
    /// What was asked for.
    pub bytes: u64,
    /// What there is in all.
    pub budget: u64,
    /// What the same model takes already.
    pub own: u64,
    /// What other models take that are pinned.
    pub pinned: u64,
}

/// What becomes of a load that needs room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<K> {
    /// The room is reserved.
    Fits(LineId),
    /// These have to go first, the one that was used longest ago before the others. Where they are not enough the rest is
    /// in use: it has to be asked again.
    Evict(Vec<K>),
    /// All that could go is in use.
    Wait,
    /// It cannot be made to fit.
    Refuse(Shortage),
}

/// What is loaded or being loaded, and what each takes.
#[derive(Debug, Clone)]
pub struct Ledger<K> {
    budget: Option<u64>,
    lines: BTreeMap<LineId, Line<K>>,
    models: BTreeMap<K, Sum>,
    used: u64,
    next: u64,
}

impl<K: Ord + Clone> Ledger<K> {
    /// Empty books. `None`: there is no budget, everything fits.
    pub fn new(budget: Option<u64>) -> Self {
        Self { budget, lines: BTreeMap::new(), models: BTreeMap::new(), used: 0, next: 0 }
    }

    /// Bytes there are in all.
    pub fn budget(&self) -> Option<u64> {
        self.budget
    }

    /// Bytes of all lines.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Bytes of one model.
    pub fn of(&self, model: &K) -> u64 {
        self.models.get(model).map_or(0, |sum| sum.bytes)
    }

    /// Models that have something loaded or being loaded.
    pub fn models(&self) -> impl Iterator<Item = &K> {
        self.models.keys()
    }

    /// How many of them have a version loaded.
    pub fn resident(&self) -> usize {
        self.models.values().filter(|sum| sum.lines > sum.loading).count()
    }

    /// Reserves what is free, if that is enough.
    ///
    /// # Errors
    /// It is not.
    pub fn spare(&mut self, model: &K, bytes: u64) -> Result<LineId, Shortage> {
        match self.budget {
            Some(budget) if bytes > budget.saturating_sub(self.used) => {
                Err(Shortage { bytes, budget, own: self.of(model), pinned: 0 })
            }
            _ => Ok(self.reserve(model, bytes)),
        }
    }

    /// Reserves `bytes` for a load of `model`, or says what has to happen before. `standing` tells of the other models.
    pub fn admit(&mut self, model: &K, bytes: u64, standing: impl Fn(&K) -> Standing) -> Verdict<K> {
        let shortage = match self.spare(model, bytes) {
            Ok(line) => return Verdict::Fits(line),
            Err(shortage) => shortage,
        };
        let mut pinned = 0_u64;
        let mut idle = Vec::new();
        for (other, sum) in self.models.iter().filter(|(other, sum)| *other != model && sum.bytes > 0) {
            let Standing { last, pinned: stays, busy } = standing(other);
            if stays {
                pinned = pinned.saturating_add(sum.bytes);
            } else if !busy && sum.loading == 0 {
                idle.push((last, other, sum.bytes));
            }
        }
        let shortage = Shortage { pinned, ..shortage };
        let most = shortage.budget.saturating_sub(shortage.own).saturating_sub(pinned);
        if bytes > most {
            return Verdict::Refuse(shortage);
        }
        let mut lacking = bytes.saturating_sub(shortage.budget.saturating_sub(self.used));
        idle.sort_unstable();
        let mut victims = Vec::new();
        for (_, victim, freed) in idle {
            if lacking == 0 {
                break;
            }
            lacking = lacking.saturating_sub(freed);
            victims.push(victim.clone());
        }
        if victims.is_empty() { Verdict::Wait } else { Verdict::Evict(victims) }
    }

    /// The load has ended well: its version takes `bytes`. More than was reserved must have been admitted before.
    pub fn settle(&mut self, line: LineId, bytes: u64) {
        let Some(entry) = self.lines.get_mut(&line) else { return };
        let was = std::mem::replace(entry, Line { model: entry.model.clone(), bytes, loading: false });
        if let Some(sum) = self.models.get_mut(&was.model) {
            sum.bytes = sum.bytes.saturating_sub(was.bytes).saturating_add(bytes);
            sum.loading -= usize::from(was.loading);
        }
        self.used = self.used.saturating_sub(was.bytes).saturating_add(bytes);
    }

    /// Adds what was reserved later to an earlier line.
    pub fn merge(&mut self, into: LineId, from: LineId) {
        let Some(more) = self.lines.get(&from).map(|line| line.bytes) else { return };
        self.free(from);
        let Some(line) = self.lines.get_mut(&into) else { return };
        line.bytes = line.bytes.saturating_add(more);
        if let Some(sum) = self.models.get_mut(&line.model) {
            sum.bytes = sum.bytes.saturating_add(more);
        }
        self.used = self.used.saturating_add(more);
    }

    /// The version is gone, or its load failed.
    pub fn free(&mut self, line: LineId) {
        let Some(Line { model, bytes, loading }) = self.lines.remove(&line) else { return };
        self.used = self.used.saturating_sub(bytes);
        if let Some(sum) = self.models.get_mut(&model) {
            sum.bytes = sum.bytes.saturating_sub(bytes);
            sum.lines -= 1;
            sum.loading -= usize::from(loading);
            if sum.lines == 0 {
                self.models.remove(&model);
            }
        }
    }

    /// Bytes of one line.
    pub fn bytes(&self, line: LineId) -> u64 {
        self.lines.get(&line).map_or(0, |line| line.bytes)
    }

    fn reserve(&mut self, model: &K, bytes: u64) -> LineId {
        let id = LineId(self.next);
        self.next += 1;
        self.lines.insert(id, Line { model: model.clone(), bytes, loading: true });
        let sum = self.models.entry(model.clone()).or_default();
        sum.bytes = sum.bytes.saturating_add(bytes);
        sum.lines += 1;
        sum.loading += 1;
        self.used = self.used.saturating_add(bytes);
        id
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One model as a test sees it: a line at most, and how it stands.
    #[derive(Debug, Clone, Copy)]
    struct Model {
        line: Option<(LineId, u64, bool)>,
        standing: Standing,
    }

    const IDLE: Standing = Standing { last: 0, pinned: false, busy: false };

    fn held(ledger: &mut Ledger<u32>, model: u32, bytes: u64) -> LineId {
        let line = ledger.spare(&model, bytes).unwrap();
        ledger.settle(line, bytes);
        line
    }

    #[test]
    fn without_a_budget_everything_fits() {
        let mut ledger = Ledger::new(None);
        for model in 0..3_u32 {
            assert!(matches!(ledger.admit(&model, u64::MAX / 4, |_| IDLE), Verdict::Fits(_)));
        }
        assert_eq!((ledger.used(), ledger.resident()), (u64::MAX / 4 * 3, 0));
    }

    #[test]
    fn what_was_used_longest_ago_goes_first_and_no_more_than_is_needed() {
        let mut ledger = Ledger::new(Some(10));
        for model in 0..5 {
            held(&mut ledger, model, 2);
        }
        let used = |model: &u32| Standing { last: [30, 10, 40, 20, 50][*model as usize], ..IDLE };
        assert_eq!(ledger.admit(&9, 2, used), Verdict::Evict(vec![1]));
        assert_eq!(ledger.admit(&9, 3, used), Verdict::Evict(vec![1, 3]));
        let busy = |model: &u32| Standing { busy: *model != 2, ..used(model) };
        assert_eq!(
            ledger.admit(&9, 3, busy),
            Verdict::Evict(vec![2]),
            "what is idle goes, the rest is waited for"
        );
        assert_eq!(ledger.admit(&9, 3, |_| Standing { busy: true, ..IDLE }), Verdict::Wait);
    }

    #[test]
    fn what_pinned_models_and_the_model_itself_take_is_never_free() {
        let mut ledger = Ledger::new(Some(10));
        held(&mut ledger, 0, 4);
        held(&mut ledger, 1, 3);
        let pinned = |model: &u32| Standing { pinned: *model == 0, ..IDLE };
        assert_eq!(ledger.admit(&1, 3, pinned), Verdict::Fits(LineId(2)));
        ledger.free(LineId(2));
        let short = Shortage { bytes: 4, budget: 10, own: 3, pinned: 4 };
        assert_eq!(ledger.admit(&1, 4, pinned), Verdict::Refuse(short));
        assert_eq!(ledger.admit(&2, 6, pinned), Verdict::Evict(vec![1]));
        assert!(matches!(ledger.admit(&2, 7, pinned), Verdict::Refuse(Shortage { own: 0, pinned: 4, .. })));
    }

    #[test]
    fn an_estimate_gives_way_to_what_was_measured() {
        let mut ledger = Ledger::new(Some(10));
        let line = ledger.spare(&0, 6).unwrap();
        assert_eq!((ledger.used(), ledger.resident()), (6, 0));
        ledger.settle(line, 4);
        assert_eq!((ledger.used(), ledger.of(&0), ledger.resident()), (4, 4, 1));
        // It takes more than was thought.
        let line = ledger.spare(&1, 2).unwrap();
        let Verdict::Fits(more) = ledger.admit(&1, 3, |_| IDLE) else { panic!("4 + 2 + 3 fit into 10") };
        ledger.merge(line, more);
        ledger.settle(line, 5);
        assert_eq!((ledger.used(), ledger.of(&1), ledger.bytes(line)), (9, 5, 5));
        ledger.free(line);
        assert_eq!((ledger.used(), ledger.of(&1), ledger.models().count()), (4, 0, 1));
    }

    proptest! {
        /// Loads, ends, uses and pins in any order: the books agree with a plain sum, the budget holds, and whoever has to
        /// go is idle and was used no later than any idle model that may stay.
        #[test]
        fn the_budget_holds_and_only_idle_models_go(
            budget in 1_u64..40,
            steps in prop::collection::vec((0_u32..8, 0..6_u8, 0_u64..16, any::<bool>()), 1..120),
        ) {
            let mut ledger = Ledger::new(Some(budget));
            let mut models = [Model { line: None, standing: IDLE }; 8];
            for (clock, (name, step, bytes, flag)) in steps.into_iter().enumerate() {
                let at = name as usize;
                match step {
                    0 => models[at].standing.last = clock as u64,
                    1 => models[at].standing.busy = flag,
                    2 => models[at].standing.pinned = flag,
                    3 => if let Some((line, _, _)) = models[at].line.take() { ledger.free(line) },
                    4 => if let Some((line, had, loading)) = &mut models[at].line && *loading {
                        *had = bytes.min(*had);
                        *loading = false;
                        ledger.settle(*line, *had);
                    },
                    _ => {
                        if models[at].line.is_some() { continue }
                        let taken = |model: &Model| model.line.map_or(0, |(_, bytes, _)| bytes);
                        let used: u64 = models.iter().map(taken).sum();
                        let pinned: u64 = models.iter().filter(|m| m.standing.pinned).map(taken).sum();
                        let idle = |m: &Model| {
                            !m.standing.pinned && !m.standing.busy && m.line.is_some_and(|(_, b, l)| b > 0 && !l)
                        };
                        let stand = models;
                        match ledger.admit(&name, bytes, |other| stand[*other as usize].standing) {
                            Verdict::Fits(line) => {
                                prop_assert!(used + bytes <= budget);
                                models[at].line = Some((line, bytes, true));
                            }
                            Verdict::Refuse(_) => prop_assert!(bytes > budget.saturating_sub(pinned)),
                            Verdict::Wait => {
                                prop_assert!(used + bytes > budget && bytes + pinned <= budget);
                                prop_assert!(!models.iter().any(idle));
                            }
                            Verdict::Evict(victims) => {
                                let lacking = used + bytes - budget;
                                let freed: Vec<u64> =
                                    victims.iter().map(|v| taken(&models[*v as usize])).collect();
                                let all: u64 = freed.iter().sum();
                                prop_assert!(all - freed.last().unwrap() < lacking, "one more than is needed");
                                let latest = victims.iter().map(|v| models[*v as usize].standing.last).max();
                                for (other, model) in models.iter().enumerate().filter(|(_, m)| idle(m)) {
                                    let goes = victims.contains(&u32::try_from(other).unwrap());
                                    prop_assert!(goes || all >= lacking, "idle, needed, and not told to go");
                                    prop_assert!(goes || Some(model.standing.last) >= latest);
                                }
                                for victim in victims {
                                    let model = &mut models[victim as usize];
                                    prop_assert!(idle(model));
                                    ledger.free(model.line.take().unwrap().0);
                                }
                            }
                        }
                    }
                }
                let sum: u64 = models.iter().filter_map(|m| m.line).map(|(_, bytes, _)| bytes).sum();
                prop_assert_eq!(ledger.used(), sum);
                prop_assert!(sum <= budget);
            }
        }
    }
}
