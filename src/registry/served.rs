//! Shapes that a model has served, so that its next version can be warmed up with them.

use parking_lot::Mutex;

use crate::{
    backend::Servable,
    model::NamedTensor,
    tensor::{DType, Shape},
};

/// One request's shapes, by input name.
pub type InputShapes = Vec<(String, DType, Shape)>;

/// At most [`ServedShapes::LIMIT`] different ones, the first seen.
#[derive(Debug, Default)]
pub struct ServedShapes {
    seen: Mutex<Vec<InputShapes>>,
}

impl ServedShapes {
    /// More than this many are not remembered.
    pub const LIMIT: usize = 8;
    /// Requests of more bytes than this are not remembered: a reload must not need memory for more than one of them.
    pub const MOST_BYTES: usize = 16 << 20;

    /// Remembers the shapes of a request. For a model that is batched the first dimension does not matter.
    pub fn record(&self, servable: &Servable, inputs: &[NamedTensor]) {
        if inputs.iter().map(|input| input.tensor.data().len()).sum::<usize>() > Self::MOST_BYTES {
            return;
        }
        let ignore_rows = usize::from(servable.max_batch() > 1);
        let alike = |seen: &InputShapes| {
            seen.len() == inputs.len()
                && seen.iter().zip(inputs).all(|((name, dtype, shape), input)| {
                    *name == input.name
                        && *dtype == input.tensor.dtype()
                        && shape.len() == input.tensor.shape().len()
                        && shape.get(ignore_rows..) == input.tensor.shape().get(ignore_rows..)
                })
        };
        let mut seen = self.seen.lock();
        if seen.len() < Self::LIMIT && !seen.iter().any(alike) {
            let shapes = inputs.iter().map(|i| (i.name.clone(), i.tensor.dtype(), i.tensor.shape().clone()));
            seen.push(shapes.collect());
        }
    }

    /// Forgets shapes that are served no more.
    pub fn forget(&self, shapes: &[InputShapes]) {
        self.seen.lock().retain(|seen| !shapes.contains(seen));
    }

    /// What was seen.
    pub fn all(&self) -> Vec<InputShapes> {
        self.seen.lock().clone()
    }
}
