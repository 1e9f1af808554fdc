//! What the pickles of an archive name, and whether they are built as torch builds them.
//!
//! libtorch's reader calls what a pickle names, by a number that stands on its stack; it does not ask how the number
//! came there, and it takes the opcodes for "make an object" and "call" for the same. So a pickle must not only name
//! what is harmless: each call must be of a name, tensors must be made by calls, and objects by NEWOBJ.

use super::super::pickle::{Id, Pickle, Value};
use super::{Danger, Findings};

/// Deepest nesting of values; freeing them takes libtorch one call of a function for each level.
const MAX_DEPTH: usize = 1000;

/// Functions that may be called.
const FUNCTIONS: &[(&str, &str)] = &[
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch.jit._pickle", "build_intlist"),
    ("torch.jit._pickle", "build_doublelist"),
    ("torch.jit._pickle", "build_boollist"),
    ("torch.jit._pickle", "build_tensorlist"),
    ("torch.jit._pickle", "restore_type_tag"),
    ("torch", "device"),
    ("builtins", "complex"),
    ("collections", "OrderedDict"),
];

/// Values that have a name, beside the storages (`torch.FloatStorage`).
const VALUES: &[&str] = &["per_tensor_affine", "per_channel_affine", "per_channel_affine_float_qparams"];

/// Checks the pickle in `entry`, given the paths of the classes that the archive's code defines.
pub(in super::super) fn check(
    pickle: &Pickle<'_>,
    entry: &str,
    defines_path: impl Fn(&str) -> bool,
    findings: &mut Findings,
) {
    let mut find = |danger, what: &str| findings.add(danger, what, || entry.to_owned());
    for value in pickle.values() {
        match value {
            Value::Global { module, name } => {
                if let Some(danger) = global(module, name, &defines_path) {
                    find(danger, &format!("{module}.{name}"));
                }
            }
            Value::Reduce { callable, args } => match pickle.global(*callable) {
                None => find(Danger::Trick, "a call of something that has no name"),
                Some(("torch.jit._pickle", "restore_type_tag")) => {
                    let tag = pickle.tuple(*args).and_then(|args| args.get(1));
                    match tag.map(|tag| pickle.get(*tag)) {
                        Some(Value::Str(tag)) if tag.contains("torch.classes") => {
                            find(Danger::CustomClass, tag)
                        }
                        Some(Value::Str(_)) => {}
                        _ => find(Danger::Trick, "a type that is no text"),
                    }
                }
                Some(_) => {}
            },
            Value::Object { class, .. } => match pickle.global(*class) {
                Some((module, _)) if is_class(module) => {}
                Some((module, name)) => find(Danger::Trick, &format!("an object of {module}.{name}")),
                None => find(Danger::Trick, "an object of a class that has no name"),
            },
            _ => {}
        }
    }
    if depth(pickle).is_none_or(|depth| depth > MAX_DEPTH) {
        find(Danger::Nesting, "a value");
    }
}

/// Checks the pickle of source lines beside a file of code, which libtorch reads when it words an error: it may hold no
/// classes and no tensors.
pub(in super::super) fn check_lines(pickle: &Pickle<'_>, entry: &str, findings: &mut Findings) {
    check(pickle, entry, |_| false, findings);
    if pickle.values().any(|value| matches!(value, Value::Persistent(_))) {
        findings.add(Danger::Trick, "a table of source lines with a tensor", || entry.to_owned());
    }
}

fn is_class(module: &str) -> bool {
    module == "__torch__" || module.starts_with("__torch__.")
}

fn global(module: &str, name: &str, defines_path: impl Fn(&str) -> bool) -> Option<Danger> {
    let known = match module {
        "torch" if name.ends_with("Storage") || VALUES.contains(&name) => true,
        _ => FUNCTIONS.contains(&(module, name)),
    };
    if known || is_class(module) && defines_path(&format!("{module}.{name}")) {
        None
    } else if module.starts_with("__torch__.torch.classes") {
        Some(Danger::CustomClass)
    } else if module == "torch._utils" && name.starts_with("_rebuild_sparse") {
        Some(Danger::Sparse)
    } else if (module, name) == ("torch._utils", "_rebuild_qtensor") {
        Some(Danger::Quantized)
    } else {
        Some(Danger::Global)
    }
}

