//! What is known of a value: whether it outlives the call, where it was made, and its constant, if it is one.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::rc::Rc;

use super::super::pickle::Id;
use super::ast::Site;

/// The name of something that outlives the call, such as `self.norm.running_mean`. Names do not tell values apart: what is
/// found out of a function for one holds for the others.
#[derive(Debug, Clone)]
pub(super) struct Kept(pub(super) Rc<str>);

impl PartialEq for Kept {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Kept {}

impl Hash for Kept {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// What a value is for certain.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) enum Known {
    /// No path leads to it.
    #[default]
    Unset,
    Any,
    None,
    NotNone,
    Bool(bool),
    /// A number, or a string with its quotes.
    Literal(Rc<str>),
}

/// What can be called, or has members of its own.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) enum Kind<'a> {
    #[default]
    Plain,
    /// A tensor for certain: it holds no other values.
    Tensor,
    /// Of the class of that path; its place in the pickle, if it came from there.
    Object(Rc<str>, Option<Id>),
    Class(Rc<str>),
    Function(usize),
    /// A function within a function, by the address of its definition.
    Closure(&'a str),
}

/// A value, or any of several. The default is none at all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Value<'a> {
    /// It may be, or be a view of, what the module keeps.
    pub(super) kept: Option<Kept>,
    /// Places where the call may have made it, if it can hold other values; ascending.
    pub(super) sites: Vec<Site>,
    pub(super) known: Known,
    pub(super) kind: Kind<'a>,
}

impl<'a> Value<'a> {
    /// Something new that nothing is known of.
    pub(super) fn new() -> Self {
        Self::of(Known::Any)
    }

    pub(super) fn of(known: Known) -> Self {
        Self { known, ..Self::default() }
    }

    /// Something that the module keeps.
    pub(super) fn kept(name: impl Into<Rc<str>>) -> Self {
        Self { kept: Some(Kept(name.into())), ..Self::of(Known::NotNone) }
    }

    /// Something new that can hold others, made at `site`.
    pub(super) fn made(site: Site) -> Self {
        Self { sites: vec![site], ..Self::of(Known::NotNone) }
    }

    /// A tensor that the module keeps.
    pub(super) fn kept_tensor(name: impl Into<Rc<str>>) -> Self {
        Self { kind: Kind::Tensor, ..Self::kept(name) }
    }

    /// The same memory, of which nothing else is known.
    pub(super) fn memory(&self) -> Self {
        let kind = if self.kind == Kind::Tensor { Kind::Tensor } else { Kind::Plain };
        Self { known: Known::Any, kind, ..self.clone() }
    }

    /// It may also be `other`; whether that is new.
    pub(super) fn join(&mut self, other: &Self) -> bool {
        if other.known == Known::Unset && other.kept.is_none() && other.sites.is_empty() {
            return false;
        }
        if self.known == Known::Unset && self.kept.is_none() && self.sites.is_empty() {
            *self = other.clone();
            return true;
        }
        let before = (self.kept.is_some(), self.sites.len(), self.known.clone(), self.kind.clone());
        if self.kept.is_none() {
            self.kept.clone_from(&other.kept);
        }
        for site in &other.sites {
            if let Err(at) = self.sites.binary_search(site) {
                self.sites.insert(at, *site);
            }
        }
        if self.kind != other.kind {
            // `None` or an object: only the object has methods.
            self.kind = match (&self.known, &other.known) {
                (Known::None, _) => other.kind.clone(),
                (_, Known::None) => self.kind.clone(),
                _ => Kind::Plain,
            };
        }
        if self.known != other.known {
            let maybe_none = [&self.known, &other.known]
                .into_iter()
                .any(|known| matches!(known, Known::None | Known::Any));
            self.known = if maybe_none { Known::Any } else { Known::NotNone };
        }
        before != (self.kept.is_some(), self.sites.len(), self.known.clone(), self.kind.clone())
    }
}

/// What was put into things that the call made.
#[derive(Debug, Default)]
pub(super) struct Heap<'a> {
    held: HashMap<Site, Held<'a>>,
    /// Something was put in that was not known to be there.
    pub(super) changed: bool,
    /// Sites that were looked at or copied: time and memory.
    work: Cell<usize>,
}

#[derive(Debug, Default)]
struct Held<'a> {
    /// By position, as it was made.
    fields: Vec<Value<'a>>,
    /// Anywhere.
    any: Value<'a>,
    /// Its parts may have changed places.
    mixed: bool,
}

