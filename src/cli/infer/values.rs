//! The values of a tensor as text: the fewest digits that give the same value back in the tensor's own datatype.

use half::{bf16, f16};

use crate::{
    proto,
    tensor::{DType, TypedData},
};

/// One text for each element.
pub(super) fn texts(output: &proto::Tensor) -> Vec<String> {
    let Some((dtype, data)) = decoded(output) else { return Vec::new() };
    let mut all: Vec<String> = data.bools.iter().map(ToString::to_string).collect();
    all.extend(data.ints.iter().map(ToString::to_string));
    all.extend(data.int64s.iter().map(ToString::to_string));
    all.extend(data.uints.iter().map(ToString::to_string));
    all.extend(data.floats.iter().map(|value| shortest(*value, dtype)));
    all.extend(data.doubles.iter().map(|value| format!("{value:?}")));
    all
}

/// Each element as a number to compare by.
pub(super) fn numbers_of(output: &proto::Tensor) -> Vec<f64> {
    let Some((_, data)) = decoded(output) else { return Vec::new() };
    let mut all: Vec<f64> = data.bools.iter().map(|b| f64::from(u8::from(*b))).collect();
    all.extend(data.ints.iter().map(|v| f64::from(*v)));
    all.extend(data.int64s.iter().map(|v| *v as f64));
    all.extend(data.uints.iter().map(|v| f64::from(*v)));
    all.extend(data.floats.iter().map(|v| f64::from(*v)));
    all.extend(data.doubles);
    all
}

fn decoded(output: &proto::Tensor) -> Option<(DType, TypedData)> {
    let dtype = output.datatype.parse().ok()?;
    Some((dtype, TypedData::decode(dtype, &output.raw)))
}

fn shortest(value: f32, dtype: DType) -> String {
    let is_same = |short: f32| match dtype {
        DType::F16 => f16::from_f32(short) == f16::from_f32(value),
        DType::BF16 => bf16::from_f32(short) == bf16::from_f32(value),
        _ => short == value,
    };
    let halves = matches!(dtype, DType::F16 | DType::BF16) && value.is_finite();
    let rounded =
        |digits: usize| format!("{value:.digits$e}").parse::<f32>().ok().filter(|short| is_same(*short));
    let short = halves.then(|| (0..6).find_map(rounded)).flatten().unwrap_or(value);
    format!("{short:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(datatype: &str, raw: Vec<u8>) -> Vec<String> {
        texts(&proto::Tensor { datatype: datatype.into(), raw: raw.into(), ..Default::default() })
    }

    #[test]
    fn values_have_the_digits_of_their_datatype() {
        let floats: Vec<u8> =
            [0.1_f32, 1.0 / 3.0, 1e-20, 3.0, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(tensor("FP32", floats), ["0.1", "0.33333334", "1e-20", "3.0", "NaN"]);
        let doubles: Vec<u8> = [0.1_f64, 1.0 / 3.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(tensor("FP64", doubles), ["0.1", "0.3333333333333333"]);
        let halves: Vec<u8> = [0.1, 65504.0].iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(tensor("FP16", halves), ["0.1", "65500.0"]);
        let brains: Vec<u8> = [0.1, -2.5].iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(tensor("BF16", brains), ["0.1", "-2.5"]);
        let large = (1_i64 << 53) + 1;
        assert_eq!(tensor("INT64", large.to_le_bytes().to_vec()), ["9007199254740993"]);
        assert_eq!(tensor("BOOL", vec![1, 0]), ["true", "false"]);
        assert_eq!(tensor("UINT8", vec![255]), ["255"]);
    }
}
