//! Arguments that libtorch takes as they are: numbers of dtypes and layouts, numbers of heads, casts. Exports write them
//! as literals, or get them from where they cannot be wrong, so that is asked for here.

use std::collections::HashMap;

use super::super::lexer::{Lexer, Token};
use super::super::types::{TypeExpr, bracketed, split};
use super::Danger;

/// Most tokens that are looked through for arguments in one archive; beyond, a form counts as wrong.
const MAX_TOKENS: usize = 1 << 24;

/// Most types that are remembered of a name; beyond, nothing is known of it.
const MAX_TYPES: usize = 8;

/// Dtype numbers (`c10/core/ScalarType.h`) of plain tensors: those of quantized ones, of bits and of less than a byte are not.
fn is_dtype(number: &str) -> bool {
    matches!(number.parse::<u64>(), Ok(0..=11 | 15 | 23..=29 | 44))
}

/// Operators whose positional argument at this place, counted from 0 with the tensor, is a dtype if it is a number.
const DTYPE_AT: &[(&str, usize)] = &[
    ("to", 1),
    ("to", 2),
    ("view", 1),
    ("softmax", 2),
    ("log_softmax", 2),
    ("can_cast", 0),
    ("can_cast", 1),
    ("promote_types", 0),
    ("promote_types", 1),
];

/// Operators with the places of the width and of the number of heads it is divided by.
const HEADS_AT: &[(&str, usize, usize)] =
    &[("_native_multi_head_attention", 3, 4), ("_transformer_encoder_layer_fwd", 1, 2)];

/// Operators of `[values]`, and what makes a call of one harmless.
const HARMLESS_IF: &[(&str, Harmless)] = &[
    ("remainder", Harmless::Positive(1)),
    ("floordiv", Harmless::Positive(1)),
    ("__round_to_zero_floordiv", Harmless::Positive(1)),
    ("matrix_power", Harmless::Positive(1)),
    ("linalg_matrix_power", Harmless::Positive(1)),
    ("div", Harmless::Without("trunc")),
    ("linalg_lstsq", Harmless::Without("gelss")),
    ("sort", Harmless::NotReversed),
    ("count", Harmless::Text(1)),
    ("replace", Harmless::Text(1)),
    ("embedding_bag", Harmless::Mode(4)),
];

