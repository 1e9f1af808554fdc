//! Archives that torch wrote, archives that nobody should write, and bytes at random.

mod corpus;
mod effects;
mod hostile;
mod random;
mod state;
mod unsafe_models;
mod written;

use std::io::Cursor;
use std::path::{Path, PathBuf};

use super::{ArchiveError, ArchiveInfo, inspect_reader};

/// Path of an archive in `testdata/`; `make.py` beside them made them all.
fn testdata(name: &str) -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/testdata");
    beside.join(name)
}

fn inspect_bytes(bytes: &[u8]) -> Result<ArchiveInfo, ArchiveError> {
    inspect_reader(Cursor::new(bytes), bytes.len() as u64)
}

/// An entry of a zip file as it will be written, whether it is true or not.
#[derive(Clone)]
struct Stored {
    name: String,
    data: Vec<u8>,
    /// Declared size, and declared size of what is stored.
    sizes: (u32, u32),
    crc: u32,
    /// Compression method: 0 is none, 8 is deflate.
    method: u16,
    /// Where the directory says the entry is; `None` for the truth.
    offset: Option<u32>,
}

fn stored(name: &str, data: impl AsRef<[u8]>) -> Stored {
    let data = data.as_ref().to_vec();
    let size = data.len() as u32;
    Stored { name: name.to_owned(), crc: crc32(&data), data, sizes: (size, size), method: 0, offset: None }
}

fn zipped(entries: &[Stored]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for entry in entries {
        let at = entry.offset.unwrap_or(file.len() as u32);
        let mut common = Vec::new();
        common.extend(20_u16.to_le_bytes()); // version needed
        common.extend(0_u16.to_le_bytes()); // flags
        common.extend(entry.method.to_le_bytes());
        common.extend([0; 4]); // time and date
        common.extend(entry.crc.to_le_bytes());
        common.extend(entry.sizes.1.to_le_bytes());
        common.extend(entry.sizes.0.to_le_bytes());
        common.extend((entry.name.len() as u16).to_le_bytes());
        common.extend(0_u16.to_le_bytes()); // extra field
        file.extend(b"PK\x03\x04");
        file.extend(&common);
        file.extend(entry.name.as_bytes());
        file.extend(&entry.data);
        directory.extend(b"PK\x01\x02\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]); // comment, disk, attributes
        directory.extend(at.to_le_bytes());
        directory.extend(entry.name.as_bytes());
    }
    let start = file.len() as u32;
    let size = directory.len() as u32;
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend((entries.len() as u16).to_le_bytes());
    file.extend((entries.len() as u16).to_le_bytes());
    file.extend(size.to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

/// A pickle of a module `__torch__.M` whose state is the pairs that `state` pickles.
fn module_pickle(state: &[u8]) -> Vec<u8> {
    [b"\x80\x02c__torch__\nM\n)\x81}(".as_slice(), state, b"ub."].concat()
}

/// A key of a state.
fn key(name: &str) -> Vec<u8> {
    [b"X".as_slice(), &(name.len() as u32).to_le_bytes(), name.as_bytes()].concat()
}

/// A float32 tensor in `data/0` as a value of a state.
fn tensor(elements: u8, shape: &[u8], strides: &[u8], offset: u8) -> Vec<u8> {
    let numbers = |items: &[u8]| {
        [b"(".to_vec(), items.iter().flat_map(|n| [b'K', *n]).collect(), b"t".to_vec()].concat()
    };
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        key("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        key("0"),
        key("cpu"),
        vec![b'K', elements],
        b"tQK".to_vec(),
        vec![offset],
        numbers(shape),
        numbers(strides),
        b"\x89ccollections\nOrderedDict\n)RtR".to_vec(),
    ]
    .concat()
}

/// The entries of the least archive: class `M` with this code.
fn entries(code: &str, pickle: Vec<u8>) -> Vec<Stored> {
    vec![
        stored("m/data.pkl", pickle),
        stored("m/code/__torch__.py", code),
        stored("m/constants.pkl", b"\x80\x02)."),
        stored("m/version", b"3\n"),
    ]
}

const IDENTITY: &str = "class M(Module):
  __parameters__ = [\"w\", ]
  __buffers__ = []
  w : Tensor
  def forward(self: __torch__.M,
    x: Tensor) -> Tensor:
    return x
";

fn identity(state: &[u8]) -> Vec<Stored> {
    entries(IDENTITY, module_pickle(state))
}
