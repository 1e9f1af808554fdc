//! A test that may be looked at as often as one likes. Pure.
//!
//! The claim to be refuted is "at most this part of the trials hit". For any larger part the ratio of the likelihoods is a
//! number that, were the claim true, would not grow on average, whenever one stops; the mean over several larger parts is such
//! a number too. By Ville's inequality it ever reaches `1 / a` with a probability of at most `a`, however often it is looked at.

/// Trials, and how many of them hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Trials {
    /// Those that hit.
    pub hits: u64,
    /// All of them.
    pub of: u64,
}

impl Trials {
    fn note(&mut self, hit: bool) {
        self.hits += u64::from(hit);
        self.of += 1;
    }
}

/// Natural logarithm of the evidence at which a claim is given up: one good version in 500 gets there, in each of the tests.
pub const BAR: f64 = 6.214_608_098_422_191;

/// From here on nothing is promoted: `ln 10`.
pub const SUSPICIOUS: f64 = std::f64::consts::LN_10;

/// Larger parts that are held against the bound: the bound to these powers, so that they lie evenly, by ratio, between it and 1.
const ALTERNATIVES: [f64; 7] = [0.9, 0.75, 0.6, 0.45, 0.3, 0.15, 0.05];

/// Natural logarithm of the evidence against "at most `bound` of the trials hit".
pub fn log_evidence(trials: Trials, bound: f64) -> f64 {
    let bound = bound.clamp(1e-6, 0.999);
    let (hits, misses) = (trials.hits as f64, (trials.of - trials.hits.min(trials.of)) as f64);
    let each = ALTERNATIVES.map(|power| {
        let part = bound.powf(power);
        hits * (part / bound).ln() + misses * ((1.0 - part) / (1.0 - bound)).ln()
    });
    let most = each.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    most + (each.iter().map(|log| (log - most).exp()).sum::<f64>() / each.len() as f64).ln()
}

/// All trials, and those of a window: a version that begins to misbehave after a good hour is not protected by that hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sequence {
    whole: Trials,
    window: Trials,
    windows: u32,
}

impl Sequence {
    /// Notes a trial.
    pub fn note(&mut self, hit: bool) {
        self.whole.note(hit);
        self.window.note(hit);
    }

    /// Begins the next window.
    pub fn turn(&mut self) {
        self.window = Trials::default();
        self.windows = self.windows.saturating_add(1);
    }

    /// All trials so far.
    pub fn trials(&self) -> Trials {
        self.whole
    }

    /// Logarithm of the evidence, to be held against [`BAR`]. Half of the chance of a false alarm goes to all trials together,
    /// the other half to the windows, the n-th of which gets one part in `n (n + 1)`: together never more than 1.
    pub fn log_evidence(&self, bound: f64) -> f64 {
        let n = f64::from(self.windows) + 1.0;
        let whole = log_evidence(self.whole, bound) - 2_f64.ln();
        let window = log_evidence(self.window, bound) - (2.0 * n * (n + 1.0)).ln();
        whole.max(window)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// After how many trials the bar is reached, of at most `most`; windows turn every 500.
    fn caught(rng: &mut fastrand::Rng, part: f64, bound: f64, most: u32) -> Option<u32> {
        let mut sequence = Sequence::default();
        (1..=most).find(|n| {
            if n % 500 == 0 {
                sequence.turn();
            }
            sequence.note(rng.f64() < part);
            sequence.log_evidence(bound) >= BAR
        })
    }

    #[test]
    fn looked_at_after_every_trial_it_seldom_lies() {
        let mut rng = fastrand::Rng::with_seed(7);
        for (bound, most) in [(0.005, 4000), (0.1, 2000), (0.5, 2000)] {
            let lies = (0..600).filter(|_| caught(&mut rng, bound, bound, most).is_some()).count();
            // One in 500 is promised at the bound itself, which is worse than a good version ever is.
            assert!(lies <= 5, "{lies} of 600 at {bound}");
        }
    }

    #[test]
    fn what_is_bad_is_seen_soon() {
        let mut rng = fastrand::Rng::with_seed(8);
        let mut worst = |part, bound| {
            let each = |_| caught(&mut rng, part, bound, 10_000).unwrap_or(u32::MAX);
            let mut all: Vec<_> = (0..400).map(each).collect();
            all.sort_unstable();
            (all[200], all[395])
        };
        let (half, most) = worst(0.05, 0.005);
        assert!(half <= 200 && most <= 500, "5 % failing: {half}, {most}");
        let (half, most) = worst(0.98, 0.5);
        assert!(half <= 20 && most <= 30, "three times as slow: {half}, {most}");
        let (half, most) = worst(1.0, 0.01);
        assert!(half <= 3 && most <= 3, "outputs that all differ: {half}, {most}");
    }

    #[test]
    fn a_good_hour_does_not_hide_what_comes_after_it() {
        let mut sequence = Sequence::default();
        for n in 0..100_000 {
            if n % 1000 == 0 {
                sequence.turn();
            }
            sequence.note(false);
        }
        sequence.turn();
        let bad = (1..200).find(|_| {
            sequence.note(true);
            sequence.log_evidence(0.005) >= BAR
        });
        assert!(bad.is_some_and(|n| n <= 5), "{bad:?}");
    }

    proptest! {
        #[test]
        fn evidence_grows_with_hits_and_never_with_misses(hits in 0_u64..200, misses in 0_u64..2000, bound in 0.001..0.9) {
            let at = |hits, misses| log_evidence(Trials { hits, of: hits + misses }, bound);
            prop_assert!(at(hits, misses).is_finite());
            prop_assert!(at(hits + 1, misses) > at(hits, misses));
            prop_assert!(at(hits, misses + 1) < at(hits, misses));
        }

        #[test]
        fn on_average_it_does_not_grow_where_the_claim_is_true(hits in 0_u64..50, misses in 0_u64..50, bound in 0.01..0.9, under in 0.0..1.0) {
            let at = |hits, misses| log_evidence(Trials { hits, of: hits + misses }, bound).exp();
            let part = bound * under;
            let next = part * at(hits + 1, misses) + (1.0 - part) * at(hits, misses + 1);
            prop_assert!(next <= at(hits, misses) * (1.0 + 1e-9));
        }
    }
}
