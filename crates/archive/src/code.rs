//! The classes and functions that an archive's code defines, and what its statements may do.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::effects::Scan;
use super::info::{Argument, Effects, MethodSignature};
use super::lexer::{Lexer, Line, Token};
use super::safety::{Findings, Mentions};
use super::types::{TypeExpr, bracketed, demangle, split};

/// Most tokens in declarations; a large traced model has some hundred thousand.
const MAX_DECLARATION_TOKENS: usize = 4_000_000;

/// Deepest nesting of named tuples, and most types in all, that a signature is spelled out to.
const MAX_RESOLVE_DEPTH: usize = 16;
const MAX_RESOLVE_TYPES: usize = 10_000;

/// One class of the archive.
#[derive(Debug, Default)]
pub(super) struct Class {
    /// `Module`, `NamedTuple`, `Enum`, or empty.
    pub(super) base: String,
    /// Names in `__parameters__`.
    pub(super) parameters: HashSet<String>,
    /// Names in `__buffers__`.
    pub(super) buffers: HashSet<String>,
    /// Annotated attributes in the order of the code. The class of an attribute that is a module is a path.
    pub(super) attributes: Vec<(String, TypeExpr)>,
    /// Methods in the order of the code.
    pub(super) methods: Vec<MethodSignature>,
}

/// All the code of an archive.
#[derive(Debug, Default)]
pub(super) struct Code {
    /// By the path that the code uses: `__torch__.Net`.
    classes: HashMap<String, Class>,
    functions: HashSet<String>,
    scan: Scan,
    mentions: Mentions,
    unreadable: bool,
    /// Tokens of the declarations so far, which stay in memory as types and names.
    declaration_tokens: usize,
}

impl Code {
    /// Takes in one file; `module` is its path: `__torch__.torch.nn.modules.linear`.
    ///
    /// A file that cannot be read is remembered: what the code may do is then unknown.
    pub(super) fn read(&mut self, module: &str, text: &[u8]) {
        self.mentions.begin_file(module);
        let Ok(text) = std::str::from_utf8(text) else {
            self.unreadable = true;
            self.mentions.unreadable("bytes that are not UTF-8");
            return;
        };
        // What was read of a class before an error is kept: its signatures are still worth knowing.
        let mut open = None;
        let read = self.lines(module, text, &mut open);
        let closed = self.close(open);
        if let Err(reason) = read.and(closed) {
            self.unreadable = true;
            self.mentions.unreadable(reason);
        }
        self.scan.end_file();
    }

    /// The class of this path.
    pub(super) fn class(&self, path: &str) -> Option<&Class> {
        self.classes.get(path)
    }

    /// Operators that are called, with the number of places.
    pub(super) fn operators(&self) -> &BTreeMap<String, usize> {
        self.scan.operators()
    }

    /// Whether any of it is a loop.
    pub(super) fn loops(&self) -> bool {
        self.unreadable || self.scan.loops()
    }

    /// What all of it may do to memory.
    pub(super) fn effects(&self) -> Effects {
        if self.unreadable {
            return Effects::UNKNOWN;
        }
        let methods =
            self.classes.values().flat_map(|class| &class.methods).map(|method| method.name.as_str());
        self.scan.effects(&methods.collect(), |path| self.defines(path))
    }

    /// Whether it has a class or a function of this path.
    pub(super) fn defines(&self, path: &str) -> bool {
        self.functions.contains(path) || self.classes.contains_key(path)
    }

    /// Remembers that the archive holds a tensor with a dimension of stride 0.
    pub(super) fn holds_expanded(&mut self) {
        self.mentions.holds_expanded();
    }

    /// What it mentions that is not known to be harmless. Once: what was collected is taken.
    pub(super) fn take_findings(&mut self) -> Findings {
        let mentions = std::mem::take(&mut self.mentions);
        let mut members = HashSet::new();
        for class in self.classes.values() {
            members.extend(class.methods.iter().map(|method| method.name.as_str()));
            members.extend(class.attributes.iter().map(|(name, _)| name.as_str()));
        }
        mentions.findings(|path| self.defines(path), |name| members.contains(name))
    }

    /// A signature with the named tuples of the archive spelled out.
    pub(super) fn resolve(&self, signature: &MethodSignature) -> MethodSignature {
        let mut types_left = MAX_RESOLVE_TYPES;
        let mut full = signature.clone();
        for argument in &mut full.arguments {
            self.resolve_type(&mut argument.ty, 0, &mut types_left);
        }
        self.resolve_type(&mut full.returns, 0, &mut types_left);
        full
    }

    fn resolve_type(&self, ty: &mut TypeExpr, depth: usize, types_left: &mut usize) {
        match ty {
            TypeExpr::Optional(inner) | TypeExpr::List(inner) => self.resolve_type(inner, depth, types_left),
            TypeExpr::Dict(key, value) => {
                self.resolve_type(key, depth, types_left);
                self.resolve_type(value, depth, types_left);
            }
            TypeExpr::Tuple(items) => {
                items.iter_mut().for_each(|item| self.resolve_type(item, depth, types_left));
            }
            TypeExpr::Other(path) => {
                let class = self.classes.get(path.as_str()).filter(|class| class.base == "NamedTuple");
                if let Some(class) = class
                    && depth < MAX_RESOLVE_DEPTH
                    && class.attributes.iter().all(|(_, ty)| ty.is_within(types_left))
                {
                    let mut fields = class.attributes.clone();
                    fields.iter_mut().for_each(|(_, ty)| self.resolve_type(ty, depth + 1, types_left));
                    *ty = TypeExpr::NamedTuple { name: demangle(path), fields };
                } else {
                    *path = demangle(path);
                }
            }
            _ => {}
        }
    }

