//! Datatypes as Triton's configs name them.

use torchlane_model::tensor::DType;
use torchlane_proto::inference::DataType;

/// The element type of that name. `None`: TorchScript and torchlane have none, or none is named.
pub const fn dtype(named: DataType) -> Option<DType> {
    Some(match named {
        DataType::TypeBool => DType::Bool,
        DataType::TypeUint8 => DType::U8,
        DataType::TypeInt8 => DType::I8,
        DataType::TypeInt16 => DType::I16,
        DataType::TypeInt32 => DType::I32,
        DataType::TypeInt64 => DType::I64,
        DataType::TypeFp16 => DType::F16,
        DataType::TypeBf16 => DType::BF16,
        DataType::TypeFp32 => DType::F32,
        DataType::TypeFp64 => DType::F64,
        DataType::TypeInvalid
        | DataType::TypeUint16
        | DataType::TypeUint32
        | DataType::TypeUint64
        | DataType::TypeString => return None,
    })
}

/// The name of an element type.
pub const fn data_type(of: DType) -> DataType {
    match of {
        DType::Bool => DataType::TypeBool,
        DType::U8 => DataType::TypeUint8,
        DType::I8 => DataType::TypeInt8,
        DType::I16 => DataType::TypeInt16,
        DType::I32 => DataType::TypeInt32,
        DType::I64 => DataType::TypeInt64,
        DType::F16 => DataType::TypeFp16,
        DType::BF16 => DataType::TypeBf16,
        DType::F32 => DataType::TypeFp32,
        DType::F64 => DataType::TypeFp64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_has_one_name_and_that_of_the_wire() {
        for of in DType::ALL {
            assert_eq!(dtype(data_type(of)), Some(of));
            assert_eq!(data_type(of).as_str_name(), format!("TYPE_{of}"));
        }
        let named = (0..=14).filter_map(|number| DataType::try_from(number).ok());
        assert_eq!(named.filter_map(dtype).count(), DType::ALL.len());
    }
}
