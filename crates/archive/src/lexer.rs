//! The code of an archive, cut into logical lines of tokens.
//!
//! A logical line ends at a newline outside brackets, as in Python. Nothing is looked up and nothing nests, so memory
//! and time are linear in the text.

/// Most tokens in one logical line; a hostile line is refused before it takes memory.
const MAX_LINE_TOKENS: usize = 1 << 20;

/// One token. Text is borrowed from the code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// A name or a keyword.
    Name(&'a str),
    /// A number.
    Number(&'a str),
    /// A string with its quotes.
    Text(&'a str),
    /// An operator or a bracket.
    Symbol(&'a str),
}

impl<'a> Token<'a> {
    /// The name, where it is one.
    pub(super) fn name(self) -> Option<&'a str> {
        if let Self::Name(name) = self { Some(name) } else { None }
    }

    /// Whether it is this operator or bracket.
    pub(super) fn is(self, symbol: &str) -> bool {
        self == Token::Symbol(symbol)
    }

    /// What is written.
    pub(super) fn text(self) -> &'a str {
        match self {
            Self::Name(text) | Self::Number(text) | Self::Text(text) | Self::Symbol(text) => text,
        }
    }
}

/// One logical line.
#[derive(Debug, Default)]
pub(super) struct Line<'a> {
    /// Number of the line of the text in which it begins, from 1.
    pub(super) number: usize,
    /// Blanks before it.
    pub(super) indent: usize,
    /// Its tokens, at least one.
    pub(super) tokens: Vec<Token<'a>>,
}

/// Hands out a text's logical lines.
pub(super) struct Lexer<'a> {
    rest: &'a str,
    /// Line breaks that are cut off.
    breaks: usize,
}

/// Operators of more than one letter, longest first.
const LONG_SYMBOLS: &[&str] = &[
    "**=", "//=", "<<=", ">>=", "...", "->", ":=", "==", "!=", "<=", ">=", "+=", "-=", "*=", "/=", "%=",
    "&=", "|=", "^=", "@=", "**", "//", "<<", ">>",
];

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text, breaks: 0 }
    }

    /// The next line, `None` at the end, an error (what is wrong) where the text cannot be code.
    pub(super) fn next_line(&mut self) -> Result<Option<Line<'a>>, &'static str> {
        loop {
            let after_blanks = self.rest.trim_start_matches([' ', '\t']);
            let indent = self.rest.len() - after_blanks.len();
            let has_tab = self.rest.get(..indent).is_some_and(|blanks| blanks.contains('\t'));
            self.rest = after_blanks;
            if self.rest.is_empty() {
                return Ok(None);
            }
            let number = self.breaks + 1;
            let line = Line { number, ..self.line(indent)? };
            if has_tab && !line.tokens.is_empty() {
                return Err("a line indented by a tab");
            }
            if !line.tokens.is_empty() {
                return Ok(Some(line));
            }
        }
    }

    fn line(&mut self, indent: usize) -> Result<Line<'a>, &'static str> {
        let mut tokens = Vec::new();
        let mut depth = 0_usize;
        while let Some(letter) = self.rest.chars().next() {
            match letter {
                '\n' if depth == 0 => {
                    self.cut(1);
                    break;
                }
                '\r' if !self.rest.starts_with("\r\n") => return Err("a carriage return"),
                ' ' | '\t' | '\n' | '\r' => drop(self.cut(1)),
                '\\' if self.rest.starts_with("\\\n") => drop(self.cut(2)),
                '#' => drop(self.cut(self.rest.find('\n').unwrap_or(self.rest.len()))),
                '"' | '\'' => tokens.push(Token::Text(self.string(letter)?)),
                _ if letter == '_' || letter.is_alphabetic() => {
                    let name = self.cut_while(|letter| letter == '_' || letter.is_alphanumeric());
                    if self.rest.starts_with(['"', '\'']) {
                        return Err("a string with a prefix");
                    }
                    tokens.push(Token::Name(name));
                }
                _ if letter.is_ascii_digit() || self.starts_fraction() => {
                    tokens.push(Token::Number(self.number()?))
                }
                _ => {
                    match letter {
                        '(' | '[' | '{' => depth += 1,
                        ')' | ']' | '}' => {
                            depth = depth.checked_sub(1).ok_or("a bracket that was never opened")?
                        }
                        _ => {}
                    }
                    let long = LONG_SYMBOLS.iter().find(|symbol| self.rest.starts_with(**symbol));
                    let length = long.map_or(letter.len_utf8(), |symbol| symbol.len());
                    tokens.push(Token::Symbol(self.cut(length)));
                }
            }
            if tokens.len() > MAX_LINE_TOKENS {
                return Err("a line that is too long");
            }
        }
        if depth > 0 { Err("a bracket that is never closed") } else { Ok(Line { number: 0, indent, tokens }) }
    }

    fn cut(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(length).unwrap_or((self.rest, ""));
        self.rest = rest;
        self.breaks += taken.bytes().filter(|byte| *byte == b'\n').count();
        taken
    }

    fn cut_while(&mut self, take: impl Fn(char) -> bool) -> &'a str {
        self.cut(self.rest.find(|letter| !take(letter)).unwrap_or(self.rest.len()))
    }

    fn starts_fraction(&self) -> bool {
        self.rest
            .strip_prefix('.')
            .is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_digit()))
    }

    /// `1`, `1.`, `.5`, `1.0000000000000001e-05`, `0x1F`, `2j`. Nothing may follow without a blank or an operator:
    /// readers differ in where such a number ends.
    fn number(&mut self) -> Result<&'a str, &'static str> {
        let text = self.rest;
        if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            let length = hex.find(|letter: char| !letter.is_ascii_hexdigit()).unwrap_or(hex.len());
            return self.ended_number(2 + length);
        }
        let digits = |text: &str| text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
        let mut length = digits(text);
        let rest = |length: usize| text.get(length..).unwrap_or_default();
        if rest(length).starts_with('.') {
            length += 1;
            length += digits(rest(length));
        }
        if rest(length).starts_with(['e', 'E']) {
            length += 1;
            length += usize::from(rest(length).starts_with(['+', '-']));
            length += digits(rest(length));
        }
        length += usize::from(rest(length).starts_with('j'));
        self.ended_number(length)
    }

    fn ended_number(&mut self, length: usize) -> Result<&'a str, &'static str> {
        let number = self.cut(length);
        let goes_on = |letter: char| letter == '.' || letter == '_' || letter.is_alphanumeric();
        if self.rest.starts_with(goes_on) { Err("a number that runs into a name") } else { Ok(number) }
    }

    fn string(&mut self, quote: char) -> Result<&'a str, &'static str> {
        let triple = if quote == '"' { "\"\"\"" } else { "'''" };
        let fence = if self.rest.starts_with(triple) { triple } else { triple.get(..1).unwrap_or(triple) };
        let mut at = fence.len();
        loop {
            let rest = self.rest.get(at..).unwrap_or_default();
            if rest.starts_with(fence) {
                return Ok(self.cut(at + fence.len()));
            }
            match rest.chars().next() {
                Some('\\') => at += 1 + rest.chars().nth(1).map_or(0, char::len_utf8),
                Some('\n') if fence.len() == 1 => return Err("a string that is never closed"),
                Some(letter) => at += letter.len_utf8(),
                None => return Err("a string that is never closed"),
            }
        }
    }
}
