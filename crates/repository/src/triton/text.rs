//! From the text format as people write it to what `prost-reflect` reads of it.
//!
//! The format lets a list of messages follow its field's name without a colon, and Triton's own examples are written that way
//! (`input [ { ... } ]`); prost-reflect 0.16 wants one. It also parses by recursion, and `[any/of.Type] { ... }` nests as deep
//! as one likes, so depth is bounded here.

use super::ConfigError;

/// Deeper than any field of a model's configuration lies.
const MOST_DEPTH: usize = 16;

/// A text that can be parsed, and where it differs from the one that it was made of.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Readable {
    /// The text, with colons.
    pub(super) text: String,
    /// Where in it colons were put, ascending.
    colons: Vec<usize>,
}

/// What the next character belongs to.
#[derive(Clone, Copy)]
enum State {
    Plain,
    Comment,
    Quoted { by: char, escaped: bool },
}

impl Readable {
    /// Puts the missing colons into `text`.
    ///
    /// # Errors
    /// It nests too deep.
    pub(super) fn new(text: &str) -> Result<Self, ConfigError> {
        let mut readable = Self { text: String::with_capacity(text.len() + 64), colons: Vec::new() };
        let (mut state, mut last, mut depth) = (State::Plain, ' ', 0_usize);
        for (at, c) in text.char_indices() {
            match state {
                State::Plain => {
                    match c {
                        '#' => state = State::Comment,
                        '"' | '\'' => state = State::Quoted { by: c, escaped: false },
                        '{' | '<' => depth += 1,
                        '}' | '>' => depth = depth.saturating_sub(1),
                        // After a name, not after a colon, a comma or another bracket.
                        '[' if last.is_ascii_alphanumeric() || last == '_' => {
                            readable.colons.push(readable.text.len());
                            readable.text.push(':');
                        }
                        _ => {}
                    }
                    if depth > MOST_DEPTH {
                        let (line, column) = place(text, at);
                        let problem = format!("messages nest more than {MOST_DEPTH} deep");
                        return Err(ConfigError::Syntax { line, column, problem });
                    }
                    if !c.is_whitespace() && c != '#' {
                        last = c;
                    }
                }
                State::Comment if c == '\n' => state = State::Plain,
                State::Comment => {}
                // One that does not end on its line is an error for the parser to tell.
                State::Quoted { escaped: false, .. } if c == '\n' => state = State::Plain,
                State::Quoted { by, escaped: false } if c == by => state = State::Plain,
                State::Quoted { by, escaped } => {
                    state = State::Quoted { by, escaped: !escaped && c == '\\' };
                }
            }
            readable.text.push(c);
        }
        Ok(readable)
    }

    /// Line and column, from 1, in the `original` text, of the byte at `offset` of what is parsed.
    pub(super) fn place(&self, original: &str, offset: usize) -> (usize, usize) {
        place(original, offset - self.colons.partition_point(|colon| *colon < offset))
    }
}

fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_after_a_name_get_a_colon_and_nothing_else_does() {
        for (written, read) in [
            ("input [ {} ]", "input :[ {} ]"),
            ("input[{}]\noutput\n[{}]", "input:[{}]\noutput\n:[{}]"),
            ("input # why [not]\n [ {} ]", "input # why [not]\n :[ {} ]"),
            ("dims: [ 1 ]", "dims: [ 1 ]"),
            ("name: \"a [b]\" 'c [\\' d ['", "name: \"a [b]\" 'c [\\' d ['"),
        ] {
            assert_eq!(Readable::new(written).unwrap().text, read);
        }
    }

    #[test]
    fn places_are_those_of_the_original() {
        let original = "input [ {} ]\noutput [ {} ] é x";
        let readable = Readable::new(original).unwrap();
        let at = |what: &str| readable.place(original, readable.text.find(what).unwrap());
        assert_eq!((at("input"), at(":["), at("[ {} ]")), ((1, 1), (1, 7), (1, 7)));
        assert_eq!((at("output"), at("x")), ((2, 1), (2, 17)));
        assert_eq!(readable.place(original, readable.text.len()), (2, 18));
    }

    #[test]
    fn depth_is_bounded_outside_of_strings_and_comments() {
        let nested = |depth: usize| format!("{}{}", "a {".repeat(depth), "}".repeat(depth));
        assert!(Readable::new(&nested(MOST_DEPTH)).is_ok());
        let error = Readable::new(&nested(MOST_DEPTH + 1)).unwrap_err().to_string();
        assert_eq!(error, "config.pbtxt:1:51: messages nest more than 16 deep");
        let braces = "{".repeat(1000);
        assert!(Readable::new(&format!("name: '{braces}' # {braces}\n{}", nested(1))).is_ok());
        assert!(Readable::new(&"[a/b.C]{".repeat(10_000)).is_err());
    }
}
