//! The tree of modules in `data.pkl`, flattened into named parameters and buffers.

use std::collections::HashMap;
use std::io::{Read, Seek};

use super::code::{Class, Code};
use super::container::Container;
use super::error::ArchiveError;
use super::info::TensorInfo;
use super::pickle::{Id, Pickle, Value};
use super::tensors::{self, Tensor};

/// Deepest nesting of modules.
const MAX_DEPTH: usize = 100;
/// Most modules, attributes and methods that are visited, those of a shared module counted each time.
const MAX_VISITS: usize = 500_000;
/// Most bytes of dotted names.
const MAX_NAME_BYTES: usize = 64 << 20;

/// Turns tensors into their descriptions, and finds those that are the same memory.
#[derive(Default)]
pub(super) struct Names {
    first: HashMap<Tensor, String>,
}

impl Names {
    /// The description of a tensor of this name.
    pub(super) fn describe(&mut self, name: String, tensor: Tensor) -> TensorInfo {
        let shared_with = match self.first.get(&tensor) {
            Some(first) => Some(first.clone()),
            None if tensor.storage.is_empty() => None,
            None => {
                self.first.insert(tensor.clone(), name.clone());
                None
            }
        };
        let Tensor { storage, offset, dtype, shape, strides, bytes } = tensor;
        TensorInfo { name, dtype, shape, bytes, shared_with, storage, offset, strides }
    }
}

/// Walks the modules of an archive.
pub(super) struct Walk<'w, 'a, R> {
    pub(super) pickle: &'w Pickle<'a>,
    pub(super) code: &'w Code,
    pub(super) container: &'w Container<R>,
}

/// What a walk has found.
#[derive(Default)]
pub(super) struct Found {
    pub(super) parameters: Vec<TensorInfo>,
    pub(super) buffers: Vec<TensorInfo>,
    visits: usize,
    name_bytes: usize,
}

impl<'w, R: Read + Seek> Walk<'w, '_, R> {
    /// Everything below the module at the pickle's root.
    pub(super) fn all(&self, names: &mut Names) -> Result<Found, ArchiveError> {
        let mut found = Found::default();
        self.module(self.pickle.root(), "", 0, names, &mut found)?;
        Ok(found)
    }

    /// Visits the module at `id` and those below it, own tensors before those of its children, as torch does.
    fn module(
        &self,
        id: Id,
        prefix: &str,
        depth: usize,
        names: &mut Names,
        found: &mut Found,
    ) -> Result<(), ArchiveError> {
        if depth > MAX_DEPTH {
            return Err(ArchiveError::Tree("deeper"));
        }
        let Some((class, state)) = self.class_and_state(id) else {
            return found.visit(1);
        };
        found.visit(1 + class.attributes.len() + class.methods.len() + state.len())?;
        let mut children = Vec::new();
        for (name, _) in &class.attributes {
            let Some(value) = state.get(name.as_str()).copied() else {
                continue;
            };
            let parameter = class.parameters.contains(name);
            if parameter || class.buffers.contains(name) {
                if let Some(tensor) = tensors::tensor(self.pickle, value, "data", self.container)? {
                    let info = names.describe(found.dotted(prefix, name)?, tensor);
                    let list = if parameter { &mut found.parameters } else { &mut found.buffers };
                    list.push(info);
                }
            } else if self.is_module(value) {
                children.push((name, value));
            }
        }
        for (name, value) in children {
            let prefix = found.dotted(prefix, name)?;
            self.module(value, &prefix, depth + 1, names, found)?;
        }
        Ok(())
    }

    /// Whether `id` is an object of a class that the code calls a module.
    pub(super) fn is_module(&self, id: Id) -> bool {
        self.class(id).is_some_and(|class| class.base == "Module")
    }

    /// What BUILD gave the object at `id`, by name; nothing for a class with a `__setstate__` of its own, whose state
    /// only it understands.
    pub(super) fn class_and_state(&self, id: Id) -> Option<(&'w Class, HashMap<&'w str, Id>)> {
        let class = self
            .class(id)
            .filter(|class| class.methods.iter().all(|method| method.name != "__setstate__"))?;
        let Value::Object { state: Some(state), .. } = self.pickle.get(id) else {
            return None;
        };
        let Value::Dict(items) = self.pickle.get(*state) else {
            return None;
        };
        let named = items.iter().filter_map(|(key, value)| match self.pickle.get(*key) {
            Value::Str(name) => Some((*name, *value)),
            _ => None,
        });
        Some((class, named.collect()))
    }

    fn class(&self, id: Id) -> Option<&'w Class> {
        let Value::Object { class, .. } = self.pickle.get(id) else {
            return None;
        };
        let (module, name) = self.pickle.global(*class)?;
        self.code.class(&format!("{module}.{name}"))
    }
}

impl Found {
    fn visit(&mut self, count: usize) -> Result<(), ArchiveError> {
        self.visits = self.visits.saturating_add(count);
        if self.visits > MAX_VISITS { Err(ArchiveError::Tree("larger")) } else { Ok(()) }
    }

    fn dotted(&mut self, prefix: &str, name: &str) -> Result<String, ArchiveError> {
        self.name_bytes = self.name_bytes.saturating_add(prefix.len() + 1 + name.len());
        if self.name_bytes > MAX_NAME_BYTES {
            return Err(ArchiveError::Tree("larger"));
        }
        Ok(if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") })
    }
}