#[derive(Debug, Clone, Copy)]
enum Harmless {
    /// The argument at this place is a number above zero.
    Positive(usize),
    /// The argument at this place is a text, not an empty one.
    Text(usize),
    /// No argument is this text, and none is named like the argument that takes it but a literal.
    Without(&'static str),
    /// The mode at this place is 1 or 2 (mean or max): only sums believe the offsets.
    Mode(usize),
    /// A list in ascending order, or a tensor, whose second argument is a dimension.
    NotReversed,
}

impl Harmless {
    fn is(self, arguments: &[&[Token<'_>]]) -> bool {
        let at = |place: usize| arguments.get(place).copied().unwrap_or_default();
        match self {
            Self::Positive(place) => {
                matches!(at(place), [Token::Number(number)] if number.parse::<f64>().is_ok_and(|n| n > 0.0))
            }
            Self::Text(place) => {
                matches!(at(place), [Token::Text(text)] if text.len() > 2 && !text.starts_with("\"\"\""))
            }
            Self::Without(text) => arguments.iter().all(|argument| match argument {
                [Token::Name("rounding_mode" | "driver"), _, Token::Text(given)] => {
                    given.trim_matches(['"', '\'']) != text
                }
                [Token::Name("rounding_mode" | "driver"), _, Token::Name("None")] => true,
                [Token::Name("rounding_mode" | "driver"), equals, ..] => !equals.is("="),
                _ => true,
            }),
            Self::Mode(place) => matches!(at(place), [Token::Number("1" | "2")]),
            Self::NotReversed => !matches!(at(1), [Token::Name("True")]),
        }
    }
}

/// What is known of the names in one file.
#[derive(Debug)]
pub(super) struct Forms {
    /// Attributes of the open class.
    attributes: HashMap<String, TypeExpr>,
    /// Types that each name in the open definition was given.
    names: HashMap<String, Vec<TypeExpr>>,
    /// Indentation of the open definition, and the name of its first argument, which is the object in a method.
    definition: Option<usize>,
    receiver: String,
    /// Arguments of the open definition that may be anything, while nothing reads them.
    unread: Vec<String>,
    /// Names that were given the value of an attribute, and that attribute's name.
    origins: HashMap<String, String>,
    tokens_left: usize,
}

impl Default for Forms {
    fn default() -> Self {
        Self {
            attributes: HashMap::new(),
            names: HashMap::new(),
            definition: None,
            receiver: String::new(),
            unread: Vec::new(),
            origins: HashMap::new(),
            tokens_left: MAX_TOKENS,
        }
    }
}

impl Forms {
    /// Takes in a logical line, and says what is wrong in it.
    pub(super) fn line(&mut self, indent: usize, tokens: &[Token<'_>], find: &mut dyn FnMut(Danger, &str)) {
        if indent == 0 {
            self.attributes.clear();
        }
        if self.definition.is_some_and(|at| indent <= at) {
            self.definition = None;
            self.names.clear();
            self.unread.clear();
            self.origins.clear();
        }
        match tokens {
            [Token::Name("def"), Token::Name(_), rest @ ..] => {
                // Behind it nothing would be known any more of the function around it. Exports have none.
                if self.definition.is_some() {
                    find(Danger::Unreadable, "code with a function within a function");
                }
                self.definition = Some(indent);
                self.names.clear();
                self.unread.clear();
                self.origins.clear();
                let (arguments, _) = bracketed(rest).unwrap_or_default();
                let first = arguments.first().and_then(|token| token.name()).filter(|_| indent > 0);
                first.unwrap_or_default().clone_into(&mut self.receiver);
                for argument in split(arguments) {
                    if let [Token::Name(name), colon, ty @ ..] = argument
                        && colon.is(":")
                    {
                        self.give(name, TypeExpr::parse(before(ty, "=")));
                    }
                }
            }
            [Token::Name(name), colon, ty @ ..] if colon.is(":") => {
                let ty = TypeExpr::parse(before(ty, "="));
                match self.definition {
                    None => drop(self.attributes.insert((*name).to_owned(), ty)),
                    Some(_) => self.give(name, ty),
                }
            }
            _ => self.assignment(tokens),
        }
        self.targets(tokens);
        self.anything(tokens, find);
        for at in 0..tokens.len() {
            let rest = tokens.get(at..).unwrap_or_default();
            match rest {
                [dot, Token::Name(name @ ("num_heads" | "embed_dim")), equals, ..]
                    if dot.is(".") && equals.is("=") =>
                {
                    find(Danger::Form, &format!("prim::SetAttr of {name}"));
                }
                [Token::Name("dtype"), equals, Token::Number(number), ..]
                    if equals.is("=") && !is_dtype(number) =>
                {
                    // Quantized tensors have dtypes too, which other findings are about.
                    let quantized = matches!(*number, "12" | "13" | "14");
                    find(
                        if quantized { Danger::Quantized } else { Danger::Form },
                        &format!("torch.dtype={number}"),
                    );
                }
                [Token::Name(name @ ("dtype" | "layout")), equals, minus, Token::Number(number), ..]
                    if equals.is("=") && minus.is("-") =>
                {
                    find(Danger::Form, &format!("torch.{name}=-{number}"));
                }
                [Token::Name("layout"), equals, Token::Number(number), ..]
                    if at > 0 && equals.is("=") && *number != "0" =>
                {
                    find(Danger::Form, &format!("torch.layout={number}"));
                }
                [Token::Name("unchecked_cast"), call @ ..] => self.cast(call, find),
                _ => {}
            }
        }
    }

    /// What is wrong with a call of an ordinary operator, `operator(...)`, whose arguments begin `tokens`. `member`: the
    /// first one stands before the dot.
    pub(super) fn call(
        &mut self,
        name: &str,
        tokens: &[Token<'_>],
        member: bool,
    ) -> Option<(Danger, String)> {
        let rules = DTYPE_AT.iter().any(|rule| rule.0 == name) || HEADS_AT.iter().any(|rule| rule.0 == name);
        if !rules || tokens.first().is_none_or(|token| !token.is("(")) {
            return None;
        }
        let Some(arguments) = self.arguments(tokens) else {
            return Some((Danger::Form, format!("aten::{name} in more code than any model has")));
        };
        let place = |at: usize| arguments.get(at.checked_sub(usize::from(member))?).copied();
        for (_, at) in DTYPE_AT.iter().filter(|rule| rule.0 == name) {
            match place(*at) {
                Some([Token::Number(number)])
                    if number.bytes().all(|b| b.is_ascii_digit()) && !is_dtype(number) =>
                {
                    return Some((Danger::Form, format!("aten::{name} with dtype {number}")));
                }
                Some([minus, Token::Number(number)]) if minus.is("-") && name == "to" => {
                    return Some((Danger::Form, format!("aten::{name} with dtype -{number}")));
                }
                _ => {}
            }
        }
        for (_, width, heads) in HEADS_AT.iter().filter(|rule| rule.0 == name) {
            // A literal, or the attribute of that name, which `declared` checks.
            let number = |at, attribute: &str| match place(at) {
                Some([Token::Number(number)]) => number.parse::<u64>().is_ok_and(|number| number > 0),
                Some([Token::Name(name)]) => {
                    self.origins.get(*name).is_some_and(|origin| origin == attribute)
                }
                _ => false,
            };
            if !number(*width, "embed_dim") || !number(*heads, "num_heads") {
                return Some((
                    Danger::Form,
                    format!("aten::{name} without plain numbers of width and heads"),
                ));
            }
        }
        None
    }

    /// Whether a call of an operator of `[values]` is one that does no harm.
    pub(super) fn is_harmless(&mut self, name: &str, tokens: &[Token<'_>]) -> bool {
        let Some((_, harmless)) = HARMLESS_IF.iter().find(|rule| rule.0 == name) else { return false };
        self.arguments(tokens).is_some_and(|arguments| harmless.is(&arguments))
    }

    fn arguments<'t, 'a>(&mut self, tokens: &'t [Token<'a>]) -> Option<Vec<&'t [Token<'a>]>> {
        let within = tokens.get(..self.tokens_left).unwrap_or(tokens);
        let Some((inner, _)) = bracketed(within) else {
            self.tokens_left = self.tokens_left.saturating_sub(within.len());
            return None;
        };
        self.tokens_left = self.tokens_left.saturating_sub(inner.len());
        Some(split(inner))
    }

    /// `unchecked_cast(T, x)`: libtorch believes it. It notices by itself if a tensor, a number or a text is none; of a list,
    /// a tuple or an object it believes what is in it, so there `x` must be an `Optional[T]`.
    fn cast(&mut self, call: &[Token<'_>], find: &mut dyn FnMut(Danger, &str)) {
        let arguments = self.arguments(call).unwrap_or_default();
        let [ty, value] = arguments.as_slice() else {
            find(Danger::Cast, "prim::unchecked_cast");
            return;
        };
        let ty = TypeExpr::parse(ty);
        if is_noticed(&ty) {
            return;
        }
        let known = match value {
            [Token::Name(name)] => self.names.get(*name).cloned().unwrap_or_default(),
            _ => vec![self.type_of(value)],
        };
        let none = TypeExpr::Other("None".to_owned());
        let optional = TypeExpr::Optional(Box::new(ty.clone()));
        // A tensor or a number is noticed where a list is asked for.
        let is_safe =
            |known: &TypeExpr| *known == ty || *known == optional || *known == none || is_noticed(known);
        let all_safe =
            |known: &TypeExpr| is_safe(known) || members(known).is_some_and(|m| m.iter().all(is_safe));
        if known.is_empty() || !known.iter().all(all_safe) {
            find(Danger::Cast, &format!("prim::unchecked_cast to {ty}"));
        }
    }

    /// Of the type `Any`, a value could be cast to whatever it is not, and nest without an end. Not so an argument that
    /// nothing reads, like those of the `__exit__` that a `with` calls.
    fn anything(&mut self, tokens: &[Token<'_>], find: &mut dyn FnMut(Danger, &str)) {
        let is_definition = matches!(tokens, [Token::Name("def"), ..]);
        let mut left = tokens;
        while let [first, rest @ ..] = left {
            left = match (first, rest) {
                (dot, [_, rest @ ..]) if dot.is(".") => rest,
                // libtorch wants the statements of a definition on lines of their own: this is no slice.
                (Token::Name(argument), [colon, Token::Name("Any"), rest @ ..])
                    if is_definition && colon.is(":") && ends_argument(rest) =>
                {
                    self.unread.push((*argument).to_owned());
                    rest
                }
                (Token::Name(name), rest) => {
                    if *name == "Any" || self.unread.iter().any(|argument| argument == name) {
                        find(Danger::Cast, "typing.Any");
                    }
                    rest
                }
                (_, rest) => rest,
            };
        }
    }

    fn type_of(&mut self, value: &[Token<'_>]) -> TypeExpr {
        let unknown = TypeExpr::Other("?".to_owned());
        match value {
            [Token::Name(name @ "None")] => TypeExpr::Other((*name).to_owned()),
            [Token::Name(object), dot, Token::Name(name)] if dot.is(".") && *object == self.receiver => {
                let rebound = self.names.get(*object).is_none_or(|types| types.len() != 1);
                self.attributes.get(*name).filter(|_| !rebound).cloned().unwrap_or(unknown)
            }
            [Token::Name(name)] => self.names.get(*name).and_then(|types| merged(types)).unwrap_or(unknown),
            [Token::Name("annotate" | "unchecked_cast" | "uninitialized"), call @ ..] => {
                match bracketed(call) {
                    Some((inner, [])) => match split(inner).first() {
                        Some([Token::Name("NoneType")]) => TypeExpr::Other("None".to_owned()),
                        Some(ty) => TypeExpr::parse(ty),
                        None => unknown,
                    },
                    _ => unknown,
                }
            }
            _ => unknown,
        }
    }

    fn give(&mut self, name: &str, ty: TypeExpr) {
        let types = self.names.entry(name.to_owned()).or_default();
        if types.len() < MAX_TYPES && !types.contains(&ty) {
            types.push(ty);
        } else if types.len() == MAX_TYPES {
            types.push(TypeExpr::Other("?".to_owned()));
        }
    }

    /// `a = x`, or `a, b = x, y`.
    fn assignment(&mut self, tokens: &[Token<'_>]) {
        let Some(equals) = first_equals(tokens) else { return };
        let (targets, value) = tokens.split_at_checked(equals).unwrap_or_default();
        let (targets, values) = (split(targets), split(value.get(1..).unwrap_or_default()));
        let paired = targets.len() == values.len();
        let whole = [value.get(1..).unwrap_or_default()];
        let values = if targets.len() == 1 { whole.as_slice() } else { values.as_slice() };
        let types: Vec<_> = values.iter().map(|value| (self.type_of(value), origin(value))).collect();
        for (at, target) in targets.into_iter().enumerate() {
            let [Token::Name(name)] = target else { continue };
            match types.get(at).filter(|_| paired || types.len() == 1) {
                Some((ty, origin)) => {
                    self.give(name, ty.clone());
                    match origin.filter(|_| !self.origins.contains_key(*name)) {
                        Some(origin) => drop(self.origins.insert((*name).to_owned(), origin.to_owned())),
                        None => drop(self.origins.insert((*name).to_owned(), String::new())),
                    }
                }
                None => self.give(name, TypeExpr::Other("?".to_owned())),
            }
        }
    }

    /// Names that a loop gives a value, or a statement behind another one on the line: of what type is not known.
    fn targets(&mut self, tokens: &[Token<'_>]) {
        let (mut in_targets, assigned) = (false, first_equals(tokens));
        for (at, token) in tokens.iter().enumerate() {
            match token {
                Token::Name("for" | "as") => in_targets = true,
                Token::Name("in") => in_targets = false,
                Token::Symbol(":" | ";") => in_targets = false,
                Token::Name(name) => {
                    let given =
                        tokens.get(at + 1).is_some_and(|next| next.is("=")) && assigned != Some(at + 1);
                    if in_targets || given {
                        self.give(name, TypeExpr::Other("?".to_owned()));
                    }
                }
                _ => {}
            }
        }
    }
}

/// The attribute that a value is read from: `num_heads` of `self_attn.num_heads`.
fn origin<'a>(value: &[Token<'a>]) -> Option<&'a str> {
    match value {
        [Token::Name(_), dot, Token::Name(attribute)] if dot.is(".") => Some(attribute),
        [open, Token::Name(_), close, dot, Token::Name(attribute)]
            if open.is("(") && close.is(")") && dot.is(".") =>
        {
            Some(attribute)
        }
        _ => None,
    }
}

/// The `=` of an assignment with which a line begins: what stands before it are names and commas.
fn first_equals(tokens: &[Token<'_>]) -> Option<usize> {
    let end = tokens.iter().position(|token| !matches!(token, Token::Name(_)) && !token.is(","))?;
    tokens.get(end).filter(|token| token.is("=")).map(|_| end)
}

/// The one type that values of all of `types` are of: `Optional[T]` of `T` and `None`.
fn merged(types: &[TypeExpr]) -> Option<TypeExpr> {
    let none = TypeExpr::Other("None".to_owned());
    if let [only] = types {
        return Some(only.clone());
    }
    let inner = types.iter().find(|ty| **ty != none)?;
    let inner = if let TypeExpr::Optional(inner) = inner { inner.as_ref() } else { inner };
    let optional = TypeExpr::Optional(Box::new(inner.clone()));
    types.iter().all(|ty| *ty == none || ty == inner || *ty == optional).then_some(optional)
}

/// The types of a union.
fn members(ty: &TypeExpr) -> Option<Vec<TypeExpr>> {
    let TypeExpr::Other(text) = ty else { return None };
    let inner = text.strip_prefix("Union[")?.strip_suffix(']')?;
    let line = Lexer::new(inner).next_line().ok()??;
    Some(split(&line.tokens).into_iter().map(TypeExpr::parse).collect())
}

/// Whether an argument ends here, after its default at most: `None`, the one that a type without values of its own can have.
fn ends_argument(tokens: &[Token<'_>]) -> bool {
    let left = match tokens {
        [equals, Token::Name("None"), left @ ..] if equals.is("=") => left,
        left => left,
    };
    left.first().is_some_and(|end| end.is(",") || end.is(")"))
}

/// Whether libtorch notices that a value is not of this type.
fn is_noticed(ty: &TypeExpr) -> bool {
    match ty {
        TypeExpr::Tensor
        | TypeExpr::Int
        | TypeExpr::Float
        | TypeExpr::Bool
        | TypeExpr::Str
        | TypeExpr::Number
        | TypeExpr::Device => true,
        TypeExpr::Optional(inner) => is_noticed(inner),
        TypeExpr::Other(name) => matches!(name.as_str(), "NoneType" | "complex"),
        _ => false,
    }
}

fn before<'t, 'a>(tokens: &'t [Token<'a>], symbol: &str) -> &'t [Token<'a>] {
    tokens.split(|token| token.is(symbol)).next().unwrap_or_default()
}
