//! Shapes that a model has served: its next version is warmed up with them, and they are what is known of tensors that nothing
//! declares.

use parking_lot::Mutex;
use torchlane_model::{
    NamedTensor,
    tensor::{DType, Shape},
};

use crate::backend::Servable;

/// One request's shapes, by input name.
pub type InputShapes = Vec<(String, DType, Shape)>;

/// A request that was answered.
#[derive(Debug, Clone)]
struct Served {
    inputs: InputShapes,
    outputs: InputShapes,
}

/// What the answered requests say of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// `None`: it had several.
    pub dtype: Option<DType>,
    /// Sizes that it always had; `-1` for those that differed. `None`: it had several ranks.
    pub shape: Option<Vec<i64>>,
}

impl Known {
    fn add(known: &mut Vec<Self>, (name, dtype, shape): &(String, DType, Shape), rows_differ: bool) {
        let mut shape = shape.to_vec();
        if let Some(rows) = shape.first_mut().filter(|_| rows_differ) {
            *rows = -1;
        }
        let Some(before) = known.iter_mut().find(|before| before.name == *name) else {
            known.push(Self { name: name.clone(), dtype: Some(*dtype), shape: Some(shape) });
            return;
        };
        before.dtype = before.dtype.filter(|before| before == dtype);
        before.shape = before.shape.take().filter(|before| before.len() == shape.len());
        for (before, size) in before.shape.iter_mut().flatten().zip(shape) {
            if *before != size {
                *before = -1;
            }
        }
    }
}

/// At most [`ServedShapes::LIMIT`] different ones, the first seen.
#[derive(Debug, Default)]
pub struct ServedShapes {
    seen: Mutex<Vec<Served>>,
}

impl ServedShapes {
    /// More than this many are not remembered.
    pub const LIMIT: usize = 8;
    /// Requests of more bytes than this are not remembered: a reload must not need memory for more than one of them.
    pub const MOST_BYTES: usize = 16 << 20;

    /// Remembers the shapes of a request and its answer. For a model that is batched the first dimension does not matter.
    pub fn record(&self, servable: &Servable, inputs: &[NamedTensor], outputs: &[NamedTensor]) {
        if inputs.iter().map(|input| input.tensor.data().len()).sum::<usize>() > Self::MOST_BYTES {
            return;
        }
        let ignore_rows = usize::from(servable.max_batch() > 1);
        let alike = |Served { inputs: seen, .. }: &Served| {
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
            let shape = |of: &NamedTensor| (of.name.clone(), of.tensor.dtype(), of.tensor.shape().clone());
            let shapes = |tensors: &[NamedTensor]| tensors.iter().map(shape).collect();
            seen.push(Served { inputs: shapes(inputs), outputs: shapes(outputs) });
        }
    }

    /// Forgets shapes that are served no more.
    pub fn forget(&self, shapes: &[InputShapes]) {
        self.seen.lock().retain(|seen| !shapes.contains(&seen.inputs));
    }

    /// The inputs that were seen.
    pub fn all(&self) -> Vec<InputShapes> {
        self.seen.lock().iter().map(|served| served.inputs.clone()).collect()
    }

    /// What is known of the inputs and the outputs. With `rows_differ` the first dimension is any size.
    pub fn known(&self, rows_differ: bool) -> (Vec<Known>, Vec<Known>) {
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for served in self.seen.lock().iter() {
            for (tensors, known) in [(&served.inputs, &mut inputs), (&served.outputs, &mut outputs)] {
                for tensor in tensors {
                    Known::add(known, tensor, rows_differ);
                }
            }
        }
        (inputs, outputs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differed_is_not_known() {
        let mut known = Vec::new();
        let mut saw = |name: &str, dtype, shape: &[i64], rows_differ| {
            Known::add(&mut known, &(name.to_owned(), dtype, shape.into()), rows_differ);
            let of = known.iter().find(|known| known.name == name).unwrap();
            (of.dtype, of.shape.clone())
        };
        assert_eq!(saw("x", DType::F32, &[2, 3, 4], true), (Some(DType::F32), Some(vec![-1, 3, 4])));
        assert_eq!(saw("x", DType::F32, &[5, 3, 6], true), (Some(DType::F32), Some(vec![-1, 3, -1])));
        assert_eq!(saw("x", DType::I64, &[5, 3], true), (None, None));
        assert_eq!(saw("x", DType::I64, &[5, 3], true), (None, None), "it stays so");
        assert_eq!(saw("y", DType::F64, &[], true), (Some(DType::F64), Some(vec![])));
        assert_eq!(saw("z", DType::F64, &[7], false), (Some(DType::F64), Some(vec![7])));
    }
}
