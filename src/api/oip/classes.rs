//! Classification: instead of a tensor of scores its best classes, each as `score:index` or `score:index:label`.

use std::cmp::Ordering;

use half::{bf16, f16};

use crate::{
    error::{Error, Reason, Result, shown},
    tensor::{DType, HostTensor},
};

/// The `count` best of each row, best first; of all elements where the tensor has one dimension. Fewer where there are not so
/// many. Equal scores stand in the order of their indices; NaN comes last.
///
/// Gives the shape of the texts and the texts.
///
/// # Errors
/// The tensor holds truth values.
pub(super) fn best(
    name: &str,
    tensor: &HostTensor,
    count: usize,
    labels: &[String],
) -> Result<(Vec<i64>, Vec<String>)> {
    let scores = Scores::of(tensor).ok_or_else(|| {
        let message = format!("output '{}' is BOOL: it has no classes", shown(name, 64));
        Error::new(Reason::BadRequest, message).with_field("outputs")
    })?;
    // A batch has a row for each request; what has one dimension is one row.
    let rows = match tensor.shape().as_slice() {
        [rows, _, ..] => usize::try_from(*rows).unwrap_or(0),
        _ => 1,
    };
    let elements = tensor.elements();
    let width = elements.checked_div(rows).unwrap_or(0);
    let count = count.min(width);
    let mut texts = Vec::with_capacity(rows * count);
    for row in 0..rows {
        let mut order: Vec<usize> = (0..width).collect();
        let descending =
            |a: &usize, b: &usize| scores.compare(row * width + b, row * width + a).then(a.cmp(b));
        if count < width && count > 0 {
            order.select_nth_unstable_by(count - 1, descending);
            order.truncate(count);
        }
        order.sort_unstable_by(descending);
        for index in order {
            let score = scores.show(row * width + index);
            texts.push(match labels.get(index) {
                Some(label) => format!("{score}:{index}:{label}"),
                None => format!("{score}:{index}"),
            });
        }
    }
    let count = i64::try_from(count).unwrap_or(i64::MAX);
    let shape = if tensor.shape().len() > 1 { vec![tensor.rows().unwrap_or(0), count] } else { vec![count] };
    Ok((shape, texts))
}

/// Elements that can be compared.
enum Scores {
    Whole(Vec<i64>),
    Real(Vec<f64>),
}

impl Scores {
    fn of(tensor: &HostTensor) -> Option<Self> {
        fn each<const N: usize, T>(data: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
            data.chunks_exact(N).filter_map(|chunk| chunk.try_into().ok()).map(read).collect()
        }
        let data = tensor.data();
        Some(match tensor.dtype() {
            DType::Bool => return None,
            DType::U8 => Self::Whole(each(data, |b| u8::from_le_bytes(b).into())),
            DType::I8 => Self::Whole(each(data, |b| i8::from_le_bytes(b).into())),
            DType::I16 => Self::Whole(each(data, |b| i16::from_le_bytes(b).into())),
            DType::I32 => Self::Whole(each(data, |b| i32::from_le_bytes(b).into())),
            DType::I64 => Self::Whole(each(data, i64::from_le_bytes)),
            DType::F16 => Self::Real(each(data, |b| f16::from_le_bytes(b).to_f64())),
            DType::BF16 => Self::Real(each(data, |b| bf16::from_le_bytes(b).to_f64())),
            DType::F32 => Self::Real(each(data, |b| f32::from_le_bytes(b).into())),
            DType::F64 => Self::Real(each(data, f64::from_le_bytes)),
        })
    }

    fn compare(&self, a: usize, b: usize) -> Ordering {
        match self {
            Self::Whole(scores) => scores.get(a).cmp(&scores.get(b)),
            Self::Real(scores) => {
                let score = |at: usize| scores.get(at).copied().filter(|score| !score.is_nan());
                score(a).partial_cmp(&score(b)).unwrap_or(Ordering::Equal)
            }
        }
    }

    /// Six digits behind the point, as C++'s `to_string` writes them.
    fn show(&self, at: usize) -> String {
        match self {
            Self::Whole(scores) => scores.get(at).map(i64::to_string),
            Self::Real(scores) => scores.get(at).map(|score| format!("{score:.6}")),
        }
        .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smallvec::SmallVec;

    use super::*;

    fn f32s(shape: &[i64], values: &[f32]) -> HostTensor {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        HostTensor::new(DType::F32, SmallVec::from_slice(shape), data.into()).unwrap()
    }

    #[test]
    fn the_best_of_each_row_come_with_their_labels() {
        let scores = f32s(&[2, 3], &[0.1, 0.7, 0.2, 0.5, f32::NAN, 0.5]);
        let labels = ["cat".to_owned(), "dog".to_owned()];
        let (shape, texts) = best("y", &scores, 2, &labels).unwrap();
        assert_eq!(shape, [2, 2]);
        assert_eq!(texts, ["0.700000:1:dog", "0.200000:2", "0.500000:0:cat", "0.500000:2"]);
        let (shape, texts) = best("y", &f32s(&[3], &[1.0, 3.0, 2.0]), 9, &[]).unwrap();
        assert_eq!((shape, texts.join(" ")), (vec![3], "3.000000:1 2.000000:2 1.000000:0".to_owned()));
    }

    #[test]
    fn what_has_no_scores_is_refused_and_what_is_empty_is_empty() {
        let bools = HostTensor::zeros(DType::Bool, SmallVec::from_slice(&[2])).unwrap();
        assert!(best("y", &bools, 1, &[]).is_err());
        for shape in [&[0, 3][..], &[3, 0], &[0]] {
            let (_, texts) = best("y", &f32s(shape, &[]), 1, &[]).unwrap();
            assert!(texts.is_empty(), "{shape:?}");
        }
        let whole = HostTensor::new(DType::I8, SmallVec::from_slice(&[2]), vec![0xFF, 1].into()).unwrap();
        assert_eq!(best("y", &whole, 2, &[]).unwrap().1, ["1:1", "-1:0"]);
    }

    proptest! {
        #[test]
        fn the_first_few_are_the_beginning_of_all(values in prop::collection::vec(any::<f32>(), 1..40), count in 1_usize..40) {
            let scores = f32s(&[i64::try_from(values.len()).unwrap()], &values);
            let (_, few) = best("y", &scores, count, &[]).unwrap();
            let (_, all) = best("y", &scores, values.len(), &[]).unwrap();
            prop_assert_eq!(&few[..], &all[..count.min(values.len())]);
        }
    }
}
