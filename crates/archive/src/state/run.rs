//! Follows a call of `forward` through the code, with what is known of values in the place of values.
//!
//! Branches whose condition is a constant of this module (`self.training` is false: torchlane puts every model into evaluation)
//! are decided; of others both sides are followed. What is put into lists is known by where the list was made, for the whole
//! call, so the call is followed again until nothing new is put anywhere.

mod expressions;

use std::collections::HashMap;
use std::rc::Rc;

use super::super::info::Seen;
use super::super::pickle::Id;
use super::ast::{Expr, Function, Program, Statement, Target, What};
use super::objects::{Attribute, Objects};
use super::value::{Heap, Kind, Known, Value};

/// Deepest nesting of calls, blocks and expressions together.
const MAX_DEPTH: usize = 1500;
/// Most expressions that are looked at.
const MAX_STEPS: usize = 6_000_000;
/// Most times that the whole call is followed.
const MAX_ROUNDS: usize = 12;

/// The end of the way: what was found stands in [`Run::found`].
pub(super) struct Stop;

pub(super) type Outcome<T> = Result<T, Stop>;

/// Arguments of a call, with their names where they have some.
pub(super) type Arguments<'a> = Vec<(Option<&'a str>, Value<'a>)>;

pub(super) struct Run<'p, 'a> {
    pub(super) program: &'p Program<'a>,
    objects: Objects<'p>,
    pub(super) heap: Heap<'a>,
    /// What a function comes to for arguments; `None`: it is being followed.
    memo: HashMap<(usize, Vec<Value<'a>>), Option<Value<'a>>>,
    /// Attributes that the first call sets to a constant, whatever it is given.
    fixed: HashMap<(Id, Rc<str>), Known>,
    /// Conditions around here that are not decided.
    undecided: usize,
    depth: usize,
    steps: usize,
    /// Function and line that are followed now.
    place: (usize, usize),
    /// The first thing that makes the model one that keeps state.
    pub(super) found: Option<Seen>,
    /// The first operator that is in a mode for training.
    pub(super) training: Option<Seen>,
}

/// One call of a function.
#[derive(Default)]
struct Frame<'p, 'a> {
    names: HashMap<&'a str, Value<'a>>,
    closures: HashMap<&'a str, &'p Function<'a>>,
    returned: Value<'a>,
    /// Conditions and loops around here, in this function: what is assigned may not be.
    weak: usize,
    /// Some name came to mean more.
    changed: bool,
}

impl<'p, 'a> Run<'p, 'a> {
    pub(super) fn new(program: &'p Program<'a>, objects: Objects<'p>) -> Self {
        Self {
            program,
            objects,
            heap: Heap::default(),
            memo: HashMap::new(),
            fixed: HashMap::new(),
            undecided: 0,
            depth: 0,
            steps: MAX_STEPS,
            place: (0, 0),
            found: None,
            training: None,
        }
    }

    /// Follows `forward` of the object at `root`, and what libtorch calls around it.
    pub(super) fn all(&mut self, root: Id) {
        for _ in 0..MAX_ROUNDS {
            self.memo.clear();
            self.heap.changed = false;
            let fixed = self.fixed.len();
            if self.once(root).is_err() || self.found.is_some() {
                return;
            }
            if !self.heap.changed && fixed == self.fixed.len() {
                return;
            }
        }
        self.note("the code is too tangled to follow".to_owned());
    }

    fn once(&mut self, root: Id) -> Outcome<()> {
        let class = self.objects.class(root).unwrap_or_default();
        let program = self.program;
        let this = Value { kind: Kind::Object(class.clone(), Some(root)), ..Value::kept("self") };
        let Some(class) = program.classes.get(&*class) else {
            return Err(self.unknown("the code of the top module cannot be read"));
        };
        for name in class.hooks.iter().map(String::as_str).chain(["forward"]) {
            let Some(function) = class.methods.get(name).copied() else { continue };
            let parameters =
                program.functions.get(function).map_or(0, |(_, function)| function.parameters.len());
            let inputs = std::iter::repeat_n((None, Value::new()), parameters.saturating_sub(1));
            self.call(function, std::iter::once((None, this.clone())).chain(inputs).collect())?;
        }
        Ok(())
    }

