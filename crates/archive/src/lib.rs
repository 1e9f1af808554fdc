//! Reads a TorchScript archive without running it, and without libtorch, and weights that are laid over its own.
//!
//! An archive is a zip file with one folder. In it, `data.pkl` is the tree of modules (a pickle), `data/N` are the
//! weights, `code/__torch__/...` is the code as text, `constants.pkl` and `constants/N` are tensors in the code.
//!
//! **Guarantees.** Nothing is executed. Any bytes give a value or an error, never a panic. The weights are not read, so
//! the time does not depend on their size; that each tensor's bytes are there is checked against the zip directory.
//! Memory and time are bounded: 100,000 entries, 64 MiB of code and pickle together, two million pickle values, no
//! recursion without a limit. What the code and the pickles ask for that a model does not need is found ([`safety`]).
//!
//! **Not done.** The weights' checksums (a digest of the whole file does that, and [`check_entries`]), and any check that
//! libtorch can compile the code.

#![deny(unsafe_code)]

mod code;
pub(crate) mod container;
mod digest;
mod effects;
mod end_record;
pub(crate) mod error;
mod inflate;
mod info;
mod lexer;
mod operators;
pub(crate) mod pickle;
pub mod safety;
mod sniff;
mod state;
pub(crate) mod tensors;
#[cfg(test)]
mod tests;
mod tree;
mod types;
pub mod weights;

use std::fs::{File, Metadata};
use std::io::{self, BufReader, Read, Seek};
use std::path::Path;

pub use digest::{FileIdentity, between_pieces, digest};
pub use error::ArchiveError;
pub use inflate::check_entries;
pub use info::{ArchiveInfo, Argument, Effects, MethodSignature, Seen, TensorInfo};
pub use types::TypeExpr;

use code::Code;
use container::Container;
use error::shown;
use pickle::{Pickle, Value};
use safety::Findings;
use tree::{Names, Walk};

/// Reads everything that can be said about the archive at `path` without running it.
///
/// # Errors
/// One [`ArchiveError`] for each way in which a file can fail to be a TorchScript archive with a `forward`.
pub fn inspect(path: &Path) -> Result<ArchiveInfo, ArchiveError> {
    let (reader, size) = open(path)?;
    inspect_reader(reader, size)
}

/// Whether the file at `path` begins and ends as an archive does.
///
/// # Errors
/// It does not, or cannot be read.
pub fn glance(path: &Path) -> Result<(), ArchiveError> {
    let (mut reader, size) = open(path)?;
    container::check_ends(&mut reader, size)
}

fn open(path: &Path) -> Result<(BufReader<File>, u64), ArchiveError> {
    let found = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => ArchiveError::Missing(path.to_owned()),
        _ => ArchiveError::Io(error),
    };
    // Asked before the file is opened: opening a pipe would wait for its writer.
    if !path.metadata().map_err(found)?.is_file() {
        return Err(ArchiveError::Foreign {
            looks_like: "a directory or a device",
            advice: "name the file itself",
        });
    }
    let file = File::open(path).map_err(found)?;
    let size = file.metadata()?.len();
    Ok((BufReader::new(file), size))
}

/// Whether the file at `path` is an archive with TorchScript code in it. Only its zip directory is read.
pub fn has_code(path: &Path) -> bool {
    let open = || {
        let size = path.metadata().ok().filter(Metadata::is_file)?.len();
        Container::open(BufReader::new(File::open(path).ok()?), size).ok()
    };
    open().is_some_and(|container| container.names().iter().any(|name| name.starts_with("code/")))
}

