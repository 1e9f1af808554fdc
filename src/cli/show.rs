//! What people see: tables that fit the terminal, colours where it has them, one unit for sizes and one zone for times.

use std::time::Duration;

use console::{Color, Style, Term, measure_text_width, truncate_str};

/// What a text says about the thing it names. Without a terminal, or with `NO_COLOR`, tones are not shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Tone {
    #[default]
    Plain,
    Good,
    Warn,
    Bad,
    Quiet,
}

impl Tone {
    /// The text in the colour of the tone.
    pub(super) fn paint(self, text: &str) -> String {
        let style = match self {
            Self::Plain => return text.to_owned(),
            Self::Good => Style::new().fg(Color::Green),
            Self::Warn => Style::new().fg(Color::Yellow),
            Self::Bad => Style::new().fg(Color::Red),
            Self::Quiet => Style::new().dim(),
        };
        style.apply_to(text).to_string()
    }
}

/// One cell of a table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        Self { text: text.into(), tone }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

/// Columns narrower than this are not cut further.
const NARROWEST: usize = 4;

/// The last column wraps at no less than this.
const LAST: usize = 24;

/// Rows in columns.
#[derive(Debug, Default)]
pub(super) struct Table {
    header: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
    /// Columns that a narrow terminal does without, the first one first.
    spare: Vec<&'static str>,
}

impl Table {
    pub(super) fn new<C: Into<Cell>>(header: &[&'static str], rows: Vec<Vec<C>>) -> Self {
        let rows = rows.into_iter().map(|row| row.into_iter().map(Into::into).collect()).collect();
        Self { header: header.to_vec(), rows, spare: Vec::new() }
    }

    /// Names columns that a narrow terminal does without. All are in `--json`, and in what is piped.
    pub(super) fn spare(mut self, columns: &[&'static str]) -> Self {
        self.spare = columns.to_vec();
        self
    }

    /// Prints it: within the width of a terminal, else one line a row with every column.
    pub(super) fn print(self) {
        for line in self.lines(width()) {
            println!("{line}");
        }
    }

    fn lines(mut self, width: Option<usize>) -> Vec<String> {
        let most = width.unwrap_or(usize::MAX);
        if width.is_some() {
            let is_empty = |column: usize| {
                self.rows.iter().all(|row| row.get(column).is_none_or(|cell| cell.text.is_empty()))
            };
            let empty: Vec<usize> =
                (0..self.header.len()).filter(|column| !self.rows.is_empty() && is_empty(*column)).collect();
            empty.into_iter().rev().for_each(|column| self.remove(column));
        }
        let spare = std::mem::take(&mut self.spare);
        for title in spare {
            if self.narrowed(most).is_some() {
                break;
            }
            if let Some(column) = self.header.iter().position(|header| *header == title) {
                self.remove(column);
            }
        }
        let widths = self.narrowed(most).unwrap_or_else(|| self.squeezed(most));
        let header = self.header.iter().map(|title| Cell::toned(*title, Tone::Quiet)).collect();
        std::iter::once(&header).chain(&self.rows).flat_map(|row| lay_out(row, &widths)).collect()
    }

    fn remove(&mut self, column: usize) {
        self.header.remove(column);
        for row in self.rows.iter_mut().filter(|row| row.len() > column) {
            row.remove(column);
        }
    }

    fn natural(&self) -> Vec<usize> {
        let width = |(column, title): (usize, &&str)| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| measure_text_width(&cell.text)).chain([title.len()]).max().unwrap_or(0)
        };
        self.header.iter().enumerate().map(width).collect()
    }

    /// Widths that fit with only the last column wrapped, if that is enough.
    fn narrowed(&self, most: usize) -> Option<Vec<usize>> {
        let mut widths = self.natural();
        let last = widths.pop()?;
        let left = most.checked_sub(widths.iter().map(|width| width + 2).sum())?;
        (left >= last.min(LAST)).then(|| {
            widths.push(last.min(left));
            widths
        })
    }

    /// Widths that fit with columns cut, the widest first.
    fn squeezed(&self, most: usize) -> Vec<usize> {
        let mut widths = self.natural();
        while widths.iter().map(|width| width + 2).sum::<usize>() > most.saturating_add(2) {
            match widths.iter_mut().max() {
                Some(widest) if *widest > NARROWEST => *widest -= 1,
                _ => break,
            }
        }
        widths
    }
}

/// A row: its last cell goes on below itself, others are cut.
fn lay_out(row: &[Cell], widths: &[usize]) -> Vec<String> {
    let Some((last, before)) = row.split_last() else { return vec![String::new()] };
    let mut first = String::new();
    for (cell, width) in before.iter().zip(widths) {
        let text = truncate_str(&cell.text, *width, "…");
        first.push_str(&cell.tone.paint(&text));
        first.push_str(&" ".repeat(width.saturating_sub(measure_text_width(&text)) + 2));
    }
    let room = widths.get(before.len()).copied().unwrap_or(usize::MAX);
    let indent = measure_text_width(&first);
    let line = |(number, part): (usize, String)| {
        let start = if number == 0 { first.clone() } else { " ".repeat(indent) };
        format!("{start}{}", last.tone.paint(&part)).trim_end().to_owned()
    };
    wrapped(&last.text, room).into_iter().enumerate().map(line).collect()
}

