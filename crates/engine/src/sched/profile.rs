//! What passes of a model take, learned from those that ran. Pure but for the lock around it.
//!
//! A pass costs what its rows cost, and a row costs what its bytes make it cost: so times are kept by the size of a row
//! (in half octaves, which bounds how many there are) and by the number of rows. Sizes that never ran are read off between
//! those that did.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;

/// Weight of a new time against what was known before.
const NEW: f64 = 1.0 / 8.0;
/// After a reload what was known counts as this many times: the new version soon speaks for itself.
const PRIOR: u32 = 2;
/// Different numbers of rows that are kept for one size of row.
const MAX_POINTS: usize = 96;
/// Times further off than this many deviations count as that far.
const FAR: f64 = 3.0;
/// A batch must be faster by this much to be worth being larger.
const WORTH_IT: f64 = 0.015;

/// Rows of about the same size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RowClass(u8);

impl RowClass {
    /// The class of requests with that many bytes in that many rows.
    pub fn of(bytes: usize, rows: usize) -> Self {
        let bytes = (bytes / rows.max(1)).max(1);
        let octave = bytes.ilog2();
        // Whether it lies in the upper half of its octave, by the geometric mean: 1.5 is close enough to the root of 2.
        let upper = bytes - (1_usize << octave) >= (1_usize << octave) / 2;
        Self(u8::try_from(2 * octave + u32::from(upper)).unwrap_or(u8::MAX))
    }

    /// The least bytes of a row in it.
    pub fn bytes(self) -> u64 {
        let octave = 1_u64 << (self.0 / 2);
        if self.0 % 2 == 1 { octave + octave / 2 } else { octave }
    }
}

/// A pass that was timed: its class, its rows, how long it took.
pub type Measured = (RowClass, usize, Duration);

/// What is known of passes of one size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PassTime {
    /// Mean, recent passes counting more.
    pub mean: Duration,
    /// Mean distance from the mean.
    pub deviation: Duration,
    /// Passes that it is from, the warm-up's included.
    pub passes: u64,
}

/// One row of a profile, for people.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ProfilePoint {
    /// Size of the rows.
    pub class: RowClass,
    /// Their number.
    pub rows: usize,
    /// What passes of that size take.
    pub time: PassTime,
}

#[derive(Debug, Clone, Copy)]
struct Point {
    mean: f64,
    deviation: f64,
    /// Decides how much the next time counts; falls at a reload.
    weight: u32,
    passes: u64,
}

/// Times of passes by number of rows.
#[derive(Debug, Clone, Default)]
struct Curve {
    points: BTreeMap<usize, Point>,
    /// Batches that were planned: every so often another size is tried.
    plans: u32,
}

/// Every so many plans another size than the best known is taken: what was slow once need not stay so.
const EXPLORE: u32 = 64;

impl Curve {
    fn record(&mut self, rows: usize, took: f64) {
        if self.points.len() >= MAX_POINTS && !self.points.contains_key(&rows) {
            return;
        }
        let point = self.points.entry(rows).or_insert(Point {
            mean: took,
            deviation: took / 4.0,
            weight: 0,
            passes: 0,
        });
        let new = NEW.max(1.0 / f64::from(point.weight + 1));
        // A pass that was interrupted says little about the next one; a model that has become slow still gets there.
        let most = if point.weight > 2 { FAR * point.deviation.max(point.mean / 16.0) } else { f64::MAX };
        let off = (took - point.mean).min(most);
        if point.weight > 0 {
            point.deviation += new * (off.abs() - point.deviation);
        }
        point.mean += new * off;
        point.weight = point.weight.saturating_add(1);
        point.passes += 1;
    }

    /// Mean and deviation; between known sizes on the line between them, above the largest as if each row cost the same.
    fn time(&self, rows: usize) -> Option<(f64, f64)> {
        let below = self.points.range(..=rows).next_back();
        let above = self.points.range(rows..).next();
        match (below, above) {
            (Some((at, point)), _) if *at == rows => Some((point.mean, point.deviation)),
            (Some((low, a)), Some((high, b))) => {
                let part = (rows - low) as f64 / (high - low) as f64;
                let between = |a: f64, b: f64| a + part * (b - a);
                Some((between(a.mean, b.mean), between(a.deviation, b.deviation)))
            }
            (Some((low, a)), None) => {
                let more = rows as f64 / *low as f64;
                Some((a.mean * more, a.deviation * more))
            }
            (None, Some((_, b))) => Some((b.mean, b.deviation)),
            (None, None) => None,
        }
    }

