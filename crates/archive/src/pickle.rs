//! A reader of the pickles that TorchScript writes. It builds plain values and never calls anything: a global is only
//! a name, a reduction only a pair of name and arguments.
//!
//! Only the opcodes that libtorch's own reader takes are known; any other is an error that names it. Values live in
//! one arena and refer to each other by number, so that no nesting, however deep, needs the stack.

use std::collections::HashMap;

use super::error::{ArchiveError, shown};

/// Most values that one pickle may build; a tensor takes some fifteen, so this is over 100,000 tensors.
const MAX_VALUES: usize = 2_000_000;

/// A value's place in the arena of its [`Pickle`].
pub(crate) type Id = u32;

/// One value. Text is borrowed from the pickle's bytes.
#[derive(Debug, Clone)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// A number whose value nobody needs: a float, or an integer of over 64 bits.
    Number,
    Str(&'a str),
    Global {
        module: &'a str,
        name: &'a str,
    },
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// Made by NEWOBJ: an instance of the class named by a global; the state is what BUILD gave it.
    Object {
        class: Id,
        state: Option<Id>,
    },
    /// A call that is not made.
    Reduce {
        callable: Id,
        args: Id,
    },
    /// A reference to something outside the pickle: here, a storage.
    Persistent(Id),
}

impl Value<'_> {
    /// The values that this one is made of.
    pub(super) fn parts(&self) -> impl Iterator<Item = Id> {
        let (mut list, mut pairs, mut others): (&[Id], &[(Id, Id)], _) = (&[], &[], [None, None]);
        match self {
            Self::Tuple(items) | Self::List(items) => list = items,
            Self::Dict(items) => pairs = items,
            Self::Object { class, state } => others = [Some(*class), *state],
            Self::Reduce { callable, args } => others = [Some(*callable), Some(*args)],
            Self::Persistent(id) => others = [Some(*id), None],
            Self::None | Self::Bool(_) | Self::Int(_) | Self::Number | Self::Str(_) | Self::Global { .. } => {
            }
        }
        let pairs = pairs.iter().flat_map(|(key, value)| [*key, *value]);
        list.iter().copied().chain(pairs).chain(others.into_iter().flatten())
    }
}

/// A pickle, read.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    values: Vec<Value<'a>>,
    root: Id,
}

impl<'a> Pickle<'a> {
    /// Reads all of `bytes`; `entry` is the name that errors carry.
    pub(crate) fn parse(bytes: &'a [u8], entry: &str) -> Result<Self, ArchiveError> {
        let mut machine = Machine {
            bytes,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        match machine.run() {
            Ok(root) => Ok(Self { values: machine.values, root }),
            Err(reason) => Err(ArchiveError::Pickle { entry: shown(entry), offset: machine.at, reason }),
        }
    }

    /// What the pickle is of.
    pub(crate) fn root(&self) -> Id {
        self.root
    }

    /// The value at `id`; one that is not there reads as `None`.
    pub(crate) fn get(&self, id: Id) -> &Value<'a> {
        self.values.get(id as usize).unwrap_or(&Value::None)
    }

