//! Tensors as a pickle describes them, each checked against the storage entry that should hold its bytes.

use super::container::Container;
use super::error::{ArchiveError, shown};
use super::pickle::{Id, Pickle, Value, shown_global};
use std::io::{Read, Seek};

/// One tensor of a pickle, with the memory it stands for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Tensor {
    /// Entry that holds its storage, `data/7`; empty for a tensor without one (on the meta device, or sparse).
    pub(crate) storage: String,
    /// Where in the storage it begins, in elements.
    pub(crate) offset: u64,
    /// torch's name without `torch.`: `float32`.
    pub(crate) dtype: String,
    pub(crate) shape: Vec<u64>,
    pub(crate) strides: Vec<u64>,
    /// Bytes of its elements.
    pub(crate) bytes: u64,
}

/// Most dimensions that a tensor may have (torch's own limit), and longest key of a storage, which is a number.
const MAX_RANK: usize = 64;
const MAX_KEY_BYTES: usize = 64;

/// The storage classes that TorchScript names, with the dtype and the bytes of one element.
const STORAGES: &[(&str, &str, u64)] = &[
    ("FloatStorage", "float32", 4),
    ("HalfStorage", "float16", 2),
    ("BFloat16Storage", "bfloat16", 2),
    ("DoubleStorage", "float64", 8),
    ("LongStorage", "int64", 8),
    ("IntStorage", "int32", 4),
    ("ShortStorage", "int16", 2),
    ("CharStorage", "int8", 1),
    ("ByteStorage", "uint8", 1),
    ("BoolStorage", "bool", 1),
    ("ComplexHalfStorage", "complex32", 4),
    ("ComplexFloatStorage", "complex64", 8),
    ("ComplexDoubleStorage", "complex128", 16),
    ("QInt8Storage", "qint8", 1),
    ("QUInt8Storage", "quint8", 1),
    ("QInt32Storage", "qint32", 4),
    ("UInt16Storage", "uint16", 2),
    ("UInt32Storage", "uint32", 4),
    ("UInt64Storage", "uint64", 8),
    ("Float8_e5m2Storage", "float8_e5m2", 1),
    ("Float8_e4m3fnStorage", "float8_e4m3fn", 1),
    ("Float8_e5m2fnuzStorage", "float8_e5m2fnuz", 1),
    ("Float8_e4m3fnuzStorage", "float8_e4m3fnuz", 1),
];

/// Whether `id` is a tensor of any kind.
pub(super) fn is_tensor(pickle: &Pickle<'_>, id: Id) -> bool {
    matches!(pickle.get(id), Value::Reduce { callable, .. }
        if pickle.global(*callable).is_some_and(|(module, name)| module == "torch._utils" && name.starts_with("_rebuild_")))
}

/// The tensor at `id`, or `None` where something else is there. `folder` is the one of the pickle's storages.
pub(crate) fn tensor<R: Read + Seek>(
    pickle: &Pickle<'_>,
    id: Id,
    folder: &str,
    container: &Container<R>,
) -> Result<Option<Tensor>, ArchiveError> {
    match pickle.get(id) {
        Value::Reduce { callable, args } if is_tensor(pickle, id) => {
            let name = pickle.global(*callable).map_or("", |(_, name)| name);
            let args = pickle.tuple(*args).unwrap_or_default();
            rebuild(pickle, name, args, folder, container).map(Some)
        }
        _ => Ok(None),
    }
}

/// Checks every tensor of a pickle, also those that no module names, and every storage, also those that no tensor has.
pub(super) fn check_all<R: Read + Seek>(
    pickle: &Pickle<'_>,
    folder: &str,
    container: &Container<R>,
) -> Result<(), ArchiveError> {
    for value in pickle.values() {
        if let Value::Reduce { callable, args } = value
            && let Some(("torch._utils", name)) = pickle.global(*callable)
            && name.starts_with("_rebuild_")
        {
            rebuild(pickle, name, pickle.tuple(*args).unwrap_or_default(), folder, container)?;
        }
        // libtorch makes a tensor of each, whether something rebuilds it or not.
        if let Value::Persistent(description) = value {
            storage(pickle, *description, folder, container)?;
        }
    }
    Ok(())
}

/// A storage of a pickle, checked against the entry that holds its bytes.
struct Storage {
    entry: String,
    dtype: &'static str,
    item_bytes: u64,
    elements: u64,
}

