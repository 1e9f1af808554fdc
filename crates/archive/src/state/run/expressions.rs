//! What expressions come to.

use super::super::super::operators::HARMLESS_NAMES;
use super::super::ast::{Call, Expr, Site, unquoted};
use super::super::value::{Kind, Known, Value};
use super::{Arguments, Frame, Outcome, Run};

impl<'p, 'a> Run<'p, 'a> {
    pub(super) fn eval(&mut self, frame: &mut Frame<'p, 'a>, expression: &'p Expr<'a>) -> Outcome<Value<'a>> {
        self.deeper()?;
        let value = match expression {
            Expr::None => Value::of(Known::None),
            Expr::Bool(is) => Value::of(Known::Bool(*is)),
            Expr::Literal(text) => Value::of(Known::Literal((*text).into())),
            Expr::Name(name) => match (frame.names.get(name), frame.closures.contains_key(name)) {
                (Some(value), _) => value.clone(),
                (None, true) => Value { kind: Kind::Closure(name), ..Value::of(Known::NotNone) },
                (None, false) => Value::default(),
            },
            Expr::Member(of, name) => match self.path(frame, expression).as_deref() {
                Some(["CONSTANTS", name]) => Value::kept_tensor(format!("the constant {name}")),
                Some(["__torch__", ..]) => self.named(&path_text(expression))?,
                Some(["torch" | "ops", ..]) => Value::of(Known::NotNone),
                _ => {
                    let of = self.eval(frame, of)?;
                    self.member(&of, name)
                }
            },
            Expr::Call(call) => self.call_expression(frame, call, false)?,
            Expr::Item { of, index, slice, site } => {
                let of = self.eval(frame, of)?;
                let mut at = None;
                for index in index {
                    if let Known::Literal(text) = self.eval(frame, index)?.known {
                        at = text.parse().ok();
                    }
                }
                let mut part = self.heap.part(&of, at.filter(|_| index.len() == 1 && !slice));
                if *slice {
                    let made = self.heap.make(*site, &[]);
                    self.heap.put(&made, &part);
                    part = made;
                }
                if of.kept.is_some() {
                    part.join(&Value { sites: Vec::new(), ..of.memory() });
                }
                part
            }
            Expr::Sequence(parts, site) => {
                let parts = self.parts(frame, parts)?;
                self.heap.make(*site, &parts)
            }
            Expr::Dict(parts, site) => {
                let parts = self.parts(frame, parts)?;
                let dict = self.heap.make(*site, &[]);
                parts.iter().for_each(|part| self.heap.put(&dict, part));
                dict
            }
            Expr::Mixed(parts, site) => {
                let parts = self.parts(frame, parts)?;
                let made = self.heap.make(*site, &[]);
                self.around(made, &parts)
            }
        };
        self.heap.count(&value);
        self.depth -= 1;
        Ok(value)
    }

    fn parts(&mut self, frame: &mut Frame<'p, 'a>, parts: &'p [Expr<'a>]) -> Outcome<Vec<Value<'a>>> {
        parts.iter().map(|part| self.eval(frame, part)).collect()
    }

    /// `made`, which may be any of `parts` or hold what is in them.
    pub(in super::super) fn around(&mut self, made: Value<'a>, parts: &[Value<'a>]) -> Value<'a> {
        let mut result = made.memory();
        for part in parts {
            let all = self.heap.all(part);
            self.heap.put(&made, &all);
            result.join(&all);
        }
        result
    }

    /// `a.b.c`, where `a` is no variable.
    fn path(&self, frame: &Frame<'p, 'a>, expression: &Expr<'a>) -> Option<Vec<&'a str>> {
        let mut names = Vec::new();
        let mut at = expression;
        loop {
            match at {
                Expr::Member(of, name) => {
                    names.push(*name);
                    at = of;
                }
                Expr::Name(name) if !frame.names.contains_key(name) => {
                    names.push(*name);
                    names.reverse();
                    return Some(names);
                }
                _ => return None,
            }
        }
    }

    /// What a path `__torch__...` names.
    fn named(&mut self, path: &str) -> Outcome<Value<'a>> {
        let kind = if let Some(function) = self.program.by_path.get(path) {
            Kind::Function(*function)
        } else if self.program.classes.contains_key(path) {
            Kind::Class(path.into())
        } else if path.rsplit_once('.').is_some_and(|(class, _)| self.is_enum(class)) {
            Kind::Plain
        } else {
            return Err(self.unknown(&format!("it names {path}, which the archive does not define")));
        };
        Ok(Value { kind, ..Value::of(Known::NotNone) })
    }

    fn is_enum(&self, path: &str) -> bool {
        self.program.classes.get(path).is_some_and(|class| class.base == "Enum")
    }

    /// `several`: what comes back is taken apart at once.
    pub(super) fn call_expression(
        &mut self,
        frame: &mut Frame<'p, 'a>,
        call: &'p Call<'a>,
        several: bool,
    ) -> Outcome<Value<'a>> {
        let Call { callee, arguments, site } = call;
        let path = self.path(frame, callee);
        if let Some([name]) = path.as_deref()
            && !frame.closures.contains_key(name)
        {
            return self.builtin(frame, name, arguments, *site);
        }
        if let Some(["__torch__", class @ .., "__new__"]) = path.as_deref() {
            let class = format!("__torch__.{}", class.join("."));
            self.named(&class)?;
            return Ok(self.new_object(&class, *site));
        }
        let mut values = Vec::with_capacity(arguments.len());
        let operator = match path.as_deref() {
            Some(["torch", name]) => Some(("aten", *name)),
            Some(["ops", namespace, name]) => Some((*namespace, *name)),
            Some(["torch" | "ops", ..]) => {
                return Err(self.unknown(&format!("it calls {}", path_text(callee))));
            }
            _ => None,
        };
        // A method of an object, or an operator that is written as a method of a tensor.
        let of = match (callee, path.as_deref()) {
            (Expr::Member(of, name), None) => Some((self.eval(frame, of)?, *name)),
            _ => None,
        };
        for (name, argument) in arguments {
            values.push((*name, self.eval(frame, argument)?));
        }
        if let Some((namespace, name)) = operator {
            return self.operator(namespace, name, values, *site, several);
        }
        match of {
            Some((of, name)) if matches!(of.kind, Kind::Object(..)) => self.method(&of, name, values),
            Some((of, _)) if of.known == Known::Unset => Ok(of),
            Some((of, name)) => {
                values.insert(0, (None, of));
                self.operator("aten", name, values, *site, several)
            }
            None => {
                let callee = self.eval(frame, callee)?;
                self.call_value(frame, &callee, values, *site)
            }
        }
    }

    fn call_value(
        &mut self,
        frame: &mut Frame<'p, 'a>,
        callee: &Value<'a>,
        arguments: Arguments<'a>,
        site: Site,
    ) -> Outcome<Value<'a>> {
        match &callee.kind {
            Kind::Function(function) => self.call(*function, arguments),
            Kind::Closure(name) => {
                let Some(function) = frame.closures.get(name).copied() else { return Ok(Value::new()) };
                let outer = std::mem::take(&mut frame.returned);
                self.perhaps(frame, |run, frame| run.block(frame, &function.body).map(drop))?;
                Ok(std::mem::replace(&mut frame.returned, outer))
            }
            Kind::Class(path) => {
                let class = self.program.classes.get(&**path);
                if class.is_some_and(|class| matches!(class.base, "NamedTuple" | "Enum")) {
                    let parts: Vec<_> = arguments.into_iter().map(|(_, value)| value).collect();
                    return Ok(self.heap.make(site, &parts));
                }
                let object = self.new_object(path, site);
                if class.is_some_and(|class| class.methods.contains_key("__init__")) {
                    self.method(&object, "__init__", arguments)?;
                }
                Ok(object)
            }
            _ if callee.known == Known::Unset => Ok(Value::default()),
            _ => Err(self.unknown("it calls something that torchlane cannot follow")),
        }
    }

    fn new_object(&mut self, class: &str, site: Site) -> Value<'a> {
        Value { kind: Kind::Object(class.into(), None), ..self.heap.make(site, &[]) }
    }

    /// A call of a plain name.
    fn builtin(
        &mut self,
        frame: &mut Frame<'p, 'a>,
        name: &str,
        arguments: &'p [(Option<&'a str>, Expr<'a>)],
        site: Site,
    ) -> Outcome<Value<'a>> {
        let nth = |at: usize| arguments.get(at).map(|(_, argument)| argument);
        match (name, nth(0), nth(1)) {
            ("annotate", _, Some(value)) => return self.eval(frame, value),
            ("unchecked_cast", _, Some(value)) => {
                let value = self.eval(frame, value)?;
                let known = if value.known == Known::Any { Known::NotNone } else { value.known };
                return Ok(Value { known, ..value });
            }
            ("uninitialized", ..) => return Ok(Value::default()),
            ("getattr", Some(of), Some(Expr::Literal(name))) => {
                let of = self.eval(frame, of)?;
                return Ok(self.member(&of, unquoted(name)));
            }
            ("isinstance" | "hasattr", Some(of), _) => {
                self.eval(frame, of)?;
                return Ok(Value::of(Known::NotNone));
            }
            ("fork", Some(function), _) => {
                let callee = self.eval(frame, function)?;
                let mut values = Vec::new();
                for (name, argument) in arguments.iter().skip(1) {
                    values.push((*name, self.eval(frame, argument)?));
                }
                return self.call_value(frame, &callee, values, site);
            }
            _ => {}
        }
        if let Some(callee) = frame.names.get(name).cloned() {
            let mut values = Vec::new();
            for (name, argument) in arguments {
                values.push((*name, self.eval(frame, argument)?));
            }
            return self.call_value(frame, &callee, values, site);
        }
        if !HARMLESS_NAMES.contains(&name) {
            return Err(self.unknown(&format!("it calls {name}()")));
        }
        let mut values = Vec::new();
        for (_, argument) in arguments {
            values.push(self.eval(frame, argument)?);
        }
        if let ("bool", [only]) = (name, values.as_slice())
            && let Known::Bool(_) = only.known
        {
            return Ok(Value::of(only.known.clone()));
        }
        if matches!(
            name,
            "bool"
                | "int"
                | "float"
                | "str"
                | "len"
                | "range"
                | "abs"
                | "round"
                | "print"
                | "ord"
                | "chr"
                | "hash"
                | "hex"
                | "oct"
                | "complex"
        ) {
            return Ok(Value::of(Known::NotNone));
        }
        // `list`, `zip`, `enumerate`: something new with the same in it.
        let made = self.heap.make(site, &[]);
        for value in &values {
            let all = self.heap.all(value);
            let inner = self.heap.part(&all, None);
            self.heap.put(&made, &inner);
        }
        self.heap.put(&made, &made);
        Ok(made)
    }
}

fn path_text(expression: &Expr<'_>) -> String {
    match expression {
        Expr::Member(of, name) => format!("{}.{name}", path_text(of)),
        Expr::Name(name) => (*name).to_owned(),
        _ => String::new(),
    }
}
