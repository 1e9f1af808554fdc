//! TorchScript through libtorch: only this crate names `tch`.
//!
//! Memory crosses twice. In: a batch of one request is read where HTTP/2 put it if that is aligned and the model
//! writes to nothing; everything else is copied once, into the batch's own tensor. Out: results are read where
//! libtorch left them, by [`Bytes`] that own the tensor, unless the model may write to them later.

#![allow(
    unsafe_code,
    reason = "tensors are made from, and read as, plain memory; each block says why it is sound"
)]

mod ffi;
mod spoken;

use std::{
    any::Any,
    os::fd::AsRawFd,
    path::Path,
    sync::{LazyLock, mpsc},
};

use bytes::Bytes;
/// For the benchmark's plain loop, which is to use the same libtorch.
#[doc(hidden)]
pub use tch;
use tch::{Device, Kind, Tensor};
use torchlane_archive::weights::Overlay;
use torchlane_engine::backend::{ArchiveSummary, Backend, BackendError, Module, Pass, ThreadRole, summary};
use torchlane_model::{
    NamedTensor,
    tensor::{DType, HostTensor, Joined},
};

use self::ffi::{Model, Returned};

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
            ffi::begin();
        });
        Self
    }
}

/// Ends the process without running libtorch's destructors: they would take away what a thread in the middle of a pass
/// still uses.
pub fn exit_at_once(status: u8) -> ! {
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

    fn glance(&self, archive: &Path) -> Result<(), BackendError> {
        summary::glance(archive)
    }

    fn inspect(&self, archive: &Path) -> Result<ArchiveSummary, BackendError> {
        summary::of_archive(archive)
    }

    fn load(&self, archive: &Path, overlay: Option<&Overlay<'_>>) -> Result<Box<dyn Module>, BackendError> {
        let model = match overlay {
            None => Model::load(archive)?,
            Some(overlay) => with_weights(archive, overlay)?,
        };
        Ok(Box::new(TorchModule { model }))
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
fn with_weights(archive: &Path, overlay: &Overlay<'_>) -> Result<Model, BackendError> {
    let failed =
        |error: std::io::Error| BackendError::new(format!("cannot lay the weights over a copy: {error}"));
    let mut copy = memory_file().map_err(failed)?;
    std::fs::File::open(archive).and_then(|mut from| std::io::copy(&mut from, &mut copy)).map_err(failed)?;
    overlay.write_into(&mut copy).map_err(|error| BackendError::new(error.to_string()))?;
    Ok(Model::load(Path::new(&format!("/proc/self/fd/{}", copy.as_raw_fd())))?)
}

/// A file that is nowhere but in memory, and gone once it is closed.
fn memory_file() -> std::io::Result<std::fs::File> {
    let fd = rustix::fs::memfd_create("weights", rustix::fs::MemfdFlags::CLOEXEC)?;
    Ok(fd.into())
}

struct TorchModule {
    model: Model,
}

impl Module for TorchModule {
    fn names_device(&self) -> Option<&str> {
        self.model.device.as_deref()
    }

    fn forward(&self, pass: Pass<'_>) -> Result<Vec<NamedTensor>, BackendError> {
        let mut leaves = Vec::with_capacity(pass.leaves.len());
        let mut borrowed = Vec::new();
        for leaf in &pass.leaves {
            leaves.push(tensor_of(leaf, pass.share_memory, &mut borrowed)?);
        }
        let returned = self.model.run(pass.args, &leaves).map_err(|thrown| self.explained(thrown.into()))?;
        drop(leaves);
        returned.into_iter().map(|result| read(result, pass.share_memory, &borrowed)).collect()
    }
}

impl TorchModule {
    /// What libtorch says of a device that is not there does not say where it was asked for.
    fn explained(&self, mut error: BackendError) -> BackendError {
        if let Some(device) = &self.model.device {
            let line =
                format!("its code names device '{device}', and this server runs on the CPU: {}", error.short);
            error.short = torchlane_model::error::clip(line.into()).into_owned();
        }
        error
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

/// As libtorch numbers it in `c10/core/ScalarType.h`: these numbers are in every archive, and stay.
fn scalar_type(dtype: DType) -> i32 {
    match dtype {
        DType::U8 => 0,
        DType::I8 => 1,
        DType::I16 => 2,
        DType::I32 => 3,
        DType::I64 => 4,
        DType::F16 => 5,
        DType::F32 => 6,
        DType::F64 => 7,
        DType::Bool => 11,
        DType::BF16 => 15,
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
            .map_err(refused);
    }
    let tensor = Tensor::f_empty(&leaf.shape[..], (kind, Device::Cpu)).map_err(refused)?;
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

/// From here on, giving memory back to the system takes long enough for others to notice: 3 ms for 60 MiB.
const FREED_ELSEWHERE: usize = 1 << 20;

/// Memory that is freed on a thread of its own if it is much: the thread that sends an answer has others to serve.
struct Lent(Option<Owned>);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], Owned::as_ref)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        static FREES: LazyLock<mpsc::Sender<Owned>> = LazyLock::new(|| {
            let (free, owned) = mpsc::channel();
            // Without the thread it is freed here.
            let _started = std::thread::Builder::new()
                .name("free".to_owned())
                .spawn(move || owned.iter().for_each(drop));
            free
        });
        if let Some(owned) = self.0.take().filter(|owned| owned.len >= FREED_ELSEWHERE) {
            let _freed_here = FREES.send(owned);
        }
    }
}

fn read(returned: Returned, share: bool, borrowed: &[Bytes]) -> Result<NamedTensor, BackendError> {
    let Returned { name, tensor, dtype, sizes } = returned;
    let known = DType::ALL.into_iter().find(|known| scalar_type(*known) == dtype);
    let dtype = known.ok_or_else(|| {
        BackendError::new(format!("output '{name}' is of a datatype that cannot be sent (number {dtype})"))
    })?;
    let wrong = |error: torchlane_model::tensor::TensorError| BackendError::new(error.to_string());
    let len = torchlane_model::tensor::byte_len(dtype, &sizes).map_err(wrong)?;
    let owned = Owned { tensor, len, _borrowed: borrowed.to_vec() };
    let data = if share && len >= SHARE_FROM_BYTES {
        Bytes::from_owner(Lent(Some(owned)))
    } else {
        Bytes::copy_from_slice(owned.as_ref())
    };
    Ok(NamedTensor { name, tensor: HostTensor::from_backend(dtype, sizes, data).map_err(wrong)? })
}

fn refused(error: tch::TchError) -> BackendError {
    match error {
        tch::TchError::Torch(text) => said(text),
        other => BackendError::new(other.to_string()),
    }
}

/// libtorch prints tensors, its own source lines and a C++ stack into its errors. The short form is the line that says
/// what happened.
fn said(full: String) -> BackendError {
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
    BackendError { short: torchlane_model::error::clip(short.to_owned().into()).into_owned(), full }
}
