//! TorchScript through libtorch: the only file that names `tch`, and the only one that may hold `unsafe`.
//!
//! Memory crosses twice. In: a batch of one request is read where HTTP/2 put it if that is aligned and the model
//! writes to nothing; everything else is copied once, into the batch's own tensor. Out: results are read where
//! libtorch left them, by [`Bytes`] that own the tensor, unless the model may write to them later.

#![allow(
    unsafe_code,
    reason = "tensors are made from, and read as, plain memory; each block says why it is sound"
)]

use std::{any::Any, os::fd::AsRawFd, path::Path};

use bytes::Bytes;
use tch::{CModule, Device, IValue, Kind, Tensor};

use super::{ArchiveSummary, Backend, BackendError, Module, Pass, ThreadRole};
use crate::{
    loader::{summary, weights::Overlay},
    model::{Arg, NamedTensor},
    tensor::{DType, HostTensor, Joined, Shape},
};

/// Below this a copy costs less than deciding.
const SHARE_FROM_BYTES: usize = 16 * 1024;
/// What libtorch's own allocator gives, and its vectorised kernels like.
const ALIGNMENT: usize = 64;

/// libtorch on the CPU.
#[derive(Debug, Default)]
pub struct TorchBackend;

impl TorchBackend {
    /// Sets what holds for the whole process, the first time; libtorch refuses a second.
    pub fn new() -> Self {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            // Operators inside one forward are not spread over threads: executors run requests side by side instead.
            tch::set_num_interop_threads(1);
            tch::set_num_threads(1);
        });
        Self
    }
}

/// Ends the process without running libtorch's destructors: they would take away what a thread in the middle of a pass
/// still uses.
pub(super) fn exit_at_once(status: u8) -> ! {
    unsafe extern "C" {
        fn _exit(status: std::ffi::c_int) -> !;
    }
    // SAFETY: POSIX's _exit takes any status, from any thread.
    unsafe { _exit(status.into()) }
}

impl Backend for TorchBackend {
    fn name(&self) -> &'static str {
        "torch"
    }

    fn enter_thread(&self, role: ThreadRole) -> Box<dyn Any> {
        let intra_op = match role {
            ThreadRole::Executor { intra_op } => intra_op,
            ThreadRole::Loader => 1,
        };
        // Both are per thread in libtorch.
        tch::set_num_threads(i32::try_from(intra_op.max(1)).unwrap_or(1));
        Box::new(tch::no_grad_guard())
    }

    fn inspect(&self, archive: &Path) -> Result<ArchiveSummary, BackendError> {
        summary::of_archive(archive)
    }

    fn load(&self, archive: &Path, overlay: Option<&Overlay<'_>>) -> Result<Box<dyn Module>, BackendError> {
        let mut module = match overlay {
            None => CModule::load_on_device(archive, Device::Cpu).map_err(said)?,
            Some(overlay) => with_weights(archive, overlay)?,
        };
        module.f_set_eval().map_err(said)?;
        Ok(Box::new(TorchModule { module }))
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn allocated(&self) -> Option<u64> {
        /// glibc's `struct mallinfo2` (2.33 and later).
        #[repr(C)]
        struct Mallinfo2 {
            _arena: usize,
            _ordblks: usize,
            _smblks: usize,
            _hblks: usize,
            /// In large blocks that are mapped one by one.
            hblkhd: usize,
            _usmblks: usize,
            _fsmblks: usize,
            /// In use, in all arenas.
            uordblks: usize,
            _fordblks: usize,
            _keepcost: usize,
        }
        unsafe extern "C" {
            fn mallinfo2() -> Mallinfo2;
        }
        // SAFETY: glibc's, with the struct of its header; it takes the allocator's locks, so any thread may call it.
        let info = unsafe { mallinfo2() };
        u64::try_from(info.uordblks.saturating_add(info.hblkhd)).ok()
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    fn release_memory(&self) {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> std::ffi::c_int;
        }
        // SAFETY: glibc's, with the signature of its manual page; it may be called at any time from any thread.
        unsafe { malloc_trim(0) };
    }
}

/// Loads a copy of the archive with other weights in it. The copy is a file in memory: libtorch would copy a string three
/// times before it reads it.
fn with_weights(archive: &Path, overlay: &Overlay<'_>) -> Result<CModule, BackendError> {
    let failed =
        |error: std::io::Error| BackendError::new(format!("cannot lay the weights over a copy: {error}"));
    let mut copy = memory_file().map_err(failed)?;
    std::fs::File::open(archive).and_then(|mut from| std::io::copy(&mut from, &mut copy)).map_err(failed)?;
    overlay.write_into(&mut copy).map_err(|error| BackendError::new(error.to_string()))?;
    CModule::load_on_device(format!("/proc/self/fd/{}", copy.as_raw_fd()), Device::Cpu).map_err(said)
}

