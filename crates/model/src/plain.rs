//! The words of serde, TOML and the standard library, as people say it. Every message that passes one of their errors on goes through
//! here, so that no caller reads `expected usize` or `invalid digit found in string`.

/// What a group of named values is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// In TOML, and so in settings.
    Toml,
    /// In JSON.
    Json,
}

impl Form {
    const fn group(self) -> &'static str {
        match self {
            Self::Toml => "table",
            Self::Json => "object",
        }
    }
}

/// An error's text. What a user wrote into it stays as it was, except where it has the very words of such an error.
pub fn error(text: &str, form: Form) -> String {
    let text = std_words(text);
    // What a caller wrote stands before the last one.
    let Some((before, wanted)) = text.rsplit_once(", expected ") else { return text };
    let (wanted, place) = match wanted.rfind(" at line ") {
        Some(at) => wanted.split_at(at),
        None => (wanted, ""),
    };
    let before = ["invalid type: ", "invalid value: "]
        .iter()
        .find_map(|kind| {
            let (start, got) = before.split_once(kind)?;
            Some(format!("{start}{kind}{}", found(got, form)))
        })
        .unwrap_or_else(|| before.to_owned());
    format!("{before}, expected {}{place}", expected(wanted, form))
}

/// What would have been right.
pub fn expected(wanted: &str, form: Form) -> String {
    let group = form.group();
    let plain = match wanted {
        "a boolean" => "true or false",
        "a string" | "path string" | "string" | "str" | "a borrowed string" => "a text in quotes",
        "socket address" => "an IP address and a port such as 0.0.0.0:50051",
        "u8" | "u16" | "u32" | "u64" | "u128" | "usize" => "a whole number, 0 or more",
        "i64" if form == Form::Json => "a whole number (int64)",
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "parsable string" => "a size such as '64MiB'",
        "a sequence" => return "a list".to_owned(),
        "a map" | "an object" => return format!("{} {group}", article(group)),
        "unit" | "Unit" => "nothing",
        other if other.starts_with("struct ") => return format!("{} {group}", article(group)),
        other if other.starts_with("a tuple of size ") || other.starts_with("an array of length ") => {
            let count = other.rsplit(' ').next().unwrap_or_default();
            return format!("a list of {count}");
        }
        other => other,
    };
    plain.to_owned()
}

/// What stands there instead.
pub fn found(got: &str, form: Form) -> String {
    for (theirs, ours) in [
        ("boolean ", ""),
        ("integer ", "the number "),
        ("floating point ", "the number "),
        ("string ", "the text "),
        ("character ", "the letter "),
    ] {
        if let Some(value) = got.strip_prefix(theirs) {
            return format!("{ours}{value}");
        }
    }
    match got {
        "sequence" => "list".to_owned(),
        "map" => form.group().to_owned(),
        "unit value" | "Option value" => "nothing".to_owned(),
        other => other.to_owned(),
    }
}

fn article(word: &str) -> &'static str {
    if word.starts_with('o') { "an" } else { "a" }
}

/// What the standard library says of texts that it cannot read.
pub fn std_words(text: &str) -> String {
    const WORDS: [(&str, &str); 10] = [
        ("invalid digit found in string", "it is not a whole number"),
        ("cannot parse integer from empty string", "a whole number is missing"),
        ("number too large to fit in target type", "the number is too large"),
        ("number too small to fit in target type", "the number is too small"),
        ("number would be zero for non-zero type", "it must not be 0"),
        ("invalid float literal", "it is not a number"),
        ("cannot parse float from empty string", "a number is missing"),
        ("provided string was not `true` or `false`", "write true or false"),
        ("invalid socket address syntax", "write an IP address and a port such as 0.0.0.0:50051"),
        ("invalid IP address syntax", "write an IP address such as 127.0.0.1"),
    ];
    WORDS.iter().fold(text.to_owned(), |text, (theirs, ours)| text.replace(theirs, ours))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "only its errors are of interest")]
    struct All {
        unsigned: Option<usize>,
        signed: Option<i32>,
        float: Option<f64>,
        text: Option<String>,
        truth: Option<bool>,
        list: Option<Vec<u8>>,
        pair: Option<(u8, u8)>,
        table: Option<BTreeMap<String, u8>>,
        inner: Option<Box<All>>,
        path: Option<std::path::PathBuf>,
    }

    /// Names of Rust's types, and the words of its libraries.
    const FOREIGN: [&str; 16] = [
        "usize", "u8", "u32", "i32", "i64", "f64", "struct", "sequence", " map", "boolean", "integer ",
        "floating", "string", "tuple", "unit", "Option",
    ];

    #[test]
    fn no_error_of_a_wrong_value_has_rusts_words() {
        let fields =
            ["unsigned", "signed", "float", "text", "truth", "list", "pair", "table", "inner", "path"];
        let values = ["-1", "1.5", "true", "'x'", "[]", "[1]", "{}", "300", "[[1]]", "['x', 'y']"];
        let mut seen = 0;
        for (field, value) in fields.iter().flat_map(|field| values.map(|value| (field, value))) {
            let Err(wrong) = toml::from_str::<All>(&format!("{field} = {value}")) else { continue };
            let said = error(wrong.message(), Form::Toml);
            assert!(FOREIGN.iter().all(|word| !said.contains(word)), "{field} = {value}: {said}");
            let json = format!("{{\"{field}\": {}}}", value.replace('\'', "\""));
            let Err(wrong) = serde_json::from_str::<All>(&json) else { continue };
            let said = error(&wrong.to_string(), Form::Json);
            assert!(FOREIGN.iter().all(|word| !said.contains(word)), "{json}: {said}");
            assert!(said.contains("at line 1"), "{said}");
            seen += 1;
        }
        assert!(seen > 50, "{seen}");
    }

    #[test]
    fn no_error_of_a_text_has_the_standard_librarys_words() {
        let errors = [
            "x".parse::<u8>().unwrap_err().to_string(),
            "".parse::<u8>().unwrap_err().to_string(),
            "300".parse::<u8>().unwrap_err().to_string(),
            "-300".parse::<i8>().unwrap_err().to_string(),
            "x".parse::<f64>().unwrap_err().to_string(),
            "".parse::<f64>().unwrap_err().to_string(),
            "x".parse::<bool>().unwrap_err().to_string(),
            "x".parse::<std::net::SocketAddr>().unwrap_err().to_string(),
            "0".parse::<std::num::NonZeroU8>().unwrap_err().to_string(),
        ];
        for text in errors {
            let said = std_words(&text);
            assert_ne!(said, text);
            assert!(
                !said.contains("string") && !said.contains("type") && !said.contains("literal"),
                "{said}"
            );
        }
    }

    #[test]
    fn what_a_user_wrote_stays() {
        let text = "unknown field `sequence`, expected one of `map`, `usize`";
        assert_eq!(error(text, Form::Toml), text);
        let text = r#"invalid type: string "a map", expected usize at line 3 column 1"#;
        let said = r#"invalid type: the text "a map", expected a whole number, 0 or more at line 3 column 1"#;
        assert_eq!(error(text, Form::Json), said);
        assert_eq!(error("nothing of the kind", Form::Json), "nothing of the kind");
    }
}
