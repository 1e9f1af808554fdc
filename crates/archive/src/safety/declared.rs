//! Whether the values in a pickle are what the code declares. libtorch checks the kind of a value when it uses it (a
//! tensor, a number, an object), but takes an object's class and a tuple's length from the declaration: an object of a
//! smaller class would be read beyond its end.

use std::collections::HashSet;

use super::super::code::Class;
use super::super::error::shown;
use super::super::lexer::Lexer;
use super::super::pickle::{Id, Pickle, Value};
use super::super::types::TypeExpr;
use super::{Danger, Findings};

/// Most values that are compared with a type.
const MAX_STEPS: usize = 8_000_000;

/// Checks the objects in the pickle of `entry`, given the classes of the archive's code by their paths.
pub(in super::super) fn check_declared<'c>(
    pickle: &Pickle<'_>,
    entry: &str,
    class: impl Fn(&str) -> Option<&'c Class>,
    findings: &mut Findings,
) {
    let mut check = Check { pickle, class: &class, done: HashSet::new(), steps: 0 };
    for value in pickle.values() {
        let Value::Object { class: path, state: Some(state) } = value else { continue };
        let Some((path, class)) = check.path(*path).and_then(|path| Some((path.clone(), class(&path)?)))
        else {
            continue;
        };
        let wrong = match class.methods.iter().find(|method| method.name == "__setstate__") {
            Some(method) => {
                let fits = method.arguments.first().is_none_or(|argument| check.fits(*state, &argument.ty));
                (!fits).then(|| "its state".to_owned())
            }
            None => check.wrong_attribute(class, *state),
        };
        if let Some(what) = wrong {
            findings.add(Danger::Declared, &format!("{what} of {}", shown(&path)), || entry.to_owned());
        }
    }
    if check.steps > MAX_STEPS {
        findings.add(Danger::Declared, "more values than any model has", || entry.to_owned());
    }
}

struct Check<'p, 'a, F> {
    pickle: &'p Pickle<'a>,
    class: &'p F,
    /// Values of containers that were compared with the type at this address, and fit.
    done: HashSet<(Id, usize)>,
    steps: usize,
}

impl<'c, F: Fn(&str) -> Option<&'c Class>> Check<'_, '_, F> {
    /// The first attribute that the state gives another value than its type allows.
    fn wrong_attribute(&mut self, class: &'c Class, state: Id) -> Option<String> {
        let Value::Dict(items) = self.pickle.get(state) else { return Some("the state".to_owned()) };
        for (key, value) in items {
            let Value::Str(name) = self.pickle.get(*key) else { continue };
            let declared = class.attributes.iter().find(|(attribute, _)| attribute == name);
            // Attention divides by these.
            if matches!(*name, "num_heads" | "embed_dim")
                && matches!(self.pickle.get(*value), Value::Int(..=0))
            {
                return Some(format!("attribute '{name}' below 1"));
            }
            if let Some((_, ty)) = declared
                && !self.fits(*value, ty)
            {
                return Some(format!("attribute '{}' (declared {})", shown(name), shown(&ty.to_string())));
            }
        }
        None
    }

