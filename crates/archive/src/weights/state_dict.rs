//! Weights as `torch.save(model.state_dict(), ...)` writes them: a zip file with a pickle of names and tensors.
//!
//! The pickle is read by the machine that reads archives: nothing is called, and whatever is not a tensor is refused by
//! name. Each storage is checked against its checksum. What lies in rows is shared with the file; what is transposed
//! or sliced is laid out once.

use std::{
    collections::{BTreeMap, HashMap},
    io::Cursor,
};

use bytes::Bytes;

use super::{Weight, strided::Layout};
use crate::{
    ArchiveError,
    container::Container,
    error::shown,
    pickle::{Id, Pickle, Value},
    tensors::{self, Tensor},
};

const SAVE: &str = "write it with torch.save(model.state_dict(), ...)";

/// What is laid out anew may be that many times the file: a small file must not ask for all memory.
const MOST_LAID_OUT: usize = 2;

/// The tensors of a file, by name.
pub(super) fn read(whole: &Bytes) -> Result<BTreeMap<String, Weight>, String> {
    let mut file = Storages::open(whole)?;
    let data = file.container.read("data.pkl").map_err(explain)?;
    let data = data.ok_or_else(|| format!("a zip file without data.pkl: {SAVE}"))?;
    let pickle = Pickle::parse(&data, "data.pkl").map_err(explain)?;
    let Value::Dict(items) = pickle.get(pickle.root()) else {
        return Err(format!("its top level is {}, not a state dict: {SAVE}", kind(&pickle, pickle.root())));
    };
    let mut tensors = BTreeMap::new();
    for (key, value) in items {
        let Value::Str(name) = pickle.get(*key) else {
            return Err(format!("a key is {}, not a name: {SAVE}", kind(&pickle, *key)));
        };
        let named = |why: &dyn std::fmt::Display| format!("'{}' {why}", shown(name));
        let inner = parameter(&pickle, *value);
        let tensor = tensors::tensor(&pickle, inner, "data", &file.container)
            .map_err(|error| named(&format_args!("cannot be read: {}", explain(error))))?
            .ok_or_else(|| named(&format_args!("is {}, not a tensor: {SAVE}", kind(&pickle, inner))))?;
        let weight = file.weight(tensor).map_err(|why| named(&why))?;
        if tensors.insert((*name).to_owned(), weight).is_some() {
            return Err(named(&"is there twice"));
        }
    }
    Ok(tensors)
}

/// The tensor within an `nn.Parameter`; anything else is itself.
fn parameter(pickle: &Pickle<'_>, id: Id) -> Id {
    match pickle.get(id) {
        Value::Reduce { callable, args }
            if pickle.global(*callable) == Some(("torch._utils", "_rebuild_parameter")) =>
        {
            pickle.tuple(*args).and_then(|args| args.first().copied()).unwrap_or(id)
        }
        _ => id,
    }
}

/// What a value is, for a message.
fn kind(pickle: &Pickle<'_>, id: Id) -> String {
    let named = |what: &str, id: Id| match pickle.global(id) {
        Some((module, name)) => format!("{what} {}", shown(&format!("{module}.{name}"))),
        None => what.to_owned(),
    };
    match pickle.get(id) {
        Value::None => "None".to_owned(),
        Value::Bool(_) => "a truth value".to_owned(),
        Value::Int(_) | Value::Number => "a number".to_owned(),
        Value::Str(_) => "text".to_owned(),
        Value::Tuple(_) | Value::List(_) => "a list".to_owned(),
        Value::Dict(_) => "a dict".to_owned(),
        Value::Global { .. } => named("the name", id),
        Value::Object { class, .. } => named("an object of class", *class),
        Value::Reduce { callable, .. } => named("a call of", *callable),
        Value::Persistent(_) => "a storage".to_owned(),
    }
}

/// The same error in the words of a state dict.
fn explain(error: ArchiveError) -> String {
    match error {
        ArchiveError::Foreign { looks_like, .. } => {
            format!("not a state dict but {looks_like}: {SAVE} (torch 1.6 or later)")
        }
        ArchiveError::Pickle { entry, offset, reason } => {
            format!("{entry}, byte {offset}: {reason}: {SAVE}, in its default pickle protocol")
        }
        other => other.to_string(),
    }
}