/// A file that is nowhere but in memory, and gone once it is closed.
fn memory_file() -> std::io::Result<std::fs::File> {
    let fd = rustix::fs::memfd_create("weights", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(fd.into())
}

struct TorchModule {
    module: CModule,
}

impl Module for TorchModule {
    fn forward(&self, pass: Pass<'_>) -> Result<Vec<NamedTensor>, BackendError> {
        let mut leaves = Vec::with_capacity(pass.leaves.len());
        let mut borrowed = Vec::new();
        for leaf in &pass.leaves {
            leaves.push(tensor_of(leaf, pass.share_memory, &mut borrowed)?);
        }
        let args = pass.args.iter().map(|arg| argument(arg, &leaves)).collect::<Result<Vec<_>, _>>()?;
        let result = self.module.forward_is(&args).map_err(said)?;
        drop(args);
        drop(leaves);
        let mut results = Vec::new();
        collect(result, "", &mut results)?;
        results
            .into_iter()
            .map(|(name, tensor)| {
                Ok(NamedTensor { name, tensor: read(tensor, pass.share_memory, &borrowed)? })
            })
            .collect()
    }
}

fn kind(dtype: DType) -> Kind {
    match dtype {
        DType::Bool => Kind::Bool,
        DType::U8 => Kind::Uint8,
        DType::I8 => Kind::Int8,
        DType::I16 => Kind::Int16,
        DType::I32 => Kind::Int,
        DType::I64 => Kind::Int64,
        DType::F16 => Kind::Half,
        DType::BF16 => Kind::BFloat16,
        DType::F32 => Kind::Float,
        DType::F64 => Kind::Double,
    }
}

/// A tensor over the parts' memory, or over a copy of it. What it borrows goes into `borrowed`, which must outlive it.
fn tensor_of(leaf: &Joined, share: bool, borrowed: &mut Vec<Bytes>) -> Result<Tensor, BackendError> {
    let kind = kind(leaf.dtype);
    if let [only] = leaf.parts.as_slice()
        && share
        && only.len() >= SHARE_FROM_BYTES
        && only.as_ptr().align_offset(ALIGNMENT.min(leaf.dtype.size())) == 0
    {
        borrowed.push(only.clone());
        // SAFETY: the length was checked against shape and datatype when the tensor was decoded, and the memory is
        // aligned for its elements. `share` is only set for models whose code writes to no argument and keeps none
        // (no attribute or container is assigned). The caller keeps `borrowed` until every tensor that may be a view
        // of it is gone: results are either copied or own a clone of it.
        return unsafe { Tensor::f_from_blob(only.as_ptr(), &leaf.shape, &[], kind, Device::Cpu) }
            .map_err(said);
    }
    let tensor = Tensor::f_empty(&leaf.shape[..], (kind, Device::Cpu)).map_err(said)?;
    let len = leaf.byte_len();
    if len > 0 {
        // SAFETY: freshly made, contiguous, not shared with anyone, and of exactly this many bytes: `len` is the sum of
        // parts whose lengths were checked against the same shape and datatype.
        let memory = unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), len) };
        let mut rest = memory;
        for part in &leaf.parts {
            let (head, tail) = rest
                .split_at_mut_checked(part.len())
                .ok_or_else(|| BackendError::new("parts overflow their batch"))?;
            head.copy_from_slice(part);
            rest = tail;
        }
    }
    Ok(tensor)
}

fn argument(arg: &Arg, leaves: &[Tensor]) -> Result<IValue, BackendError> {
    let leaf = |at: &usize| {
        leaves
            .get(*at)
            .map(Tensor::shallow_clone)
            .ok_or_else(|| BackendError::new("an argument has no tensor"))
    };
    Ok(match arg {
        Arg::Tensor(at) => IValue::Tensor(leaf(at)?),
        Arg::None => IValue::None,
        Arg::Int(value) => IValue::Int(*value),
        Arg::Float(value) => IValue::Double(*value),
        Arg::Bool(value) => IValue::Bool(*value),
        Arg::List(items) => IValue::TensorList(items.iter().map(leaf).collect::<Result<_, _>>()?),
        Arg::Dict(items) => IValue::GenericDict(
            items
                .iter()
                .map(|(key, at)| Ok((IValue::String(key.clone()), IValue::Tensor(leaf(at)?))))
                .collect::<Result<_, BackendError>>()?,
        ),
        Arg::Tuple(items) => {
            IValue::Tuple(items.iter().map(|item| argument(item, leaves)).collect::<Result<_, _>>()?)
        }
    })
}

