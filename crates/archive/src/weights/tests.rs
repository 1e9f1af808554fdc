//! Files that torch wrote (`testdata/make.py`), held against what torch exports itself, and damaged ones.

use std::{fs, io::Cursor, path::PathBuf};

use super::*;
use crate::{TensorInfo, check_entries, container::Container, inspect};

fn data(name: &str) -> PathBuf {
    PathBuf::from("src/weights/testdata").join(name)
}

fn read(name: &str) -> Result<Weights, WeightsError> {
    Weights::read(&data(name), 1 << 20)
}

/// Its tensors, and the names of its buffers.
fn tensors(archive: &str) -> (Vec<TensorInfo>, Vec<String>) {
    let info = inspect(&data(archive)).unwrap();
    let buffers = info.buffers.iter().map(|buffer| buffer.name.clone()).collect();
    (info.parameters.into_iter().chain(info.buffers).collect(), buffers)
}

fn slots(archive: &str) -> Vec<TensorInfo> {
    tensors(archive).0
}

/// Every entry that holds a tensor, by name.
fn storages(archive: Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let size = archive.len() as u64;
    let mut container = Container::open(Cursor::new(archive), size).unwrap();
    let names = container.names().into_iter().filter(|name| name.starts_with("data/"));
    names
        .collect::<Vec<_>>()
        .into_iter()
        .map(|name| (name.clone(), container.read(&name).unwrap().unwrap()))
        .collect()
}

#[test]
fn an_archive_with_other_weights_is_what_torch_exports_with_them() {
    let exported = storages(fs::read(data("new.pt")).unwrap());
    let own = fs::read(data("old.pt")).unwrap();
    assert_ne!(storages(own.clone()), exported);
    let slots = slots("old.pt");
    for name in ["new.pth", "new.safetensors", "parameters.pth"] {
        let weights = read(name).unwrap();
        let mut copy = Cursor::new(own.clone());
        Overlay::new(&slots, &weights, &[]).unwrap().write_into(&mut copy).unwrap();
        assert_eq!(storages(copy.get_ref().clone()), exported, "{name}");
        // The checksums were renewed too.
        let written = tempfile::NamedTempFile::new().unwrap();
        fs::write(written.path(), copy.into_inner()).unwrap();
        check_entries(written.path()).unwrap();
    }
}

#[test]
fn the_digest_is_that_of_the_file() {
    for name in ["new.pth", "new.safetensors"] {
        assert_eq!(read(name).unwrap().sha256, crate::digest(&data(name)).unwrap());
    }
}

#[test]
fn what_is_no_state_dict_is_refused_by_name() {
    let cases = [
        ("runs.pth", "'runs' is a call of __builtin__.exec, not a tensor"),
        ("checkpoint.pth", "'state_dict' is a dict, not a tensor"),
        ("list.pth", "its top level is a list, not a state dict"),
        ("expanded.pth", "'a' is far larger than the file"),
        ("protocol5.pth", "default pickle protocol"),
        ("legacy.pth", "torch.save's format before 1.6"),
        ("sparse.pth", "'a' is sparse, quantized or on the meta device"),
        ("old.pt", "a TorchScript archive, not a state dict"),
        ("make.py", "not a state dict but"),
    ];
    for (name, expected) in cases {
        let error = read(name).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains('\n'), "{name}: {error}");
    }
    let misnamed = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
    fs::copy(data("new.pth"), misnamed.path()).unwrap();
    let error = Weights::read(misnamed.path(), 0).unwrap_err().to_string();
    assert!(error.contains("a state dict is named weights.pth"), "{error}");
    assert!(matches!(Weights::read(&data("."), 0), Err(WeightsError::Form(_))));
    let sparse = tempfile::NamedTempFile::new().unwrap();
    sparse.as_file().set_len(1 << 40).unwrap();
    let error = Weights::read(sparse.path(), 1 << 20).unwrap_err().to_string();
    assert!(error.contains("1099511627776 bytes"), "{error}");
}