impl<'a> Heap<'a> {
    /// Most work for one archive.
    const MOST_WORK: usize = 20_000_000;

    /// Whether there was more to do than is worth it.
    pub(super) fn is_exhausted(&self) -> bool {
        self.work.get() > Self::MOST_WORK
    }

    /// Counts work on a value.
    pub(super) fn count(&self, value: &Value<'_>) {
        self.work.set(self.work.get().saturating_add(1 + value.sites.len()));
    }

    /// Something of these parts is made at `site`.
    pub(super) fn make(&mut self, site: Site, parts: &[Value<'a>]) -> Value<'a> {
        let held = self.held.entry(site).or_default();
        if held.fields.len() < parts.len() {
            held.fields.resize_with(parts.len(), Value::default);
        }
        for (field, part) in held.fields.iter_mut().zip(parts) {
            self.changed |= field.join(part);
        }
        parts.iter().for_each(|part| self.count(part));
        Value::made(site)
    }

    /// `value` is put somewhere into `container`.
    pub(super) fn put(&mut self, container: &Value<'a>, value: &Value<'a>) {
        for site in &container.sites {
            let held = self.held.entry(*site).or_default();
            self.changed |= held.any.join(value) | !std::mem::replace(&mut held.mixed, true);
            self.count(value);
        }
    }

    /// What `container` holds, at a position or anywhere. What the module keeps holds what the module keeps.
    pub(super) fn part(&self, container: &Value<'a>, at: Option<usize>) -> Value<'a> {
        let mut found = Value::default();
        if let Some(kept) = &container.kept {
            found = Value { kept: Some(kept.clone()), ..container.memory() };
            found.sites.clear();
        }
        for site in &container.sites {
            let Some(held) = self.held.get(site) else { continue };
            self.count(&held.any);
            held.fields.iter().for_each(|field| self.count(field));
            found.join(&held.any);
            match at.filter(|_| !held.mixed) {
                Some(at) => {
                    if let Some(field) = held.fields.get(at) {
                        found.join(field);
                    }
                }
                None => held.fields.iter().for_each(|field| {
                    found.join(field);
                }),
            }
        }
        if found.known == Known::Unset {
            found.known = Known::Any;
        }
        found
    }

    /// Everything that can be reached from `value`, itself included, as one.
    pub(super) fn all(&self, value: &Value<'a>) -> Value<'a> {
        let mut all = value.memory();
        let mut seen: HashSet<Site> = all.sites.iter().copied().collect();
        let mut next = all.sites.clone();
        while let Some(site) = next.pop() {
            let inner = self.part(&Value::made(site), None).memory();
            next.extend(inner.sites.iter().filter(|site| seen.insert(**site)));
            all.join(&inner);
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_keep_what_both_sides_agree_on() {
        let joined = |one: &Value<'static>, other: &Value<'static>| {
            let mut one = one.clone();
            one.join(other);
            one
        };
        let (none, yes, no) =
            (Value::of(Known::None), Value::of(Known::Bool(true)), Value::of(Known::Bool(false)));
        assert_eq!(joined(&yes, &yes).known, Known::Bool(true));
        assert_eq!(joined(&yes, &no).known, Known::NotNone);
        assert_eq!(joined(&yes, &none).known, Known::Any);
        assert_eq!(joined(&Value::default(), &no), no, "a path that does not exist adds nothing");
        assert_eq!(joined(&no, &Value::default()), no);
        let object = Value { kind: Kind::Object("M".into(), None), ..Value::kept("self.m") };
        assert_eq!(joined(&none, &object).kind, object.kind);
        assert!(joined(&none, &object).kept.is_some());
        assert_eq!(joined(&Value::made(3), &Value::made(1)).sites, [1, 3]);
    }

    #[test]
    fn what_is_put_into_a_list_within_a_list_is_reached_from_both() {
        let mut heap = Heap::default();
        let inner = heap.make(1, &[]);
        let outer = heap.make(2, std::slice::from_ref(&inner));
        assert!(heap.all(&outer).kept.is_none());
        heap.put(&heap.part(&outer, Some(0)), &Value::kept("self.b"));
        assert!(heap.part(&inner, None).kept.is_some() && heap.all(&outer).kept.is_some());
        assert!(heap.part(&outer, None).kept.is_none(), "the list itself is new");
        heap.changed = false;
        heap.put(&inner, &Value::kept("self.c"));
        assert!(!heap.changed, "known");
    }
}
