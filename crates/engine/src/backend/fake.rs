//! A backend without libtorch, for tests of everything around it: an "archive" is a small TOML file.
//!
//! ```toml
//! inputs = ["x"]        # default
//! scale = 2.0           # output_0 = x * scale (FP32); other datatypes are passed through
//! delay_ms = 5          # the pass sleeps
//! fail = "message"      # the pass fails, if the first element is negative or `fail_always`
//! fail_while = "path"   # the pass fails as long as there is such a file
//! fail_every = 20       # each twentieth pass fails
//! offset = 0.5          # is added to output_0
//! hang_while = "path"   # the pass does not end as long as there is such a file
//! load_error = "text"   # loading fails
//! unsafe = ["aten::x"]  # what an inspection would find that is not known to be harmless
//! memory_bytes = 1000   # what it says that it takes once it is loaded
//! estimate_bytes = 500  # what is thought before; default: memory_bytes
//! stall_while = "path"  # its files do not answer as long as there is such a file, as on a network volume that is gone
//! ```
//!
//! Its one parameter is `scale`, float32 of shape `[]`: weights may be laid over it.

use std::{
    any::Any,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::Deserialize;
use torchlane_archive::{
    Seen, TensorInfo,
    safety::{Danger, Finding},
    weights::Overlay,
};
use torchlane_model::{
    ArgKind, Argument, NamedTensor,
    tensor::{DType, HostTensor},
};

use super::{ArchiveSummary, Backend, BackendError, Module, Pass, ThreadRole};

/// The name of its parameter.
const SCALE: &str = "scale";

/// See the module's page.
#[derive(Debug, Default)]
pub struct FakeBackend;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Script {
    inputs: Vec<String>,
    scale: f32,
    delay_ms: u64,
    fail: Option<String>,
    fail_always: bool,
    fail_while: Option<PathBuf>,
    fail_every: u64,
    offset: f32,
    hang_while: Option<PathBuf>,
    load_error: Option<String>,
    load_delay_ms: u64,
    stateful: bool,
    nan: bool,
    nan_at_zero: bool,
    r#unsafe: Vec<String>,
    /// So far.
    #[serde(skip)]
    passes: Arc<AtomicU64>,
    memory_bytes: u64,
    estimate_bytes: Option<u64>,
    stall_while: Option<PathBuf>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            inputs: vec!["x".to_owned()],
            scale: 1.0,
            delay_ms: 0,
            fail: None,
            fail_always: false,
            fail_while: None,
            fail_every: 0,
            offset: 0.0,
            hang_while: None,
            load_error: None,
            load_delay_ms: 0,
            stateful: false,
            nan: false,
            nan_at_zero: false,
            r#unsafe: Vec::new(),
            passes: Arc::default(),
            memory_bytes: 0,
            estimate_bytes: None,
            stall_while: None,
        }
    }
}

