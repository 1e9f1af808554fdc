//! Archives that are damaged or made to do harm: each gets its own error.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;

use super::super::{ArchiveError, inspect_reader};
use super::{Stored, entries, identity, inspect_bytes, key, module_pickle, stored, tensor, testdata, zipped};

fn error(bytes: &[u8]) -> String {
    inspect_bytes(bytes).unwrap_err().to_string()
}

fn weight(state: Vec<u8>, held_bytes: usize) -> Vec<Stored> {
    let mut all = identity(&[key("w"), state].concat());
    all.push(stored("m/data/0", vec![0; held_bytes]));
    all
}

#[test]
fn the_least_archive_is_read() {
    let info = inspect_bytes(&zipped(&weight(tensor(6, &[2, 3], &[3, 1], 0), 24))).unwrap();
    assert_eq!((info.class_name.as_str(), info.entries, info.parameters[0].bytes), ("M", 5, 24));
    assert_eq!(info.effects, super::super::Effects::default());
}

#[test]
fn files_of_other_kinds_are_named() {
    let safetensors = [16_u64.to_le_bytes().as_slice(), br#"{"a":{}}        "#].concat();
    let tar = [vec![b'x'; 257], b"ustar\0".to_vec(), vec![0; 249]].concat();
    for (bytes, says) in [
        (b"".as_slice(), "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"\x7fELF\x02\x01\x01", "ELF"),
        (b"\n<!DOCTYPE html><html>", "HTML"),
        (b"\x80\x04\x95", "a Python pickle"),
        (b"\x1f\x8b\x08", "gzip"),
        (&safetensors, "safetensors"),
        (&tar, "a tar file"),
        (b"hello", "something else"),
    ] {
        let error = error(bytes);
        assert!(error.contains(says), "{error}");
        assert!(!error.contains('\n'));
    }
}

#[test]
fn a_file_cut_anywhere_is_truncated_or_damaged() {
    let whole = std::fs::read(testdata("net.pt")).unwrap();
    for length in [4, 100, whole.len() / 2, whole.len() - 200] {
        assert!(matches!(inspect_bytes(&whole[..length]), Err(ArchiveError::Truncated { .. })), "{length}");
    }
    assert!(error(&whole[..100]).starts_with("truncated after 100 bytes"));
}

#[test]
fn bytes_after_the_end_are_refused() {
    let mut bytes = zipped(&identity(b""));
    bytes.extend(b"more");
    assert!(error(&bytes).contains("other bytes follow"));
}

#[test]
fn names_that_leave_the_archive_are_refused() {
    let bad = ["../m/x", "m/../../x", "/etc/passwd", "m\\x", "c:/x", "m/a\nb", ""];
    for name in bad {
        let mut all = identity(b"");
        all.push(stored(name, b""));
        assert!(matches!(inspect_bytes(&zipped(&all)), Err(ArchiveError::BadName(_))), "{name:?}");
    }
}

#[test]
fn names_that_libtorch_takes_for_the_same_are_refused() {
    for name in ["m/version", "m/VERSION"] {
        let mut all = identity(b"");
        all.push(stored(name, b"4\n"));
        assert!(matches!(inspect_bytes(&zipped(&all)), Err(ArchiveError::DuplicateName(_))), "{name}");
    }
}

#[test]
fn entries_that_overlap_or_lie_outside_are_refused() {
    let mut all = identity(b"");
    all.push(Stored { offset: Some(0), ..all[0].clone() });
    all[4].name = "m/data.txt".to_owned();
    assert!(matches!(inspect_bytes(&zipped(&all)), Err(ArchiveError::Overlap)));

    let mut all = identity(b"");
    all.push(Stored { sizes: (4000, 4000), ..stored("m/data/0", b"short") });
    assert!(matches!(inspect_bytes(&zipped(&all)), Err(ArchiveError::Overlap)));

    let mut all = identity(b"");
    all.push(Stored { offset: Some(u32::MAX - 1), ..stored("m/data/0", b"far") });
    assert!(inspect_bytes(&zipped(&all)).is_err());
}

#[test]
fn a_wrong_checksum_is_found() {
    let mut all = identity(b"");
    all[1].crc ^= 1;
    let error = error(&zipped(&all));
    assert!(error.starts_with("code/__torch__.py does not match its checksum"), "{error}");
}

#[test]
fn weights_are_not_read() {
    let mut all = weight(tensor(6, &[2, 3], &[3, 1], 0), 24);
    all[4].crc ^= 1;
    assert!(inspect_bytes(&zipped(&all)).is_ok(), "only reading it would find the wrong checksum");
}

#[test]
fn too_many_entries_are_refused_before_they_are_read() {
    let mut bytes = zipped(&identity(b""));
    let end = bytes.len() - 22;
    // A ZIP64 end that declares a billion entries.
    let tail = bytes.split_off(end);
    let directory_bytes = u64::from(u32::from_le_bytes(tail[12..16].try_into().unwrap()));
    let start = u64::from(u32::from_le_bytes(tail[16..20].try_into().unwrap()));
    let billion = 1_000_000_000_u64.to_le_bytes();
    bytes.extend(b"PK\x06\x06");
    bytes.extend(44_u64.to_le_bytes());
    bytes.extend([45, 0, 45, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([billion, billion, directory_bytes.to_le_bytes(), start.to_le_bytes()].concat());
    bytes.extend(
        [b"PK\x06\x07\0\0\0\0".as_slice(), &(end as u64).to_le_bytes(), &1_u32.to_le_bytes()].concat(),
    );
    bytes.extend(tail);
    assert!(matches!(inspect_bytes(&bytes), Err(ArchiveError::TooManyEntries { found: 1_000_000_000, .. })));
}

#[test]
fn an_entry_that_inflates_to_more_than_it_says_is_refused() {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    writer.start_file("m/code/__torch__.py", options).unwrap();
    writer.write_all(&vec![b'#'; 1 << 20]).unwrap();
    let mut bytes = writer.finish().unwrap().into_inner();
    let declared = (1_u32 << 20).to_le_bytes();
    while let Some(at) = bytes.windows(4).position(|four| four == declared) {
        bytes[at..at + 4].copy_from_slice(&1000_u32.to_le_bytes());
    }
    let error = error(&bytes);
    assert!(error.starts_with("code/__torch__.py: ") && error.contains("declare"), "{error}");
}

#[test]
fn code_over_the_bound_is_refused_unread() {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    writer.start_file("m/code/__torch__.py", options).unwrap();
    for _ in 0..65 {
        writer.write_all(&vec![b'#'; 1 << 20]).unwrap();
    }
    let bytes = writer.finish().unwrap().into_inner();
    assert!(matches!(inspect_bytes(&bytes), Err(ArchiveError::TooLarge { .. })));
}

#[test]
fn tensors_need_their_bytes() {
    for (state, held, says) in [
        (tensor(6, &[2, 3], &[3, 1], 0), 20, "should have 24 bytes and has 20"),
        (tensor(6, &[2, 3], &[3, 1], 1), 24, "reaches to element 7 of a storage of 6"),
        (tensor(6, &[2, 3], &[9, 1], 0), 24, "reaches to element 12"),
        (tensor(6, &[2, 3], &[3], 0), 24, "not as many strides as sizes"),
    ] {
        let error = error(&zipped(&weight(state, held)));
        assert!(error.starts_with("tensor in data/0: ") && error.contains(says), "{error}");
    }
    // A storage that no module names is checked too, and one that is missing is named.
    let unnamed = identity(&[key("unused"), tensor(1, &[1], &[1], 0)].concat());
    assert!(error(&zipped(&unnamed)).contains("tensor in data/0: its storage is missing"));
    // No elements need no bytes.
    assert!(inspect_bytes(&zipped(&weight(tensor(0, &[0, 3], &[3, 1], 0), 0))).is_ok());
}

#[test]
fn a_pickle_is_never_run() {
    for (pickle, says) in [
        (b"\x80\x02cos\nsystem\n(X\x02\0\0\0lstR.".to_vec(), "does not hold a module"),
        (b"\x80\x02\x93.".to_vec(), "opcode 0x93"),
        (b"\x80\x05.".to_vec(), "protocol 5"),
        (b"\x80\x02".to_vec(), "ends in the middle"),
        (b"\x80\x02X\xff\xff\xff\xff".to_vec(), "ends in the middle"),
        (b"\x80\x02t.".to_vec(), "a mark that is not there"),
        (b"\x80\x02h\x05.".to_vec(), "memo slot 5"),
        (b"\x80\x02NK\x01a.".to_vec(), "no list"),
        (b"\x80\x02}(K\x01u.".to_vec(), "a key without a value"),
    ] {
        let error = error(&zipped(&entries(super::IDENTITY, pickle)));
        assert!(error.contains("data.pkl") && error.contains(says), "{error}");
    }
}

#[test]
fn deep_nesting_needs_no_stack() {
    let deep = [key("w"), vec![b')'; 1], vec![b'\x85'; 1_000_000]].concat();
    assert!(inspect_bytes(&zipped(&identity(&deep))).is_ok());
}

#[test]
fn a_module_that_holds_itself_is_refused() {
    let code = "class M(Module):
  me : __torch__.M
  def forward(self: __torch__.M, x: Tensor) -> Tensor:
    return x
";
    let pickle = [b"\x80\x02c__torch__\nM\n)\x81q\x00}(".to_vec(), key("me"), b"h\x00ub.".to_vec()].concat();
    assert!(matches!(inspect_bytes(&zipped(&entries(code, pickle))), Err(ArchiveError::Tree("deeper"))));
}

#[test]
fn modules_shared_without_end_are_refused() {
    // Each of 64 modules holds the one before it twice: 2^64 paths.
    let code = "class M(Module):
  a : __torch__.M
  b : __torch__.M
  def forward(self: __torch__.M, x: Tensor) -> Tensor:
    return x
";
    let mut pickle = b"\x80\x02c__torch__\nM\n)\x81q\x00".to_vec();
    for level in 0..64 {
        pickle.extend(b"0c__torch__\nM\n)\x81}(");
        pickle.extend([key("a"), vec![b'h', level], key("b"), vec![b'h', level], b"ub".to_vec()].concat());
        pickle.extend([b'q', level + 1]);
    }
    pickle.push(b'.');
    assert!(matches!(inspect_bytes(&zipped(&entries(code, pickle))), Err(ArchiveError::Tree("larger"))));
}

#[test]
fn a_module_without_forward_says_what_it_has() {
    let code = "class M(Module):\n  def score(self: __torch__.M, x: Tensor) -> Tensor:\n    return x\n";
    let error = error(&zipped(&entries(code, module_pickle(b""))));
    assert!(error.starts_with("module M has no forward method (it has: score)"), "{error}");
}

#[test]
fn a_top_class_without_code_is_named() {
    let error =
        error(&zipped(&entries("def forward(x: Tensor) -> Tensor:\n  return x\n", module_pickle(b""))));
    assert!(error.contains("the code of its class __torch__.M is missing"), "{error}");
}

#[test]
fn named_tuples_without_end_stop() {
    let mut code = String::new();
    for level in 0..40 {
        let inner = format!("__torch__.T{}", level + 1);
        code += &format!("class T{level}(NamedTuple):\n  a : {inner}\n  b : {inner}\n  c : __torch__.T0\n");
    }
    code += "class M(Module):\n  def forward(self: __torch__.M, x: __torch__.T0) -> __torch__.T0:\n    return x\n";
    let info = inspect_bytes(&zipped(&entries(&code, module_pickle(b"")))).unwrap();
    assert_eq!(info.forward.unwrap().returns.to_string(), "T0");
    let nested = format!("{}Tensor{}", "List[".repeat(5000), "]".repeat(5000));
    let code =
        format!("class M(Module):\n  def forward(self: __torch__.M, x: {nested}) -> Tensor:\n    return x\n");
    assert!(inspect_bytes(&zipped(&entries(&code, module_pickle(b"")))).is_ok());
}

#[test]
fn a_wrong_size_is_an_error_and_no_panic() {
    let bytes = zipped(&identity(b""));
    for size in [0, 1, 22, bytes.len() as u64 - 1, bytes.len() as u64 + 1, u64::MAX] {
        assert!(inspect_reader(Cursor::new(&bytes), size).is_err(), "{size}");
    }
}

/// Each of these took quadratic time, or memory by the gigabyte, in a reader that was not careful.
#[test]
fn hostile_code_takes_linear_time() {
    let body = "class M(Module):\n  def forward(self: __torch__.M, x: Tensor) -> Tensor:\n    return x\n";
    let many = 200_000;
    for more in [
        format!("def f(x: Tensor) -> Tensor:\n  {}1\n", "a = ".repeat(many)),
        format!("def f(x: Tensor) -> Tensor:\n  {}\n", "for ".repeat(many)),
        format!("def f(x: Tensor) -> Tensor:\n  {}x{}\n", "torch.batch_norm(".repeat(many), ")".repeat(many)),
        format!("def f(x: Tensor) -> Tensor:\n  x{}\n", ".a".repeat(many)),
        format!("def f(x: {}int{}) -> Tensor:\n  return x\n", "Tuple[".repeat(many), "]".repeat(many)),
        format!("class T(NamedTuple):\n  a : Tuple[{}]\n", "__torch__.T, ".repeat(many)),
        format!("class N(Module):\n{}", "  a : int\n".repeat(many)),
    ] {
        let all =
            entries(&format!("{}{more}", body.replace("x: Tensor", "x: __torch__.T")), module_pickle(b""));
        assert!(inspect_bytes(&zipped(&all)).is_ok());
    }
    let line = format!("def f(x: Tensor) -> Tensor:\n  {}\n", "a ".repeat(2_000_000));
    let info = inspect_bytes(&zipped(&entries(&format!("{body}{line}"), module_pickle(b"")))).unwrap();
    assert_eq!(info.effects, super::super::Effects::UNKNOWN);
}

#[test]
fn an_archive_that_libtorch_would_read_otherwise_is_refused() {
    let mut all = identity(b"");
    all.push(stored("m/MODEL.json", b"{}"));
    assert!(matches!(inspect_bytes(&zipped(&all)), Err(ArchiveError::Deceptive(_))));
    let mut bytes = zipped(&identity(b""));
    bytes[4..8].copy_from_slice(b"PTMF");
    assert!(matches!(inspect_bytes(&bytes), Err(ArchiveError::Deceptive(_))));
}

/// What is only old, or made for phones, is called that.
#[test]
fn old_archives_and_flatbuffers_are_not_called_hostile() {
    let old = [stored("m/model.json", b"{}"), stored("m/code/m.py", b""), stored("m/tensors/0", b"")];
    let error = inspect_bytes(&zipped(&old)).unwrap_err().to_string();
    assert!(error.contains("an archive of torch 1.0 to 1.2"), "{error}");
    let flatbuffer = [b"\x18\0\0\0PTMF".as_slice(), &[7; 600]].concat();
    let error = inspect_bytes(&flatbuffer).unwrap_err().to_string();
    assert!(error.contains("a flatbuffer of PyTorch Mobile"), "{error}");
}

/// libtorch makes a tensor of a storage as soon as it is mentioned.
#[test]
fn a_storage_without_a_tensor_needs_its_bytes_too() {
    let bare = [
        b"(".to_vec(),
        key("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        key("0"),
        key("cpu"),
        b"J\0\0\0\x40tQ".to_vec(),
    ]
    .concat();
    let error = error(&zipped(&weight(bare, 24)));
    assert!(
        error.starts_with("tensor in data/0: its storage should have 4294967296 bytes and has 24"),
        "{error}"
    );
}

#[test]
fn a_memo_slot_far_away_is_refused() {
    // libtorch would make room for four billion values.
    let pickle = b"\x80\x02)r\xff\xff\xff\xff.".to_vec();
    let error = error(&zipped(&entries(super::IDENTITY, pickle)));
    assert!(error.contains("memo slot 4294967295, where 1 would be next"), "{error}");
}

fn deflated(name: &str, mib: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut writer = zip::ZipWriter::new(file.as_file_mut());
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    writer.start_file(name, options).unwrap();
    for _ in 0..mib {
        writer.write_all(&vec![0; 1 << 20]).unwrap();
    }
    writer.finish().unwrap();
    file
}

#[test]
fn weights_that_inflate_without_end_are_refused_before_they_do() {
    let bomb = deflated("m/data/0", 300);
    let error = super::super::check_entries(bomb.path()).unwrap_err();
    assert!(matches!(error, ArchiveError::Inflates { .. }), "{error}");
    assert!(super::super::check_entries(deflated("m/data/0", 20).path()).is_ok(), "20 MiB is no bomb");
}

#[test]
fn weights_that_lie_about_their_size_are_refused() {
    let file = deflated("m/data/0", 1);
    let mut bytes = std::fs::read(file.path()).unwrap();
    let declared = (1_u32 << 20).to_le_bytes();
    while let Some(at) = bytes.windows(4).position(|four| four == declared) {
        bytes[at..at + 4].copy_from_slice(&1000_u32.to_le_bytes());
    }
    std::fs::write(file.path(), bytes).unwrap();
    let error = super::super::check_entries(file.path()).unwrap_err().to_string();
    assert!(error.starts_with("entry m/data/0: ") && error.contains("larger than its declared"), "{error}");
}

#[test]
fn a_flipped_bit_in_the_weights_is_found_when_they_are_read() {
    let mut all = weight(tensor(6, &[2, 3], &[3, 1], 0), 24);
    all[4].crc ^= 1;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), zipped(&all)).unwrap();
    let error = super::super::check_entries(file.path()).unwrap_err().to_string();
    assert!(error.starts_with("entry m/data/0: ") && error.contains("checksum"), "{error}");
}
