//! Bodies in JSON. serde reads structs from lists too, by position: here they are objects alone.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor, value::MapAccessDeserializer},
};

use crate::{
    error::{Error, Reason, Result, shown},
    plain,
};

/// Reads a body: an object.
///
/// # Errors
/// It is something else: one line, with a position.
pub(in crate::api) fn read<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T> {
    // Some editors and programs of Windows write a byte-order mark in front.
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    serde_json::from_slice(text).map(|Object(read)| read).map_err(|error| {
        let why = error.to_string();
        let why = shown(&plain::error(&why, plain::Form::Json), 300).into_owned();
        Error::new(Reason::BadRequest, format!("the JSON of the request cannot be read: {why}"))
    })
}

/// What stands in an object, and only there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Object<T>(pub(super) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Of(PhantomData)).map(Self)
    }
}

struct Of<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Of<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(default)]
    struct Body {
        one: Option<u64>,
        list: Vec<Object<Inner>>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Inner {
        two: i64,
    }

    #[test]
    fn only_objects_are_read_and_what_is_wrong_is_said_without_rusts_names() {
        let body = Body { one: Some(1), list: vec![Object(Inner { two: -2 })] };
        assert_eq!(read::<Body>(br#"{"one": 1, "list": [{"two": -2}], "more": []}"#).unwrap(), body);
        assert_eq!(read::<Body>(b"{}").unwrap(), Body::default());
        assert_eq!(read::<Body>("\u{feff}{}".as_bytes()).unwrap(), Body::default());
        for (text, says) in [
            ("[]", "invalid type: list, expected an object at line 1"),
            ("[1, []]", "invalid type: list, expected an object at line 1"),
            ("7", "expected an object"),
            ("null", "invalid type: null, expected an object"),
            (r#"{"list": [[-2]]}"#, "invalid type: list, expected an object at line 1"),
            (r#"{"list": {}}"#, "invalid type: object, expected a list"),
            (r#"{"list": [{"two": 1.5}]}"#, "expected a whole number (int64)"),
            (r#"{"one": -1}"#, "expected a whole number, 0 or more"),
        ] {
            let error = read::<Body>(text.as_bytes()).unwrap_err();
            assert!(error.message().contains(says), "{text}: {error}");
        }
    }
}
