//! What the parameters of requests, inputs and outputs mean.
//!
//! Names that torchlane knows are read here and nowhere else; what Triton reserves for itself is refused; anything else
//! is for backends that read parameters, of which TorchScript is none, and is let pass.

use std::time::Duration;

use crate::{
    error::{Error, Reason, Result, shown},
    model::Lane,
};

/// A parameter's value, by gRPC or in JSON.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::api) enum Value {
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(String),
}

/// Parameters as they came, in any order.
pub(in crate::api) type Parameters = Vec<(String, Value)>;

/// Those of a request.
#[derive(Debug, Clone, PartialEq, Default)]
pub(in crate::api) struct RequestParameters {
    /// `priority`.
    pub(in crate::api) lane: Option<Lane>,
    /// `timeout`.
    pub(in crate::api) timeout: Option<Duration>,
    /// `binary_data_output`: what outputs are that do not say it themselves.
    pub(in crate::api) binary_data_output: bool,
    /// `triton_enable_empty_final_response`: the caller looks for the mark of a request's last answer.
    pub(in crate::api) marks_final: bool,
}

impl RequestParameters {
    pub(in crate::api) fn read(parameters: &Parameters) -> Result<Self> {
        let mut read = Self::default();
        let mut sequence = false;
        let mut starts_or_ends = None;
        for (key, value) in parameters {
            match (key.as_str(), value) {
                ("priority", Value::Int(number)) => {
                    let number = u64::try_from(*number).map_err(|_| wrong(key, "0 or more"))?;
                    read.lane = Lane::from_number(number);
                }
                ("priority", Value::Uint(number)) => read.lane = Lane::from_number(*number),
                ("priority", _) => return Err(wrong(key, "a whole number, 0 or more")),
                ("timeout", Value::Int(micros)) => {
                    let micros = u64::try_from(*micros).map_err(|_| wrong(key, "0 or more"))?;
                    read.timeout = Some(Duration::from_micros(micros)).filter(|timeout| !timeout.is_zero());
                }
                ("timeout", _) => return Err(wrong(key, "a whole number of microseconds (int64)")),
                ("sequence_id", Value::Int(0) | Value::Uint(0)) => {}
                ("sequence_id", Value::Text(id)) if id.is_empty() => {}
                ("sequence_id", Value::Int(_) | Value::Uint(_) | Value::Text(_)) => sequence = true,
                ("sequence_id", _) => return Err(wrong(key, "a number or a text")),
                ("sequence_start" | "sequence_end", Value::Bool(is)) => {
                    starts_or_ends = starts_or_ends.or(is.then_some(key));
                }
                ("sequence_start" | "sequence_end", _) => return Err(wrong(key, "true or false")),
                ("binary_data_output", Value::Bool(is)) => read.binary_data_output = *is,
                ("binary_data_output", _) => return Err(wrong(key, "true or false")),
                ("triton_enable_empty_final_response", Value::Bool(is)) => read.marks_final = *is,
                (key, _) if key.starts_with("triton_") => {
                    let message =
                        format!("parameter '{}': names that begin with triton_ are reserved", shown(key, 64));
                    return Err(Error::new(Reason::BadRequest, message).with_field("parameters"));
                }
                _ => {}
            }
        }
        // Models here keep no state: to them a sequence is so many requests.
        match starts_or_ends {
            Some(key) if !sequence => Err(wrong(key, "used with a sequence_id only")),
            _ => Ok(read),
        }
    }
}

/// A place in a region of shared memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::api) struct RegionPart {
    pub(in crate::api) region: String,
    /// In bytes, from the beginning of the region.
    pub(in crate::api) offset: u64,
    /// In bytes.
    pub(in crate::api) size: u64,
}

/// Those of an input or a wanted output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::api) struct TensorParameters {
    /// Where its data is, or is to go.
    pub(in crate::api) region: Option<RegionPart>,
    /// `classification`: so many of the best classes instead of the tensor. 0: the tensor.
    pub(in crate::api) classes: usize,
    /// `binary_data`.
    pub(in crate::api) binary: Option<bool>,
    /// `binary_data_size`, in bytes.
    pub(in crate::api) binary_size: Option<usize>,
}

impl TensorParameters {
    pub(in crate::api) fn read(parameters: &Parameters) -> Result<Self> {
        let mut read = Self::default();
        let (mut region, mut size, mut offset) = (None, None, None);
        for (key, value) in parameters {
            match key.as_str() {
                "shared_memory_region" => match value {
                    Value::Text(name) => region = Some(name.clone()),
                    _ => return Err(wrong(key, "the name of a region")),
                },
                "shared_memory_byte_size" => size = Some(bytes(key, value)?),
                "shared_memory_offset" => offset = Some(bytes(key, value)?),
                "classification" => read.classes = length(key, value)?,
                "binary_data" => match value {
                    Value::Bool(is) => read.binary = Some(*is),
                    _ => return Err(wrong(key, "true or false")),
                },
                "binary_data_size" => read.binary_size = Some(length(key, value)?),
                _ => {}
            }
        }
        read.region = match (region, size) {
            (None, None) if offset.is_none() => None,
            (None, _) => {
                return Err(wrong("shared_memory_region", "given where the data is in shared memory"));
            }
            (Some(_), None) => return Err(wrong("shared_memory_byte_size", "given with a region")),
            (Some(region), Some(size)) => Some(RegionPart { region, offset: offset.unwrap_or(0), size }),
        };
        if read.region.is_some() && read.binary_size.is_some() {
            return Err(wrong("binary_data_size", "left out where the data is in shared memory"));
        }
        if read.region.is_some() && read.classes > 0 {
            return Err(wrong("classification", "left out where the output goes to shared memory"));
        }
        Ok(read)
    }
}

