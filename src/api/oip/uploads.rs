//! What comes with a load: a configuration, and files by their paths below the model's directory.

use bytes::Bytes;

use crate::{
    error::{Error, Reason, Result, shown},
    repository::Upload,
};

/// A parameter of a load, as its door has read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) enum LoadParameter {
    Text(String),
    Bytes(Bytes),
    Other,
}

/// The beginning of the names of parameters that are files.
pub(in crate::api) const FILE: &str = "file:";

/// What a load brings; `None`: nothing. `taken` is whether the settings allow it.
///
/// # Errors
/// It brings something that is not allowed, or that is no parameter of a load.
pub(super) fn read(parameters: Vec<(String, LoadParameter)>, taken: bool) -> Result<Option<Upload>> {
    let Some((first, _)) = parameters.first() else { return Ok(None) };
    let is_known = |key: &str| key == "config" || key.starts_with(FILE);
    if let Some((key, _)) = parameters.iter().find(|(key, _)| !is_known(key)) {
        return Err(wrong(key, "a load has 'config' and 'file:PATH', and no others"));
    }
    if !taken {
        let message = format!(
            "parameter '{}': this server loads what is in its repositories, as it is there: put the files there, or set oip.uploads",
            shown(first, 64)
        );
        return Err(Error::new(Reason::Unimplemented, message).with_field("parameters"));
    }
    let (mut config, mut files) = (None, Vec::new());
    for (key, value) in parameters {
        match (key.strip_prefix(FILE), value) {
            (Some(path), LoadParameter::Bytes(content)) => files.push((path.to_owned(), content)),
            (Some(_), _) => return Err(wrong(&key, "a file comes as bytes, over HTTP in base64")),
            (None, LoadParameter::Text(text)) => config = Some(text),
            (None, _) => return Err(wrong(&key, "it is a text: a model's configuration in JSON")),
        }
    }
    Upload::new(config.as_deref(), files).map(Some)
}

fn wrong(key: &str, why: &str) -> Error {
    let message = format!("parameter '{}': {why}", shown(key, 64));
    Error::new(Reason::BadRequest, message).with_field("parameters")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(key: &str, value: &str) -> (String, LoadParameter) {
        (key.to_owned(), LoadParameter::Text(value.to_owned()))
    }

    #[test]
    fn only_what_a_load_may_bring_is_taken_and_only_where_it_is_allowed() {
        assert_eq!(read(vec![], false), Ok(None));
        assert_eq!(read(vec![], true), Ok(None));
        let off = read(vec![text("config", "{}")], false).unwrap_err();
        assert_eq!(off.reason(), Reason::Unimplemented);
        assert!(off.message().contains("oip.uploads"), "{off}");
        assert!(matches!(read(vec![text("config", "{}")], true), Ok(Some(Upload::Config(_)))));
        let file = || ("file:1/model.pt".to_owned(), LoadParameter::Bytes(Bytes::from_static(b"x")));
        let Ok(Some(Upload::Whole(files))) = read(vec![file(), text("config", "{}")], true) else {
            panic!("a model comes")
        };
        assert_eq!(files.len(), 2);
        for (bad, says) in [
            (text("file:1/model.pt", "eA=="), "bytes"),
            (("config".to_owned(), LoadParameter::Bytes(Bytes::new())), "JSON"),
            (("config".to_owned(), LoadParameter::Other), "JSON"),
            (text("files", "x"), "no others"),
            (text("Config", "{}"), "no others"),
        ] {
            let error = read(vec![file(), bad], true).unwrap_err();
            assert_eq!(error.reason(), Reason::BadRequest);
            assert!(error.message().contains(says), "{error}");
        }
    }
}
