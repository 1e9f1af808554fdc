//! Which results of a batch belong to which of its requests: decided by what was seen, not by what a shape looks like.
//!
//! A [`Trial`] holds the answers of two requests that ran alone, and of the same two in one pass, in both orders. An output
//! is cut by rows where its first dimension was the rows each time and each request got what it gets alone. It is given to
//! each request whole where it was the same each time. Where neither holds, requests are not put together. Pure.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use torchlane_model::{
    Decision, NamedTensor, TensorSpec,
    tensor::{DType, HostTensor, Tolerance, alike, split_rows},
};

/// How an output goes with the rows of a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goes {
    /// Its first dimension is the rows: each request gets its own.
    WithRows,
    /// It is the same whatever the rows are: each request gets all of it.
    Whole,
}

/// What a trial showed.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Requests may share a pass.
    Shared {
        /// For each output.
        goes: Box<[Goes]>,
        /// Outputs that differ from pass to pass: they were judged by their shapes alone.
        random: Vec<String>,
    },
    /// Requests must run alone, and why.
    Alone(String),
    /// The answers were too much alike to say.
    Open,
}

/// What is known of a version's results.
#[derive(Debug, Default)]
pub struct Rows {
    shared: OnceLock<Box<[Goes]>>,
    alone: OnceLock<String>,
    random: OnceLock<Vec<String>>,
    /// Trials that said nothing.
    open: AtomicU32,
    /// Trials that said that requests may share a pass.
    fine: AtomicU32,
    trying: AtomicBool,
}

/// After so many trials that showed no difference between requests there is none.
const MOST_OPEN: u32 = 8;

impl Rows {
    /// For each output, if requests may share a pass.
    pub fn shared(&self) -> Option<&[Goes]> {
        if self.is_alone() { None } else { self.shared.get().map(AsRef::as_ref) }
    }

    /// Requests must run alone.
    pub fn is_alone(&self) -> bool {
        self.alone.get().is_some()
    }

    /// Why they must.
    pub fn why_alone(&self) -> Option<&str> {
        self.alone.get().map(String::as_str)
    }

    /// What is to be said of it, if anything is.
    pub fn decision(&self) -> Option<Decision> {
        if let Some(why) = self.why_alone() {
            let text = format!("torchlane runs each request alone: {why}.");
            return Some(Decision::new("batching", text));
        }
        let random = self.random.get().filter(|random| !random.is_empty())?.join(", ");
        let text = format!(
            "Answers are random ({random}), so torchlane compared only their shapes with those of requests alone."
        );
        Some(Decision::new("batching", text))
    }

    /// Keeps what a trial showed. Of trials with the values of callers `enough` must agree before requests share a pass;
    /// one that shows that they must not is enough. True: it is decided now, and was not before.
    pub fn learn(&self, verdict: Verdict, enough: u32) -> bool {
        match verdict {
            Verdict::Alone(why) => self.alone.set(why).is_ok(),
            Verdict::Shared { goes, random } => {
                if self.fine.fetch_add(1, Ordering::Relaxed) + 1 < enough {
                    return false;
                }
                let _first = self.random.set(random);
                self.shared.set(goes).is_ok()
            }
            Verdict::Open => {
                self.open.fetch_add(1, Ordering::Relaxed);
                false
            }
        }
    }

    /// Whether answers that are alike count as what they are: there were enough of them.
    pub(super) fn is_patient(&self) -> bool {
        self.open.load(Ordering::Relaxed) < MOST_OPEN
    }

    /// Begins a trial; false while another runs.
    pub(super) fn try_begin(&self) -> bool {
        !self.trying.swap(true, Ordering::Acquire)
    }

    pub(super) fn end_try(&self) {
        self.trying.store(false, Ordering::Release);
    }
}

/// The outputs of a pass, and the rows that it had, with what it was padded with.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) outputs: Vec<NamedTensor>,
    pub(super) run: usize,
}