    fn fits(&mut self, id: Id, ty: &TypeExpr) -> bool {
        self.steps += 1;
        if self.steps > MAX_STEPS || self.done.contains(&(id, std::ptr::from_ref(ty).addr())) {
            return true;
        }
        let pickle = self.pickle;
        let value = pickle.get(id);
        let called = match value {
            Value::Reduce { callable, .. } => pickle.global(*callable),
            _ => None,
        };
        let fits = match ty {
            TypeExpr::Tensor => matches!((value, called), (Value::None, _) | (_, Some(("torch._utils", _)))),
            TypeExpr::Int => matches!(value, Value::Int(_)),
            TypeExpr::Float => matches!(value, Value::Number | Value::Int(_)),
            TypeExpr::Bool => matches!(value, Value::Bool(_)),
            TypeExpr::Str => matches!(value, Value::Str(_)),
            TypeExpr::Number => {
                matches!(value, Value::Int(_) | Value::Number | Value::Bool(_)) || called.is_some()
            }
            TypeExpr::Device => called == Some(("torch", "device")),
            TypeExpr::Optional(inner) => matches!(value, Value::None) || self.fits(id, inner),
            TypeExpr::List(item) => self.list(id, item, ty),
            TypeExpr::Dict(key, item) => match pickle.get(self.untagged(id, ty)) {
                Value::Dict(items) => items.iter().all(|(k, v)| self.fits(*k, key) && self.fits(*v, item)),
                _ => false,
            },
            TypeExpr::Tuple(types) => match value {
                Value::Tuple(items) => {
                    items.len() == types.len()
                        && items.iter().zip(types).all(|(item, ty)| self.fits(*item, ty))
                }
                _ => false,
            },
            TypeExpr::Other(path) if path.starts_with("__torch__.") => self.object(id, path),
            TypeExpr::NamedTuple { .. } | TypeExpr::Other(_) => true,
        };
        if fits && matches!(value, Value::List(_) | Value::Dict(_) | Value::Tuple(_) | Value::Reduce { .. }) {
            self.done.insert((id, std::ptr::from_ref(ty).addr()));
        }
        fits
    }

    /// A list, of one of the kinds that torch has functions for or with a text that says what it is of.
    fn list(&mut self, id: Id, item: &TypeExpr, ty: &TypeExpr) -> bool {
        let pickle = self.pickle;
        if let Value::Reduce { callable, args } = pickle.get(id)
            && let Some(("torch.jit._pickle", built)) = pickle.global(*callable)
            && built != "restore_type_tag"
        {
            let of = match built {
                "build_intlist" => &TypeExpr::Int,
                "build_doublelist" => &TypeExpr::Float,
                "build_boollist" => &TypeExpr::Bool,
                "build_tensorlist" => &TypeExpr::Tensor,
                _ => return false,
            };
            let items = pickle.tuple(*args).and_then(|args| args.first()).map(|list| pickle.get(*list));
            return match items {
                Some(Value::List(items)) => of == item && items.iter().all(|item| self.fits(*item, of)),
                _ => false,
            };
        }
        match pickle.get(self.untagged(id, ty)) {
            Value::List(items) => items.iter().all(|value| self.fits(*value, item)),
            _ => false,
        }
    }

    /// What `restore_type_tag(value, "List[str]")` holds, if the text says what is declared; else the value itself.
    fn untagged(&self, id: Id, ty: &TypeExpr) -> Id {
        let pickle = self.pickle;
        if let Value::Reduce { callable, args } = pickle.get(id)
            && pickle.global(*callable) == Some(("torch.jit._pickle", "restore_type_tag"))
            && let Some([value, tag]) = pickle.tuple(*args)
            && let Value::Str(tag) = pickle.get(*tag)
            && let Ok(Some(line)) = Lexer::new(tag).next_line()
            && TypeExpr::parse(&line.tokens) == *ty
        {
            return *value;
        }
        id
    }

    /// An object of this very class; a named tuple or an enum as torch writes them.
    fn object(&mut self, id: Id, path: &str) -> bool {
        let Some(class) = (self.class)(path) else { return true };
        let value = self.pickle.get(id);
        match (class.base.as_str(), value) {
            ("NamedTuple", Value::Tuple(items)) => {
                items.len() == class.attributes.len()
                    && items.iter().zip(&class.attributes).all(|(item, (_, ty))| self.fits(*item, ty))
            }
            ("Enum", Value::Reduce { callable, .. }) => {
                self.path(*callable).is_some_and(|found| found == path)
            }
            // Methods of an interface are looked up by name.
            ("Interface" | "ModuleInterface", Value::Object { class, .. }) => {
                self.path(*class).is_some_and(|path| (self.class)(&path).is_some())
            }
            (_, Value::Object { class, .. }) => self.path(*class).is_some_and(|found| found == path),
            _ => false,
        }
    }

    fn path(&self, id: Id) -> Option<String> {
        let (module, name) = self.pickle.global(id)?;
        Some(format!("{module}.{name}"))
    }
}
