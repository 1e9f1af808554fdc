//! How far one tensor is from another, and whether that is near enough.

use super::{DType, HostTensor, show_shape};

/// What still counts as equal: `|found - expected| <= absolute + relative * |expected|`. Integers and truth values are equal
/// or not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Of values near zero.
    pub absolute: f64,
    /// Of large ones.
    pub relative: f64,
}

/// How far two tensors are apart.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Distance {
    /// The largest `|found - expected|`. Infinite where either is NaN, or where one is an infinity that the other is not.
    pub largest: f64,
    /// Elements that are not near enough.
    pub outside: usize,
    /// The farthest of these.
    pub farthest: Option<Difference>,
}

/// One element of both.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Difference {
    /// Its place, counted in row-major order.
    pub index: usize,
    /// What it should be.
    pub expected: f64,
    /// What it is.
    pub found: f64,
}

/// Compares element by element. NaN is never near enough, not to NaN either: numbers that mean something were expected.
///
/// # Errors
/// Another datatype or shape.
pub fn distance(expected: &HostTensor, found: &HostTensor, near: Tolerance) -> Result<Distance, String> {
    let dtype = expected.dtype();
    if found.dtype() != dtype {
        return Err(format!("has datatype {}, {dtype} was expected", found.dtype()));
    }
    if found.shape() != expected.shape() {
        let (found, expected) = (show_shape(found.shape()), show_shape(expected.shape()));
        return Err(format!("has shape {found}, {expected} was expected"));
    }
    let mut distance = Distance::default();
    let pairs = expected.data().chunks_exact(dtype.size()).zip(found.data().chunks_exact(dtype.size()));
    for (index, (expected, found)) in pairs.enumerate() {
        let (apart, expected, found) = if dtype.is_float() {
            let (expected, found) = (float(dtype, expected), float(dtype, found));
            // Infinities are equal or not; their difference would be NaN.
            let apart = if expected == found { 0.0 } else { (found - expected).abs() };
            (if apart.is_nan() { f64::INFINITY } else { apart }, expected, found)
        } else {
            let (expected, found) = (integer(expected, dtype), integer(found, dtype));
            (expected.abs_diff(found) as f64, expected as f64, found as f64)
        };
        let room = if dtype.is_float() { near.absolute + near.relative * expected.abs() } else { 0.0 };
        let farther = apart > distance.largest;
        distance.largest = distance.largest.max(apart);
        // An infinite room lets nothing in: an expected infinity is met exactly or not at all.
        if apart > room || apart.is_infinite() {
            distance.outside += 1;
            if farther || distance.farthest.is_none() {
                distance.farthest = Some(Difference { index, expected, found });
            }
        }
    }
    Ok(distance)
}

/// Of integers and truth values so many in a hundred may differ: noise in what they are made of may tip a few.
const TIPPED: usize = 1;

/// Whether two passes that should give the same gave the same, numeric noise aside. NaN is like NaN. The room is `relative` of the
/// largest element, because noise comes from the largest numbers that were added up.
///
/// # Errors
/// How far they are apart; `None` where their datatypes or shapes differ.
pub fn alike(one: &HostTensor, other: &HostTensor, near: Tolerance) -> Result<(), Option<f64>> {
    let dtype = one.dtype();
    if other.dtype() != dtype || other.shape() != one.shape() {
        return Err(None);
    }
    if one.data() == other.data() {
        return Ok(());
    }
    let pairs = || one.data().chunks_exact(dtype.size()).zip(other.data().chunks_exact(dtype.size()));
    if !dtype.is_float() {
        let differ = pairs().filter(|(one, other)| one != other).count();
        return if differ * 100 > one.elements() * TIPPED { Err(Some(differ as f64)) } else { Ok(()) };
    }
    let values = || pairs().map(|(one, other)| (float(dtype, one), float(dtype, other)));
    let finite = values().map(|(one, _)| one.abs()).filter(|value| value.is_finite());
    let room = near.absolute / 100.0 + near.relative * finite.fold(0.0, f64::max);
    let mut largest = 0.0_f64;
    for (one, other) in values() {
        let same = one == other || (one.is_nan() && other.is_nan());
        let apart = if same { 0.0 } else { (one - other).abs() };
        largest = largest.max(if apart.is_nan() { f64::INFINITY } else { apart });
    }
    if largest > room { Err(Some(largest)) } else { Ok(()) }
}

