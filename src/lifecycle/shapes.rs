//! What shapes a version is warmed up with.

use std::collections::BTreeSet;

use crate::{
    backend::Servable,
    model::{NamedTensor, Sample, Signature},
    registry::{InputShapes, ServedShapes},
    tensor::DType,
};

/// What a version is warmed up with.
#[derive(Debug, Default)]
pub(super) struct Planned {
    /// It must take these, as passes will have them.
    pub(super) sure: Vec<InputShapes>,
    /// Earlier versions have served these, as requests had them. They need not fit.
    pub(super) remembered: Vec<InputShapes>,
}

/// The shapes of the samples, and those that are declared, or that a fixed signature implies. Without any declared or implied, those
/// served so far too.
pub(super) fn plan(servable: &Servable, served: &[InputShapes], samples: &[Sample]) -> Planned {
    let known = known(servable, samples);
    let remembered = if known.is_some() { Vec::new() } else { remembered(servable, served) };
    let sure = padded(&servable.signature, with_samples(samples, known.unwrap_or_default()));
    Planned { sure, remembered }
}

/// Declared shapes; else those that a fixed signature implies.
fn known(servable: &Servable, samples: &[Sample]) -> Option<Vec<InputShapes>> {
    let inputs: Vec<_> = servable.signature.tensors().collect();
    let declared = &servable.manifest.warmup.shapes;
    if !declared.is_empty() {
        let all = declared
            .iter()
            .map(|entry| {
                entry
                    .iter()
                    .map(|(name, shape)| {
                        let spec = inputs.iter().find(|spec| *spec.name == **name);
                        let sampled = || {
                            let mut inputs = samples.iter().flat_map(|sample| &sample.inputs);
                            inputs.find(|input| input.name == *name).map(|input| input.tensor.dtype())
                        };
                        let dtype = spec.and_then(|spec| spec.dtype).or_else(sampled).unwrap_or(DTYPE_GUESS);
                        (name.clone(), dtype, shape.as_slice().into())
                    })
                    .collect()
            })
            .collect();
        return Some(all);
    }
    let implied: Option<InputShapes> = inputs
        .iter()
        .filter(|spec| !spec.optional)
        .map(|spec| {
            let (dtype, mut shape) = (spec.dtype?, spec.shape.clone()?);
            if let Some(first) = shape.first_mut().filter(|first| **first == -1 && servable.max_batch > 1) {
                *first = 1;
            }
            if let Some((size, to)) =
                spec.pad.as_ref().and_then(|pad| Some((shape.get_mut(pad.dim)?, pad.to.first()?)))
            {
                *size = *to;
            }
            (!shape.contains(&-1)).then(|| (spec.name.to_string(), dtype, shape.as_slice().into()))
        })
        .collect();
    implied.filter(|shapes| !shapes.is_empty()).map(|implied| vec![implied])
}

/// Those served so far that have the inputs of this version.
fn remembered(servable: &Servable, served: &[InputShapes]) -> Vec<InputShapes> {
    let fits = |shapes: &InputShapes| {
        servable.signature.tensors().all(|spec| {
            spec.optional || shapes.iter().any(|(name, _, _)| *name == *spec.name || name.is_empty())
        })
    };
    served.iter().filter(|shapes| fits(shapes)).cloned().collect()
}

/// The shapes of samples, and then `shapes` but for those that are among them. Of large samples there may not be room for a
/// whole batch: they are left to the check.
fn with_samples(samples: &[Sample], shapes: Vec<InputShapes>) -> Vec<InputShapes> {
    let bytes = |sample: &&Sample| sample.inputs.iter().map(|input| input.tensor.data().len()).sum::<usize>();
    let small = samples.iter().filter(|sample| bytes(sample) <= ServedShapes::MOST_BYTES);
    let own = small.map(|sample| {
        let shape =
            |input: &NamedTensor| (input.name.clone(), input.tensor.dtype(), input.tensor.shape().clone());
        sample.inputs.iter().map(shape).collect()
    });
    let mut all: Vec<InputShapes> = Vec::new();
    for shapes in own {
        if all.len() < ServedShapes::LIMIT && !all.contains(&shapes) {
            all.push(shapes);
        }
    }
    all.extend(shapes);
    all
}

/// The shapes that passes will have: where an input is padded to fixed sizes, each of these in place of its own.
pub(super) fn padded(signature: &Signature, shapes: Vec<InputShapes>) -> Vec<InputShapes> {
    let pads = || {
        let inputs = signature.inputs().iter();
        inputs.filter_map(|spec| Some((&spec.name, spec.pad.as_ref().filter(|pad| !pad.to.is_empty())?)))
    };
    let sizes: BTreeSet<i64> = pads().flat_map(|(_, pad)| pad.to.iter().copied()).collect();
    if sizes.is_empty() {
        return shapes;
    }
    let mut all = Vec::new();
    for (shapes, size) in shapes.iter().flat_map(|shapes| sizes.iter().map(move |size| (shapes, size))) {
        let mut shapes = shapes.clone();
        for (name, _, shape) in &mut shapes {
            let Some((_, pad)) = pads().find(|(of, _)| ***of == **name || name.is_empty()) else { continue };
            // What is longer than all of them keeps its own.
            let (Some(own), Some(largest)) = (shape.get_mut(pad.dim), pad.to.last()) else { continue };
            if *own <= *largest {
                *own = pad.to.iter().copied().find(|to| to >= size).unwrap_or(*largest);
            }
        }
        if !all.contains(&shapes) {
            all.push(shapes);
        }
    }
    all
}

const DTYPE_GUESS: DType = DType::F32;