    /// Sizes worth comparing, with the mean time of a pass: those known, and between or beyond them the most there can be and
    /// twice the largest known. Smallest first, but for the last two. Where there are `buckets`, only those that can be
    /// filled, and the next one with as many rows as there can be.
    fn candidates<'a>(
        &'a self,
        most: usize,
        buckets: &'a [usize],
    ) -> impl Iterator<Item = (usize, f64)> + 'a {
        let beyond = self.points.last_key_value().map_or(1, |(largest, _)| largest * 2).min(most);
        let any = if buckets.is_empty() { most } else { 0 };
        let known = self.points.range(..=any).map(|(rows, point)| (*rows, point.mean));
        let further = [beyond, most].into_iter().filter(move |rows| *rows <= any).map(|rows| (rows, rows));
        let filled = buckets.partition_point(|&bucket| bucket < most);
        let padded = buckets.iter().take(filled + 1).map(move |&bucket| (bucket.min(most), bucket));
        known.chain(further.chain(padded).filter_map(|(rows, run)| Some((rows, self.time(run)?.0))))
    }

    fn best(&self, most: usize, within: f64, buckets: &[usize]) -> usize {
        let speeds = || {
            let fit = self.candidates(most, buckets).filter(|(_, mean)| *mean <= within);
            fit.map(|(rows, mean)| (rows, rows as f64 / mean.max(1e-9)))
        };
        let Some(fastest) = speeds().map(|(_, speed)| speed).max_by(f64::total_cmp) else { return 1 };
        // The smallest that is as good: it ends sooner.
        let good = fastest * (1.0 - WORTH_IT);
        speeds().filter(|(_, speed)| *speed >= good).map(|(rows, _)| rows).min().unwrap_or(1)
    }
}

/// The latency profile of one model.
#[derive(Debug, Default)]
pub struct Profile {
    curves: Mutex<BTreeMap<RowClass, Curve>>,
}

impl Profile {
    /// Notes a pass.
    pub fn record(&self, class: RowClass, rows: usize, took: Duration) {
        self.curves.lock().entry(class).or_default().record(rows.max(1), took.as_secs_f64());
    }

    /// A new version is about to go live, warmed up with `measured` (rows of that class took so long). What was known
    /// stays as a prior; the warm-up says what is new. It ran at the lowest priority, so it only ever lowers a time.
    pub fn renew(&self, measured: &[Measured]) {
        let mut curves = self.curves.lock();
        for point in curves.values_mut().flat_map(|curve| curve.points.values_mut()) {
            point.weight = point.weight.min(PRIOR);
        }
        for (class, rows, took) in measured {
            let (curve, took) = (curves.entry(*class).or_default(), took.as_secs_f64());
            if curve.points.get(rows).is_none_or(|known| took < known.mean) {
                curve.record(*rows, took);
            }
        }
    }

    /// What a pass with that many rows takes. `None`: nothing like it has run.
    pub fn time(&self, class: RowClass, rows: usize) -> Option<PassTime> {
        let curves = self.curves.lock();
        let curve = curves.get(&class)?;
        let (mean, deviation) = curve.time(rows)?;
        Some(PassTime {
            mean: Duration::from_secs_f64(mean),
            deviation: Duration::from_secs_f64(deviation),
            passes: curve.points.get(&rows).map_or(0, |point| point.passes),
        })
    }

    /// The number of rows up to `most` that gives the most rows a second in passes of up to `within`, which are padded to the
    /// next of `buckets` if there are any. 1 where even one row takes longer, `most` (or the buckets that it fills) where
    /// nothing is known. Now and then another size, to learn of it.
    pub fn best_rows(&self, class: RowClass, most: usize, within: Duration, buckets: &[usize]) -> usize {
        if most <= 1 {
            return 1;
        }
        let mut curves = self.curves.lock();
        let Some(curve) = curves.get_mut(&class).filter(|curve| !curve.points.is_empty()) else {
            return filled(buckets, most);
        };
        curve.plans = curve.plans.wrapping_add(1);
        let within = within.as_secs_f64();
        if curve.plans.is_multiple_of(EXPLORE) {
            let fit = curve.candidates(most, buckets).filter(|(_, mean)| *mean <= within);
            let sizes: Vec<usize> = fit.map(|(rows, _)| rows).collect();
            let turn = (curve.plans / EXPLORE) as usize % sizes.len().max(1);
            if let Some(rows) = sizes.get(turn) {
                return *rows;
            }
        }
        curve.best(most, within, buckets)
    }