    fn lines(
        &mut self,
        module: &str,
        text: &str,
        open: &mut Option<(String, Class)>,
    ) -> Result<(), &'static str> {
        let mut lexer = Lexer::new(text);
        // Indentation of the members of the open class, known from its first one.
        let mut member_indent = None;
        while let Some(line) = lexer.next_line()? {
            if line.indent == 0 {
                self.close(open.take())?;
                member_indent = None;
            }
            let tokens = line.tokens.as_slice();
            self.scan.line(tokens);
            self.mentions.line(line.number, line.indent, tokens);
            let declares = matches!(tokens, [Token::Name("def" | "class"), ..])
                || member_indent.is_some_and(|indent| indent == line.indent);
            if declares {
                self.declaration_tokens += tokens.len();
            }
            if self.declaration_tokens > MAX_DECLARATION_TOKENS {
                return Err("more declarations than any model has");
            }
            match (tokens, &mut *open) {
                ([Token::Name("class"), Token::Name(name), base @ ..], _) if line.indent == 0 => {
                    let base = base.iter().find_map(|token| token.name()).unwrap_or_default().to_owned();
                    *open = Some((format!("{module}.{name}"), Class { base, ..Class::default() }));
                    if !tokens.last().is_some_and(|token| token.is(":")) {
                        return Err("a class on one line");
                    }
                }
                ([Token::Name("def"), ..], None) if line.indent == 0 => {
                    let (signature, body) = signature(tokens)?;
                    self.scan.statement(body);
                    if !self.functions.insert(format!("{module}.{}", signature.name)) {
                        return Err("a function that is defined twice");
                    }
                }
                (_, Some((_, class))) if *member_indent.get_or_insert(line.indent) == line.indent => {
                    if let [Token::Name("def"), ..] = tokens {
                        let (mut signature, body) = signature(tokens)?;
                        self.scan.statement(body);
                        if !signature.arguments.is_empty() {
                            signature.arguments.remove(0);
                        }
                        class.methods.push(signature);
                    } else if !member(&line, class) {
                        self.scan.statement(tokens);
                    }
                }
                _ => self.scan.statement(tokens),
            }
        }
        Ok(())
    }

    fn close(&mut self, open: Option<(String, Class)>) -> Result<(), &'static str> {
        let Some((path, class)) = open else {
            return Ok(());
        };
        match self.classes.entry(path) {
            Entry::Occupied(_) => Err("a class that is defined twice"),
            Entry::Vacant(place) => {
                place.insert(class);
                Ok(())
            }
        }
    }
}

/// Takes in a declaration in a class, `weight : Tensor`, `__annotations__["0"] = ...`, `__buffers__ = ["mean", ]`;
/// `false` where the line is something else.
fn member(line: &Line<'_>, class: &mut Class) -> bool {
    let unquoted = |text: &str| text.trim_matches(['"', '\'']).to_owned();
    match line.tokens.as_slice() {
        [Token::Name(list @ ("__parameters__" | "__buffers__")), equals, names @ ..] if equals.is("=") => {
            let names = names.iter().filter_map(|token| match token {
                Token::Text(text) => Some(unquoted(text)),
                _ => None,
            });
            let target = if *list == "__parameters__" { &mut class.parameters } else { &mut class.buffers };
            target.extend(names);
        }
        [Token::Name("__annotations__"), open, Token::Text(name), close, equals, ty @ ..]
            if open.is("[") && close.is("]") && equals.is("=") =>
        {
            class.attributes.push((unquoted(name), TypeExpr::parse(ty)));
        }
        [Token::Name(name), colon, ty @ ..] if colon.is(":") => {
            let ty = ty.split(|token| token.is("=")).next().unwrap_or_default();
            class.attributes.push(((*name).to_owned(), TypeExpr::parse(ty)));
        }
        _ => return false,
    }
    true
}

/// A signature, all arguments with `self`, and what follows its colon on the same line.
fn signature<'t, 'a>(tokens: &'t [Token<'a>]) -> Result<(MethodSignature, &'t [Token<'a>]), &'static str> {
    let [_, Token::Name(name), rest @ ..] = tokens else {
        return Err("a def without a name");
    };
    let (arguments, rest) = bracketed(rest).ok_or("a def without arguments")?;
    let colon = rest.iter().position(|token| token.is(":")).ok_or("a def without a colon")?;
    let (returns, body) = rest.split_at_checked(colon).unwrap_or((rest, &[]));
    let returns = match returns {
        [arrow, ty @ ..] if arrow.is("->") => TypeExpr::parse(ty),
        // TorchScript's own rule for a result without an annotation is to infer it.
        _ => TypeExpr::Other("unknown".to_owned()),
    };
    let arguments = split(arguments).into_iter().map(argument).collect::<Result<_, _>>()?;
    Ok((MethodSignature { name: (*name).to_owned(), arguments, returns }, body.get(1..).unwrap_or_default()))
}

/// `n: int=2`, `x`, `x: Tensor`, or the `*` before arguments that are given by name.
fn argument(tokens: &[Token<'_>]) -> Result<Argument, &'static str> {
    let (declared, default) = match tokens.iter().position(|token| token.is("=")) {
        Some(equals) => (tokens.get(..equals).unwrap_or_default(), true),
        None => (tokens, false),
    };
    let (name, ty) = match declared {
        [Token::Name(name), colon, ty @ ..] if colon.is(":") => (*name, TypeExpr::parse(ty)),
        // Without an annotation an argument is a tensor: TorchScript's rule.
        [Token::Name(name)] => (*name, TypeExpr::Tensor),
        _ => return Err("an argument that cannot be read"),
    };
    Ok(Argument { name: name.to_owned(), ty, has_default: default })
}
