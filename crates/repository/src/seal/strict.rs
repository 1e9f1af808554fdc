//! JSON that means one thing only, and its one canonical form.
//!
//! A signature is over what was understood, so two readers must not understand two things: a key that stands twice is
//! refused, and so are numbers that not every reader keeps exactly.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Value};

/// The largest whole number that every reader of JSON keeps exactly.
const LARGEST: u64 = (1 << 53) - 1;

/// Reads a document.
///
/// # Errors
/// Not JSON, a key twice in an object, or a number that is not whole or over 2^53 - 1.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, serde_json::Error> {
    serde_json::from_slice::<Strict>(bytes).map(|strict| strict.0)
}

/// The canonical form of RFC 8785, for values that [`parse`] accepts.
pub(super) fn canonical(value: &Value) -> Vec<u8> {
    let mut text = String::new();
    write(value, &mut text);
    text.into_bytes()
}

fn write(value: &Value, text: &mut String) {
    match value {
        Value::Array(items) => {
            text.push('[');
            for (i, item) in items.iter().enumerate() {
                text.push_str(if i > 0 { "," } else { "" });
                write(item, text);
            }
            text.push(']');
        }
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            text.push('{');
            for (i, (key, item)) in fields.into_iter().enumerate() {
                text.push_str(if i > 0 { "," } else { "" });
                write(&Value::from(key.as_str()), text);
                text.push(':');
                write(item, text);
            }
            text.push('}');
        }
        // serde_json escapes what RFC 8785 does, in the same way, and whole numbers have one form.
        plain => text.push_str(&plain.to_string()),
    }
}

struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        if value > LARGEST { Err(too_fine()) } else { Ok(value.into()) }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        if value.unsigned_abs() > LARGEST { Err(too_fine()) } else { Ok(value.into()) }
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Value, E> {
        Err(too_fine())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E: Error>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(list.into())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Strict(item))) = fields.next_entry::<String, _>()? {
            if object.contains_key(&key) {
                return Err(A::Error::custom(format_args!(
                    "the key {} stands twice",
                    super::violation::quoted(&key)
                )));
            }
            object.insert(key, item);
        }
        Ok(object.into())
    }
}

fn too_fine<E: Error>() -> E {
    E::custom("a number is not whole, or over 2^53 - 1: write it as text")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_canonical_form_is_that_of_rfc_8785() {
        let text = r#" { "b" : [ 1, -2, true, null ], "a" : { } , "\u20ac" : "\u00e9\/\u000f\n\"\\", "\ud83d\ude00": 0, "\ufb33": "" } "#;
        let canonical = String::from_utf8(canonical(&parse(text.as_bytes()).unwrap())).unwrap();
        // A pair of surrogates sorts before U+FB33, though its code point is larger.
        let expected =
            "{\"a\":{},\"b\":[1,-2,true,null],\"€\":\"é/\\u000f\\n\\\"\\\\\",\"😀\":0,\"\u{fb33}\":\"\"}";
        assert_eq!(canonical, expected);
    }

    #[test]
    fn what_readers_may_take_differently_is_refused() {
        for text in [
            r#"{"a": 1, "a": 1}"#,
            r#"{"x": {"a": 1, "\u0061": 2}}"#,
            "1.5",
            "1.0",
            "1e3",
            "-0",
            "9007199254740992",
            "-9007199254740992",
            "18446744073709551616",
            r#""\ud800""#,
            "{} {}",
            "",
            "\u{feff}{}",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(parse("[".repeat(100_000).as_bytes()).is_err(), "deep nesting does not exhaust the stack");
        assert!(parse(b"[9007199254740991, -9007199254740991]").is_ok());
    }

    fn value() -> impl Strategy<Value = Value> {
        let plain = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (-(LARGEST as i64)..=LARGEST as i64).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        plain.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..4)
                    .prop_map(|fields| Value::Object(fields.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_form_says_all_and_does_not_depend_on_how_it_was_written(value in value()) {
            let form = canonical(&value);
            prop_assert_eq!(&parse(&form).unwrap(), &value);
            let written = serde_json::to_vec_pretty(&value).unwrap();
            prop_assert_eq!(canonical(&parse(&written).unwrap()), form);
        }
    }
}