    /// Every value, in the order in which they were made.
    pub(crate) fn values(&self) -> impl Iterator<Item = &Value<'a>> {
        self.values.iter()
    }

    /// Module and name, where `id` is a global.
    pub(crate) fn global(&self, id: Id) -> Option<(&'a str, &'a str)> {
        match self.get(id) {
            Value::Global { module, name } => Some((module, name)),
            _ => None,
        }
    }

    /// The items, where `id` is a tuple.
    pub(crate) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    fn run(&mut self) -> Step<Id> {
        loop {
            let [opcode] = self.fixed()?;
            match opcode {
                b'\x80' => match self.fixed()? {
                    [2..=4] => {}
                    [other] => return Err(format!("pickle protocol {other}, not 2")),
                },
                b'.' => return self.pop(),
                b'(' => self.marks.push(self.stack.len()),
                b'0' => self.pop().map(drop)?,
                b'N' => self.push(Value::None)?,
                b'\x88' => self.push(Value::Bool(true))?,
                b'\x89' => self.push(Value::Bool(false))?,
                b'K' => {
                    let [value] = self.fixed()?;
                    self.push(Value::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.fixed()?);
                    self.push(Value::Int(value.into()))?;
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.fixed()?);
                    self.push(Value::Int(value.into()))?;
                }
                b'\x8a' => {
                    let [length] = self.fixed()?;
                    let value = long(self.take(length.into())?);
                    self.push(value)?;
                }
                b'G' => {
                    self.take(8)?;
                    self.push(Value::Number)?;
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.fixed()?);
                    let text = self.take(length as usize)?;
                    let text = std::str::from_utf8(text).map_err(|_| "text that is not UTF-8".to_owned())?;
                    self.push(Value::Str(text))?;
                }
                // Byte strings: only old writers have them, and nothing here looks into one.
                b'T' => {
                    let length = u32::from_le_bytes(self.fixed()?);
                    let text = self.take(length as usize)?;
                    self.push(Value::Str(std::str::from_utf8(text).unwrap_or_default()))?;
                }
                b'U' => {
                    let [length] = self.fixed()?;
                    let text = self.take(length.into())?;
                    self.push(Value::Str(std::str::from_utf8(text).unwrap_or_default()))?;
                }
                b')' => self.push(Value::Tuple(Vec::new()))?,
                b'\x85' => self.tuple_of(1)?,
                b'\x86' => self.tuple_of(2)?,
                b'\x87' => self.tuple_of(3)?,
                b't' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Tuple(items))?;
                }
                b']' => self.push(Value::List(Vec::new()))?,
                b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::List(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.append(items)?;
                }
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b'd' => {
                    let items = self.pop_to_mark()?;
                    self.push(Value::Dict(Vec::new()))?;
                    self.insert(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.insert(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.insert(items)?;
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.push(Value::Global { module, name })?;
                }
                b'\x81' => {
                    self.pop()?;
                    let class = self.pop()?;
                    self.push(Value::Object { class, state: None })?;
                }
                b'R' => {
                    let args = self.pop()?;
                    let callable = self.pop()?;
                    let value = self.reduce(callable, args);
                    self.push(value)?;
                }
                b'b' => self.build()?,
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Value::Persistent(id))?;
                }
                b'q' => {
                    let [slot] = self.fixed()?;
                    self.memoize(slot.into())?;
                }
                b'r' => {
                    let slot = u32::from_le_bytes(self.fixed()?);
                    self.memoize(slot)?;
                }
                b'h' => {
                    let [slot] = self.fixed()?;
                    self.recall(slot.into())?;
                }
                b'j' => {
                    let slot = u32::from_le_bytes(self.fixed()?);
                    self.recall(slot)?;
                }
                other => return Err(format!("opcode 0x{other:02x}, which TorchScript does not write")),
            }
        }
    }

    fn take(&mut self, length: usize) -> Step<&'a [u8]> {
        let end = self.at.checked_add(length).ok_or("a length that overflows")?;
        let taken = self.bytes.get(self.at..end).ok_or("it ends in the middle of a value")?;
        self.at = end;
        Ok(taken)
    }

    fn fixed<const N: usize>(&mut self) -> Step<[u8; N]> {
        self.take(N)?.first_chunk::<N>().copied().ok_or_else(|| "it ends in the middle of a value".to_owned())
    }

    fn line(&mut self) -> Step<&'a str> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n').ok_or("a name without an end")?;
        let line = self.take(length)?;
        self.take(1)?;
        std::str::from_utf8(line).map_err(|_| "a name that is not UTF-8".to_owned())
    }

    fn push(&mut self, value: Value<'a>) -> Step<()> {
        if self.values.len() >= MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    /// The stack above the last mark is all that an opcode may take from.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Step<Id> {
        if self.stack.len() <= self.floor() {
            return Err("it takes a value that is not there".to_owned());
        }
        self.stack.pop().ok_or_else(|| "it takes a value that is not there".to_owned())
    }

    fn top(&self) -> Step<Id> {
        let above = self.stack.get(self.floor()..).unwrap_or_default();
        above.last().copied().ok_or_else(|| "it needs a value that is not there".to_owned())
    }

    fn pop_to_mark(&mut self) -> Step<Vec<Id>> {
        let mark = self.marks.pop().ok_or("it goes back to a mark that is not there")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn tuple_of(&mut self, length: usize) -> Step<()> {
        let start = self.stack.len().checked_sub(length).filter(|start| *start >= self.floor());
        let items = self.stack.split_off(start.ok_or("it takes a value that is not there")?);
        self.push(Value::Tuple(items))
    }

    fn append(&mut self, more: Vec<Id>) -> Step<()> {
        let target = self.top()?;
        match self.values.get_mut(target as usize) {
            Some(Value::List(items)) => items.extend(more),
            _ => return Err("it appends to something that is no list".to_owned()),
        }
        Ok(())
    }

    fn insert(&mut self, pairs: Vec<Id>) -> Step<()> {
        let target = self.top()?;
        let (pairs, []) = pairs.as_chunks::<2>() else {
            return Err("a key without a value".to_owned());
        };
        match self.values.get_mut(target as usize) {
            Some(Value::Dict(items)) => items.extend(pairs.iter().map(|[key, value]| (*key, *value))),
            _ => return Err("it sets an item of something that is no dict".to_owned()),
        }
        Ok(())
    }

    /// What a call would make, as far as it is known: an `OrderedDict()` is a dict that items are set in afterwards.
    fn reduce(&self, callable: Id, args: Id) -> Value<'a> {
        let value = |id: Id| self.values.get(id as usize);
        match (value(callable), value(args)) {
            (
                Some(Value::Global { module: "collections", name: "OrderedDict" }),
                Some(Value::Tuple(args)),
            ) if args.is_empty() => Value::Dict(Vec::new()),
            _ => Value::Reduce { callable, args },
        }
    }

    fn build(&mut self) -> Step<()> {
        let given = self.pop()?;
        let target = self.top()?;
        match self.values.get_mut(target as usize) {
            Some(Value::Object { state, .. }) => *state = Some(given),
            // The attributes of a state dict: versions of its modules, which only Python looks at.
            Some(Value::Dict(_)) => {}
            _ => return Err("it gives a state to something that is no object".to_owned()),
        }
        Ok(())
    }

    fn memoize(&mut self, slot: u32) -> Step<()> {
        // libtorch makes room for all slots up to this one.
        if slot as usize > self.values.len() {
            return Err(format!("memo slot {slot}, where {} would be next", self.values.len()));
        }
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Step<()> {
        let id = self.memo.get(&slot).ok_or_else(|| format!("memo slot {slot}, which is empty"))?;
        self.stack.push(*id);
        Ok(())
    }
}

/// A little-endian two's-complement integer of any length.
fn long(bytes: &[u8]) -> Value<'static> {
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut wide = if negative { [0xff_u8; 8] } else { [0; 8] };
    match wide.get_mut(..bytes.len()) {
        Some(low) => {
            low.copy_from_slice(bytes);
            Value::Int(i64::from_le_bytes(wide))
        }
        None => Value::Number,
    }
}

/// `module.name` of a global, fit for a message.
pub(crate) fn shown_global(module: &str, name: &str) -> String {
    shown(&format!("{module}.{name}"))
}
