//! What to do about findings.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Danger, Finding, Severity};

/// Most findings that one message names.
const NAMED: usize = 4;
/// Most patterns, and longest one.
const MAX_PATTERNS: usize = 256;
const MAX_PATTERN_BYTES: usize = 256;

/// What happens to a version with findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// It is refused.
    #[default]
    Strict,
    /// It is logged and served.
    Warn,
    /// Nobody looks.
    Off,
}

/// `[safety]`
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Safety {
    /// `strict`, `warn` or `off`.
    pub policy: Policy,
    /// What is fine all the same, by the name that a finding has; a `*` at the end stands for anything.
    pub allow: Vec<String>,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Serve,
    /// Log the line, and serve.
    Warn(String),
    /// Refuse with the line.
    Refuse(String),
}

impl Safety {
    /// The first pattern that is none.
    pub fn problem(&self) -> Option<(String, &'static str)> {
        if self.allow.len() > MAX_PATTERNS {
            return Some((format!("{} names", self.allow.len()), "up to 256 names"));
        }
        let allowed =
            "names such as ns::op, ns::* or __torch__.torch.classes.ns.*; to allow all, set safety.policy";
        self.allow.iter().find(|pattern| !is_pattern(pattern)).map(|pattern| (pattern.clone(), allowed))
    }

    /// Whether the setting names it.
    pub fn allows(&self, finding: &Finding) -> bool {
        self.allow.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => finding.what.starts_with(start),
            None => *pattern == finding.what,
        })
    }

    /// What is to be done about an archive with these findings.
    pub fn judge(&self, findings: &[Finding]) -> Verdict {
        let bad = |finding: &&Finding| finding.severity != Severity::Note && !self.allows(finding);
        let rest: Vec<_> = findings.iter().filter(bad).collect();
        match self.policy {
            _ if rest.is_empty() => Verdict::Serve,
            Policy::Off => Verdict::Serve,
            Policy::Warn => Verdict::Warn(format!("the model is not known to be safe: {}", Named(&rest))),
            Policy::Strict => {
                // What is allowed must be there too.
                let foreign = rest.iter().all(|finding| finding.danger == Danger::Namespace);
                let advice = if foreign {
                    "export the model without it, or compute it from ordinary operators"
                } else {
                    "if you trust it, put the names into safety.allow"
                };
                Verdict::Refuse(format!("the model is not known to be safe: {}; {advice}", Named(&rest)))
            }
        }
    }

    /// A line about what is served though it can end the process.
    pub fn note(&self, findings: &[Finding]) -> Option<String> {
        let noted = |finding: &&Finding| finding.severity == Severity::Note && !self.allows(finding);
        let noted: Vec<_> = findings.iter().filter(noted).map(|finding| finding.what.as_str()).collect();
        let named = noted.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
        let more = match noted.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let says = "some values of a request can end the server";
        (self.policy != Policy::Off && !noted.is_empty()).then(|| {
            format!("{says}: the model calls {named}{more} (docs/operators.md says which; safety.allow ends this warning)")
        })
    }
}

/// Whether it names something: a namespace or a folder at least, with a `*` only at its end.
fn is_pattern(pattern: &str) -> bool {
    let start = pattern.strip_suffix('*').unwrap_or(pattern);
    let named = start.len() > 2 && (start.contains("::") || start.contains('.'));
    named
        && pattern.len() <= MAX_PATTERN_BYTES
        && !start.contains(|c: char| c == '*' || c.is_control() || c == ' ')
}

/// The first few of a list, and how many more there are.
struct Named<'f>(&'f [&'f Finding]);

impl fmt::Display for Named<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.0.iter().take(NAMED).enumerate() {
            write!(f, "{}{finding}", if index > 0 { "; " } else { "" })?;
        }
        match self.0.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, "; and {more} more (torchlane inspect names all)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Danger;
    use super::*;

    fn finding(what: &str) -> Finding {
        let danger = Danger::Files;
        let place = "code/__torch__.py:3".to_owned();
        Finding { what: what.to_owned(), place, count: 1, severity: danger.severity(), danger }
    }

    fn safety(policy: Policy, allow: &[&str]) -> Safety {
        Safety { policy, allow: allow.iter().map(|&name| name.to_owned()).collect() }
    }

    #[test]
    fn the_policy_decides_and_the_message_names_the_first_few() {
        let findings: Vec<_> = (0..6).map(|i| finding(&format!("aten::x{i}"))).collect();
        let Verdict::Refuse(line) = safety(Policy::Strict, &[]).judge(&findings) else { panic!() };
        assert!(
            line.starts_with("the model is not known to be safe: aten::x0 (code/__torch__.py:3) reads, maps"),
            "{line}"
        );
        assert!(
            line.contains("; and 2 more (torchlane inspect") && line.ends_with("into safety.allow"),
            "{line}"
        );
        assert!(matches!(safety(Policy::Warn, &[]).judge(&findings), Verdict::Warn(_)));
        assert_eq!(safety(Policy::Off, &[]).judge(&findings), Verdict::Serve);
        assert_eq!(safety(Policy::Strict, &[]).judge(&[]), Verdict::Serve);
    }

    #[test]
    fn a_message_fits_on_the_wire_whatever_the_names() {
        let findings: Vec<_> = (0..9).map(|_| finding(&"x".repeat(80))).collect();
        let Verdict::Refuse(line) = Safety::default().judge(&findings) else { panic!() };
        assert!(line.len() + "verify failed: ".len() <= 1024, "{}", line.len());
    }

    #[test]
    fn names_and_patterns_let_through_what_they_say() {
        let classes = "__torch__.torch.classes.quantized.*";
        let found = [finding("__torch__.torch.classes.quantized.Linear"), finding("aten::as_strided")];
        assert_eq!(safety(Policy::Strict, &[classes, "aten::as_strided"]).judge(&found), Verdict::Serve);
        assert!(matches!(safety(Policy::Strict, &[classes]).judge(&found), Verdict::Refuse(_)));
        assert!(!safety(Policy::Strict, &["aten::as"]).allows(&found[1]));
    }

    #[test]
    fn a_pattern_must_name_something() {
        for good in
            ["aten::as_strided", "quantized::*", classes(), "torch._utils._rebuild_qtensor", "prim::id"]
        {
            assert_eq!(safety(Policy::Strict, &[good]).problem(), None, "{good}");
        }
        for bad in ["", "*", "::*", "aten", "aten*", "a*::b", "aten::x y", "aten::\n"] {
            assert!(safety(Policy::Strict, &[bad]).problem().is_some(), "{bad}");
        }
    }

    fn classes() -> &'static str {
        "__torch__.torch.classes.quantized.*"
    }
}
