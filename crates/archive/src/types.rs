//! Types as TorchScript spells them.

use std::fmt;

use serde::{Serialize, Serializer};

use super::lexer::Token;

/// Deepest nesting of a type that is read; what lies deeper becomes [`TypeExpr::Other`].
const MAX_DEPTH: usize = 32;

/// A type of an argument, a result or an attribute. `Display` prints it as TorchScript spells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TypeExpr {
    /// `Tensor`.
    Tensor,
    /// `int`.
    Int,
    /// `float`.
    Float,
    /// `bool`.
    Bool,
    /// `str`.
    Str,
    /// `number`: an `int`, a `float` or a `complex`.
    Number,
    /// `Device`.
    Device,
    /// `Optional[...]`.
    Optional(Box<TypeExpr>),
    /// `List[...]`.
    List(Box<TypeExpr>),
    /// `Tuple[...]`; without elements, `Tuple[()]`.
    Tuple(Vec<TypeExpr>),
    /// `Dict[key, value]`.
    Dict(Box<TypeExpr>, Box<TypeExpr>),
    /// A `NamedTuple` class of the archive.
    NamedTuple {
        /// Class, as it was called in Python.
        name: String,
        /// Names and types of its fields.
        fields: Vec<(String, TypeExpr)>,
    },
    /// Anything else, as it is spelled: `NoneType`, `Union[int, str]`, a class of the archive.
    Other(String),
}

impl TypeExpr {
    /// Whether a value of this type is a tensor, or is made of tensors only: what can cross the wire as named tensors.
    pub fn is_made_of_tensors(&self) -> bool {
        match self {
            Self::Tensor => true,
            Self::Optional(inner) | Self::List(inner) => inner.is_made_of_tensors(),
            Self::Dict(key, value) => **key == Self::Str && value.is_made_of_tensors(),
            Self::Tuple(items) => items.iter().all(Self::is_made_of_tensors),
            Self::NamedTuple { fields, .. } => fields.iter().all(|(_, ty)| ty.is_made_of_tensors()),
            _ => false,
        }
    }

    /// Counts the types that this one is made of off `left`; `false`, and nothing left, where there are more.
    pub(super) fn is_within(&self, left: &mut usize) -> bool {
        let Some(rest) = left.checked_sub(1) else {
            return false;
        };
        *left = rest;
        let within = match self {
            Self::Optional(inner) | Self::List(inner) => inner.is_within(left),
            Self::Dict(key, value) => key.is_within(left) && value.is_within(left),
            Self::Tuple(items) => items.iter().all(|item| item.is_within(left)),
            Self::NamedTuple { fields, .. } => fields.iter().all(|(_, ty)| ty.is_within(left)),
            _ => true,
        };
        if !within {
            *left = 0;
        }
        within
    }

    /// The type that these tokens spell.
    pub(super) fn parse(tokens: &[Token<'_>]) -> Self {
        Self::nested(tokens, 0)
    }

    fn nested(tokens: &[Token<'_>], depth: usize) -> Self {
        let other = || Self::Other(tokens.iter().map(|token| token.text()).collect());
        if depth > MAX_DEPTH {
            return Self::Other("...".to_owned());
        }
        match tokens {
            [Token::Name(name)] => match *name {
                "Tensor" => Self::Tensor,
                "int" => Self::Int,
                "float" => Self::Float,
                "bool" => Self::Bool,
                "str" => Self::Str,
                "number" | "Scalar" => Self::Number,
                "Device" => Self::Device,
                _ => other(),
            },
            [Token::Name(name), open, inner @ .., close] if open.is("[") && close.is("]") => {
                let parts = || split(inner).into_iter().map(|part| Self::nested(part, depth + 1));
                let mut items: Vec<_> = match *name {
                    "Optional" | "List" | "Dict" | "Union" | "Final" | "Future" => parts().collect(),
                    "Tuple" if inner.len() == 2 && inner.first().is_some_and(|token| token.is("(")) => {
                        Vec::new()
                    }
                    "Tuple" => return Self::Tuple(parts().collect()),
                    _ => return other(),
                };
                match (*name, items.pop(), items.pop()) {
                    ("Tuple", None, None) => Self::Tuple(Vec::new()),
                    ("Optional", Some(inner), None) => Self::Optional(Box::new(inner)),
                    ("List", Some(inner), None) => Self::List(Box::new(inner)),
                    ("Dict", Some(value), Some(key)) if items.is_empty() => {
                        Self::Dict(Box::new(key), Box::new(value))
                    }
                    (_, last, before) => {
                        items.extend(before);
                        items.extend(last);
                        Self::Other(format!("{name}[{}]", listed(&items)))
                    }
                }
            }
            _ => other(),
        }
    }
}

impl fmt::Display for TypeExpr {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor => out.write_str("Tensor"),
            Self::Int => out.write_str("int"),
            Self::Float => out.write_str("float"),
            Self::Bool => out.write_str("bool"),
            Self::Str => out.write_str("str"),
            Self::Number => out.write_str("number"),
            Self::Device => out.write_str("Device"),
            Self::Optional(inner) => write!(out, "Optional[{inner}]"),
            Self::List(inner) => write!(out, "List[{inner}]"),
            Self::Tuple(items) if items.is_empty() => out.write_str("Tuple[()]"),
            Self::Tuple(items) => write!(out, "Tuple[{}]", listed(items)),
            Self::Dict(key, value) => write!(out, "Dict[{key}, {value}]"),
            Self::NamedTuple { name, .. } => out.write_str(name),
            Self::Other(text) => out.write_str(text),
        }
    }
}

impl Serialize for TypeExpr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn listed(items: &[TypeExpr]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Parts between the commas that are in no bracket; an empty last one is left out.
pub(super) fn split<'t, 'a>(tokens: &'t [Token<'a>]) -> Vec<&'t [Token<'a>]> {
    let mut depth = 0_i64;
    let mut parts: Vec<_> = tokens
        .split(|token| {
            match token {
                Token::Symbol("(" | "[" | "{") => depth += 1,
                Token::Symbol(")" | "]" | "}") => depth -= 1,
                _ => {}
            }
            depth == 0 && token.is(",")
        })
        .collect();
    if parts.last().is_some_and(|last| last.is_empty()) {
        parts.pop();
    }
    parts
}

/// A class path, or a type with some in it, as in Python: without `__torch__.` and without the `___torch_mangle_3.` that
/// tells copies apart.
pub(super) fn demangle(path: &str) -> String {
    let path = path.replace("__torch__.", "");
    let mut parts = path.split("___torch_mangle_");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean.push_str(
            part.trim_start_matches(|letter: char| letter.is_ascii_digit()).trim_start_matches('.'),
        );
    }
    clean
}

/// What is between the bracket that begins `tokens` and its partner, and what follows.
pub(super) fn bracketed<'t, 'a>(tokens: &'t [Token<'a>]) -> Option<(&'t [Token<'a>], &'t [Token<'a>])> {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Symbol("(" | "[" | "{") => depth += 1,
            Token::Symbol(")" | "]" | "}") => depth = depth.checked_sub(1)?,
            _ => {}
        }
        if depth == 0 {
            return Some((tokens.get(1..at)?, tokens.get(at + 1..)?));
        }
    }
    None
}