/// Flattens a result. `path` is where it stood; the outermost level is named `output_0`, ... or by a dict's keys.
fn collect(value: IValue, path: &str, into: &mut Vec<(String, Tensor)>) -> Result<(), BackendError> {
    let item = |i: usize| if path.is_empty() { format!("output_{i}") } else { format!("{path}.{i}") };
    let own = || if path.is_empty() { "output_0".to_owned() } else { path.to_owned() };
    match value {
        IValue::None => {}
        IValue::Tensor(tensor) => into.push((own(), tensor)),
        IValue::Int(value) => into.push((own(), Tensor::from(value))),
        IValue::Double(value) => into.push((own(), Tensor::from(value))),
        IValue::Bool(value) => into.push((own(), Tensor::from(value))),
        IValue::Tuple(items) | IValue::GenericList(items) => {
            for (i, value) in items.into_iter().enumerate() {
                collect(value, &item(i), into)?;
            }
        }
        IValue::TensorList(items) => {
            into.extend(items.into_iter().enumerate().map(|(i, tensor)| (item(i), tensor)));
        }
        IValue::IntList(items) => into.push((own(), Tensor::from_slice(&items))),
        IValue::DoubleList(items) => into.push((own(), Tensor::from_slice(&items))),
        IValue::BoolList(items) => into.push((own(), Tensor::from_slice(&items))),
        IValue::GenericDict(items) => {
            for (key, value) in items {
                let key = match key {
                    IValue::String(key) => key,
                    IValue::Int(key) => key.to_string(),
                    _ => {
                        return Err(BackendError::new(
                            "the model returned a dict whose keys are not strings",
                        ));
                    }
                };
                collect(value, &if path.is_empty() { key } else { format!("{path}.{key}") }, into)?;
            }
        }
        other => {
            let what = match other {
                IValue::String(_) | IValue::StringList(_) => "text",
                IValue::Object(_) => "an object",
                _ => "a value",
            };
            return Err(BackendError::new(format!(
                "the model returned {what} as {}, only tensors and numbers can be sent",
                own()
            )));
        }
    }
    Ok(())
}

/// Memory of a result, kept alive as long as somebody reads it.
struct Owned {
    tensor: Tensor,
    len: usize,
    /// The result may be a view of the request.
    _borrowed: Vec<Bytes>,
}

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        if self.len == 0 {
            return &[];
        }
        // SAFETY: `read` checked that the tensor is dense, contiguous and in host memory and took `len` from its shape and
        // kind. The tensor is owned here, what it may be a view of is held beside it, and only models that write to
        // nothing get this far, so the bytes do not change.
        unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast::<u8>(), self.len) }
    }
}

fn read(tensor: Tensor, share: bool, borrowed: &[Bytes]) -> Result<HostTensor, BackendError> {
    let kind = tensor.f_kind().map_err(said)?;
    let dtype = DType::ALL.into_iter().find(|dtype| self::kind(*dtype) == kind).ok_or_else(|| {
        BackendError::new(format!(
            "the model returned a tensor of kind {kind:?}, which cannot be sent: convert it in the model"
        ))
    })?;
    if tensor.is_sparse() || tensor.is_mkldnn() {
        return Err(BackendError::new(
            "the model returned a sparse or oneDNN tensor: call to_dense() in the model",
        ));
    }
    let tensor = tensor.f_to_device(Device::Cpu).and_then(|t| t.f_contiguous()).map_err(said)?;
    let shape: Shape = tensor.size().into();
    let len = crate::tensor::byte_len(dtype, &shape).map_err(|e| BackendError::new(e.to_string()))?;
    let owned = Owned { tensor, len, _borrowed: borrowed.to_vec() };
    let data = if share && len >= SHARE_FROM_BYTES {
        Bytes::from_owner(owned)
    } else {
        Bytes::copy_from_slice(owned.as_ref())
    };
    HostTensor::from_backend(dtype, shape, data).map_err(|e| BackendError::new(e.to_string()))
}

/// libtorch prints tensors, its own source lines and a C++ stack into its errors. The short form is the line that says
/// what happened.
fn said(error: tch::TchError) -> BackendError {
    let full = match error {
        tch::TchError::Torch(text) => text,
        other => other.to_string(),
    };
    let cause = |line: &&str| {
        let line = line.trim();
        !line.is_empty()
            && !line.starts_with("Traceback")
            && !line.starts_with("File ")
            && !line.starts_with("The following operation failed")
            && !line.starts_with("Exception raised")
            && !line.starts_with("frame #")
            && !line.starts_with("<unknown file>")
            && !line.starts_with('~')
    };
    // A scripted model's own error is last, as `RuntimeError: ...`; an operator's is first.
    let text = full.split("\nException raised from").next().unwrap_or(&full);
    let raised = text.lines().rev().find(|line| line.contains("Error: ") || line.contains("Exception: "));
    let short = raised.or_else(|| text.lines().find(cause)).unwrap_or("libtorch gave no reason").trim();
    BackendError { short: crate::error::clip(short.to_owned().into()).into_owned(), full }
}
