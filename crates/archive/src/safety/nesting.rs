//! How deep code nests. libtorch's compiler calls itself for each level of an expression, a block or a type, so deep
//! enough code ends the process; nothing that a person or torch wrote comes near these bounds.

use super::super::lexer::Token;

/// Deepest expression that is taken: brackets, and operators in a row, that stand in each other.
const MAX_EXPRESSION: usize = 400;
/// Most blocks in each other; every `elif` is one within the one before it, as libtorch reads it.
const MAX_BLOCKS: usize = 100;

/// Follows the lines of one file.
#[derive(Debug, Default)]
pub(super) struct Nesting {
    /// Indentation of the open blocks, and the `elif` branches in each.
    blocks: Vec<(usize, usize)>,
    /// Sum of the branches.
    branches: usize,
}

impl Nesting {
    /// Takes in a logical line; `true` where it is too deep.
    pub(super) fn line(&mut self, indent: usize, tokens: &[Token<'_>]) -> bool {
        while let Some(&(open, branches)) = self.blocks.last()
            && open > indent
        {
            self.branches -= branches;
            self.blocks.pop();
        }
        match self.blocks.last_mut() {
            Some((open, branches)) if *open == indent => match tokens.first() {
                Some(Token::Name("elif")) => {
                    *branches += 1;
                    self.branches += 1;
                }
                Some(Token::Name("else")) => {}
                _ => {
                    self.branches -= *branches;
                    *branches = 0;
                }
            },
            _ => self.blocks.push((indent, 0)),
        }
        self.blocks.len() + self.branches > MAX_BLOCKS || expression_depth(tokens) > MAX_EXPRESSION
    }
}

/// A bound of the depth of the tree that these tokens are parsed into: in each open bracket, the operators since the
/// last comma. One pass, since a line may be long.
fn expression_depth(tokens: &[Token<'_>]) -> usize {
    let mut outside: Vec<usize> = Vec::new();
    let (mut sum, mut here, mut deepest) = (0, 0, 0);
    for token in tokens {
        match token {
            Token::Symbol("(" | "[" | "{") => {
                sum += here + 1;
                outside.push(here + 1);
                here = 0;
            }
            Token::Symbol(")" | "]" | "}") => {
                here = outside.pop().unwrap_or(0);
                sum -= here;
            }
            Token::Symbol(",") => here = 0,
            Token::Symbol(_) => here += 1,
            Token::Name("not" | "and" | "or" | "if" | "else" | "in" | "is" | "lambda" | "await") => here += 1,
            _ => {}
        }
        deepest = deepest.max(sum + here);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use super::super::super::lexer::Lexer;
    use super::*;

    fn depth(code: &str) -> usize {
        expression_depth(&Lexer::new(code).next_line().unwrap().unwrap().tokens)
    }

    #[test]
    fn what_stands_in_each_other_counts_and_what_stands_beside_does_not() {
        assert_eq!(depth("x = 1"), 1);
        assert_eq!(depth("f(1, 2, 3, 4, 5)"), 1);
        assert_eq!(depth("((((1))))"), 4);
        assert_eq!(depth("a + b + c + d"), 3);
        assert_eq!(depth("[a + b, c + d, -e]"), 2);
        assert_eq!(depth("x.f().f().f()"), 6);
        assert_eq!(depth("a + (b + (c + d))"), 5);
        assert_eq!(depth("not not not a"), 3);
        assert_eq!(depth(&format!("[{}]", "1, ".repeat(100_000))), 1);
    }

    fn too_deep(code: &str) -> bool {
        let (mut lexer, mut nesting, mut found) = (Lexer::new(code), Nesting::default(), false);
        while let Ok(Some(line)) = lexer.next_line() {
            found |= nesting.line(line.indent, &line.tokens);
        }
        found
    }

    #[test]
    fn blocks_and_branches_are_counted_where_they_are_open() {
        let ifs = |n: usize| (0..n).map(|i| format!("{}if x:\n", " ".repeat(i))).collect::<String>();
        assert!(!too_deep(&ifs(90)) && too_deep(&ifs(200)));
        let branches = |n: usize| format!("if x:\n  y\n{}", "elif x:\n  y\n".repeat(n));
        assert!(!too_deep(&branches(90)) && too_deep(&branches(200)));
        assert!(!too_deep(&format!("{}z\n", branches(60)).repeat(50)), "one after the other");
    }
}