fn float(dtype: DType, bytes: &[u8]) -> f64 {
    let two = || bytes.first_chunk().copied().unwrap_or_default();
    match dtype {
        DType::F16 => half::f16::from_le_bytes(two()).to_f64(),
        DType::BF16 => half::bf16::from_le_bytes(two()).to_f64(),
        DType::F32 => f32::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default()).into(),
        _ => f64::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default()),
    }
}

fn integer(bytes: &[u8], dtype: DType) -> i64 {
    match dtype {
        DType::I8 => i8::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default()).into(),
        DType::I16 => i16::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default()).into(),
        DType::I32 => i32::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default()).into(),
        DType::I64 => i64::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default()),
        _ => bytes.first().copied().unwrap_or_default().into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NEAR: Tolerance = Tolerance { absolute: 0.1, relative: 0.01 };

    #[test]
    fn noise_is_alike_and_nan_is_like_nan() {
        let like = |one: &[f32], other: &[f32]| alike(&floats(one), &floats(other), NEAR);
        assert_eq!(like(&[100.0, 0.0], &[100.5, 0.9]), Ok(()), "noise of the largest");
        assert_eq!(like(&[100.0, 0.0], &[100.0, 2.0]), Err(Some(2.0)));
        assert_eq!(like(&[1e-9, 0.0], &[-1e-9, 0.0]), Ok(()));
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert_eq!(like(&[nan, inf, 1.0], &[nan, inf, 1.0]), Ok(()));
        assert_eq!(like(&[nan, 1.0], &[1.0, 1.0]), Err(Some(f64::INFINITY)));
        assert_eq!(like(&[inf], &[-inf]), Err(Some(f64::INFINITY)));
        assert_eq!(like(&[1.0], &[1.0, 1.0]), Err(None));
        let bytes = |tipped: usize| {
            let data: Vec<u8> = (0..200).map(|i| u8::from(i < tipped)).collect();
            HostTensor::new(DType::U8, smallvec::smallvec![200], data.into()).unwrap()
        };
        assert_eq!(alike(&bytes(0), &bytes(2), NEAR), Ok(()));
        assert_eq!(alike(&bytes(0), &bytes(3), NEAR), Err(Some(3.0)));
    }

    fn floats(values: &[f32]) -> HostTensor {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        HostTensor::new(DType::F32, smallvec::smallvec![values.len() as i64], bytes.into()).unwrap()
    }

    proptest! {
        #[test]
        fn as_the_formula_says(pairs in prop::collection::vec((-100_f32..100.0, -1_f32..1.0), 0..20)) {
            let (expected, found): (Vec<f32>, Vec<f32>) = pairs.iter().map(|(a, d)| (*a, a + d)).unzip();
            let distance = distance(&floats(&expected), &floats(&found), NEAR).unwrap();
            let apart = |i: usize| (f64::from(found[i]) - f64::from(expected[i])).abs();
            let outside = (0..pairs.len()).filter(|i| apart(*i) > 0.1 + 0.01 * f64::from(expected[*i]).abs()).count();
            prop_assert_eq!(distance.outside, outside);
            prop_assert_eq!(distance.largest, (0..pairs.len()).map(apart).fold(0.0, f64::max));
        }
    }

    #[test]
    fn nan_is_never_near_and_infinities_are_equal_or_not() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        let both = |a, b| distance(&floats(&[1.0, a]), &floats(&[1.0, b]), NEAR).unwrap();
        for (a, b) in [(nan, nan), (1.0, nan), (nan, 1.0), (inf, 1.0), (1.0, inf), (inf, -inf)] {
            let distance = both(a, b);
            assert_eq!((distance.outside, distance.largest), (1, f64::INFINITY), "{a} {b}");
            assert_eq!(distance.farthest.unwrap().index, 1);
        }
        assert_eq!(both(inf, inf), Distance::default());
    }

    #[test]
    fn integers_are_equal_or_not() {
        let tensor = |values: [i64; 2]| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            HostTensor::new(DType::I64, smallvec::smallvec![2], bytes.into()).unwrap()
        };
        // One apart, where a double cannot tell them apart.
        let far = distance(&tensor([5, i64::MAX]), &tensor([5, i64::MAX - 1]), NEAR).unwrap();
        assert_eq!((far.outside, far.largest), (1, 1.0));
        let error = distance(&tensor([0, 0]), &floats(&[0.0, 0.0]), NEAR).unwrap_err();
        assert_eq!(error, "has datatype FP32, INT64 was expected");
        let error = distance(&floats(&[0.0]), &floats(&[0.0, 0.0]), NEAR).unwrap_err();
        assert_eq!(error, "has shape [2], [1] was expected");
    }
}
