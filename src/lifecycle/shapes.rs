//! What shapes a version is warmed up with.

use std::collections::BTreeSet;

use crate::{
    backend::Servable,
    model::{NamedTensor, Sample, Signature},
    registry::{InputShapes, ServedShapes},
    tensor::DType,
};

/// Declared shapes; else those that a fixed signature implies; else those served so far.
pub(super) fn shapes(
    servable: &Servable,
    served: &[InputShapes],
    samples: &[Sample],
) -> Result<Vec<InputShapes>, String> {
    let inputs: Vec<_> = servable.signature.tensors().collect();
    let declared = &servable.manifest.warmup.shapes;
    if !declared.is_empty() {
        return declared
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
                        Ok((name.clone(), dtype, shape.as_slice().into()))
                    })
                    .collect()
            })
            .collect();
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
    if let Some(implied) = implied.filter(|shapes| !shapes.is_empty()) {
        return Ok(vec![implied]);
    }
    // Shapes of an older version need not fit this one: those that do not are left out.
    let fits = |shapes: &InputShapes| {
        inputs.iter().all(|spec| {
            spec.optional || shapes.iter().any(|(name, _, _)| *name == *spec.name || name.is_empty())
        })
    };
    Ok(served.iter().filter(|shapes| fits(shapes)).cloned().collect())
}

/// The shapes of samples, and then `shapes` but for those that are among them. Of large samples there may not be room for a
/// whole batch: they are left to the check.
pub(super) fn with_samples(samples: &[Sample], shapes: Vec<InputShapes>) -> Vec<InputShapes> {
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