fn bytes(key: &str, value: &Value) -> Result<u64> {
    let number = match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::Uint(number) => Some(*number),
        _ => None,
    };
    number.ok_or_else(|| wrong(key, "a number of bytes, 0 or more"))
}

fn length(key: &str, value: &Value) -> Result<usize> {
    let number = match value {
        Value::Int(number) => usize::try_from(*number).ok(),
        Value::Uint(number) => usize::try_from(*number).ok(),
        _ => None,
    };
    number.ok_or_else(|| wrong(key, "a whole number, 0 or more"))
}

fn wrong(key: &str, must_be: &str) -> Error {
    let message = format!("parameter '{}' must be {must_be}", shown(key, 64));
    Error::new(Reason::BadRequest, message).with_field("parameters")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(parameters: &[(&str, Value)]) -> Result<RequestParameters> {
        RequestParameters::read(&list(parameters))
    }

    fn list(parameters: &[(&str, Value)]) -> Parameters {
        parameters.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
    }

    #[test]
    fn priority_is_a_lane_and_more_than_four_is_low() {
        let lane = |value| request(&[("priority", value)]).map(|read| read.lane);
        assert_eq!(lane(Value::Int(0)), Ok(None), "the default");
        assert_eq!(lane(Value::Int(1)), Ok(Some(Lane::Critical)));
        assert_eq!(lane(Value::Uint(2)), Ok(Some(Lane::High)));
        assert_eq!(lane(Value::Uint(u64::MAX)), Ok(Some(Lane::Low)));
        for bad in [Value::Int(-1), Value::Double(1.0), Value::Text("1".into()), Value::Bool(true)] {
            assert_eq!(lane(bad.clone()).unwrap_err().reason(), Reason::BadRequest, "{bad:?}");
        }
    }

    #[test]
    fn timeout_is_in_microseconds_and_signed() {
        let timeout = |value| request(&[("timeout", value)]).map(|read| read.timeout);
        assert_eq!(timeout(Value::Int(2500)), Ok(Some(Duration::from_micros(2500))));
        assert_eq!(timeout(Value::Int(0)), Ok(None));
        for bad in [Value::Int(-1), Value::Uint(2500), Value::Text("1s".into())] {
            assert!(timeout(bad.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn sequences_are_requests_like_others() {
        for none in [Value::Int(0), Value::Uint(0), Value::Text(String::new())] {
            assert!(
                request(&[("sequence_id", none.clone()), ("sequence_start", Value::Bool(false))]).is_ok()
            );
            assert!(request(&[("sequence_id", none), ("sequence_start", Value::Bool(true))]).is_err());
        }
        for id in [Value::Int(7), Value::Uint(u64::MAX), Value::Text("a".into())] {
            assert!(request(&[("sequence_id", id), ("sequence_start", Value::Bool(true))]).is_ok());
        }
        assert!(request(&[("sequence_end", Value::Bool(true))]).is_err(), "without a sequence");
        assert!(request(&[("sequence_id", Value::Double(1.0))]).is_err());
    }

    #[test]
    fn what_is_reserved_is_refused_and_what_is_unknown_passes() {
        assert!(request(&[("triton_anything", Value::Bool(true))]).is_err());
        assert!(request(&[("triton_enable_empty_final_response", Value::Bool(true))]).unwrap().marks_final);
        assert_eq!(request(&[("temperature", Value::Double(0.5))]), Ok(RequestParameters::default()));
    }

    #[test]
    fn a_region_needs_its_size() {
        let tensor = |parameters: &[(&str, Value)]| TensorParameters::read(&list(parameters));
        let region = ("shared_memory_region", Value::Text("r".into()));
        let size = ("shared_memory_byte_size", Value::Int(16));
        let read = tensor(&[region.clone(), size.clone()]).unwrap();
        assert_eq!(read.region, Some(RegionPart { region: "r".into(), offset: 0, size: 16 }));
        assert!(tensor(std::slice::from_ref(&region)).is_err());
        assert!(tensor(std::slice::from_ref(&size)).is_err());
        assert!(tensor(&[region.clone(), ("shared_memory_byte_size", Value::Int(-1))]).is_err());
        assert!(tensor(&[region, size, ("classification", Value::Int(3))]).is_err());
        assert!(tensor(&[("classification", Value::Int(-3))]).is_err());
        assert_eq!(tensor(&[("classification", Value::Int(3))]).unwrap().classes, 3);
    }
}