#[test]
fn differences_are_counted_and_the_first_are_named() {
    let slots = slots("old.pt");
    let differences = |weights: &Weights| Overlay::new(&slots, weights, &[]).unwrap_err().to_string();
    let eager = differences(&read("eager.pth").unwrap());
    assert!(eager.contains("1 missing (passing)") && eager.contains("persistent=False"), "{eager}");
    let wrapped = differences(&read("wrapped.pth").unwrap());
    assert!(
        wrapped.contains("17 missing (") && wrapped.contains("17 unknown to the archive (module."),
        "{wrapped}"
    );
    assert!(wrapped.contains("the module within the wrapper"), "{wrapped}");

    let mut odd = read("new.pth").unwrap();
    odd.tensors.get_mut("linear.bias").unwrap().shape = vec![3, 1];
    odd.tensors.get_mut("brain").unwrap().dtype = "float16".to_owned();
    odd.tensors.get_mut("tied.weight").unwrap().data = vec![0; 36].into();
    odd.tensors.insert("a\nb".to_owned(), odd.tensors["brain"].clone());
    let text = differences(&odd);
    for expected in [
        r"1 unknown to the archive (a\nb)",
        "1 of another shape (linear.bias has [3, 1], the archive [3])",
        "1 of another datatype (brain is float16, in the archive bfloat16)",
        "1 one memory in the archive but unlike here (linear.weight and tied.weight)",
    ] {
        assert!(text.contains(expected), "{text}");
    }
    let error = Overlay::new(&self::slots("frozen.pt"), &odd, &[]).unwrap_err().to_string();
    assert!(error.contains("torch.jit.freeze"), "{error}");
}

#[test]
fn buffers_that_are_missing_may_stay_the_archives_own() {
    let archive = fs::read(data("old.pt")).unwrap();
    let (slots, buffers) = tensors("old.pt");
    assert!(buffers.contains(&"passing".to_owned()) && buffers.len() < slots.len());
    let eager = read("eager.pth").unwrap();
    let overlay = Overlay::new(&slots, &eager, &buffers).unwrap();
    assert_eq!(overlay.stays(), ["passing"]);
    let mut copy = Cursor::new(archive.clone());
    overlay.write_into(&mut copy).unwrap();
    let entry = slots.iter().find(|slot| slot.name == "passing").unwrap().storage.clone();
    let of = |archive: Vec<u8>| storages(archive).into_iter().find(|(name, _)| *name == entry).unwrap();
    assert_eq!(of(copy.into_inner()), of(archive));
    // Parameters are never left out.
    let mut odd = eager.clone();
    odd.tensors.remove("linear.bias");
    let error = Overlay::new(&slots, &odd, &buffers).unwrap_err().to_string();
    assert!(error.contains("1 missing (linear.bias)"), "{error}");
    odd.tensors.clear();
    for kept in [&[][..], &buffers] {
        for slots in [&slots[..], &[]] {
            let error = Overlay::new(slots, &odd, kept).unwrap_err().to_string();
            assert!(error.contains("holds no tensors"), "{error}");
        }
    }
}

#[test]
fn views_that_overlap_must_agree_about_what_they_share() {
    let part = |name: &str, offset: u64| TensorInfo {
        name: name.to_owned(),
        dtype: "float32".to_owned(),
        shape: vec![2],
        bytes: 8,
        shared_with: None,
        storage: "data/0".to_owned(),
        offset,
        strides: vec![1],
    };
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    writer.start_file("m/data/0", stored).unwrap();
    std::io::Write::write_all(&mut writer, &[9; 16]).unwrap();
    let archive = writer.finish().unwrap().into_inner();
    let slots = [part("a", 0), part("b", 1)];
    let written = |a: [u8; 8], b: [u8; 8]| {
        let weight = |data: [u8; 8]| Weight {
            dtype: "float32".to_owned(),
            shape: vec![2],
            data: data.to_vec().into(),
        };
        let tensors = [("a".to_owned(), weight(a)), ("b".to_owned(), weight(b))].into();
        let weights = Weights { tensors, sha256: String::new(), bytes: 16 };
        let mut copy = Cursor::new(archive.clone());
        Overlay::new(&slots, &weights, &[])?.write_into(&mut copy)?;
        Ok::<_, WeightsError>(storages(copy.into_inner()))
    };
    let agree = written([1, 1, 1, 1, 2, 2, 2, 2], [2, 2, 2, 2, 3, 3, 3, 3]).unwrap();
    assert_eq!(agree[0].1, [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 9, 9, 9, 9]);
    let error = written([1; 8], [2; 8]).unwrap_err().to_string();
    assert!(error.contains("a, b share memory"), "{error}");
}

#[test]
fn any_damage_is_an_error_or_leaves_every_number_as_it_was() {
    for (name, is_safetensors) in [("new.pth", false), ("new.safetensors", true)] {
        let whole = fs::read(data(name)).unwrap();
        let good = Weights::parse(whole.clone().into(), is_safetensors).unwrap();
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1 << (at % 8);
            let read = Weights::parse(bad.into(), is_safetensors);
            // Safetensors has no checksums: the manifest's digest is what guards it.
            if let (Ok(read), false) = (read, is_safetensors) {
                assert_eq!(read.tensors, good.tensors, "{at}");
            }
        }
        for length in 0..whole.len() {
            assert!(
                Weights::parse(whole[..length].to_vec().into(), is_safetensors).is_err(),
                "{name} cut at {length}"
            );
        }
    }
}