    /// Remembers that the model keeps state, if it is the first reason.
    pub(super) fn note(&mut self, what: String) {
        if self.found.is_none() {
            self.found = Some(Seen { what, place: self.here() });
        }
    }

    /// Nothing more can be said: what comes then counts as state.
    pub(super) fn unknown(&mut self, what: &str) -> Stop {
        self.note(format!("torchlane cannot tell: {what}"));
        Stop
    }

    pub(super) fn here(&self) -> String {
        let (function, line) = self.place;
        let file = self.program.functions.get(function).map_or("code", |(file, _)| file.as_str());
        format!("{file}:{line}")
    }

    /// `value` is written to.
    pub(super) fn write(&mut self, value: &Value<'a>, by: &str) {
        if let Some(kept) = &value.kept {
            let what = format!("{by} writes to {}", kept.0);
            self.note(what);
        }
    }

    /// Counts one level down, and one step.
    fn deeper(&mut self) -> Outcome<()> {
        self.depth += 1;
        self.steps = self.steps.saturating_sub(1);
        if self.depth > MAX_DEPTH || self.steps == 0 || self.heap.is_exhausted() {
            return Err(self.unknown("the code is too large"));
        }
        Ok(())
    }

    /// Calls a function of the program.
    fn call(&mut self, at: usize, arguments: Arguments<'a>) -> Outcome<Value<'a>> {
        let program = self.program;
        let Some((_, function)) = program.functions.get(at) else {
            return Err(self.unknown("it calls a function that is not there"));
        };
        let mut frame = Frame::default();
        let came_from = self.place;
        self.place.0 = at;
        let mut given = Vec::with_capacity(function.parameters.len());
        let by_position = arguments.iter().filter(|(name, _)| name.is_none()).count();
        for (index, (name, default)) in function.parameters.iter().enumerate() {
            let value = match arguments.get(index).filter(|_| index < by_position) {
                Some((_, value)) => value.clone(),
                None => match (arguments.iter().find(|(given, _)| *given == Some(name)), default) {
                    (Some((_, value)), _) => value.clone(),
                    // A list as a default is one list for all calls.
                    (None, Some(default @ (Expr::Sequence(..) | Expr::Dict(..)))) => {
                        drop(self.eval(&mut frame, default)?);
                        Value::kept(format!("the default of {name}"))
                    }
                    (None, Some(default)) => self.eval(&mut frame, default)?,
                    (None, None) => Value::new(),
                },
            };
            given.push(value);
        }
        let key = (at, given);
        match self.memo.get(&key) {
            Some(Some(known)) => {
                self.place = came_from;
                return Ok(known.clone());
            }
            Some(None) => return Err(self.unknown("a function calls itself")),
            None => {}
        }
        for ((name, _), value) in function.parameters.iter().zip(&key.1) {
            frame.names.insert(name, value.clone());
        }
        self.memo.insert(key.clone(), None);
        self.deeper()?;
        if !self.block(&mut frame, &function.body)? {
            frame.returned.join(&Value::of(Known::None));
        }
        self.depth -= 1;
        self.place = came_from;
        self.memo.insert(key, Some(frame.returned.clone()));
        Ok(frame.returned)
    }

    /// Follows statements; `true` once the function has returned for certain.
    fn block(&mut self, frame: &mut Frame<'p, 'a>, body: &'p [Statement<'a>]) -> Outcome<bool> {
        self.deeper()?;
        for Statement { line, what } in body {
            self.place.1 = *line;
            if self.statement(frame, what)? {
                self.depth -= 1;
                return Ok(true);
            }
        }
        self.depth -= 1;
        Ok(false)
    }

