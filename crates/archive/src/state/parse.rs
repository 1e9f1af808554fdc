//! From text to tree. Whatever no exporter writes, and could hide something, is an error.

use super::super::lexer::{Lexer, Line, Token};
use super::super::types::{bracketed, split};
use super::ast::{Call, Class, Expr, Function, Program, Statement, Target, What, path, unquoted};

/// Deepest nesting of blocks and expressions.
const MAX_DEPTH: usize = 400;
/// Most tokens; a large traced model has some hundred thousand.
const MAX_TOKENS: usize = 6_000_000;
/// Most tokens in brackets, those in brackets within brackets counted each time.
const MAX_WORK: usize = 60_000_000;

/// What is wrong, and in which line.
pub(super) type Wrong = (usize, &'static str);

/// Reads one file into `program`. `module` is its path: `__torch__.torch.nn.modules.linear`.
pub(super) fn read<'a>(program: &mut Program<'a>, module: &str, text: &'a str) -> Result<(), Wrong> {
    let mut lexer = Lexer::new(text);
    let mut lines = Vec::new();
    let mut tokens = 0;
    while let Some(line) = lexer.next_line().map_err(|wrong| (0, wrong))? {
        tokens += line.tokens.len();
        if tokens > MAX_TOKENS {
            return Err((line.number, "code that is too long to follow"));
        }
        lines.push(line);
    }
    let file = format!("code/{}.py", module.replace('.', "/"));
    let mut reader = Reader { lines: &lines, at: 0, program };
    while let Some(line) = reader.peek() {
        match line.tokens.as_slice() {
            [Token::Name("class"), Token::Name(name), ..] => {
                let path = format!("{module}.{name}");
                let class = reader.class(&file)?;
                reader.program.classes.insert(path, class);
            }
            [Token::Name("def"), ..] => {
                let function = reader.function()?;
                let path = format!("{module}.{}", function.name);
                let place = reader.keep(&file, function);
                reader.program.by_path.insert(path, place);
            }
            // `op_version_set = 1`: nothing at the top of a file is run with a call.
            _ => reader.at += 1,
        }
    }
    Ok(())
}

struct Reader<'l, 'a, 'p> {
    lines: &'l [Line<'a>],
    at: usize,
    program: &'p mut Program<'a>,
}