fn script(path: &Path) -> Result<Script, BackendError> {
    let wrong = |error: &dyn std::fmt::Display| BackendError::new(format!("{}: {error}", path.display()));
    // Opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(|error| wrong(&error))?.is_file() {
        return Err(wrong(&"it is not a file"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    toml::from_str(&text).map_err(|e| BackendError::new(format!("not a fake archive: {}", e.message())))
}

fn finding(what: String) -> Finding {
    let danger = Danger::Unknown;
    Finding { what, place: "script".to_owned(), count: 1, severity: danger.severity(), danger }
}

impl Backend for FakeBackend {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn enter_thread(&self, _: ThreadRole) -> Box<dyn Any> {
        Box::new(())
    }

    fn glance(&self, _: &Path) -> Result<(), BackendError> {
        Ok(())
    }

    fn inspect(&self, archive: &Path) -> Result<ArchiveSummary, BackendError> {
        let script = script(archive)?;
        Ok(ArchiveSummary {
            arguments: script
                .inputs
                .iter()
                .map(|name| Argument {
                    name: name.as_str().into(),
                    kind: ArgKind::Tensor,
                    has_default: false,
                    skips: 0,
                })
                .collect(),
            outputs: script.inputs.iter().enumerate().map(|(i, _)| format!("output_{i}")).collect(),
            effect_free: !script.stateful,
            loops: false,
            stateful: script
                .stateful
                .then(|| Seen { what: "stateful = true".to_owned(), place: "script".to_owned() }),
            training: None,
            torch_version: None,
            findings: script.r#unsafe.into_iter().map(finding).collect(),
            tensor_bytes: script.memory_bytes,
            tensors: vec![TensorInfo {
                name: SCALE.to_owned(),
                dtype: "float32".to_owned(),
                shape: Vec::new(),
                bytes: 4,
                shared_with: None,
                storage: String::new(),
                offset: 0,
                strides: Vec::new(),
            }],
            buffers: Vec::new(),
        })
    }

    fn memory_estimate(&self, files: &[&Path]) -> u64 {
        let script = files.first().and_then(|archive| script(archive).ok()).unwrap_or_default();
        while script.stall_while.as_ref().is_some_and(|path| path.exists()) {
            std::thread::sleep(Duration::from_millis(2));
        }
        script.estimate_bytes.unwrap_or(script.memory_bytes)
    }

    fn load(&self, archive: &Path, overlay: Option<&Overlay<'_>>) -> Result<Box<dyn Module>, BackendError> {
        let mut script = script(archive)?;
        let scale = overlay.and_then(|overlay| overlay.weights().get(SCALE));
        if let Some(bytes) = scale.and_then(|scale| scale.data.first_chunk().copied()) {
            script.scale = f32::from_le_bytes(bytes);
        }
        std::thread::sleep(Duration::from_millis(script.load_delay_ms));
        match &script.load_error {
            Some(message) => Err(BackendError::new(message.clone())),
            None => Ok(Box::new(script)),
        }
    }
}

impl Module for Script {
    fn memory_bytes(&self) -> Option<u64> {
        Some(self.memory_bytes)
    }

    fn forward(&self, pass: Pass<'_>) -> Result<Vec<NamedTensor>, BackendError> {
        std::thread::sleep(Duration::from_millis(self.delay_ms));
        while self.hang_while.as_ref().is_some_and(|path| path.exists()) {
            std::thread::sleep(Duration::from_millis(2));
        }
        if let Some(path) = self.fail_while.as_ref().filter(|path| path.exists()) {
            return Err(BackendError::new(format!("{} is there", path.display())));
        }
        let number = self.passes.fetch_add(1, Ordering::Relaxed) + 1;
        if self.fail_every > 0 && number.is_multiple_of(self.fail_every) {
            return Err(BackendError::new(format!("pass {number} fails")));
        }
        let mut outputs = Vec::with_capacity(pass.leaves.len());
        for (i, leaf) in pass.leaves.into_iter().enumerate() {
            let data = leaf.parts.concat();
            let first = data.first_chunk().copied().map(f32::from_le_bytes);
            if let Some(message) = &self.fail
                && (self.fail_always || first.is_some_and(|value| value < 0.0))
            {
                return Err(BackendError::new(message.clone()));
            }
            let data = match leaf.dtype {
                DType::F32 => data
                    .chunks_exact(4)
                    .filter_map(|bytes| bytes.try_into().ok())
                    .flat_map(|bytes| {
                        let scaled = f32::from_le_bytes(bytes) * self.scale + self.offset;
                        let nan = self.nan || (self.nan_at_zero && scaled == 0.0);
                        if nan { f32::NAN } else { scaled }.to_le_bytes()
                    })
                    .collect(),
                _ => data,
            };
            let tensor = HostTensor::from_backend(leaf.dtype, leaf.shape, data.into())
                .map_err(|error| BackendError::new(error.to_string()))?;
            outputs.push(NamedTensor { name: format!("output_{i}"), tensor });
        }
        Ok(outputs)
    }
}
