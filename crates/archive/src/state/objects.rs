//! The objects in `data.pkl`: what their attributes are.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use super::super::pickle::{Id, Pickle, Value};
use super::super::tensors::is_tensor;
use super::value::Known;

/// What an attribute holds.
pub(super) enum Attribute {
    Constant(Known),
    Object(Id),
    Tensor,
    /// A list, a dict, ...
    Other,
}

type Attributes<'p> = Rc<HashMap<&'p str, Id>>;

pub(super) struct Objects<'p> {
    pickle: &'p Pickle<'p>,
    /// Whether a class reads its state by a method of its own.
    opaque: Box<dyn Fn(&str) -> bool + 'p>,
    seen: RefCell<HashMap<Id, Attributes<'p>>>,
}

impl<'p> Objects<'p> {
    /// `opaque`: whether the class of that path reads its state by a method of its own, so that nothing is known of it.
    pub(super) fn new(pickle: &'p Pickle<'p>, opaque: impl Fn(&str) -> bool + 'p) -> Self {
        Self { pickle, opaque: Box::new(opaque), seen: RefCell::default() }
    }

    /// Path of the class of the object at `id`.
    pub(super) fn class(&self, id: Id) -> Option<Rc<str>> {
        let Value::Object { class, .. } = self.pickle.get(id) else { return None };
        let (module, name) = self.pickle.global(*class)?;
        Some(format!("{module}.{name}").into())
    }

    /// `None`: it has no such attribute, or what it has is not known.
    pub(super) fn attribute(&self, id: Id, name: &str) -> Option<Attribute> {
        let attributes = self.seen.borrow_mut().entry(id).or_insert_with(|| self.attributes(id)).clone();
        let value = *attributes.get(name)?;
        Some(match self.pickle.get(value) {
            Value::None => Attribute::Constant(Known::None),
            Value::Bool(is) => Attribute::Constant(Known::Bool(*is)),
            Value::Int(number) => Attribute::Constant(Known::Literal(number.to_string().into())),
            Value::Str(text) => Attribute::Constant(Known::Literal(format!("\"{text}\"").into())),
            Value::Number => Attribute::Constant(Known::NotNone),
            Value::Object { .. } => Attribute::Object(value),
            Value::Reduce { .. } if is_tensor(self.pickle, value) => Attribute::Tensor,
            _ => Attribute::Other,
        })
    }

    fn attributes(&self, id: Id) -> Attributes<'p> {
        let mut found = HashMap::new();
        if let Value::Object { state: Some(state), .. } = self.pickle.get(id)
            && let Value::Dict(items) = self.pickle.get(*state)
            && !self.class(id).is_some_and(|class| (self.opaque)(&class))
        {
            for (key, value) in items {
                if let Value::Str(name) = self.pickle.get(*key) {
                    found.insert(*name, *value);
                }
            }
        }
        Rc::new(found)
    }
}