/// The storage that `("storage", class, key, device, elements)` describes.
fn storage<R: Read + Seek>(
    pickle: &Pickle<'_>,
    description: Id,
    folder: &str,
    container: &Container<R>,
) -> Result<Storage, ArchiveError> {
    let &[_, class, key, _, declared, ..] = pickle.tuple(description).unwrap_or_default() else {
        return Err(wrong(folder, "the description of its storage is incomplete"));
    };
    let (Some((module, class)), Value::Str(key)) = (pickle.global(class), pickle.get(key)) else {
        return Err(wrong(folder, "the description of its storage names no class or no key"));
    };
    let entry = format!("{folder}/{}", shown(key));
    if key.len() > MAX_KEY_BYTES {
        return Err(wrong(&entry, "the key of its storage is no number"));
    }
    let Some(&(_, dtype, item_bytes)) =
        STORAGES.iter().find(|(name, ..)| *name == class && module == "torch")
    else {
        return Err(wrong(&entry, &format!("storage class {} is not known", shown_global(module, class))));
    };
    let held = container
        .size_of(&format!("{folder}/{key}"))
        .ok_or_else(|| wrong(&entry, "its storage is missing"))?;
    let elements = size(pickle, declared)
        .ok_or_else(|| wrong(&entry, "the length of its storage is negative or no number"))?;
    let bytes = elements.checked_mul(item_bytes).ok_or_else(|| wrong(&entry, "its size overflows"))?;
    if bytes > held {
        return Err(wrong(&entry, &format!("its storage should have {bytes} bytes and has {held}")));
    }
    Ok(Storage { entry, dtype, item_bytes, elements })
}

fn wrong(storage: &str, reason: &str) -> ArchiveError {
    ArchiveError::Tensor { storage: shown(storage), reason: reason.to_owned() }
}

fn rebuild<R: Read + Seek>(
    pickle: &Pickle<'_>,
    callable: &str,
    args: &[Id],
    folder: &str,
    container: &Container<R>,
) -> Result<Tensor, ArchiveError> {
    let without_storage = |dtype: &str| Tensor {
        storage: String::new(),
        offset: 0,
        dtype: dtype.to_owned(),
        shape: Vec::new(),
        strides: Vec::new(),
        bytes: 0,
    };
    match callable {
        "_rebuild_tensor_v2" | "_rebuild_tensor" | "_rebuild_qtensor" => {}
        "_rebuild_sparse_tensor" | "_rebuild_sparse_csr_tensor" => return Ok(without_storage("sparse")),
        "_rebuild_meta_tensor_no_storage" => return Ok(without_storage("meta")),
        other => {
            let reason = format!("made by {}, which is not known", shown(other));
            return Err(ArchiveError::Tensor { storage: folder.to_owned(), reason });
        }
    }
    let &[description, offset, shape, strides, ..] = args else {
        return Err(wrong(folder, "its description is incomplete"));
    };
    let Value::Persistent(description) = pickle.get(description) else {
        return Err(wrong(folder, "it has no storage"));
    };
    let Storage { entry, dtype, item_bytes, elements: declared } =
        storage(pickle, *description, folder, container)?;

    let shape = sizes(pickle, shape).ok_or_else(|| wrong(&entry, "a size is negative or no number"))?;
    let strides = sizes(pickle, strides).ok_or_else(|| wrong(&entry, "a stride is negative or no number"))?;
    let offset = size(pickle, offset).ok_or_else(|| wrong(&entry, "its offset is negative or no number"))?;
    if shape.len() != strides.len() {
        return Err(wrong(&entry, "it has not as many strides as sizes"));
    }
    let overflow = || wrong(&entry, "its size overflows");
    let elements = shape.iter().try_fold(1_u64, |all, size| all.checked_mul(*size)).ok_or_else(overflow)?;
    let bytes = elements.checked_mul(item_bytes).ok_or_else(overflow)?;
    let reach = reach(&shape, &strides, offset).ok_or_else(overflow)?;
    if reach > declared {
        let reason = format!("it reaches to element {reach} of a storage of {declared}");
        return Err(wrong(&entry, &reason));
    }
    Ok(Tensor { storage: entry, offset, dtype: dtype.to_owned(), shape, strides, bytes })
}

/// One past the last element that a tensor of these sizes touches; zero for one without elements.
fn reach(shape: &[u64], strides: &[u64], offset: u64) -> Option<u64> {
    if shape.contains(&0) {
        return Some(0);
    }
    let last = shape.iter().zip(strides).try_fold(offset, |last, (size, stride)| {
        last.checked_add(size.saturating_sub(1).checked_mul(*stride)?)
    })?;
    last.checked_add(1)
}

fn size(pickle: &Pickle<'_>, id: Id) -> Option<u64> {
    match pickle.get(id) {
        Value::Int(value) => u64::try_from(*value).ok(),
        _ => None,
    }
}

fn sizes(pickle: &Pickle<'_>, id: Id) -> Option<Vec<u64>> {
    let items = pickle.tuple(id).filter(|items| items.len() <= MAX_RANK)?;
    items.iter().map(|item| size(pickle, *item)).collect()
}