/// Two requests of those rows: the first alone, once more, the second alone, both together, and the second before the first.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) rows: [usize; 2],
    pub(super) first: Seen,
    pub(super) again: Seen,
    pub(super) second: Seen,
    pub(super) together: Seen,
    pub(super) swapped: Seen,
}

/// How a trial is judged.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) near: &'a dyn Fn(DType) -> Tolerance,
    /// What is declared of the outputs of one request.
    pub(super) declared: &'a [TensorSpec],
    /// The owner says that rows do not depend on each other: values are not compared.
    pub(super) trusted: bool,
    /// Answers that are alike say nothing.
    pub(super) patient: bool,
}

/// What was found of one output.
struct Found {
    goes: Goes,
    random: bool,
    /// The two requests got clearly different answers.
    telling: bool,
}

pub(super) fn judge(trial: &Trial, rules: &Rules<'_>) -> Verdict {
    let Trial { first, again, second, together, swapped, .. } = trial;
    let all = [first, again, second, together, swapped];
    let alike_named = |seen: &&Seen| {
        let names = |seen: &Seen| seen.outputs.iter().map(|o| o.name.clone()).collect::<Vec<_>>();
        names(seen) == names(first)
    };
    if !all.iter().all(alike_named) {
        return Verdict::Alone("the model returns other outputs for other numbers of rows".to_owned());
    }
    let (mut goes, mut random) = (Vec::new(), Vec::new());
    let (mut compared, mut telling) = (false, false);
    for (at, NamedTensor { name, .. }) in first.outputs.iter().enumerate() {
        let tensors: Option<Vec<_>> =
            all.iter().map(|seen| Some((&seen.outputs.get(at)?.tensor, seen.run))).collect();
        let Some(&[first, again, second, together, swapped]) = tensors.as_deref() else { continue };
        let spec = rules.declared.iter().find(|spec| *spec.name == **name);
        let output = Output { rows: trial.rows, first, again, second, together, swapped, spec, rules };
        match output.judge() {
            Ok(found) => {
                goes.push(found.goes);
                if found.random {
                    random.push(name.clone());
                } else if found.goes == Goes::WithRows {
                    compared = true;
                    telling |= found.telling;
                }
            }
            Err(why) => return Verdict::Alone(format!("output '{name}' {why}")),
        }
    }
    if compared && !telling && rules.patient && !rules.trusted {
        return Verdict::Open;
    }
    Verdict::Shared { goes: goes.into(), random }
}

