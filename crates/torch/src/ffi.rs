//! The Rust side of `shim.cpp`: modules, and passes through them.

use std::{
    ffi::{CStr, CString, OsStr, c_char, c_int, c_void},
    os::unix::ffi::OsStrExt,
    path::Path,
    ptr::NonNull,
};

use smallvec::SmallVec;
use tch::Tensor;
use torchlane_engine::backend::BackendError;
use torchlane_model::Arg;

use crate::spoken::{self, Spoken};

/// What libtorch threw, or what the shim refuses.
#[derive(Debug)]
pub(super) enum Thrown {
    /// libtorch's own text.
    Libtorch(String),
    /// A plain line.
    Plain(String),
}

/// A tensor that a pass returned. It is dense, contiguous, in host memory, and of a datatype that can be sent.
#[derive(Debug)]
pub(super) struct Returned {
    /// Where it stood in the result.
    pub(super) name: String,
    /// Its memory.
    pub(super) tensor: Tensor,
    /// Its `at::ScalarType`.
    pub(super) dtype: i32,
    /// Its shape.
    pub(super) sizes: torchlane_model::tensor::Shape,
}

#[repr(C)]
struct RawModel {
    _opaque: [u8; 0],
}

/// One argument, or one item of the list, dict or tuple before it.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawArg {
    tag: i32,
    items: i32,
    number: i64,
    real: f64,
    key: *const c_char,
    key_len: usize,
}

#[repr(C)]
struct RawResult {
    name: *const c_char,
    name_len: usize,
    tensor: *mut c_void,
    dtype: i32,
    sizes: *const i64,
    dims: usize,
}

unsafe extern "C" {
    fn torchlane_begin(ear: extern "C" fn(c_int, *const c_char, usize));
    fn torchlane_free_error(error: *mut c_char);
    fn torchlane_load(
        path: *const c_char,
        model: *mut *mut RawModel,
        device: *mut *mut c_char,
        error: *mut *mut c_char,
    ) -> c_int;
    fn torchlane_free(model: *mut RawModel);
    fn torchlane_run(
        model: *mut RawModel,
        args: *const RawArg,
        arg_count: usize,
        leaves: *const *const c_void,
        leaf_count: usize,
        sink: extern "C" fn(*mut c_void, *const RawResult),
        into: *mut c_void,
        error: *mut *mut c_char,
    ) -> c_int;
}

/// Remembers the state of a thread on which nothing has run: every pass begins with it. What models say goes to the log from now
/// on.
pub(super) fn begin() {
    // SAFETY: it may be called from any thread, and `hear` is there as long as the process is.
    unsafe { torchlane_begin(hear) };
}

extern "C" fn hear(kind: c_int, text: *const c_char, length: usize) {
    // SAFETY: the shim hands over the memory of a string that is whole until this returns, and its length.
    let text = String::from_utf8_lossy(unsafe { std::slice::from_raw_parts(text.cast(), length) });
    spoken::log(if kind == 0 { Spoken::Printed } else { Spoken::Warned }, &text);
}

/// A module in evaluation mode.
#[derive(Debug)]
pub(super) struct Model {
    raw: NonNull<RawModel>,
    /// The first device other than the CPU that its code names.
    pub(super) device: Option<String>,
}

// SAFETY: libtorch's modules are counted references to what may be read, and run, from any thread at once.
unsafe impl Send for Model {}
// SAFETY: as above.
unsafe impl Sync for Model {}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: `raw` came from `torchlane_load`, and is freed once.
        unsafe { torchlane_free(self.raw.as_ptr()) };
    }
}