impl<'l, 'a> Reader<'l, 'a, '_> {
    fn peek(&self) -> Option<&'l Line<'a>> {
        self.lines.get(self.at)
    }

    fn keep(&mut self, file: &str, function: Function<'a>) -> usize {
        self.program.functions.push((file.to_owned(), function));
        self.program.functions.len() - 1
    }

    fn class(&mut self, file: &str) -> Result<Class<'a>, Wrong> {
        let Some(head) = self.peek() else { return Ok(Class::default()) };
        let base = head.tokens.get(3..).unwrap_or_default().iter().find_map(|token| token.name());
        let mut class = Class { base: base.unwrap_or_default(), ..Class::default() };
        self.at += 1;
        while let Some(line) = self.peek().filter(|line| line.indent > head.indent) {
            match line.tokens.as_slice() {
                [Token::Name("def"), ..] => {
                    let function = self.function()?;
                    let name = function.name;
                    let place = self.keep(file, function);
                    class.methods.insert(name, place);
                    continue;
                }
                [Token::Name("__forward_hooks__" | "__forward_pre_hooks__"), _, names @ ..] => {
                    let names = names.iter().filter_map(|token| match token {
                        Token::Text(text) => Some(unquoted(text).to_owned()),
                        _ => None,
                    });
                    class.hooks.extend(names);
                }
                [Token::Name("__annotations__"), _, Token::Text(name), _, _, ty @ ..] => {
                    class.objects.extend(path(ty).map(|path| (unquoted(name).to_owned(), path)));
                }
                [Token::Name(name), colon, ty @ ..] if colon.is(":") => {
                    class.objects.extend(path(ty).map(|path| ((*name).to_owned(), path)));
                }
                _ => {}
            }
            self.at += 1;
        }
        Ok(class)
    }

    fn function(&mut self) -> Result<Function<'a>, Wrong> {
        let Some(line) = self.peek() else { return Err((0, "a function that is cut off")) };
        let wrong = (line.number, "a function that cannot be read");
        let [_, Token::Name(name), rest @ ..] = line.tokens.as_slice() else { return Err(wrong) };
        let (parameters, rest) = bracketed(rest).ok_or(wrong)?;
        let colon = colon(rest).ok_or(wrong)?;
        let mut all = Vec::new();
        for parameter in split(parameters) {
            let (declared, default) = match parameter.iter().position(|token| token.is("=")) {
                Some(at) => (parameter.get(..at), parameter.get(at + 1..)),
                None => (Some(parameter), None),
            };
            match declared.unwrap_or_default() {
                [Token::Name(name), ..] => {
                    let default = default.map(|tokens| self.expression(line.number, tokens)).transpose()?;
                    all.push((*name, default));
                }
                // What follows is given by name.
                [star] if star.is("*") => {}
                _ => return Err(wrong),
            }
        }
        let rest = rest.get(colon + 1..).unwrap_or_default();
        let body = self.suite(line, rest, 0)?;
        Ok(Function { name, parameters: all, body })
    }

    /// What belongs to the head that this is called at: on its line, or on those that are indented more.
    fn suite(
        &mut self,
        head: &'l Line<'a>,
        rest: &'l [Token<'a>],
        depth: usize,
    ) -> Result<Vec<Statement<'a>>, Wrong> {
        self.at += 1;
        if depth > MAX_DEPTH {
            return Err((head.number, "blocks that are too deep"));
        }
        let mut body = Vec::new();
        if !rest.is_empty() {
            self.simple(head.number, rest, &mut body)?;
            return Ok(body);
        }
        while let Some(line) = self.peek().filter(|line| line.indent > head.indent) {
            self.statement(line, &mut body, depth + 1)?;
        }
        Ok(body)
    }

    fn statement(
        &mut self,
        line: &'l Line<'a>,
        into: &mut Vec<Statement<'a>>,
        depth: usize,
    ) -> Result<(), Wrong> {
        let tokens = line.tokens.as_slice();
        let number = line.number;
        let Some(Token::Name(word @ ("if" | "while" | "for" | "with" | "def" | "elif" | "else" | "class"))) =
            tokens.first()
        else {
            self.at += 1;
            return self.simple(number, tokens, into);
        };
        let wrong = (number, "a block that cannot be read");
        if *word == "def" {
            let function = self.function()?;
            into.push(Statement { line: number, what: What::Define(function) });
            return Ok(());
        }
        let colon = colon(tokens).ok_or(wrong)?;
        let head = tokens.get(1..colon).unwrap_or_default();
        let rest = tokens.get(colon + 1..).unwrap_or_default();
        let what = match *word {
            "if" => {
                let condition = self.expression(number, head)?;
                let then = self.suite(line, rest, depth)?;
                What::If(condition, then, self.otherwise(line.indent, depth)?)
            }
            "while" => {
                let condition = self.expression(number, head)?;
                What::While(condition, self.suite(line, rest, depth)?)
            }
            "for" => {
                let at = head.iter().position(|token| token.name() == Some("in")).ok_or(wrong)?;
                let target = self.target(number, head.get(..at).unwrap_or_default())?;
                let over = self.expression(number, head.get(at + 1..).unwrap_or_default())?;
                What::For(target, over, self.suite(line, rest, depth)?)
            }
            "with" => {
                let mut items = Vec::new();
                for item in split(head) {
                    let at = item.iter().position(|token| token.name() == Some("as"));
                    let (value, target) = item.split_at_checked(at.unwrap_or(item.len())).ok_or(wrong)?;
                    let target = match target {
                        [] => None,
                        [_, target @ ..] => Some(self.target(number, target)?),
                    };
                    items.push((self.expression(number, value)?, target));
                }
                What::With(items, self.suite(line, rest, depth)?)
            }
            _ => return Err(wrong),
        };
        into.push(Statement { line: number, what });
        Ok(())
    }

    /// An `else` or an `elif` of this indentation, if one follows.
    fn otherwise(&mut self, indent: usize, depth: usize) -> Result<Vec<Statement<'a>>, Wrong> {
        let Some(line) = self.peek().filter(|line| line.indent == indent) else { return Ok(Vec::new()) };
        let wrong = (line.number, "a block that cannot be read");
        let rest = |colon: usize| line.tokens.get(colon + 1..).unwrap_or_default();
        match line.tokens.first() {
            Some(Token::Name("else")) => self.suite(line, rest(colon(&line.tokens).ok_or(wrong)?), depth),
            Some(Token::Name("elif")) if depth < MAX_DEPTH => {
                let colon = colon(&line.tokens).ok_or(wrong)?;
                let condition =
                    self.expression(line.number, line.tokens.get(1..colon).unwrap_or_default())?;
                let then = self.suite(line, rest(colon), depth)?;
                let what = What::If(condition, then, self.otherwise(indent, depth + 1)?);
                Ok(vec![Statement { line: line.number, what }])
            }
            Some(Token::Name("elif")) => Err(wrong),
            _ => Ok(Vec::new()),
        }
    }

    /// Statements that hold no others, with `;` between them.
    fn simple(
        &mut self,
        line: usize,
        tokens: &'l [Token<'a>],
        into: &mut Vec<Statement<'a>>,
    ) -> Result<(), Wrong> {
        for tokens in at_top(tokens, |token| token.is(";")).into_iter().filter(|tokens| !tokens.is_empty()) {
            let what = match tokens {
                [Token::Name("pass")] => continue,
                [Token::Name("return")] => What::Return(None),
                [Token::Name("return"), value @ ..] => What::Return(Some(self.listed(line, value)?)),
                [Token::Name("assert"), value @ ..] => What::Do(self.listed(line, value)?),
                [
                    Token::Name(
                        "break" | "continue" | "del" | "global" | "import" | "from" | "raise" | "try"
                        | "lambda" | "yield" | "nonlocal",
                    ),
                    ..,
                ] => return Err((line, "a statement that torch does not write")),
                _ => self.assignment(line, tokens)?,
            };
            into.push(Statement { line, what });
        }
        Ok(())
    }

    fn assignment(&mut self, line: usize, tokens: &'l [Token<'a>]) -> Result<What<'a>, Wrong> {
        let augments = |token: &Token<'_>| super::super::operators::is_augmented(token.text());
        if let [target, value] =
            at_top(tokens, |token| matches!(token, Token::Symbol(_)) && augments(token))[..]
        {
            return Ok(What::Augment(self.expression(line, target)?, self.listed(line, value)?));
        }
        let parts = at_top(tokens, |token| token.is("="));
        let Some((value, targets)) = parts.split_last() else { return Err((line, "nothing")) };
        let value = self.listed(line, value)?;
        if targets.is_empty() {
            return Ok(What::Do(value));
        }
        let targets = targets.iter().map(|target| {
            // `x : Optional[Tensor] = y`
            let named = at_top(target, |token| token.is(":")).first().copied().unwrap_or_default();
            self.target(line, named)
        });
        Ok(What::Assign(targets.collect::<Result<_, _>>()?, value))
    }

    fn target(&mut self, line: usize, tokens: &'l [Token<'a>]) -> Result<Target<'a>, Wrong> {
        let has_comma = at_top(tokens, |token| token.is(",")).len() > 1;
        if has_comma {
            let parts = split(tokens).into_iter().map(|part| self.target(line, part));
            return Ok(Target::Several(parts.collect::<Result<_, _>>()?));
        }
        match self.expression(line, tokens)? {
            Expr::Name(name) => Ok(Target::Name(name)),
            Expr::Member(of, name) => Ok(Target::Member(*of, name)),
            Expr::Item { of, .. } => Ok(Target::Item(*of)),
            _ => Err((line, "an assignment that cannot be read")),
        }
    }

    /// An expression, or several with commas between them: a tuple.
    fn listed(&mut self, line: usize, tokens: &'l [Token<'a>]) -> Result<Expr<'a>, Wrong> {
        if at_top(tokens, |token| token.is(",")).len() > 1 {
            let parts = split(tokens).into_iter().map(|part| self.expression(line, part));
            let parts = parts.collect::<Result<_, _>>()?;
            return Ok(Expr::Sequence(parts, self.program.site()));
        }
        self.expression(line, tokens)
    }

    fn expression(&mut self, line: usize, tokens: &'l [Token<'a>]) -> Result<Expr<'a>, Wrong> {
        let mut cursor = Cursor { tokens, line, program: self.program };
        let expression = cursor.expression(0)?;
        if cursor.tokens.is_empty() { Ok(expression) } else { Err(cursor.wrong()) }
    }
}