/// Reads everything that can be said about the archive of `size` bytes in `reader` without running it.
///
/// # Errors
/// See [`inspect`].
pub fn inspect_reader<R: Read + Seek>(reader: R, size: u64) -> Result<ArchiveInfo, ArchiveError> {
    let mut container = Container::open(reader, size)?;
    let names = container.names();
    if let Some(looks_like) = other_kind(&container, &names) {
        return Err(ArchiveError::NotTorchScript { looks_like });
    }
    // The format of torch 1.0 to 1.2, which libtorch looks for first. Such an archive has code, but no data.pkl.
    if container.has("model.json") && !container.has("data.pkl") {
        return Err(ArchiveError::NotTorchScript { looks_like: OLD });
    }
    if container.has("model.json") {
        return Err(ArchiveError::Deceptive("there is a model.json beside data.pkl"));
    }
    let files = read_code(&mut container, &names)?;
    let mut code = Code::default();
    files.iter().for_each(|(module, text)| code.read(module, text));
    let data = required(&mut container, "data.pkl")?;
    let constants = container.read("constants.pkl")?.unwrap_or_default();
    let mut findings = Findings::default();
    read_line_tables(&mut container, &names, &mut findings)?;
    let format_version = match container.read("version")?.or(container.read(".data/version")?) {
        Some(bytes) => Some(number(&bytes)?),
        None => None,
    };

    let pickle = Pickle::parse(&data, "data.pkl")?;
    tensors::check_all(&pickle, "data", &container)?;
    safety::check_pickle(&pickle, "data.pkl", |path| code.defines(path), &mut findings);
    safety::check_declared(&pickle, "data.pkl", |path| code.class(path), &mut findings);
    let (class_path, top) = top_class(&pickle, &code)?;
    let class_name = types::demangle(&class_path);
    let forward = top.methods.iter().find(|method| method.name == "forward");
    let methods: Vec<String> = top
        .methods
        .iter()
        .filter(|method| method.name != "forward")
        .map(|method| method.name.clone())
        .collect();
    let Some(forward) = forward.map(|forward| code.resolve(forward)) else {
        let methods = if methods.is_empty() { "none".to_owned() } else { shown(&methods.join(", ")) };
        return Err(ArchiveError::NoForward { class: shown(&class_name), methods });
    };

    let mut seen = Names::default();
    let walk = Walk { pickle: &pickle, code: &code, container: &container };
    let found = walk.all(&mut seen)?;
    let state = walk.class_and_state(pickle.root()).map(|(_, state)| state).unwrap_or_default();
    let training = state.get("training").and_then(|id| match pickle.get(*id) {
        Value::Bool(flag) => Some(*flag),
        _ => None,
    });
    let is_module = |name: &str| state.get(name).is_some_and(|id| walk.is_module(*id));
    let attributes = other_attributes(top, is_module);
    let constants = read_constants(&constants, &container, &mut seen, &code, &mut findings)?;

    let state::Flow { state: keeps, training: trains } = state::follow(&files, &pickle);
    let mut tensors = found.parameters.iter().chain(&found.buffers).chain(&constants);
    if tensors.any(|tensor| {
        tensor.shape.iter().zip(&tensor.strides).any(|(size, stride)| *size > 1 && *stride == 0)
    }) {
        code.holds_expanded();
    }
    findings.absorb(code.take_findings());

    let text = |bytes: Option<Vec<u8>>| bytes.map(|bytes| shown(String::from_utf8_lossy(&bytes).trim()));
    Ok(ArchiveInfo {
        size_bytes: size,
        entries: container.count,
        format_version,
        torch_version: oldest_torch(format_version, container.has("byteorder")),
        byte_order: text(container.read("byteorder")?),
        serialization_id: text(container.read(".data/serialization_id")?),
        extra_files: names.iter().filter_map(|name| name.strip_prefix("extra/")).map(str::to_owned).collect(),
        class_name,
        training,
        forward: Some(forward),
        methods,
        parameters: found.parameters,
        buffers: found.buffers,
        constants,
        attributes,
        operators: code.operators().clone(),
        effects: code.effects(),
        state: keeps,
        trains,
        loops: code.loops(),
        findings: findings.into_list(),
    })
}

const OLD: &str = "an archive of torch 1.0 to 1.2, whose format is older than TorchScript's of today";

/// What a zip file without TorchScript code is, or `None` where it has some.
fn other_kind<R: Read + Seek>(container: &Container<R>, names: &[String]) -> Option<&'static str> {
    let has_code = names.iter().any(|name| code_module(name).is_some());
    let within = |folder: &str| names.iter().any(|name| name.starts_with(folder));
    if has_code {
        None
    } else if container.has("archive_format") || container.has("models/model.json") || within("models/") {
        Some("a torch.export archive (PT2)")
    } else if container.has("serialized_exported_program.json") {
        Some("a torch.export archive of torch 2.1 to 2.6")
    } else if container.has("model.json") {
        Some(OLD)
    } else if container.has("data.pkl") {
        Some("a torch.save archive (a state dict, or a module pickled as a Python object)")
    } else if within(".data/") {
        Some("a torch.package archive")
    } else {
        Some("a zip file that torch did not write")
    }
}

/// `__torch__.torch.nn` for `code/__torch__/torch/nn.py`, whose case libtorch does not mind when it looks it up.
fn code_module(name: &str) -> Option<String> {
    let (folder, path) = name.split_once('/')?;
    let (stem, extension) = path.rsplit_once('.')?;
    let is_code = folder.eq_ignore_ascii_case("code") && extension.eq_ignore_ascii_case("py");
    is_code.then(|| stem.replace('/', "."))
}