    /// The size that is worth waiting for: the best of all up to `most`, as [`Profile::best_rows`] has it.
    pub fn enough_rows(&self, class: RowClass, most: usize, within: Duration, buckets: &[usize]) -> usize {
        let curves = self.curves.lock();
        let curve = curves.get(&class).filter(|curve| !curve.points.is_empty());
        curve.map_or(most, |curve| curve.best(most, within.as_secs_f64(), buckets))
    }

    /// Seconds of executor time that those rows will cost in batches of the best size; `None`: not known.
    pub fn cost(&self, class: RowClass, rows: usize, most: usize, within: Duration) -> Option<Cost> {
        let curves = self.curves.lock();
        let curve = curves.get(&class)?;
        let batch = curve.best(most.max(1), within.as_secs_f64(), &[]).max(rows);
        let (alone, _) = curve.time(rows)?;
        let (pass, deviation) = curve.time(batch)?;
        let share = (pass * rows as f64 / batch as f64).min(alone);
        Some(Cost { share, alone, pass: pass + 2.0 * deviation })
    }

    /// Everything that is known, by class and rows.
    pub fn points(&self) -> Vec<ProfilePoint> {
        let curves = self.curves.lock();
        let points = curves.iter().flat_map(|(class, curve)| {
            curve.points.iter().map(|(rows, point)| ProfilePoint {
                class: *class,
                rows: *rows,
                time: PassTime {
                    mean: Duration::from_secs_f64(point.mean),
                    deviation: Duration::from_secs_f64(point.deviation),
                    passes: point.passes,
                },
            })
        });
        points.collect()
    }
}

/// The largest of `buckets` that `rows` fill, or all of them where there is none.
pub(super) fn filled(buckets: &[usize], rows: usize) -> usize {
    buckets.iter().copied().rfind(|&bucket| bucket <= rows).unwrap_or(rows)
}

