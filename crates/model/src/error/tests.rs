use super::*;

#[test]
fn messages_are_one_short_line() {
    let error =
        Error::new(Reason::ForwardFailed, format!("é{}\nException raised from x.cpp", "é".repeat(5000)));
    assert!(error.message().len() <= MAX_MESSAGE_BYTES, "{}", error.message().len());
    assert!(error.message().ends_with("..."));
    assert_eq!(Error::new(Reason::Internal, "first\nsecond").message(), "first");
}

#[test]
fn what_is_shown_of_a_long_text_ends_at_a_character() {
    let parts = (shown("éàü", 2), shown("éà", 2), shown("", 2));
    assert_eq!(parts, ("éà".into(), "éà".into(), "".into()));
}

#[test]
fn what_a_terminal_would_obey_or_nobody_would_see_is_escaped() {
    for (text, seen) in [
        ("a\nb\r\tc\0", r"a\nb\r\tc\0"),
        ("\u{1b}[2J", r"\u{1b}[2J"),
        ("\u{7f}\u{9b}", r"\u{7f}\u{9b}"),
        ("abc\u{202e}fed\u{2066}\u{2069}", r"abc\u{202e}fed\u{2066}\u{2069}"),
        (
            "\u{200b}\u{200d}\u{feff}\u{ad}\u{fe0f}\u{e0041}",
            r"\u{200b}\u{200d}\u{feff}\u{ad}\u{fe0f}\u{e0041}",
        ),
        ("\u{2028}\u{a0}\u{3164}", r"\u{2028}\u{a0}\u{3164}"),
    ] {
        assert_eq!(shown(text, 100), seen);
    }
    for as_it_is in ["it's \"x\" \\ `y`", "größe 模型 e\u{301} हिन्दी 🙂"] {
        assert!(matches!(shown(as_it_is, 100), Cow::Borrowed(text) if text == as_it_is));
    }
    assert_eq!(shown("ab\ncd", 3), "ab", "half an escape says nothing");
    assert_eq!(shown("ab\ncd", 4), r"ab\n");
    let twice = shown("a\nb", 10).into_owned();
    assert_eq!(shown(&twice, 10), twice);
}

#[test]
fn no_message_has_what_is_not_seen() {
    let error = Error::new(Reason::BadRequest, "bad \u{1b}[1m\u{202e}name");
    assert_eq!(error.message(), r"bad \u{1b}[1m\u{202e}name");
    assert_eq!(error.within("step\t1").message(), r"step\t1: bad \u{1b}[1m\u{202e}name");
    let long = Error::new(Reason::BadRequest, "\u{202e}".repeat(2000));
    assert!(long.message().len() <= MAX_MESSAGE_BYTES && long.message().ends_with("..."));
}

#[test]
fn callers_are_shown_no_directories_of_this_machine() {
    for (text, told) in [
        (
            "verify failed: sha256 of /srv/models/m/3/model.pt is 12, 34 was expected",
            "verify failed: sha256 of m/3/model.pt is 12, 34 was expected",
        ),
        (
            "verify failed: /srv/models/m/3/model.pt: not an archive",
            "verify failed: m/3/model.pt: not an archive",
        ),
        ("'/srv/models/vad.pt' is no archive", "'vad.pt' is no archive"),
        ("../../srv/m/1/model.pt: truncated", "m/1/model.pt: truncated"),
        ("sha256 of models/m/3/model.pt is 12", "sha256 of m/3/model.pt is 12"),
        ("(models/m/model.toml) './x/vad.pt'", "(m/model.toml) 'vad.pt'"),
        ("/srv/models/m/model.toml: line 3", "m/model.toml: line 3"),
        ("cannot read /srv/models/: gone", "cannot read models/: gone"),
        (
            "File \"/home/me/train.py\", line 3 (most recent call last)",
            "File \"train.py\", line 3 (most recent call last)",
        ),
        ("a=/x/y,/z/1/w.pt;[/a]", "a=y,z/1/w.pt;[a]"),
        (
            "the cache cannot take x: /var/cache/t/m/12/weights.pth: full",
            "the cache cannot take x: m/12/weights.pth: full",
        ),
    ] {
        let error = Error::new(Reason::LoadFailed, text);
        assert_eq!((error.message(), error.for_log()), (told, text));
        assert_eq!(error.clone().within("step 1").for_log(), format!("step 1: {text}"));
    }
    for same in ["1/2 of s3://bucket/a/b and https://h:1/x", "m/3/model.pt is not there", "a / b", "/"] {
        let error = Error::new(Reason::LoadFailed, same);
        assert_eq!((error.message(), error.for_log()), (same, same));
    }
    let route = Error::new(Reason::Unimplemented, "no route '/v2/x/y'");
    assert_eq!(route.message(), "no route '/v2/x/y'", "what a caller asked for");
}

#[test]
fn reasons_have_unique_names() {
    let names: std::collections::HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
    assert_eq!(names.len(), Reason::ALL.len());
}

#[test]
fn an_error_is_small_enough_to_return_by_value() {
    assert!(size_of::<Error>() <= 16);
}