/// One output of the passes of a trial, each with the rows that the pass had.
struct Output<'a> {
    rows: [usize; 2],
    first: (&'a HostTensor, usize),
    again: (&'a HostTensor, usize),
    second: (&'a HostTensor, usize),
    together: (&'a HostTensor, usize),
    swapped: (&'a HostTensor, usize),
    spec: Option<&'a TensorSpec>,
    rules: &'a Rules<'a>,
}

impl Output<'_> {
    fn judge(&self) -> Result<Found, String> {
        let near = (self.rules.near)(self.first.0.dtype());
        let random = alike(self.first.0, self.again.0, near).is_err();
        let values = !random && !self.rules.trusted;
        let by_rows = self.by_rows(near, values);
        if let Ok(telling) = by_rows {
            return Ok(Found { goes: Goes::WithRows, random, telling });
        }
        let others = [self.second, self.together, self.swapped].map(|(tensor, _)| tensor);
        let whole = others.iter().all(|other| match alike(self.first.0, other, near) {
            Ok(()) => true,
            Err(apart) => apart.is_some() && self.rules.trusted,
        });
        if whole && (!random || self.rules.trusted) {
            return Ok(Found { goes: Goes::Whole, random, telling: false });
        }
        Err(match by_rows {
            Err(Apart::Values(largest)) => format!(
                "of a request changes by up to {largest:.3e} with the other requests of its batch: \
                 set batching.independent_rows = true if that is right"
            ),
            Err(Apart::Declared(why)) => format!("{why} once it is cut by rows"),
            _ => "does not have one row for each row of the batch, and is not the same for all".to_owned(),
        })
    }

    /// Cut by rows, each request gets what it gets alone. Then: whether the two got different answers.
    fn by_rows(&self, near: Tolerance, values: bool) -> Result<bool, Apart> {
        let cut = |(tensor, run): (&HostTensor, usize), rows: &[usize]| {
            let mut sizes = rows.to_vec();
            let real: usize = rows.iter().sum();
            sizes.extend(run.checked_sub(real).filter(|rest| *rest > 0));
            split_rows(tensor, &sizes).ok().flatten().ok_or(Apart::Shape)
        };
        let [one, two] = self.rows;
        let first = only(cut(self.first, &[one])?)?;
        let second = only(cut(self.second, &[two])?)?;
        let together = pair(cut(self.together, &[one, two])?)?;
        let swapped = pair(cut(self.swapped, &[two, one])?)?;
        if let Some(why) =
            self.spec.and_then(|spec| [&first, &second].into_iter().find_map(|t| spec.contradicts(t)))
        {
            return Err(Apart::Declared(why));
        }
        for (alone, shared) in
            [(&first, &together.0), (&second, &together.1), (&second, &swapped.0), (&first, &swapped.1)]
        {
            match alike(alone, shared, near) {
                Ok(()) => {}
                Err(None) => return Err(Apart::Shape),
                Err(Some(largest)) if values => return Err(Apart::Values(largest)),
                Err(Some(_)) => {}
            }
        }
        let row =
            |tensor: HostTensor, rows: usize| only(split_rows(&tensor, &[1, rows - 1]).ok().flatten()?).ok();
        let rows = row(first, one).zip(row(second, two));
        Ok(rows.is_some_and(|(first, second)| alike(&first, &second, near).is_err()))
    }
}

/// Why an output cannot be cut by rows.
enum Apart {
    Shape,
    Values(f64),
    Declared(String),
}

fn only(pieces: Vec<HostTensor>) -> Result<HostTensor, Apart> {
    pieces.into_iter().next().ok_or(Apart::Shape)
}

fn pair(pieces: Vec<HostTensor>) -> Result<(HostTensor, HostTensor), Apart> {
    let mut pieces = pieces.into_iter();
    pieces.next().zip(pieces.next()).ok_or(Apart::Shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(values: &[f32]) -> HostTensor {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        HostTensor::new(DType::F32, smallvec::smallvec![values.len() as i64], bytes.into()).unwrap()
    }

    /// A trial of a model that is a function of the rows, with passes padded by zeros to one of `buckets`.
    fn trial(buckets: &[usize], model: &mut dyn FnMut(&[f32]) -> Vec<f32>) -> Trial {
        let mut pass = |rows: &[f32]| {
            let run = buckets.iter().copied().find(|bucket| *bucket >= rows.len()).unwrap_or(rows.len());
            let mut input = rows.to_vec();
            input.resize(run, 0.0);
            Seen { outputs: vec![NamedTensor { name: "y".into(), tensor: floats(&model(&input)) }], run }
        };
        let (one, two) = ([0.3], [0.9, 0.2]);
        Trial {
            rows: [1, 2],
            first: pass(&one),
            again: pass(&one),
            second: pass(&two),
            together: pass(&[&one[..], &two].concat()),
            swapped: pass(&[&two[..], &one].concat()),
        }
    }

    fn judged_as(buckets: &[usize], trusted: bool, model: &mut dyn FnMut(&[f32]) -> Vec<f32>) -> Verdict {
        let near = |_| Tolerance { absolute: 1e-4, relative: 1e-3 };
        judge(&trial(buckets, model), &Rules { near: &near, declared: &[], trusted, patient: true })
    }

    fn judged(model: &mut dyn FnMut(&[f32]) -> Vec<f32>) -> Verdict {
        judged_as(&[], false, model)
    }

    fn shared(goes: Goes) -> Verdict {
        Verdict::Shared { goes: [goes].into(), random: Vec::new() }
    }

    fn why(verdict: Verdict) -> String {
        let Verdict::Alone(why) = verdict else { panic!("{verdict:?}") };
        why
    }

    #[test]
    fn an_output_goes_with_the_rows_only_where_it_did() {
        assert_eq!(judged(&mut |x| x.iter().map(|x| 2.0 * x).collect()), shared(Goes::WithRows));
        assert_eq!(judged(&mut |_| vec![8.0, 16.0, 32.0]), shared(Goes::Whole), "three rows together");
        assert_eq!(judged(&mut |_| vec![8.0]), shared(Goes::Whole), "one row alone");
        assert!(why(judged(&mut |x| vec![x.iter().sum()])).contains("does not have one row"));
        assert!(why(judged(&mut |x| x.iter().copied().filter(|x| *x > 0.25).collect())).contains("one row"));
    }

    #[test]
    fn rows_that_depend_on_each_other_are_found() {
        let mean = |x: &[f32]| x.iter().sum::<f32>() / x.len() as f32;
        assert!(why(judged(&mut |x| x.iter().map(|v| v - mean(x)).collect())).contains("changes by up to"));
        let softmax = |x: &[f32]| {
            let sum: f32 = x.iter().map(|v| v.exp()).sum();
            x.iter().map(|v| v.exp() / sum).collect()
        };
        assert!(why(judged(&mut |x| softmax(x))).contains("independent_rows"));
        let mut sorted = |x: &[f32]| {
            let mut x = x.to_vec();
            x.sort_by(f32::total_cmp);
            x
        };
        assert!(why(judged(&mut sorted)).contains("changes"));
        assert_eq!(judged_as(&[], true, &mut |x| softmax(x)), shared(Goes::WithRows), "its owner knows");
    }

    #[test]
    fn sizes_of_batches_that_are_padded_to_are_seen_through() {
        let mut double = |x: &[f32]| x.iter().map(|x| 2.0 * x).collect::<Vec<f32>>();
        assert_eq!(judged_as(&[2, 6], false, &mut double), shared(Goes::WithRows));
        assert_eq!(judged_as(&[8], false, &mut double), shared(Goes::WithRows));
        let mut fixed = |_: &[f32]| (0..8).map(|i| i as f32).collect::<Vec<f32>>();
        assert_eq!(judged_as(&[8], false, &mut fixed), shared(Goes::Whole), "it has eight rows each time");
    }

    #[test]
    fn what_is_random_is_judged_by_its_shape_and_named() {
        let random = fastrand::Rng::with_seed(7);
        let mut dice = random.clone();
        let verdict = judged(&mut |x| x.iter().map(|_| dice.f32()).collect());
        assert_eq!(verdict, Verdict::Shared { goes: [Goes::WithRows].into(), random: vec!["y".into()] });
        let mut dice = random;
        assert!(why(judged(&mut |_| vec![dice.f32(); 5])).contains("one row"));
    }

    #[test]
    fn answers_that_are_alike_say_nothing() {
        assert_eq!(judged(&mut |x| vec![0.0; x.len()]), Verdict::Open);
        assert_eq!(judged(&mut |x| vec![f32::NAN; x.len()]), Verdict::Open);
        let rows = Rows::default();
        for _ in 0..MOST_OPEN {
            assert!(rows.is_patient() && !rows.learn(Verdict::Open, 2));
        }
        assert!(!rows.is_patient());
    }

    #[test]
    fn callers_must_agree_and_one_that_does_not_is_enough() {
        let rows = Rows::default();
        assert!(!rows.learn(shared(Goes::WithRows), 2) && rows.shared().is_none());
        assert!(rows.learn(shared(Goes::WithRows), 2));
        assert_eq!(rows.shared(), Some(&[Goes::WithRows][..]));
        assert!(rows.learn(Verdict::Alone("why".into()), 2) && rows.is_alone() && rows.shared().is_none());
        assert!(!rows.learn(Verdict::Alone("again".into()), 2));
        assert_eq!(rows.why_alone(), Some("why"));
    }
}
