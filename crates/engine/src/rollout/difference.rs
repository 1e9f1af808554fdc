//! How far two answers to one request are apart. Pure.

use half::{bf16, f16};

use torchlane_model::{
    NamedTensor,
    tensor::{DType, HostTensor},
};

/// The largest difference of an element from the live version's: absolute up to 1, relative above. Infinite where they cannot
/// be compared: other names, shapes or datatypes, or NaN or an infinity in one of them only. BOOL and integers count as numbers.
pub fn difference(live: &[NamedTensor], other: &[NamedTensor]) -> f64 {
    if live.len() != other.len() {
        return f64::INFINITY;
    }
    let of = |(live, other): (&NamedTensor, &NamedTensor)| {
        if live.name == other.name { apart(&live.tensor, &other.tensor) } else { f64::INFINITY }
    };
    live.iter().zip(other).map(of).fold(0.0, f64::max)
}

fn apart(live: &HostTensor, other: &HostTensor) -> f64 {
    if live.dtype() != other.dtype() || live.shape() != other.shape() {
        return f64::INFINITY;
    }
    let (a, b) = (live.data(), other.data());
    if a == b {
        return 0.0;
    }
    match live.dtype() {
        DType::Bool | DType::U8 => largest(a, b, |[byte]: [u8; 1]| f64::from(byte)),
        DType::I8 => largest(a, b, |bytes| f64::from(i8::from_le_bytes(bytes))),
        DType::I16 => largest(a, b, |bytes| f64::from(i16::from_le_bytes(bytes))),
        DType::I32 => largest(a, b, |bytes| f64::from(i32::from_le_bytes(bytes))),
        DType::I64 => largest(a, b, |bytes| i64::from_le_bytes(bytes) as f64),
        DType::F16 => largest(a, b, |bytes| f16::from_le_bytes(bytes).to_f64()),
        DType::BF16 => largest(a, b, |bytes| bf16::from_le_bytes(bytes).to_f64()),
        DType::F32 => largest(a, b, |bytes| f64::from(f32::from_le_bytes(bytes))),
        DType::F64 => largest(a, b, f64::from_le_bytes),
    }
}

fn largest<const N: usize>(a: &[u8], b: &[u8], number: impl Fn([u8; N]) -> f64) -> f64 {
    let numbers = |data: &[u8]| data.try_into().ok().map(&number);
    let pairs = a.chunks_exact(N).zip(b.chunks_exact(N));
    let each = pairs.filter_map(|(a, b)| Some(between(numbers(a)?, numbers(b)?)));
    each.fold(0.0, f64::max)
}

fn between(live: f64, other: f64) -> f64 {
    if live == other || (live.is_nan() && other.is_nan()) {
        0.0
    } else if live.is_finite() && other.is_finite() {
        (live - other).abs() / live.abs().max(1.0)
    } else {
        f64::INFINITY
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smallvec::smallvec;

    use super::*;

    fn f32s(values: &[f32]) -> Vec<NamedTensor> {
        let data: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let tensor = HostTensor::new(DType::F32, smallvec![values.len() as i64], data.into()).unwrap();
        vec![NamedTensor { name: "y".to_owned(), tensor }]
    }

    #[test]
    fn numbers_are_compared_absolutely_near_zero_and_relatively_above() {
        let apart = |a: &[f32], b: &[f32]| difference(&f32s(a), &f32s(b));
        assert_eq!(apart(&[1.0, 0.5], &[1.0, 0.25]), 0.25);
        assert_eq!(apart(&[100.0], &[150.0]), 0.5);
        assert_eq!(apart(&[f32::NAN, f32::INFINITY], &[f32::NAN, f32::INFINITY]), 0.0);
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(apart(&[1.0, 2.0], &[1.0, odd]), f64::INFINITY);
            assert_eq!(apart(&[1.0, odd], &[1.0, 2.0]), f64::INFINITY);
        }
    }

    #[test]
    fn what_is_not_alike_is_infinitely_apart() {
        let of = |name: &str, dtype, shape: &[i64], data: &'static [u8]| {
            let tensor = HostTensor::new(dtype, shape.into(), data.into()).unwrap();
            vec![NamedTensor { name: name.to_owned(), tensor }]
        };
        let one = of("y", DType::I8, &[2], &[1, 254]);
        assert_eq!(difference(&one, &of("y", DType::I8, &[2], &[1, 255])), 0.5, "-2 and -1");
        for other in [
            of("z", DType::I8, &[2], &[1, 254]),
            of("y", DType::U8, &[2], &[1, 254]),
            of("y", DType::I8, &[2, 1], &[1, 254]),
            Vec::new(),
        ] {
            assert_eq!(difference(&one, &other), f64::INFINITY);
        }
    }

    proptest! {
        #[test]
        fn an_answer_is_like_itself_and_differences_are_numbers(raw in prop::collection::vec(any::<u8>(), 0..64), other in prop::collection::vec(any::<u8>(), 0..64), at in 0..DType::ALL.len()) {
            let dtype = DType::ALL[at];
            let length = raw.len().min(other.len()) / dtype.size() * dtype.size();
            let of = |raw: &[u8]| {
                let data = raw[..length].to_vec();
                let tensor = HostTensor::from_backend(dtype, smallvec![(length / dtype.size()) as i64], data.into()).unwrap();
                vec![NamedTensor { name: "y".to_owned(), tensor }]
            };
            prop_assert_eq!(difference(&of(&raw), &of(&raw)), 0.0);
            prop_assert!(difference(&of(&raw), &of(&other)) >= 0.0);
        }
    }
}
