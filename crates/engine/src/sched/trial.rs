//! Runs two requests alone and together, to learn how results go with the rows of a batch.

use torchlane_model::{Binding, NamedTensor};

use super::{
    forward::{Request, Whole, whole},
    padding,
    rows::{Rules, Seen, Trial, Verdict, judge},
};
use crate::backend::{BackendError, Servable};

/// Passes of one request, until what is random has shown it: of few elements, two in a row may well be the same.
const REPEATED: usize = 8;

/// Runs the trial, each pass by `paced`.
///
/// # Errors
/// One of the two fails when it is alone, or they may not share a batch: nothing is known then.
pub fn trial(
    servable: &Servable,
    inputs: [&[NamedTensor]; 2],
    paced: impl Fn(&(dyn Fn() -> Result<Whole, BackendError> + Sync)) -> Result<Whole, BackendError>,
) -> Result<Verdict, BackendError> {
    let bind = |inputs| {
        let bound = Binding::new(&servable.signature, inputs, servable.max_batch);
        bound.map_err(|error| BackendError::new(error.message()))
    };
    let [one, two] = inputs;
    let bound = (bind(one)?, bind(two)?);
    let rows = [bound.0.rows, bound.1.rows];
    let many: usize = rows.iter().sum();
    let differ = one.iter().zip(two).any(|(one, two)| one.tensor.data() != two.tensor.data());
    let fit = bound.0.key.is_some() && bound.0.key == bound.1.key && many <= servable.max_batch;
    if !fit || !differ || rows.contains(&0) {
        return Err(BackendError::new("the requests cannot share a batch, or are the same"));
    }
    // Padded alike each time, so that padding is not what makes the difference.
    let sizes = padding::sizes([&bound.0, &bound.1].into_iter());
    let one = Request { binding: &bound.0, inputs: one };
    let two = Request { binding: &bound.1, inputs: two };
    let pass = |requests: &[Request<'_>]| {
        let Whole { outputs, run, .. } = paced(&|| whole(requests, servable, &sizes))?;
        Ok::<_, BackendError>(Seen { outputs, run })
    };
    let (first, again, second) = (pass(&[one])?, pass(&[one])?, pass(&[two])?);
    let (together, swapped) = match (pass(&[one, two]), pass(&[two, one])) {
        (Ok(together), Ok(swapped)) => (together, swapped),
        (Err(error), _) | (_, Err(error)) => {
            return Ok(Verdict::Alone(format!("a pass of {many} rows fails: {}", error.short)));
        }
    };
    let mut seen = Trial { rows, first, again, second, together, swapped };
    let check = &servable.manifest.check;
    // With padding an output is what is declared only once it is cut back.
    let declared = if sizes.is_empty() { servable.signature.outputs() } else { &[] };
    let rules = Rules {
        near: &|dtype| check.tolerance(dtype),
        declared,
        trusted: servable.manifest.batching.independent_rows,
        patient: servable.rows.is_patient(),
    };
    let is_alone = |verdict: &Verdict| matches!(verdict, Verdict::Alone(_));
    let mut verdict = judge(&seen, &rules);
    // Where the values are all that is wrong: do they change by themselves?
    if is_alone(&verdict) && !is_alone(&judge(&seen, &Rules { trusted: true, ..rules })) {
        for _ in 0..REPEATED {
            seen.again = pass(&[one])?;
            verdict = judge(&seen, &rules);
            if !is_alone(&verdict) {
                break;
            }
        }
    }
    Ok(verdict)
}