/// The entries that hold elements, each checked once.
struct Storages {
    whole: Bytes,
    container: Container<Cursor<Bytes>>,
    checked: HashMap<String, Bytes>,
    laid_out: HashMap<Tensor, Bytes>,
    /// Bytes that may still be laid out.
    left: usize,
}

impl Storages {
    fn open(whole: &Bytes) -> Result<Self, String> {
        let mut container =
            Container::open(Cursor::new(whole.clone()), whole.len() as u64).map_err(explain)?;
        if container.names().iter().any(|name| name.starts_with("code/")) {
            return Err("a TorchScript archive, not a state dict: put it in place as model.pt".to_owned());
        }
        if container.read("byteorder").map_err(explain)?.is_some_and(|order| order.trim_ascii() == b"big") {
            return Err("written on a big-endian machine: write it on a little-endian one".to_owned());
        }
        let left = whole.len().saturating_mul(MOST_LAID_OUT);
        Ok(Self { whole: whole.clone(), container, checked: HashMap::new(), laid_out: HashMap::new(), left })
    }

    fn weight(&mut self, tensor: Tensor) -> Result<Weight, String> {
        if tensor.storage.is_empty() || tensor.dtype.starts_with('q') {
            return Err(
                "is sparse, quantized or on the meta device: dense tensors can be laid over".to_owned()
            );
        }
        let data = self.elements(&tensor)?;
        Ok(Weight { dtype: tensor.dtype, shape: tensor.shape, data })
    }

    /// Its elements in row-major order.
    fn elements(&mut self, tensor: &Tensor) -> Result<Bytes, String> {
        let outside = || format!("reaches out of its storage {}", tensor.storage);
        let storage = self.storage(&tensor.storage)?;
        if tensor.bytes == 0 {
            return Ok(Bytes::new());
        }
        let item = tensor.bytes / tensor.shape.iter().product::<u64>().max(1);
        let (item, bytes) = (to_usize(item)?, to_usize(tensor.bytes)?);
        let layout = Layout { item, offset: tensor.offset, shape: &tensor.shape, strides: &tensor.strides };
        if layout.is_dense() {
            let start = to_usize(tensor.offset)?.checked_mul(item).ok_or_else(outside)?;
            let end = start.checked_add(bytes).filter(|end| *end <= storage.len()).ok_or_else(outside)?;
            return Ok(storage.slice(start..end));
        }
        if let Some(known) = self.laid_out.get(tensor) {
            return Ok(known.clone());
        }
        // Also what stands for many elements by repeating one: no parameter is like that.
        self.left =
            self.left.checked_sub(bytes).ok_or("is far larger than the file: call .contiguous() on it")?;
        let data = Bytes::from(layout.gather(&storage).ok_or_else(outside)?);
        self.laid_out.insert(tensor.clone(), data.clone());
        Ok(data)
    }

    fn storage(&mut self, entry: &str) -> Result<Bytes, String> {
        if let Some(known) = self.checked.get(entry) {
            return Ok(known.clone());
        }
        let damaged = |why: &str| format!("is damaged: {entry} {why}: copy or save the file again");
        let place = self.container.place(entry).map_err(explain)?.ok_or_else(|| damaged("is missing"))?;
        let start = to_usize(place.start)?;
        let range = start..start.saturating_add(to_usize(place.size)?);
        let bytes = self.whole.get(range).ok_or_else(|| damaged("lies outside the file"))?;
        if crc32fast::hash(bytes) != place.crc32 {
            return Err(damaged("does not match its checksum"));
        }
        let bytes = self.whole.slice_ref(bytes);
        self.checked.insert(entry.to_owned(), bytes.clone());
        Ok(bytes)
    }
}

fn to_usize(number: u64) -> Result<usize, String> {
    usize::try_from(number).map_err(|_| "is larger than memory".to_owned())
}
