//! Two requests whose rows differ from each other, for the look at whether rows depend on each other.

use crate::{
    model::{NamedTensor, Sample},
    registry::InputShapes,
    tensor::{DType, HostTensor, Shape, byte_len},
};

/// What stands in integers that no sample has values for. They may be indices: 0 and 1 are there where any are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Integers {
    ZeroAndOne,
    Zero,
}

/// No more rows are needed, and samples may be large.
const SAMPLES: usize = 8;
/// Always the same numbers: a load does not go well by chance.
const SEED: u64 = 0x70_72_63_68;

/// Two requests of those shapes with `rows` rows. Floating-point numbers are from 0 to 1, or those of a sample, each made up
/// to half as large again: logarithms and roots take them.
pub(super) fn requests(
    shapes: &InputShapes,
    rows: [usize; 2],
    samples: &[Sample],
    integers: Integers,
) -> Option<[Vec<NamedTensor>; 2]> {
    let mut dice = fastrand::Rng::with_seed(SEED);
    let mut request = |rows: usize, skipped: usize| {
        let input = |(name, dtype, shape): &(String, DType, Shape)| {
            let mut shape = shape.clone();
            *shape.first_mut()? = rows.try_into().ok()?;
            let sampled = sampled(samples, name, *dtype, &shape, skipped);
            let data = match sampled {
                Some(bytes) if dtype.is_float() => varied(*dtype, &bytes, &mut dice),
                Some(bytes) => bytes,
                None => made(*dtype, &shape, integers, &mut dice)?,
            };
            let tensor = HostTensor::new(*dtype, shape, data.into()).ok()?;
            Some(NamedTensor { name: name.clone(), tensor })
        };
        shapes.iter().map(input).collect::<Option<Vec<_>>>()
    };
    let [one, two] = rows;
    Some([request(one, 0)?, request(two, one)?])
}

/// The elements of a sample, over and over, from the row after those that are `skipped`.
fn sampled(samples: &[Sample], name: &str, dtype: DType, shape: &Shape, skipped: usize) -> Option<Vec<u8>> {
    let inputs = samples.iter().flat_map(|sample| &sample.inputs);
    let alike = |input: &&NamedTensor| {
        let tensor = &input.tensor;
        *input.name == *name
            && tensor.dtype() == dtype
            && tensor.shape().get(1..) == shape.get(1..)
            && !tensor.data().is_empty()
    };
    let bytes: Vec<u8> =
        inputs.filter(alike).take(SAMPLES).flat_map(|input| input.tensor.data().iter().copied()).collect();
    let length = byte_len(dtype, shape).ok()?;
    let rows = usize::try_from(*shape.first()?).ok()?;
    let skip = length.checked_div(rows)?.checked_mul(skipped)?.checked_rem(bytes.len())?;
    Some(bytes.into_iter().cycle().skip(skip).take(length).collect())
}

fn varied(dtype: DType, bytes: &[u8], dice: &mut fastrand::Rng) -> Vec<u8> {
    let mut vary = || 0.5 + dice.f64();
    let chunks = bytes.chunks_exact(dtype.size());
    chunks.flat_map(|element| encode(dtype, decode(dtype, element) * vary())).collect()
}

fn made(dtype: DType, shape: &Shape, integers: Integers, dice: &mut fastrand::Rng) -> Option<Vec<u8>> {
    let elements = byte_len(dtype, shape).ok()? / dtype.size();
    let mut element = |_| {
        if dtype.is_float() {
            return encode(dtype, dice.f64());
        }
        // Little-endian: the rest of an integer's bytes are 0.
        let mut bytes = vec![0; dtype.size()];
        if let Some(low) = bytes.first_mut().filter(|_| integers == Integers::ZeroAndOne) {
            *low = dice.bool().into();
        }
        bytes
    };
    Some((0..elements).flat_map(&mut element).collect())
}

fn decode(dtype: DType, element: &[u8]) -> f64 {
    let two = || element.first_chunk().copied().unwrap_or_default();
    match dtype {
        DType::F16 => half::f16::from_le_bytes(two()).to_f64(),
        DType::BF16 => half::bf16::from_le_bytes(two()).to_f64(),
        DType::F32 => f32::from_le_bytes(element.first_chunk().copied().unwrap_or_default()).into(),
        _ => f64::from_le_bytes(element.first_chunk().copied().unwrap_or_default()),
    }
}

fn encode(dtype: DType, value: f64) -> Vec<u8> {
    match dtype {
        DType::F16 => half::f16::from_f64(value).to_le_bytes().into(),
        DType::BF16 => half::bf16::from_f64(value).to_le_bytes().into(),
        DType::F32 => (value as f32).to_le_bytes().into(),
        _ => value.to_le_bytes().into(),
    }
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;

    fn made_of(samples: &[Sample], integers: Integers) -> [Vec<NamedTensor>; 2] {
        let shapes = vec![
            ("x".to_owned(), DType::F32, smallvec![1, 3]),
            ("h".to_owned(), DType::BF16, smallvec![1, 2]),
            ("ids".to_owned(), DType::I64, smallvec![1, 8]),
        ];
        requests(&shapes, [1, 2], samples, integers).unwrap()
    }

    fn values(tensor: &HostTensor) -> Vec<f64> {
        tensor.data().chunks_exact(tensor.dtype().size()).map(|e| decode(tensor.dtype(), e)).collect()
    }

    #[test]
    fn rows_differ_and_are_the_same_each_time() {
        let [one, two] = made_of(&[], Integers::ZeroAndOne);
        assert_eq!([one[0].tensor.shape()[0], two[0].tensor.shape()[0]], [1, 2]);
        for at in [0, 1] {
            let all = [values(&one[at].tensor), values(&two[at].tensor)].concat();
            assert!(all.iter().all(|value| (0.0..=1.0).contains(value)), "{all:?}");
            assert!(all.iter().enumerate().all(|(i, value)| !all[..i].contains(value)), "{all:?}");
        }
        let ids = |request: &[NamedTensor]| -> Vec<i64> {
            let bytes = request[2].tensor.data();
            bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
        };
        assert!(ids(&two).iter().all(|id| [0, 1].contains(id)) && ids(&two)[..8] != ids(&two)[8..]);
        assert_eq!(made_of(&[], Integers::ZeroAndOne), [one, two]);
        assert_eq!(ids(&made_of(&[], Integers::Zero)[1]), [0; 16]);
    }

    #[test]
    fn samples_give_their_rows_in_turn() {
        let ids: Vec<u8> = (0..24_i64).flat_map(|id| (100 + id).to_le_bytes()).collect();
        let tensor = HostTensor::new(DType::I64, smallvec![3, 8], ids.into()).unwrap();
        let x =
            HostTensor::new(DType::F32, smallvec![1, 3], [4.0_f32; 3].map(f32::to_le_bytes).concat().into());
        let inputs = vec![
            NamedTensor { name: "ids".into(), tensor: tensor.clone() },
            NamedTensor { name: "x".into(), tensor: x.unwrap() },
        ];
        let [one, two] = made_of(&[Sample { inputs, ..Sample::default() }], Integers::ZeroAndOne);
        assert_eq!([&one[2].tensor.data()[..], &two[2].tensor.data()[..]].concat(), tensor.data()[..]);
        let x = values(&two[0].tensor);
        assert!(x.iter().all(|x| (2.0..=6.0).contains(x)) && x[0] != x[3], "{x:?}");
    }
}