/// Reads expressions off the front of some tokens.
struct Cursor<'t, 'a, 'p> {
    tokens: &'t [Token<'a>],
    line: usize,
    program: &'p mut Program<'a>,
}

impl<'t, 'a> Cursor<'t, 'a, '_> {
    fn wrong(&self) -> Wrong {
        (self.line, "an expression that torch does not write")
    }

    fn next(&mut self) -> Option<Token<'a>> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(*first)
    }

    fn expression(&mut self, depth: usize) -> Result<Expr<'a>, Wrong> {
        if depth > MAX_DEPTH {
            return Err((self.line, "an expression that is too deep"));
        }
        let mut parts = vec![self.operand(depth)?];
        while let Some(token) = self.tokens.first() {
            let between = matches!(
                *token,
                Token::Symbol(
                    "+" | "-"
                        | "*"
                        | "/"
                        | "//"
                        | "%"
                        | "**"
                        | "@"
                        | "&"
                        | "|"
                        | "^"
                        | "<<"
                        | ">>"
                        | "<"
                        | ">"
                        | "<="
                        | ">="
                        | "=="
                        | "!=",
                ) | Token::Name("and" | "or" | "in" | "is" | "not" | "if" | "else")
            );
            if !between {
                break;
            }
            self.next();
            parts.push(self.operand(depth)?);
        }
        match (parts.pop(), parts.is_empty()) {
            (Some(only), true) => Ok(only),
            (Some(last), false) => {
                parts.push(last);
                Ok(Expr::Mixed(parts, self.program.site()))
            }
            (None, _) => Err(self.wrong()),
        }
    }

    fn operand(&mut self, depth: usize) -> Result<Expr<'a>, Wrong> {
        let mut signs = 0;
        while let Some(Token::Symbol("-" | "+" | "~") | Token::Name("not")) = self.tokens.first() {
            self.next();
            signs += 1;
        }
        let mut value = self.atom(depth)?;
        while let Some(token) = self.tokens.first() {
            value = match (token, self.tokens.get(1)) {
                (Token::Symbol("."), Some(Token::Name(name))) => {
                    self.tokens = self.tokens.get(2..).unwrap_or_default();
                    Expr::Member(Box::new(value), name)
                }
                (Token::Symbol("("), _) => {
                    let inner = self.inner()?;
                    let mut arguments = Vec::new();
                    for part in split(inner) {
                        let (name, part) = match part {
                            [Token::Name(name), equals, value @ ..] if equals.is("=") => (Some(*name), value),
                            part => (None, part),
                        };
                        arguments.push((name, self.part(part, depth)?));
                    }
                    let site = self.program.site();
                    Expr::Call(Box::new(Call { callee: value, arguments, site }))
                }
                (Token::Symbol("["), _) => {
                    let inner = self.inner()?;
                    let slice = at_top(inner, |token| token.is(":")).len() > 1;
                    let mut index = Vec::new();
                    for part in at_top(inner, |token| token.is(",") || token.is(":")) {
                        if !part.is_empty() {
                            index.push(self.part(part, depth)?);
                        }
                    }
                    Expr::Item { of: Box::new(value), index, slice, site: self.program.site() }
                }
                _ => break,
            };
        }
        // A sign makes a new value, as operators do.
        if signs > 0 { Ok(Expr::Mixed(vec![value], self.program.site())) } else { Ok(value) }
    }

    fn atom(&mut self, depth: usize) -> Result<Expr<'a>, Wrong> {
        match self.tokens.first() {
            Some(Token::Symbol("(" | "[" | "{")) => {
                let begins_with = |symbol| self.tokens.first().is_some_and(|token| token.is(symbol));
                let (is_round, is_dict) = (begins_with("("), begins_with("{"));
                let inner = self.inner()?;
                let parts = at_top(inner, |token| token.is(",") || token.is(":"));
                if is_round && parts.len() == 1 && !inner.is_empty() {
                    return self.part(inner, depth);
                }
                let parts = parts.into_iter().filter(|part| !part.is_empty());
                let parts = parts.map(|part| self.part(part, depth)).collect::<Result<_, _>>()?;
                let site = self.program.site();
                Ok(if is_dict { Expr::Dict(parts, site) } else { Expr::Sequence(parts, site) })
            }
            Some(Token::Name("lambda" | "for" | "await" | "yield")) | Some(Token::Symbol(_)) | None => {
                Err(self.wrong())
            }
            Some(token) => {
                let token = *token;
                self.next();
                Ok(match token {
                    Token::Name("None") => Expr::None,
                    Token::Name("True") => Expr::Bool(true),
                    Token::Name("False") => Expr::Bool(false),
                    Token::Name(name) => Expr::Name(name),
                    Token::Number(text) | Token::Text(text) | Token::Symbol(text) => Expr::Literal(text),
                })
            }
        }
    }

    /// What is in the brackets that begin here, which are passed.
    fn inner(&mut self) -> Result<&'t [Token<'a>], Wrong> {
        let (inner, rest) = bracketed(self.tokens).ok_or(self.wrong())?;
        self.tokens = rest;
        // Brackets in brackets are looked through once for each level.
        self.program.work = self.program.work.saturating_add(inner.len());
        if self.program.work > MAX_WORK {
            Err((self.line, "expressions that are too deep"))
        } else {
            Ok(inner)
        }
    }

    fn part(&mut self, tokens: &'t [Token<'a>], depth: usize) -> Result<Expr<'a>, Wrong> {
        let mut cursor = Cursor { tokens, line: self.line, program: self.program };
        let expression = cursor.expression(depth + 1)?;
        if cursor.tokens.is_empty() { Ok(expression) } else { Err(cursor.wrong()) }
    }
}

/// Parts between the tokens in no bracket for which `cuts` says yes; one for no such token.
fn at_top<'t, 'a>(tokens: &'t [Token<'a>], cuts: impl Fn(&Token<'a>) -> bool) -> Vec<&'t [Token<'a>]> {
    let mut depth = 0_i64;
    tokens
        .split(|token| {
            match token {
                Token::Symbol("(" | "[" | "{") => depth += 1,
                Token::Symbol(")" | "]" | "}") => depth -= 1,
                _ => {}
            }
            depth == 0 && cuts(token)
        })
        .collect()
}

/// The first `:` in no bracket.
fn colon(tokens: &[Token<'_>]) -> Option<usize> {
    let before = at_top(tokens, |token| token.is(":"));
    before.first().map(|before| before.len()).filter(|at| *at < tokens.len())
}