/// Paths of modules, and their text.
fn read_code<R: Read + Seek>(
    container: &mut Container<R>,
    names: &[String],
) -> Result<Vec<(String, Vec<u8>)>, ArchiveError> {
    let mut files = Vec::new();
    for name in names {
        if let Some(module) = code_module(name)
            && let Some(text) = container.read(name)?
        {
            files.push((module, text));
        }
    }
    Ok(files)
}

/// `code/....py.debug_pkl`: which line of Python a line of code came from. libtorch reads one when it words an error.
fn read_line_tables<R: Read + Seek>(
    container: &mut Container<R>,
    names: &[String],
    findings: &mut Findings,
) -> Result<(), ArchiveError> {
    for name in names.iter().filter(|name| name.to_ascii_lowercase().ends_with(".debug_pkl")) {
        if let Some(bytes) = container.read(name)? {
            safety::check_lines(&Pickle::parse(&bytes, name)?, name, findings);
        }
    }
    Ok(())
}

fn required<R: Read + Seek>(container: &mut Container<R>, name: &str) -> Result<Vec<u8>, ArchiveError> {
    let missing = || ArchiveError::Entry { entry: name.to_owned(), reason: "missing".to_owned() };
    container.read(name)?.ok_or_else(missing)
}

/// Path and class of the module that `data.pkl` is of.
fn top_class<'c>(pickle: &Pickle<'_>, code: &'c Code) -> Result<(String, &'c code::Class), ArchiveError> {
    let damaged = |reason: String| ArchiveError::Entry { entry: "data.pkl".to_owned(), reason };
    let Value::Object { class, .. } = pickle.get(pickle.root()) else {
        return Err(damaged("it does not hold a module".to_owned()));
    };
    let (module, name) =
        pickle.global(*class).ok_or_else(|| damaged("its module has no class".to_owned()))?;
    let path = format!("{module}.{name}");
    match code.class(&path) {
        Some(class) => Ok((path, class)),
        None => Err(damaged(format!("the code of its class {} is missing or cannot be read", shown(&path)))),
    }
}

fn other_attributes(top: &code::Class, is_module: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let is_tensor = |name: &str| top.parameters.contains(name) || top.buffers.contains(name);
    let others = top.attributes.iter().filter(|(name, _)| !is_tensor(name) && !is_module(name));
    others.map(|(name, ty)| (name.clone(), types::demangle(&ty.to_string()))).collect()
}

/// `c0`, `c1`: the code calls them `CONSTANTS.c0`. A constant that is no tensor has no entry here.
fn read_constants<R: Read + Seek>(
    bytes: &[u8],
    container: &Container<R>,
    names: &mut Names,
    code: &Code,
    findings: &mut Findings,
) -> Result<Vec<TensorInfo>, ArchiveError> {
    if bytes.is_empty() {
        return Ok(Vec::new());
    }
    let pickle = Pickle::parse(bytes, "constants.pkl")?;
    tensors::check_all(&pickle, "constants", container)?;
    safety::check_pickle(&pickle, "constants.pkl", |path| code.defines(path), findings);
    let mut constants = Vec::new();
    for (index, id) in pickle.tuple(pickle.root()).unwrap_or_default().iter().enumerate() {
        if let Some(tensor) = tensors::tensor(&pickle, *id, "constants", container)? {
            constants.push(names.describe(format!("c{index}"), tensor));
        }
    }
    Ok(constants)
}

fn number(bytes: &[u8]) -> Result<u64, ArchiveError> {
    let text = String::from_utf8_lossy(bytes);
    let damaged = |_| ArchiveError::Entry {
        entry: "version".to_owned(),
        reason: format!("{} is no number", shown(&text)),
    };
    text.trim().parse().map_err(damaged)
}

/// A lower bound, from what torch's `caffe2/serialize` has changed: integer division in 1.6 (format 4), the upgraders of
/// December 2021 in 1.11 (format 7), a note of the byte order in 2.1. Formats 1 to 3 say nothing: 3 is written for
/// whatever needs no later one.
fn oldest_torch(format_version: Option<u64>, byte_order: bool) -> Option<String> {
    let oldest = match format_version? {
        _ if byte_order => "2.1",
        4..=6 => "1.6",
        7..=10 => "1.11",
        _ => return None,
    };
    Some(format!("{oldest} or newer"))
}