/// Deepest nesting of a pickle's values; `None` where one contains itself. Without calling itself, since that is what it
/// is there to find.
fn depth(pickle: &Pickle<'_>) -> Option<usize> {
    #[derive(Clone, Copy)]
    enum State {
        New,
        Open,
        Done(usize),
    }
    let count = pickle.values().count();
    let mut states = vec![State::New; count];
    let mut deepest = 0;
    // Values are mostly made after their parts, so the stack stays short.
    let mut stack: Vec<Id> = Vec::new();
    for start in 0..count {
        stack.push(start as Id);
        while let Some(&id) = stack.last() {
            let state = states.get(id as usize).copied().unwrap_or(State::Done(0));
            if matches!(state, State::Done(_)) {
                stack.pop();
                continue;
            }
            let (mut here, mut waits) = (0, false);
            for part in pickle.get(id).parts() {
                match states.get(part as usize).copied().unwrap_or(State::Done(0)) {
                    State::Done(depth) => here = here.max(depth + 1),
                    // On its way from itself to itself.
                    State::Open => return None,
                    State::New if matches!(state, State::New) => {
                        stack.push(part);
                        waits = true;
                    }
                    State::New => {}
                }
            }
            if let Some(state) = states.get_mut(id as usize) {
                *state = if waits { State::Open } else { State::Done(here) };
            }
            if !waits {
                deepest = deepest.max(here);
            }
        }
    }
    Some(deepest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(body: &[u8]) -> Vec<(Danger, String)> {
        let bytes = [b"\x80\x02", body, b"."].concat();
        let pickle = Pickle::parse(&bytes, "data.pkl").unwrap();
        let mut findings = Findings::default();
        check(&pickle, "data.pkl", |path| path == "__torch__.M", &mut findings);
        findings.into_list().into_iter().map(|finding| (finding.danger, finding.what)).collect()
    }

    #[test]
    fn what_torch_writes_is_plain() {
        for body in [
            b"c__torch__\nM\n)\x81}b".as_slice(),
            b"ctorch.jit._pickle\nbuild_intlist\n](K\x01K\x02e\x85R",
            b"ctorch\ndevice\nX\x03\0\0\0cpu\x85R",
            b"ctorch.jit._pickle\nrestore_type_tag\n}X\x0e\0\0\0Dict[str, int]\x86R",
            b"ccollections\nOrderedDict\n)R",
            b"ctorch\nFloatStorage\n",
        ] {
            assert_eq!(found(body), [], "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn what_else_is_named_is_found() {
        for (body, danger, what) in [
            (b"cos\nsystem\nX\x02\0\0\0ls\x85R".as_slice(), Danger::Global, "os.system"),
            (b"cbuiltins\neval\nX\x01\0\0\x001\x85R", Danger::Global, "builtins.eval"),
            (b"ctorch\nload\n", Danger::Global, "torch.load"),
            (b"c__torch__\nN\n)\x81}b", Danger::Global, "__torch__.N"),
            (b"ctorch.distributed.rpc\nrref\n", Danger::Global, "torch.distributed.rpc.rref"),
            (
                b"ctorch._tensor\n_rebuild_from_type_v2\n",
                Danger::Global,
                "torch._tensor._rebuild_from_type_v2",
            ),
            (
                b"ctorch._utils\n_rebuild_sparse_tensor\n)R",
                Danger::Sparse,
                "torch._utils._rebuild_sparse_tensor",
            ),
            (b"ctorch._utils\n_rebuild_qtensor\n)R", Danger::Quantized, "torch._utils._rebuild_qtensor"),
            (b"c__torch__.torch.classes.x\nC\n", Danger::CustomClass, "__torch__.torch.classes.x.C"),
        ] {
            let found = found(body);
            assert!(found.contains(&(danger, what.to_owned())), "{found:?}");
        }
    }

    #[test]
    fn what_only_libtorch_would_call_is_found() {
        for body in [
            // A function by its number; a tensor made as an object; a type that comes from elsewhere.
            b"K\x00)R".as_slice(),
            b"ctorch._utils\n_rebuild_tensor_v2\n)\x81)b",
            b"K\x00)\x81)b",
            b"ctorch.jit._pickle\nrestore_type_tag\n)K\x01\x86R",
        ] {
            assert!(found(body).iter().any(|(danger, _)| *danger == Danger::Trick), "{:?}", found(body));
        }
    }

    #[test]
    fn depth_is_found_however_it_is_made() {
        let tuples = |n: usize| [vec![b')'], vec![b'\x85'; n]].concat();
        assert_eq!(found(&tuples(900)), []);
        assert_eq!(found(&tuples(1_000_000))[0].0, Danger::Nesting);
        // Lists that are filled from the outside in: each has one level when it is put into the one before.
        let mut lists = b"]q\x00".to_vec();
        for _ in 0..2000 {
            lists.extend(b"h\x00]q\x00a0h\x00");
        }
        assert_eq!(found(&lists)[0].0, Danger::Nesting);
        // A list that holds itself is never freed.
        assert_eq!(found(b"]q\x00h\x00a")[0].0, Danger::Nesting);
        // A wide one is not deep, and one shared a thousand times is looked at once.
        let wide =
            [b"]q\x00(".to_vec(), b")".repeat(100_000), b"e(".to_vec(), b"h\x00".repeat(1000), b"t".to_vec()]
                .concat();
        assert_eq!(found(&wide), []);
    }
}
