//! A module that says, by a [`Task`], which model's pass its thread runs.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use torchlane_model::{ModelName, NamedTensor, Version};

use super::{BackendError, Module, Pass, Task};

/// A module, and what its passes are called should one end the process.
pub struct Named {
    module: Option<Box<dyn Module>>,
    warm_up: Task,
    pass: Task,
    serves: Arc<AtomicBool>,
}

impl Named {
    /// Names the passes of a module. They are the warm-up's until the flag that comes with it is set.
    pub fn new(module: Box<dyn Module>, model: &ModelName, version: Version) -> (Self, Arc<AtomicBool>) {
        let serves = Arc::new(AtomicBool::new(false));
        let of = |what| Task::new(format_args!("{what} of model '{}' version {version}", model.as_str()));
        let (warm_up, pass) = (of("a pass before going live"), of("a pass"));
        (Self { module: Some(module), warm_up, pass, serves: serves.clone() }, serves)
    }
}

impl Module for Named {
    fn memory_bytes(&self) -> Option<u64> {
        self.module.as_ref()?.memory_bytes()
    }

    fn names_device(&self) -> Option<&str> {
        self.module.as_ref()?.names_device()
    }

    fn forward(&self, pass: Pass<'_>) -> Result<Vec<NamedTensor>, BackendError> {
        let task = if self.serves.load(Ordering::Relaxed) { &self.pass } else { &self.warm_up };
        let _running = task.begin();
        match &self.module {
            Some(module) => module.forward(pass),
            None => Err(BackendError::new("the module was dropped")),
        }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _running = self.pass.begin();
        self.module = None;
    }
}