    fn statement(&mut self, frame: &mut Frame<'p, 'a>, what: &'p What<'a>) -> Outcome<bool> {
        match what {
            What::Do(expression) => drop(self.eval(frame, expression)?),
            What::Assign(targets, value) => self.assignment(frame, targets, value)?,
            What::Augment(target, value) => {
                let (target_value, value) = (self.eval(frame, target)?, self.eval(frame, value)?);
                self.write(&target_value, "an augmented assignment");
                let inner = self.heap.part(&value, None);
                self.heap.put(&target_value, &inner);
                match target {
                    Expr::Name(name) => {
                        let mut both = target_value.memory();
                        both.join(&value.memory());
                        self.assign(frame, name, both);
                    }
                    Expr::Member(of, name) => {
                        let of = self.eval(frame, of)?;
                        self.set_member(&of, name, &Value::new());
                    }
                    _ => {}
                }
            }
            What::If(condition, then, otherwise) => match self.eval(frame, condition)?.known {
                Known::Bool(is) => return self.block(frame, if is { then } else { otherwise }),
                _ => self.perhaps(frame, |run, frame| {
                    run.block(frame, then)?;
                    run.block(frame, otherwise).map(drop)
                })?,
            },
            What::While(condition, body) => {
                if self.eval(frame, condition)?.known != Known::Bool(false) {
                    self.repeat(frame, |run, frame| {
                        run.block(frame, body)?;
                        run.eval(frame, condition).map(drop)
                    })?;
                }
            }
            What::For(target, over, body) => {
                let over = self.eval(frame, over)?;
                let item = self.heap.part(&over, None);
                self.repeat(frame, |run, frame| {
                    run.bind(frame, target, item.clone())?;
                    run.block(frame, body).map(drop)
                })?;
            }
            What::With(items, body) => {
                let mut open = Vec::new();
                for (value, target) in items {
                    let value = self.eval(frame, value)?;
                    let entered = self.method(&value, "__enter__", Vec::new())?;
                    if let Some(target) = target {
                        self.bind(frame, target, entered)?;
                    }
                    open.push(value);
                }
                let returned = self.block(frame, body)?;
                for value in open {
                    let nothing = std::iter::repeat_n((None, Value::of(Known::None)), 3).collect();
                    self.method(&value, "__exit__", nothing)?;
                }
                return Ok(returned);
            }
            What::Return(value) => {
                let value = match value {
                    Some(value) => self.eval(frame, value)?,
                    None => Value::of(Known::None),
                };
                frame.returned.join(&value);
                return Ok(frame.weak == 0);
            }
            What::Define(function) => drop(frame.closures.insert(function.name, function)),
        }
        Ok(false)
    }

    /// Follows what may or may not be run.
    fn perhaps(
        &mut self,
        frame: &mut Frame<'p, 'a>,
        run: impl FnOnce(&mut Self, &mut Frame<'p, 'a>) -> Outcome<()>,
    ) -> Outcome<()> {
        self.undecided += 1;
        frame.weak += 1;
        run(self, frame)?;
        frame.weak -= 1;
        self.undecided -= 1;
        Ok(())
    }

    /// Follows what may be run any number of times, until no name comes to mean more.
    fn repeat(
        &mut self,
        frame: &mut Frame<'p, 'a>,
        mut body: impl FnMut(&mut Self, &mut Frame<'p, 'a>) -> Outcome<()>,
    ) -> Outcome<()> {
        let before = frame.changed;
        let mut changed = false;
        self.perhaps(frame, |run, frame| {
            loop {
                frame.changed = false;
                body(run, frame)?;
                if !frame.changed {
                    return Ok(());
                }
                changed = true;
            }
        })?;
        frame.changed = before || changed;
        Ok(())
    }

    fn assignment(
        &mut self,
        frame: &mut Frame<'p, 'a>,
        targets: &'p [Target<'a>],
        value: &'p Expr<'a>,
    ) -> Outcome<()> {
        let value = match (value, targets) {
            // `a, b = c, d`: each its own, all of the right side first.
            (Expr::Sequence(parts, _), [Target::Several(targets)]) if parts.len() == targets.len() => {
                let values = parts.iter().map(|part| self.eval(frame, part)).collect::<Outcome<Vec<_>>>()?;
                for (target, value) in targets.iter().zip(values) {
                    self.bind(frame, target, value)?;
                }
                return Ok(());
            }
            (Expr::Call(call), [Target::Several(_)]) => self.call_expression(frame, call, true)?,
            _ => self.eval(frame, value)?,
        };
        targets.iter().try_for_each(|target| self.bind(frame, target, value.clone()))
    }

    fn assign(&mut self, frame: &mut Frame<'p, 'a>, name: &'a str, value: Value<'a>) {
        if frame.weak > 0 {
            frame.changed |= frame.names.entry(name).or_default().join(&value);
        } else {
            frame.names.insert(name, value);
        }
    }