/// The text in lines of at most `width`, broken between words where they are short enough.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let mut word = word;
        while let Some(line) = lines.last_mut() {
            let used = measure_text_width(line);
            let gap = usize::from(used > 0);
            if used + gap + measure_text_width(word) <= width {
                line.push_str(if gap > 0 { " " } else { "" });
                line.push_str(word);
                break;
            }
            if used > 0 {
                lines.push(String::new());
                continue;
            }
            let at = word.char_indices().nth(width.max(1)).map_or(word.len(), |(at, _)| at);
            let (start, rest) = word.split_at(at);
            line.push_str(start);
            word = rest;
            if word.is_empty() {
                break;
            }
            lines.push(String::new());
        }
    }
    lines
}

/// Columns of the terminal that reads standard output. `None`: something else reads it, so nothing is cut.
pub(super) fn width() -> Option<usize> {
    let said = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    said.filter(|columns| *columns > 0)
        .or_else(|| Some(usize::from(Term::stdout().size_checked().filter(|_| Term::stdout().is_term())?.1)))
}

/// `1.5 ms`
pub(super) fn show_duration(duration: Option<prost_types::Duration>) -> String {
    let duration: Duration = duration.and_then(|d| d.try_into().ok()).unwrap_or_default();
    match duration.as_micros() {
        0..1000 => format!("{} us", duration.as_micros()),
        1000..1_000_000 => format!("{:.1} ms", duration.as_secs_f64() * 1e3),
        _ => format!("{:.2} s", duration.as_secs_f64()),
    }
}

/// `45.2 MiB`, as in settings and in the console.
pub(super) fn show_bytes(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).to_string()
}

/// `2026-11-30 16:52:00Z`: RFC 3339 to the second, in UTC and saying so.
pub(super) fn show_time(at: &str) -> String {
    match at.split(['.', 'Z']).next().unwrap_or_default() {
        "" => String::new(),
        to_seconds => format!("{}Z", to_seconds.replace('T', " ")),
    }
}

pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

/// `1 file`, `2 files`.
pub(super) fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let digest = "ab".repeat(32);
        let rows = vec![
            vec!["digits".to_owned(), "ready".to_owned(), digest.clone(), String::new()],
            vec![
                "tagger".to_owned(),
                "failed".to_owned(),
                digest,
                "load failed: ".to_owned() + &"word ".repeat(20),
            ],
        ];
        Table::new(&["MODEL", "STATE", "SHA256", "PROBLEM"], rows).spare(&["SHA256"])
    }

    #[test]
    fn a_table_fits_its_terminal_and_loses_no_column_in_a_pipe() {
        for width in [20, 40, 60, 80, 120] {
            let lines = table().lines(Some(width));
            assert!(lines.iter().all(|line| measure_text_width(line) <= width), "{width}: {lines:#?}");
            assert!(lines[1].starts_with("digits"), "{lines:#?}");
        }
        let narrow = table().lines(Some(80));
        assert!(!narrow[0].contains("SHA256") && narrow.len() > 3, "the problem wraps: {narrow:#?}");
        assert_eq!(
            narrow.iter().map(|line| line.matches("word").count()).sum::<usize>(),
            20,
            "nothing is lost"
        );
        assert!(table().lines(Some(200))[0].contains("SHA256"));
        let piped = table().lines(None);
        assert_eq!((piped.len(), piped[2].matches("word").count()), (3, 20), "a line a row");
    }

    #[test]
    fn a_terminal_shows_no_empty_column() {
        let rows = vec![vec!["a", "", "b"], vec!["c", "", "d"]];
        let lines = |width| Table::new(&["ONE", "TWO", "THREE"], rows.clone()).lines(width);
        assert_eq!(lines(Some(80)), ["ONE  THREE", "a    b", "c    d"]);
        assert_eq!(lines(None)[0], "ONE  TWO  THREE");
        assert_eq!(Table::new::<&str>(&["ONE", "TWO"], Vec::new()).lines(Some(80)), ["ONE  TWO"]);
    }

    #[test]
    fn words_that_are_too_long_are_broken() {
        assert_eq!(wrapped("one two", 80), ["one two"]);
        assert_eq!(wrapped("one two", 5), ["one", "two"]);
        assert_eq!(wrapped("abcdefg hi", 3), ["abc", "def", "g", "hi"]);
        assert_eq!(wrapped("äöü", 2), ["äö", "ü"]);
        assert_eq!(wrapped("", 5), [""]);
    }

    #[test]
    fn sizes_and_times_have_one_form() {
        assert_eq!(show_bytes(1536), "1.5 KiB");
        assert_eq!(show_bytes(45 << 20), "45.0 MiB");
        assert_eq!(show_time("2023-11-14T22:13:20.123Z"), "2023-11-14 22:13:20Z");
        assert_eq!(show_time("2023-11-14T22:13:20Z"), "2023-11-14 22:13:20Z");
        assert_eq!(show_time(""), "");
    }
}