/// What a request will cost, in seconds of an executor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// Its part of a batch of the best size: what it adds to the work of all.
    pub share: f64,
    /// A pass of its own.
    pub alone: f64,
    /// The pass of the batch that it will be in when many wait, cautiously.
    pub pass: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLASS: RowClass = RowClass(20);
    const LONG: Duration = Duration::from_secs(3600);

    fn us(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    fn known(times: &[(usize, u64)]) -> Profile {
        let profile = Profile::default();
        for (rows, time) in times {
            profile.record(CLASS, *rows, us(*time));
        }
        profile
    }

    #[test]
    fn rows_of_like_size_are_of_one_class() {
        assert_eq!(RowClass::of(1024, 1), RowClass::of(4096, 4));
        assert_eq!(RowClass::of(1024, 1), RowClass::of(1500, 1));
        assert_ne!(RowClass::of(1024, 1), RowClass::of(1600, 1));
        assert_ne!(RowClass::of(1600, 1), RowClass::of(2048, 1));
        assert_eq!(RowClass::of(1600, 1).bytes(), 1536);
        assert_eq!(RowClass::of(0, 0), RowClass::of(1, 1));
        let _largest = RowClass::of(usize::MAX, 1);
    }

    #[test]
    fn a_model_that_does_not_profit_is_not_batched() {
        assert_eq!(known(&[(1, 100), (2, 201), (4, 399)]).best_rows(CLASS, 4, LONG, &[]), 1);
        assert_eq!(known(&[(1, 100), (2, 120), (4, 400)]).best_rows(CLASS, 4, LONG, &[]), 2);
        assert_eq!(known(&[(1, 100), (2, 110), (4, 130), (8, 160)]).best_rows(CLASS, 8, LONG, &[]), 8);
        assert_eq!(known(&[]).best_rows(CLASS, 4, LONG, &[]), 4, "nothing known");
    }

    #[test]
    fn passes_stay_within_what_may_be_waited_for() {
        let profile = known(&[(1, 100), (2, 110), (4, 130), (8, 160)]);
        assert_eq!(profile.best_rows(CLASS, 8, us(159), &[]), 4);
        assert_eq!(profile.best_rows(CLASS, 8, us(50), &[]), 1, "one is always run");
    }

    #[test]
    fn sizes_that_never_ran_are_tried_step_by_step() {
        let profile = known(&[(1, 100)]);
        assert_eq!(profile.time(CLASS, 16).unwrap().mean, us(1600));
        profile.record(CLASS, 2, us(110));
        assert_eq!(profile.best_rows(CLASS, 2, LONG, &[]), 2);
        assert_eq!(profile.time(CLASS, 4).unwrap().mean, us(220));
        profile.record(CLASS, 8, us(170));
        assert_eq!(profile.time(CLASS, 5).unwrap().mean, us(140), "between two known sizes");
    }

    #[test]
    fn rows_are_padded_only_where_that_is_faster() {
        const BUCKETS: [usize; 4] = [1, 2, 4, 8];
        let best = |times: &[(usize, u64)], most| known(times).best_rows(CLASS, most, LONG, &BUCKETS);
        let flat = [(1, 100), (2, 110), (4, 130), (8, 150)];
        assert_eq!([3, 5, 7, 8].map(|most| best(&flat, most)), [3, 5, 7, 8]);
        let steep = [(1, 100), (2, 110), (4, 130), (8, 250)];
        assert_eq!([3, 5, 7, 8].map(|most| best(&steep, most)), [3, 4, 4, 8]);
        assert_eq!(known(&flat).best_rows(CLASS, 7, us(140), &BUCKETS), 4, "8 would take too long");
        assert_eq!([3, 7, 8].map(|most| best(&[], most)), [2, 4, 8], "nothing known");
        assert_eq!(known(&steep).enough_rows(CLASS, 8, LONG, &BUCKETS), 8);
        assert_eq!(known(&[]).enough_rows(CLASS, 8, LONG, &BUCKETS), 8);
    }

    #[test]
    fn what_was_slow_once_is_tried_again() {
        let profile = known(&[(1, 100), (8, 10_000)]);
        let mut tried = 0;
        for _ in 0..10_000 {
            let rows = profile.best_rows(CLASS, 8, LONG, &[]);
            profile.record(CLASS, rows, us(if rows == 8 { 160 } else { 100 }));
            tried += usize::from(rows == 8);
        }
        assert!(tried > 5000, "{tried}");
    }

    #[test]
    fn one_interrupted_pass_changes_little_and_many_slow_ones_much() {
        let profile = known(&[(1, 100); 50]);
        profile.record(CLASS, 1, us(50_000));
        assert!(profile.time(CLASS, 1).unwrap().mean < us(110), "{:?}", profile.time(CLASS, 1));
        (0..60).for_each(|_| profile.record(CLASS, 1, us(1000)));
        assert!(profile.time(CLASS, 1).unwrap().mean > us(900), "{:?}", profile.time(CLASS, 1));
    }

    #[test]
    fn a_new_version_soon_speaks_for_itself() {
        let profile = known(&[(1, 100); 50]);
        profile.renew(&[(CLASS, 1, us(500)), (CLASS, 2, us(600))]);
        assert_eq!(profile.time(CLASS, 1).unwrap().mean, us(100), "the warm-up was disturbed");
        assert_eq!(profile.time(CLASS, 2).unwrap().mean, us(600), "but better than nothing");
        (0..12).for_each(|_| profile.record(CLASS, 1, us(500)));
        assert!(profile.time(CLASS, 1).unwrap().mean > us(350), "{:?}", profile.time(CLASS, 1));
    }

    #[test]
    fn the_cost_of_a_request_is_its_part_of_the_batch() {
        let profile = known(&[(1, 100), (8, 160)]);
        let cost = profile.cost(CLASS, 1, 8, LONG).unwrap();
        assert!((cost.share - 20e-6).abs() < 1e-9 && (cost.alone - 100e-6).abs() < 1e-9, "{cost:?}");
        assert!(cost.pass > 160e-6);
        assert_eq!(profile.cost(RowClass(3), 1, 8, LONG), None);
    }
}