    fn bind(&mut self, frame: &mut Frame<'p, 'a>, target: &'p Target<'a>, value: Value<'a>) -> Outcome<()> {
        match target {
            Target::Name(name) => self.assign(frame, name, value),
            Target::Several(targets) => {
                for (at, target) in targets.iter().enumerate() {
                    let part = self.heap.part(&value, Some(at));
                    self.bind(frame, target, part)?;
                }
            }
            Target::Item(of) => {
                let of = self.eval(frame, of)?;
                self.write(&of, "an assignment");
                self.heap.put(&of, &value);
            }
            Target::Member(of, name) => {
                let of = self.eval(frame, of)?;
                self.set_member(&of, name, &value);
                self.heap.put(&of, &value);
            }
        }
        Ok(())
    }

    /// `of.name = value`. The first call may set what later calls find set; it belongs to the warm-up.
    fn set_member(&mut self, of: &Value<'a>, name: &'a str, value: &Value<'a>) {
        let Some(kept) = &of.kept else { return };
        let what = format!("the code assigns {}.{name}", kept.0);
        let is_constant = matches!(value.known, Known::None | Known::Bool(_) | Known::Literal(_));
        if let (Kind::Object(_, Some(id)), true) = (&of.kind, is_constant && value.kept.is_none()) {
            if self.member(of, name).known == value.known {
                return;
            }
            let key = (*id, name.into());
            if self.undecided == 0 && !self.fixed.contains_key(&key) {
                self.fixed.insert(key, value.known.clone());
                self.memo.retain(|_, known| known.is_none());
                return;
            }
        }
        self.note(what);
    }

    pub(super) fn member(&mut self, of: &Value<'a>, name: &str) -> Value<'a> {
        let inner = || of.kept.as_ref().map(|kept| Value::kept(format!("{}.{name}", kept.0)));
        let (Kind::Object(class, id), Some(kept)) = (&of.kind, inner()) else {
            let mut part = self.heap.part(of, None);
            if let Some(kept) = inner() {
                part.join(&Value { known: Known::Any, ..kept });
            }
            return part;
        };
        let class = self.program.classes.get(&**class);
        let of_class = |path: String| Value { kind: Kind::Object(path.into(), None), ..kept.clone() };
        let Some(id) = id else {
            let declared = class.and_then(|class| class.objects.get(name).cloned());
            return declared.map_or(Value { known: Known::Any, ..kept.clone() }, of_class);
        };
        if let Some(known) = self.fixed.get(&(*id, name.into())) {
            return Value::of(known.clone());
        }
        // torchlane puts every module into evaluation.
        if name == "training" && class.is_some_and(|class| class.base == "Module") {
            return Value::of(Known::Bool(false));
        }
        match self.objects.attribute(*id, name) {
            Some(Attribute::Constant(known)) => Value::of(known),
            Some(Attribute::Object(id)) => {
                let class = self.objects.class(id).unwrap_or_default();
                Value { kind: Kind::Object(class, Some(id)), ..kept }
            }
            Some(Attribute::Tensor) => Value { kind: Kind::Tensor, ..kept },
            Some(Attribute::Other) => kept,
            None => {
                let declared = class.and_then(|class| class.objects.get(name).cloned());
                declared.map_or(Value { known: Known::Any, ..kept.clone() }, of_class)
            }
        }
    }

    pub(super) fn method(
        &mut self,
        of: &Value<'a>,
        name: &str,
        mut arguments: Arguments<'a>,
    ) -> Outcome<Value<'a>> {
        let Kind::Object(class, _) = &of.kind else {
            if of.known == Known::Unset {
                return Ok(Value::default());
            }
            return Err(self.unknown(&format!("it calls {name}() of something")));
        };
        let program = self.program;
        // Methods of an interface have no bodies.
        let class_of = program.classes.get(&**class).filter(|class| !class.base.ends_with("Interface"));
        let found = class_of.and_then(|class| class.methods.get(name).copied());
        match found {
            Some(function) => {
                arguments.insert(0, (None, of.clone()));
                self.call(function, arguments)
            }
            None => {
                Err(self.unknown(&format!("it calls {name}() of {class}, which the archive does not define")))
            }
        }
    }
}