impl Model {
    pub(super) fn load(path: &Path) -> Result<Self, Thrown> {
        let path = CString::new(OsStr::as_bytes(path.as_os_str()))
            .map_err(|_| Thrown::Plain("the path holds a zero byte".to_owned()))?;
        let (mut raw, mut device, mut error) =
            (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the path ends in a zero byte, and the three places are written to before this returns.
        let code = unsafe { torchlane_load(path.as_ptr(), &raw mut raw, &raw mut device, &raw mut error) };
        thrown(code, error)?;
        let raw = NonNull::new(raw).ok_or_else(|| Thrown::Plain("libtorch gave no module".to_owned()))?;
        Ok(Self { raw, device: taken(device) })
    }

    /// One pass; `Arg::Tensor(i)` is `leaves[i]`.
    pub(super) fn run(&self, args: &[Arg], leaves: &[Tensor]) -> Result<Vec<Returned>, Thrown> {
        let mut raw: SmallVec<[RawArg; 4]> = SmallVec::with_capacity(args.len());
        args.iter().for_each(|arg| encode(arg, &mut raw));
        let leaves: SmallVec<[*const c_void; 4]> = leaves.iter().map(|leaf| leaf.as_ptr().cast()).collect();
        let mut returned: Vec<Returned> = Vec::new();
        let mut error = std::ptr::null_mut();
        // SAFETY: each pointer goes with the length beside it and outlives the call; the leaves are `at::Tensor`s, which is
        // what tch points to; `receive` gets back the pointer to `returned`, which nothing else uses meanwhile.
        let code = unsafe {
            torchlane_run(
                self.raw.as_ptr(),
                raw.as_ptr(),
                raw.len(),
                leaves.as_ptr(),
                leaves.len(),
                receive,
                (&raw mut returned).cast(),
                &raw mut error,
            )
        };
        thrown(code, error)?;
        Ok(returned)
    }
}

extern "C" fn receive(into: *mut c_void, result: *const RawResult) {
    // SAFETY: the shim hands back the pointer that `Model::run` gave it, and a result that is whole until this returns: a
    // name and sizes of the lengths beside them, and a tensor that is ours from now on.
    unsafe {
        let (into, result) = (&mut *into.cast::<Vec<Returned>>(), &*result);
        let name = std::slice::from_raw_parts(result.name.cast(), result.name_len);
        let sizes =
            if result.dims == 0 { &[] } else { std::slice::from_raw_parts(result.sizes, result.dims) };
        into.push(Returned {
            name: String::from_utf8_lossy(name).into_owned(),
            tensor: Tensor::from_ptr(result.tensor.cast()),
            dtype: result.dtype,
            sizes: sizes.into(),
        });
    }
}

fn thrown(code: c_int, error: *mut c_char) -> Result<(), Thrown> {
    let text = taken(error);
    match code {
        0 => Ok(()),
        2 => Err(Thrown::Plain(text.unwrap_or_default())),
        _ => Err(Thrown::Libtorch(text.unwrap_or_default())),
    }
}

/// The text, which the shim made for us.
fn taken(text: *mut c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, so it is a copy that ends in a zero byte, made for the caller, and is freed once.
    unsafe {
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        torchlane_free_error(text);
        Some(copy)
    }
}

/// The numbers of `Tag` in `shim.cpp`.
fn encode(arg: &Arg, into: &mut SmallVec<[RawArg; 4]>) {
    let none = RawArg { tag: 1, items: 0, number: 0, real: 0.0, key: std::ptr::null(), key_len: 0 };
    let tensor = |at: &usize| RawArg { tag: 0, number: *at as i64, ..none };
    let of = |tag, items: usize| RawArg { tag, items: items as i32, ..none };
    match arg {
        Arg::Tensor(at) => into.push(tensor(at)),
        Arg::None => into.push(none),
        Arg::Int(value) => into.push(RawArg { tag: 2, number: *value, ..none }),
        Arg::Float(value) => into.push(RawArg { tag: 3, real: *value, ..none }),
        Arg::Bool(value) => into.push(RawArg { tag: 4, number: (*value).into(), ..none }),
        Arg::List(items) => {
            into.push(of(5, items.len()));
            into.extend(items.iter().map(tensor));
        }
        Arg::Dict(items) => {
            into.push(of(6, items.len()));
            let item = |(key, at): &(String, usize)| RawArg {
                key: key.as_ptr().cast(),
                key_len: key.len(),
                ..tensor(at)
            };
            into.extend(items.iter().map(item));
        }
        Arg::Tuple(items) => {
            into.push(of(7, items.len()));
            items.iter().for_each(|item| encode(item, into));
        }
        Arg::Default => into.push(of(8, 0)),
    }
}

impl From<Thrown> for BackendError {
    fn from(thrown: Thrown) -> Self {
        match thrown {
            Thrown::Libtorch(text) => super::said(text),
            Thrown::Plain(text) => Self::new(text),
        }
    }
}
