//! The code of an archive as a tree: only what the flow of data needs of it.

use std::collections::HashMap;

use super::super::lexer::Token;

/// Tells the places apart where something new is made.
pub(super) type Site = u32;

#[derive(Debug, Clone)]
pub(super) enum Expr<'a> {
    Name(&'a str),
    None,
    Bool(bool),
    /// A number, or a string with its quotes.
    Literal(&'a str),
    Member(Box<Expr<'a>>, &'a str),
    Call(Box<Call<'a>>),
    /// `of[index]`; a slice makes something new of a list.
    Item {
        of: Box<Expr<'a>>,
        index: Vec<Expr<'a>>,
        slice: bool,
        site: Site,
    },
    /// A list or a tuple.
    Sequence(Vec<Expr<'a>>, Site),
    /// Keys and values.
    Dict(Vec<Expr<'a>>, Site),
    /// Operators between parts, which no exporter writes: it may be any of the parts, or be made of them.
    Mixed(Vec<Expr<'a>>, Site),
}

#[derive(Debug, Clone)]
pub(super) struct Call<'a> {
    pub(super) callee: Expr<'a>,
    /// With their names, where they have some.
    pub(super) arguments: Vec<(Option<&'a str>, Expr<'a>)>,
    pub(super) site: Site,
}

#[derive(Debug, Clone)]
pub(super) enum Target<'a> {
    Name(&'a str),
    Member(Expr<'a>, &'a str),
    Item(Expr<'a>),
    Several(Vec<Target<'a>>),
}

#[derive(Debug, Clone)]
pub(super) struct Statement<'a> {
    /// In its file.
    pub(super) line: usize,
    pub(super) what: What<'a>,
}

#[derive(Debug, Clone)]
pub(super) enum What<'a> {
    Assign(Vec<Target<'a>>, Expr<'a>),
    /// `x += y`.
    Augment(Expr<'a>, Expr<'a>),
    Do(Expr<'a>),
    If(Expr<'a>, Vec<Statement<'a>>, Vec<Statement<'a>>),
    While(Expr<'a>, Vec<Statement<'a>>),
    For(Target<'a>, Expr<'a>, Vec<Statement<'a>>),
    With(Vec<(Expr<'a>, Option<Target<'a>>)>, Vec<Statement<'a>>),
    Return(Option<Expr<'a>>),
    Define(Function<'a>),
}

#[derive(Debug, Clone)]
pub(super) struct Function<'a> {
    pub(super) name: &'a str,
    pub(super) parameters: Vec<(&'a str, Option<Expr<'a>>)>,
    pub(super) body: Vec<Statement<'a>>,
}

#[derive(Debug, Default)]
pub(super) struct Class<'a> {
    pub(super) base: &'a str,
    /// Places of its methods among the program's functions.
    pub(super) methods: HashMap<&'a str, usize>,
    /// Paths of those of its attributes that are objects.
    pub(super) objects: HashMap<String, String>,
    /// Methods of it that libtorch calls around `forward`.
    pub(super) hooks: Vec<String>,
}

/// All the code.
#[derive(Debug, Default)]
pub(super) struct Program<'a> {
    /// With the file of each: `code/__torch__/m.py`.
    pub(super) functions: Vec<(String, Function<'a>)>,
    /// Free functions by their paths.
    pub(super) by_path: HashMap<String, usize>,
    /// By their paths.
    pub(super) classes: HashMap<String, Class<'a>>,
    /// Sites so far.
    pub(super) sites: Site,
    /// Tokens that were looked through so far.
    pub(super) work: usize,
}

impl Program<'_> {
    /// A site that is not used yet.
    pub(super) fn site(&mut self) -> Site {
        self.sites = self.sites.saturating_add(1);
        self.sites
    }
}

/// What a string literal says, without its quotes.
pub(super) fn unquoted(text: &str) -> &str {
    text.trim_matches(['"', '\''])
}

/// `__torch__.m.Net`, where the tokens are a path.
pub(super) fn path(tokens: &[Token<'_>]) -> Option<String> {
    let begins = tokens.first().is_some_and(|token| token.name() == Some("__torch__"));
    let is_path = begins && tokens.iter().all(|token| token.name().is_some() || token.is("."));
    is_path.then(|| tokens.iter().map(|token| token.text()).collect())
}
